"""Two processes that are resumed within an epoch end as if they had not stopped, an epoch later too."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.distributed.test_two_ranks import digit_data, free_port, run_together
from tests.helpers import warm_commands
from tests.helpers.fairseq_models import TINY_TRANSFORMER_FLAGS
from tests.integration.test_resume_epochs import differences, end

# An epoch has ten updates. Update 14 is within a window of three, in the second epoch. The third follows.
CUT, UPDATES = "checkpoint_2_14.pt", 22


@pytest.mark.parametrize(
    "flags",
    [
        ("--criterion", "imitkd", "--rollout-replay", "40", "--rollout-replay-share", "0.5"),
        ("--criterion", "imitkd_full", "--teacher-selection", "reinforced", "--rollout-pool-updates", "3"),
        ("--criterion", "selective_kd", "--selection-queue", "300"),
    ],
    ids=["replay", "reinforced-pool", "difficulties"],
)
def test_each_process_continues_with_its_own_state(flags: tuple[str, ...], tmp_path: Path) -> None:
    """The processes' rollouts differ, and the policy over teachers learns from both."""
    data = digit_data(tmp_path)
    teachers = [data / "teacher.pt"] * (2 if "reinforced" in flags else 1)

    def train(folder: str) -> None:
        meeting = f"tcp://127.0.0.1:{free_port()}"
        command = [
            warm_commands.folder() / "imitkd-train", data, "--save-dir", tmp_path / folder, "--cpu",
            *TINY_TRANSFORMER_FLAGS, "--teacher-path", ":".join(map(str, teachers)), *flags,
            "--teacher-allow-poor", "--student-share", "0.6", "--rollout-max-len-b", 2, "--optimizer",
            "adam", "--lr", "1e-3", "--batch-size", 15, "--required-batch-size-multiple", 1, "--max-update",
            UPDATES, "--save-interval-updates", 1, "--disable-validation", "--num-workers", 0,
            "--distributed-init-method", meeting, "--distributed-world-size", 2, "--distributed-no-spawn",
            "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp",
        ]  # fmt: skip
        run_together([[*map(str, command), "--distributed-rank", str(rank)] for rank in range(2)], tmp_path)

    train("whole")
    (tmp_path / "resumed").mkdir()
    shutil.copy(tmp_path / "whole" / CUT, tmp_path / "resumed" / "checkpoint_last.pt")
    train("resumed")
    whole, resumed = [
        torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=True) for name in ("whole", "resumed")
    ]
    assert whole["optimizer_history"][-1]["num_updates"] == UPDATES
    assert differences(end(resumed), end(whole)) == []
    one, other = whole["extra_state"]["TranslationWithTeacherTask"]["processes"]
    assert differences(one, other), "the processes have rollouts or difficulties of their own"

"""A killed run resumes exactly."""

import re
import subprocess
import threading

import torch

from tests.helpers import digit_corpus, in_process

UPDATES = 24


def test_killed_and_resumed_equals_uninterrupted(digits, teacher, tmp_path):
    """Sampled rollouts and a schedule need no saved state. Weights and optimizer are equal to the last bit.

    The first process is killed once it has saved update 6. Another command resumes from its checkpoint.
    """
    flags = (
        "--task", "translation_with_teacher", "--teacher-path", teacher, "--criterion", "imitkd_full",
        "--rollout-policy", "sampling", "--rollout-topk", 5, "--student-share", "exponential:0.005",
        "--max-update", UPDATES, "--save-interval-updates", 3, "--keep-interval-updates", 1,
        "--disable-validation",
    )  # fmt: skip
    whole = in_process.train(digits.data, tmp_path / "whole", *flags)
    assert whole.metrics["train_inner"][-1]["student_share"] > 0.9

    arguments = list(
        map(
            str,
            [
                digits.data,
                "--save-dir",
                tmp_path / "killed",
                *in_process.SETTINGS,
                *digit_corpus.TINY,
                *flags,
            ],
        )
    )
    plugin = ["--user-dir", str(digit_corpus.REPO / "fairseq_imitkd")]
    process = subprocess.Popen(
        [digit_corpus.BIN / "fairseq-train", *arguments, *plugin],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=digit_corpus.ENVIRONMENT,
    )  # fmt: skip
    watchdog = threading.Timer(300, process.terminate)
    watchdog.start()
    for line in process.stdout:
        if "Saved checkpoint" in line and "@ 6 updates" in line:
            process.kill()
            break
    watchdog.cancel()
    process.stdout.close()
    assert process.wait(timeout=60) == -9, "the first process must be killed before its end"

    resumed = digit_corpus.run("imitkd-train", *arguments, timeout=300)
    found = re.search(r"Loaded checkpoint .* \(epoch \d+ @ (\d+) updates\)", resumed.stdout)
    assert found is not None
    assert 6 <= int(found[1]) < UPDATES

    ends = [
        torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=True) for name in ("whole", "killed")
    ]
    for end in ends:
        assert end["optimizer_history"][-1]["num_updates"] == UPDATES
    torch.testing.assert_close(ends[1]["model"], ends[0]["model"], rtol=0, atol=0)
    torch.testing.assert_close(
        ends[1]["last_optimizer_state"]["state"], ends[0]["last_optimizer_state"]["state"], rtol=0, atol=0
    )

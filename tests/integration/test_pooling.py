"""Rollouts of several batches decoded at once, in whole trainings."""

import pytest
import torch

import fairseq_imitkd.mixing.mixer
from tests.helpers import in_process

FLAGS = (
    "--task", "translation_with_teacher", "--criterion", "imitkd", "--student-share", "constant:0.5",
    "--rollout-policy", "sampling", "--rollout-topk", 5, "--max-update", 6, "--batch-size", 16,
    "--disable-validation", "--save-interval", "100",
)  # fmt: skip


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the number of sentences of each decoding."""
    calls: list[int] = []
    decode = fairseq_imitkd.mixing.mixer.decode

    def counted(student, prompt, *args, **kwargs):
        calls.append(prompt.net_input["src_tokens"].size(0))
        return decode(student, prompt, *args, **kwargs)

    monkeypatch.setattr(fairseq_imitkd.mixing.mixer, "decode", counted)
    return calls


def test_pooled_update_is_the_same_update(digits, teacher, tmp_path, decodings):
    """``--rollout-pool`` decodes the micro-batches of an update at once. Sentences and weights are equal to
    the bit.
    """
    flags = (*FLAGS, "--teacher-path", teacher, "--update-freq", 3)
    separate = in_process.train(digits.data, tmp_path / "separate", *flags)
    calls, decodings[:] = decodings[:], []
    pooled = in_process.train(digits.data, tmp_path / "pooled", *flags, "--rollout-pool")
    assert len(calls) == 3 * 6
    assert decodings == [sum(calls[start : start + 3]) for start in range(0, 18, 3)]
    torch.testing.assert_close(pooled.weights(), separate.weights(), rtol=0, atol=0)
    for one, other in zip(pooled.metrics["train_inner"], separate.metrics["train_inner"], strict=True):
        assert {name: one[name] for name in ("loss", "student_share", "rollout_len")} == {
            name: other[name] for name in ("loss", "student_share", "rollout_len")
        }
        assert "rollout_staleness" not in one


def test_pooled_updates_log_their_staleness(digits, teacher, tmp_path, decodings):
    """``--rollout-pool-updates 3`` decodes every third update. Its rollouts are 0, 1 and 2 updates old when
    they are used.
    """
    flags = (*FLAGS, "--teacher-path", teacher, "--update-freq", 2)
    training = in_process.train(digits.data, tmp_path / "pooled", *flags, "--rollout-pool-updates", 3)
    assert len(decodings) == 2
    metrics = training.metrics["train_inner"]
    assert [round(interval.get("rollout_staleness", 0.0)) for interval in metrics] == [0, 1, 2, 0, 1, 2]
    assert all(0.3 < interval["student_share"] < 0.7 for interval in metrics)
    separate = in_process.train(digits.data, tmp_path / "separate", *flags)
    # Each sentence is drawn for its own update, as without a pool.
    assert [interval["student_share"] for interval in metrics] == [
        interval["student_share"] for interval in separate.metrics["train_inner"]
    ]
    assert metrics[0]["loss"] == separate.metrics["train_inner"][0]["loss"]
    assert metrics[2]["loss"] != separate.metrics["train_inner"][2]["loss"]


def test_epochs_of_pooled_trainings_hold_every_batch_once(digits, teacher, tmp_path):
    """No batch is lost or repeated at the end of an epoch, or by a stop and a resumption."""
    flags = (
        "--task", "translation_with_teacher", "--teacher-path", teacher, "--criterion", "imitkd",
        "--student-share", "constant:0.1", "--batch-size", 250, "--max-tokens", 4000, "--disable-validation",
        "--rollout-pool-updates", 4, "--save-interval", 100, "--rollout-max-len-a", 0,
        "--rollout-max-len-b", 3,
    )  # fmt: skip

    def trained(folder: str, updates: int) -> list[list[int]]:
        seen: list[list[int]] = []

        def watch(trainer, update, samples):
            seen.append([int(number) for sample in samples for number in sample["id"]])
            return update()

        in_process.train(digits.data, tmp_path / folder, *flags, "--max-update", updates, around_step=watch)
        return seen

    whole = trained("whole", 18)
    first, rest = trained("stopped", 6), trained("stopped", 18)
    assert first + rest == whole
    numbers = [number for batch in whole for number in batch]
    assert len(numbers) > 3000
    assert sorted(numbers[:3000]) == list(range(3000))

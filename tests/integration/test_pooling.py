"""Rollouts of several batches decoded at once, in real trainings."""

import pytest
import torch

import fairseq_imitkd.mixing.mixer
from tests.helpers import in_process

FLAGS = (
    "--task", "translation_with_teacher", "--criterion", "imitkd", "--student-share", "constant:0.5", "--rollout-policy",
    "sampling", "--rollout-topk", 5, "--max-update", 6, "--batch-size", 16, "--disable-validation", "--save-interval", "100",
)  # fmt: skip


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sentences each decoding writes."""
    calls: list[int] = []
    decode = fairseq_imitkd.mixing.mixer.decode

    def counted(student, net_input, *args, **kwargs):
        calls.append(net_input["src_tokens"].size(0))
        return decode(student, net_input, *args, **kwargs)

    monkeypatch.setattr(fairseq_imitkd.mixing.mixer, "decode", counted)
    return calls


def test_pooled_update_is_the_same_update(digits, teacher, tmp_path, decodings):
    """``--rollout-pool``: one decoding for the micro-batches of an update, the same sentences, weights equal to the bit."""
    flags = (*FLAGS, "--teacher-path", teacher, "--update-freq", 3)
    apart = in_process.train(digits.data, tmp_path / "apart", *flags)
    calls, decodings[:] = decodings[:], []
    pooled = in_process.train(digits.data, tmp_path / "pooled", *flags, "--rollout-pool")
    assert len(calls) == 3 * 6
    assert decodings == [sum(calls[start : start + 3]) for start in range(0, 18, 3)]
    torch.testing.assert_close(pooled.weights(), apart.weights(), rtol=0, atol=0)
    for one, other in zip(pooled.figures["train_inner"], apart.figures["train_inner"], strict=True):
        assert {name: one[name] for name in ("loss", "student_share", "rollout_len")} == {
            name: other[name] for name in ("loss", "student_share", "rollout_len")
        }
        assert "rollout_staleness" not in one


def test_updates_pooled_are_stale_and_say_so(digits, teacher, tmp_path, decodings):
    """``--rollout-pool-updates 3``: a decoding every third update, whose text is then 0, 1 and 2 updates old."""
    flags = (*FLAGS, "--teacher-path", teacher, "--update-freq", 2)
    training = in_process.train(digits.data, tmp_path / "pooled", *flags, "--rollout-pool-updates", 3)
    assert len(decodings) == 2
    figures = training.figures["train_inner"]
    assert [round(figure.get("rollout_staleness", 0.0)) for figure in figures] == [0, 1, 2, 0, 1, 2]
    assert all(0.3 < figure["student_share"] < 0.7 for figure in figures)
    apart = in_process.train(digits.data, tmp_path / "apart", *flags)
    # Each sentence is drawn for the update of its turn: the same ones as without a pool.
    assert [figure["student_share"] for figure in figures] == [
        figure["student_share"] for figure in apart.figures["train_inner"]
    ]
    assert figures[0]["loss"] == apart.figures["train_inner"][0]["loss"]
    assert figures[2]["loss"] != apart.figures["train_inner"][2]["loss"]


def test_epochs_of_pooled_trainings_hold_every_batch_once(digits, teacher, tmp_path):
    """Looking ahead loses no batch and repeats none, over the end of an epoch, a stop and a resumption."""
    flags = (
        "--task", "translation_with_teacher", "--teacher-path", teacher, "--criterion", "imitkd", "--student-share",
        "constant:0.1", "--batch-size", 250, "--max-tokens", 4000, "--disable-validation", "--rollout-pool-updates", 4,
        "--save-interval", 100, "--rollout-max-len-a", 0, "--rollout-max-len-b", 3,
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

"""Pruning by the real commands: zeros in checkpoints, through resumed runs, retraining and decoding."""

import itertools
from pathlib import Path

import pytest
import torch

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.models.pruning import Weight, weights_of_checkpoint
from tests.helpers import digit_corpus, in_process

# Any criterion works. Adam's momentum and weight decay change every weight.
PLAIN = (
    "--task",
    "translation_with_teacher",
    "--criterion",
    "cross_entropy",
    "--disable-validation",
    "--weight-decay",
    "0.01",
)
RESTORE = ("--reset-optimizer", "--reset-dataloader", "--reset-meters", "--reset-lr-scheduler")


def weights(checkpoint: Path) -> dict[str, Weight]:
    """Return the prunable weights of a checkpoint."""
    return weights_of_checkpoint(torch.load(checkpoint, weights_only=True)["model"])[0]


def pruned(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return the masks of a checkpoint's zeros."""
    return {name: weight.zeros() for name, weight in weights(checkpoint).items()}


def share(checkpoint: Path) -> tuple[int, int]:
    """Return the share of zeros and the number of weights."""
    return sum(int(mask.sum()) for mask in pruned(checkpoint).values()), sum(
        w.count for w in weights(checkpoint).values()
    )


def test_pruned_at_once_by_the_command(digits, tmp_path):
    """With ``imitkd-train --prune-sparsity`` the checkpoint has exactly this share of zeros. The log shows it
    from that update on.
    """
    done = digit_corpus.train(
        digits.data, tmp_path, *PLAIN[2:], "--max-update", 30, "--prune-sparsity", 0.8,
        "--prune-scope", "layer", "--prune-start", 10, *digit_corpus.TINY, timeout=300,
    )  # fmt: skip
    checkpoint = tmp_path / "checkpoint_last.pt"
    for name, weight in weights(checkpoint).items():
        assert int(weight.zeros().sum()) == round(0.8 * weight.count), name
    logged = {
        int(line["num_updates"]): line["sparsity"]
        for line in in_process.read_metrics(done.stdout)["train_inner"]
    }
    expected = share(checkpoint)[0] / share(checkpoint)[1]
    assert logged == {
        update: pytest.approx(expected if update >= 10 else 0.0, abs=1e-4) for update in range(5, 31, 5)
    }


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param((), marks=pytest.mark.slow),
        ("--update-freq", 2),
        ("--fp16", "--fp16-no-flatten-grads", "--fp16-init-scale", 4),
        pytest.param(("--memory-efficient-fp16", "--fp16-init-scale", 4), marks=pytest.mark.slow),
        pytest.param(("--amp",), marks=pytest.mark.slow),
    ],
    ids=lambda flags: flags[0] if flags else "fp32",
)
def test_gradual_pruning_in_every_precision(flags, digits, tmp_path):
    """Sparsities follow the cubic schedule and stay between prunings. The checkpoint has the last one's
    zeros.
    """
    zeros = []

    def around_step(trainer, update, samples):
        result = update()
        zeros.append(
            {name: value.eq(0) for name, value in trainer.get_model().named_parameters() if value.dim() > 1}
        )
        return result

    settings = (
        "--max-update",
        26,
        "--prune-sparsity",
        0.6,
        "--prune-start",
        4,
        "--prune-end",
        20,
        "--prune-every",
        4,
    )
    metrics = in_process.train(
        digits.data, tmp_path, *PLAIN, *settings, *flags, around_step=around_step
    ).metrics["train_inner"]

    def expected(update):
        last = 20 if update >= 20 else max(update - update % 4, 4)
        return 0.6 * (1 - (1 - (last - 4) / 16) ** 3)

    assert [line["sparsity"] for line in metrics] == pytest.approx(
        [expected(update) for update in range(1, 27)], abs=2e-4
    )
    found, count = share(tmp_path / "checkpoint_last.pt")
    assert found == pytest.approx(
        round(0.6 * count), abs=0 if "fp16" not in str(flags) else 3
    )  # half precision rounds to zero
    for before, after in itertools.pairwise(zeros):
        assert all(
            not (before[name] & ~after[name])[2:].any() for name in before
        )  # the padding is the second row


class Crash(Exception):
    """Ends a run between two updates."""


def test_resumed_run_is_pruned_like_an_uninterrupted_one(digits, tmp_path):
    """The weights hold the schedule's state. After a crash between two prunings, model and optimizer are
    equal to the bit.
    """
    flags = (*PLAIN, "--max-update", 24, "--save-interval-updates", 5, "--keep-interval-updates", 1,
             "--prune-sparsity", 0.7, "--prune-start", 2, "--prune-end", 18, "--prune-every", 3)  # fmt: skip
    in_process.train(digits.data, tmp_path / "whole", *flags)

    def crash_at_13(trainer, update, samples):
        if trainer.get_num_updates() == 13:
            raise Crash
        return update()

    with pytest.raises(Crash):
        in_process.train(digits.data, tmp_path / "crashed", *flags, around_step=crash_at_13)
    found, count = share(tmp_path / "crashed" / "checkpoint_last.pt")
    assert 0.5 < found / count < 0.7
    resumed = in_process.train(digits.data, tmp_path / "crashed", *flags)
    assert [line["num_updates"] for line in resumed.metrics["train_inner"]] == list(range(11, 25))
    ends = [
        torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=True) for name in ("whole", "crashed")
    ]
    torch.testing.assert_close(ends[1]["model"], ends[0]["model"], rtol=0, atol=0)
    torch.testing.assert_close(
        ends[1]["last_optimizer_state"]["state"], ends[0]["last_optimizer_state"]["state"], rtol=0, atol=0
    )
    assert share(tmp_path / "crashed" / "checkpoint_last.pt")[0] == round(0.7 * count)


def test_pruned_checkpoint_is_retrained_and_decoded(digits, teacher, tmp_path):
    """``imitkd-prune``, ImitKD with the zeros fixed, a compact file and back, and ``imitkd-generate`` work in
    sequence.

    A teacher pruned this far translates badly. After retraining, it translates well with the same sparsity.
    """
    small, retrained = tmp_path / "pruned.pt", tmp_path / "retrained"
    output = digit_corpus.run("imitkd-prune", teacher, "--sparsity", 0.7, "--out", small, real=True).stdout
    found, count = share(small)
    assert found == round(0.7 * count)
    assert f"prunable weights: {count:,}, {found:,} of them zero (70.00%)" in output

    metrics = in_process.train(
        digits.data, retrained, "--task", "translation_with_teacher", "--teacher-path", teacher,
        "--criterion", "imitkd_full", "--student-share", "0.3", "--max-update", 120,
        "--weight-decay", "0.001", "--disable-validation", "--restore-file", small, *RESTORE,
        "--prune-sparsity", 0.7, "--save-interval", 1000,
    ).metrics["train_inner"]  # fmt: skip
    assert [line["sparsity"] for line in metrics] == pytest.approx([found / count] * 120, abs=1e-4)
    last = retrained / "checkpoint_last.pt"
    before, after = pruned(small), pruned(last)
    assert all(after[name].equal(mask) for name, mask in before.items())

    digit_corpus.run("imitkd-prune", last, "--sparse", "--out", tmp_path / "sparse.pt")
    digit_corpus.run("imitkd-prune", tmp_path / "sparse.pt", "--out", tmp_path / "dense.pt")
    one, other = (torch.load(path, weights_only=True)["model"] for path in (last, tmp_path / "dense.pt"))
    assert one.keys() == other.keys()
    assert all(value.equal(other[name]) for name, value in one.items())

    def matches(checkpoint):
        done = digit_corpus.run(
            "imitkd-generate", digits.data, "--path", checkpoint, *in_process.DECODE, "--beam", 1
        )
        return in_process.exact_matches(in_process.hypotheses(done.stdout), digits.references())

    assert matches(tmp_path / "dense.pt") > matches(small) + 0.2


def test_refused_before_any_sentence_is_read(digits, tmp_path):
    """There are dictionaries alone, so reading data would fail with another error."""
    languages = ("--source-lang", "src", "--target-lang", "tgt", "--max-update", 10)
    for flags, message in (
        (("--prune-sparsity", 1.5), "--prune-sparsity must be at least 0 and below 1, but is 1.5"),
        (("--prune-start", 3), "--prune-start 3 changes nothing without --prune-sparsity"),
        (
            ("--prune-sparsity", 0.5, "--prune-end", 11),
            "--prune-end 11 is after the end of training, --max-update 10",
        ),
    ):
        with pytest.raises(UsageError) as refused:
            in_process.train(digits.dictionaries, tmp_path, *PLAIN, *languages, *flags)
        assert str(refused.value).startswith(message)

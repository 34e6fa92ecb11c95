"""Models with language tags: they compute what the model inside computes on sentences with the tags."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.models.encoding import encode
from fairseq_imitkd.models.tagged import TaggedModel, Tags, check_without_tags
from fairseq_imitkd.rollout import RolloutPolicy
from fairseq_imitkd.rollout.steps import IncrementalSteps
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.training import distiller as distiller_module
from fairseq_imitkd.training.distiller import Learner
from tests.helpers.fairseq_models import (
    build_student,
    give_teacher,
    letters,
    make_batch,
    reversed_pairs,
    roll_out,
    teacher_logits,
    tiny_criterion,
    tiny_task,
    trained_student,
    written,
)

PAD, EOS = letters().pad(), letters().eos()
TAG, OTHER = letters().index("o"), letters().index("p")
LAYOUTS = {
    "prefixes": Tags((TAG,), (EOS,), (EOS, OTHER)),  # translation_multi_simple_epoch, M2M-100, NLLB
    "replaced": Tags((), (TAG,), (OTHER,)),  # multilingual_translation
    "mbart": Tags((), (EOS, TAG), (OTHER,)),
    "several": Tags((TAG, OTHER), (TAG, EOS), (EOS, OTHER, TAG)),
}


def tagged(source: Sequence[int], prefix: Sequence[int], tags: Tags) -> tuple[Tensor, Tensor]:
    """Return a source and decoder inputs with tags, by the definition; both are given without an EOS."""
    return (
        torch.tensor([[*tags.source_before, *source, *tags.source_end]]),
        torch.tensor([[*tags.target_start, *prefix]]),
    )


def logits_by_definition(model: Any, source: Sequence[int], prefix: Sequence[int], tags: Tags) -> Tensor:
    """Return the logits of the symbol after each part of a prefix, ``(T + 1, V)``."""
    tokens, inputs = tagged(source, prefix, tags)
    with torch.no_grad():
        return model(tokens, torch.tensor([tokens.size(1)]), inputs)[0][0, len(tags.target_start) - 1 :]


def sentences(batch: Tensor) -> list[list[int]]:
    """Return the rows of a batch without padding and EOS."""
    return [[token for token in row if token not in (PAD, EOS)] for row in batch.tolist()]


@pytest.mark.parametrize("left_pad", [True, False])
def test_sources_get_their_tags(left_pad: bool) -> None:
    """Padding stays on its side, and the given batch as it was."""
    batch = make_batch([([0, 1, 2], [0]), ([3], [0]), ([], [0])], left_pad_source=left_pad)["net_input"]
    before = batch["src_tokens"].clone()
    for tags in LAYOUTS.values():
        made = tags.sources(batch, PAD)
        rows = [tagged(source, [], tags)[0][0].tolist() for source in sentences(before)]
        assert made["src_lengths"].tolist() == [len(row) for row in rows]
        empty = [[PAD] * (len(rows[0]) - len(row)) for row in rows]
        expected = [pad + row if left_pad else row + pad for row, pad in zip(rows, empty, strict=True)]
        assert made["src_tokens"].tolist() == expected
    assert batch["src_tokens"].equal(before)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["transformer", "bart", "lstm", "fconv"])
def test_logits_and_searches_are_those_with_tags(kind: str, layout: str) -> None:
    """The teacher's scores of given targets, and greedy search by each kind of step."""
    model, tags = trained_student(kind), LAYOUTS[layout]
    wrapped = TaggedModel(model, tags).eval()
    batch = make_batch(reversed_pairs(6, seed=5))
    assert wrapped.max_positions() == tuple(
        most - more for most, more in zip(model.max_positions(), tags.added, strict=True)
    )
    teacher = Teacher([wrapped])
    sources, targets = sentences(batch["net_input"]["src_tokens"]), sentences(batch["target"])
    for encoded in (None, teacher.encode(batch)):
        found = teacher_logits(teacher, batch, encoded, materialise=kind != "transformer")
        for row, source, target in zip(found, sources, targets, strict=True):
            expected = logits_by_definition(model, source, target, tags)
            torch.testing.assert_close(row[: len(expected)], expected, rtol=1e-4, atol=1e-4)

    rollout = roll_out(wrapped, batch, RolloutPolicy("greedy", max_len_a=0, max_len_b=8))
    for source, tokens, cut in zip(sources, written(rollout), rollout.truncated.tolist(), strict=True):
        own = tokens if cut else tokens[:-1]
        best = logits_by_definition(model, source, own, tags).argmax(-1).tolist()
        assert best[: len(tokens)] == tokens
    assert any(len(tokens) > 2 for tokens in written(rollout))


def test_incremental_decoding_reads_the_tags_once() -> None:
    """fairseq's own search decodes a model with tags by its incremental state."""
    wrapped = TaggedModel(trained_student("transformer"), LAYOUTS["several"]).eval()
    batch = make_batch(reversed_pairs(4, seed=6))
    steps = IncrementalSteps(wrapped, encode(wrapped, batch["net_input"]))
    inputs = batch["net_input"]["prev_output_tokens"]
    with torch.no_grad():
        expected = wrapped(**batch["net_input"])[0]
        for width in range(1, 4):
            torch.testing.assert_close(
                steps.logits(inputs[:, :width]), expected[:, width - 1], rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("share", ["0", "1"])
@pytest.mark.parametrize("layout", ["prefixes", "mbart"])
def test_losses_and_gradients_are_those_of_the_definition(
    layout: str, share: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, for one sentence after the other without padding: the student reads no tag, the teacher
    reads all of them, and each of the student's positions counts once.
    """
    tags = LAYOUTS[layout]
    inner = build_student(seed=9, dropout=0.0).double()
    task = tiny_task()
    give_teacher(task, Teacher([TaggedModel(inner, tags)], dtype="auto"))
    limits = {"rollout_max_len_a": 0.0, "rollout_max_len_b": 6} if share == "1" else {}
    name, weight = ("imitkd_full", {}) if share == "1" else ("word_kd", {"gold_weight": "0"})
    criterion = tiny_criterion(name, task, student_share=f"constant:{share}", **limits, **weight)
    distiller, student = task.distiller_of(criterion), build_student(seed=2, dropout=0.0).double()
    learned: list[Any] = []
    roll_out = distiller.mixer.roll_out
    monkeypatch.setattr(
        distiller.mixer, "roll_out", lambda *args: learned.append(roll_out(*args)) or learned[-1]
    )
    monkeypatch.setattr(distiller_module, "PART_COST", {"cpu": 4})

    class Optimizer:
        def backward(self, loss: Tensor) -> None:
            loss.backward()

    loss, count, _ = distiller.step(
        make_batch(reversed_pairs(6, seed=3)), Learner(student, criterion, Optimizer(), update_num=0)
    )
    found = {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
    sample, total, tokens = learned[0].sample, torch.zeros((), dtype=torch.float64), 0
    assert bool(learned[0].is_rollout.all()) == (share == "1")
    student.zero_grad()
    for source, target in zip(
        sentences(sample["net_input"]["src_tokens"]), sample["target"].tolist(), strict=True
    ):
        own = [token for token in target if token != PAD]
        prefix = own[:-1]
        source_tokens = torch.tensor([[*source, EOS]])
        ours = student(source_tokens, torch.tensor([source_tokens.size(1)]), torch.tensor([[EOS, *prefix]]))
        theirs = logits_by_definition(inner, source, prefix, tags)
        log_p, log_q = F.log_softmax(theirs, -1), F.log_softmax(ours[0][0], -1)
        total = total + (log_p.exp() * (log_p - log_q)).sum()
        tokens += len(own)
    assert count == tokens
    assert float(loss) == pytest.approx(float(total), rel=1e-6)
    total.backward()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-6, atol=1e-9)


def test_data_that_hold_the_tags_are_refused() -> None:
    """A single sentence may hold the symbol, as a word of its own."""
    pair = LanguagePair("a", "b", letters(), letters())
    plain, tagged = torch.tensor([4, 5, EOS]), torch.tensor([TAG, 4, EOS])
    check_without_tags(LAYOUTS["prefixes"], pair, sources=[plain, tagged], targets=[plain, plain])
    with pytest.raises(
        UsageError, match=r"^the sources of DATA hold the language tag o, which the model adds"
    ):
        check_without_tags(LAYOUTS["prefixes"], pair, sources=[tagged, tagged], targets=[plain, plain])
    with pytest.raises(UsageError, match=r"^the targets of DATA hold the language tag p, which"):
        check_without_tags(
            LAYOUTS["prefixes"], pair, sources=[plain], targets=[torch.tensor([OTHER, 4, EOS])]
        )

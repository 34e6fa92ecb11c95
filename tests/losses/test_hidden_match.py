"""``--hidden-match``: its value and gradient by the definition, where it is trained, and its refusals."""

import math
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from fairseq_imitkd.criterion import DISTILLATION, DistillationCriterion
from fairseq_imitkd.errors import RefusedUpdate, UsageError
from fairseq_imitkd.losses.hidden_match import DISTANCES, HiddenMatch
from fairseq_imitkd.models.encoding import encoder_width, mean_over_time
from fairseq_imitkd.teacher.cache.reader import _check_method
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.training import distiller
from fairseq_imitkd.training.checks import widths_to_match
from fairseq_imitkd.training.continued import check_projection
from tests.distributed.two_ranks import Optimizer
from tests.helpers import language_models, speech
from tests.helpers.fairseq_models import (
    build_student,
    give_teacher,
    letters,
    make_batch,
    reversed_pairs,
    tiny_criterion,
    tiny_method,
    tiny_task,
)
from tests.method.test_checks import check_settings, refusal

PAD = letters().pad()
WEIGHT = 0.7
TEACHER = {"encoder_embed_dim": 16, "encoder_ffn_embed_dim": 16, "decoder_embed_dim": 16}


def reference_distance(name: str, student: list[float], teacher: list[float]) -> float:
    """A distance of two vectors by its definition."""
    pairs = list(zip(student, teacher, strict=True))
    if name == "l1":
        return sum(abs(s - t) for s, t in pairs) / len(pairs)
    if name == "squared-error":
        return sum((s - t) ** 2 for s, t in pairs) / len(pairs)
    product = sum(s * t for s, t in pairs)
    return 1.0 - product / math.sqrt(sum(s * s for s in student) * sum(t * t for t in teacher))


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_by_their_definitions(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    found = DISTANCES[name](student, teacher)
    expected = [
        reference_distance(name, *rows) for rows in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    torch.testing.assert_close(found.tolist(), expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda vectors: DISTANCES[name](vectors, teacher), student.requires_grad_()
    )


@pytest.mark.parametrize("kind", ["transformer", "lstm", "gru", "sru"])
@pytest.mark.parametrize("left_pad_source", [True, False])
def test_vectors_leave_padding_out(kind: str, left_pad_source: bool) -> None:
    """A sentence has the same vector alone and in a batch, whose width is the one that is expected."""
    model, pairs = build_student(kind).eval(), reversed_pairs(5, seed=3)
    sample = make_batch(pairs, left_pad_source=left_pad_source)
    inputs = sample["net_input"]
    together = mean_over_time(model.encoder(inputs["src_tokens"], src_lengths=inputs["src_lengths"]))
    for row, tokens in zip(together, inputs["src_tokens"], strict=True):
        tokens = tokens[tokens.ne(PAD)].unsqueeze(0)
        alone = model.encoder(tokens, src_lengths=torch.tensor([tokens.size(1)]))
        outputs = alone["encoder_out"][0] if isinstance(alone, dict) else alone[0]
        torch.testing.assert_close(row, outputs.mean(dim=0).squeeze(0), rtol=1e-4, atol=1e-5)
    assert encoder_width(model) == together.size(1)


@pytest.mark.parametrize("arch", speech.ARCHITECTURES)
def test_widths_of_speech_encoders(arch: str, tmp_path: Any) -> None:
    task = speech.tiny_task(speech.write_data(tmp_path, {"train": 7}))
    model = speech.build(task, arch).eval()
    inputs = speech.batch(speech.spoken(task, reads_text=False))["net_input"]
    vectors = mean_over_time(model.encoder(inputs["src_tokens"], inputs["src_lengths"]))
    assert vectors.shape == (7, encoder_width(model))


def stepped(
    name: str, *, teacher: Any, update: int = 0, **settings: Any
) -> tuple[Any, Any, dict[str, Any], tuple[Tensor, int, dict[str, Any]]]:
    """Run a training step in float64. Return the student, the criterion, the batch and the step's result."""
    task, student = tiny_task(), build_student(dropout=0.0).double()
    sample = make_batch(reversed_pairs(6, seed=2))
    give_teacher(task, Teacher([teacher]))
    criterion = tiny_criterion(name, task, hidden_match=WEIGHT, **settings)
    criterion.begin_matching(*widths_to_match(student, task.given_teacher, criterion.method))
    criterion.double()
    return student, criterion, sample, task.train_step(sample, student, criterion, Optimizer(), update)


def vector(model: Any, tokens: Tensor) -> Tensor:
    """Return the mean output of a model's encoder for a sentence alone, ``(D,)``."""
    tokens = tokens[tokens.ne(PAD)].unsqueeze(0)
    return model.encoder(tokens, src_lengths=torch.tensor([tokens.size(1)]))["encoder_out"][0].mean(0)[0]


@pytest.mark.parametrize(
    ("distance", "name", "average", "chunk", "parts"),
    [
        ("l1", "word_kd", "token", -1, False),
        ("cosine", "word_kd", "sentence", 3, True),
        ("l1", "imitkd_full", "token", 3, True),
        ("squared-error", "imitkd_full", "sentence", -1, False),
    ],
)
def test_term_and_gradient_by_their_definition(
    monkeypatch: pytest.MonkeyPatch, distance: str, name: str, average: str, chunk: int, parts: bool
) -> None:
    """The difference to a step without the term is the distance of each sentence, once for each of its
    tokens, or once for the sentence. References and rollouts have it, and the whole batch or its parts.
    """
    monkeypatch.setattr(distiller, "PART_COST", {"cpu": 1 if parts else 10**9})
    teacher = build_student(seed=9, **TEACHER).double()
    settings: dict[str, Any] = {"loss_average": average, "loss_chunk": chunk}
    if name == "imitkd_full":
        settings.update(student_share="1", rollout_max_len_a=0.0, rollout_max_len_b=4)
    student, criterion, sample, (loss, count, logs) = stepped(
        name, teacher=teacher, hidden_match_distance=distance, **settings
    )
    found = {name: each.grad.clone() for name, each in student.named_parameters()}
    projected = {name: each.grad.clone() for name, each in criterion.named_parameters()}
    lengths = sample["target"].ne(PAD).sum(dim=-1)
    task, plain = tiny_task(), build_student(dropout=0.0).double()
    give_teacher(task, Teacher([teacher]))
    without = tiny_criterion(name, task, **settings)
    base = task.train_step(sample, plain, without, Optimizer(), 0)
    if name == "imitkd_full":  # how long rollouts are
        mixer = task.distiller_of(without).mixer
        distilled = task.distiller_of(without)
        batch = mixer.roll_out(mixer.draw(sample, without.method.at(0)), distilled._writers(plain))
        lengths = batch.sample["target"].ne(PAD).sum(dim=-1)
        assert lengths.tolist() != sample["target"].ne(PAD).sum(dim=-1).tolist()

    weight, bias = (criterion.hidden_match.projection.weight, criterion.hidden_match.projection.bias)
    student.zero_grad()
    criterion.zero_grad()
    expected, distances = torch.zeros((), dtype=torch.float64), []
    for tokens, length in zip(sample["net_input"]["src_tokens"], lengths.tolist(), strict=True):
        own = weight @ vector(student.train(), tokens) + bias
        distances.append(DISTANCES[distance](own[None], vector(teacher, tokens).detach()[None])[0])
        expected = expected + WEIGHT * distances[-1] * (length if average == "token" else 1)
    expected.backward()
    torch.testing.assert_close(loss - base[0], expected, rtol=1e-7, atol=1e-9)  # 1 / length is float32
    assert count == base[1] == (int(lengths.sum()) if average == "token" else 6)
    logged = sum(float(each) * length for each, length in zip(distances, lengths.tolist(), strict=True))
    assert float(logs["hidden_match"]) == pytest.approx(logged)
    assert logs.keys() - base[2].keys() == {"hidden_match"}
    for part, own in student.named_parameters():
        matched = torch.zeros_like(own) if own.grad is None else own.grad
        other = dict(plain.named_parameters())[part].grad
        torch.testing.assert_close(found[part] - other, matched, rtol=1e-5, atol=1e-7, msg=part)
    for part, own in criterion.named_parameters():
        torch.testing.assert_close(projected[part], own.grad, rtol=1e-5, atol=1e-7)
        assert float(own.grad.abs().max()) > 0.0
    assert all(each.grad is None for each in teacher.parameters())


@pytest.mark.parametrize("chunk", [0, 3])
def test_matching_alone(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No token has a loss: the decoder's gradient is zero, and the teacher's decoder never runs."""
    teacher = build_student(seed=9, **TEACHER).double()
    teacher.decoder.forward = None
    monkeypatch.setattr(DistillationCriterion, "chunk", lambda *_: chunk)  # the flag is refused here
    student, _, sample, (loss, count, logs) = stepped("word_kd", teacher=teacher, hidden_match_only=True)
    matching = HiddenMatch((32, 16), distance="l1", seed=1).double()
    vectors = [
        torch.stack([vector(model, tokens) for tokens in sample["net_input"]["src_tokens"]])
        for model in (student, teacher)
    ]
    lengths = sample["target"].ne(PAD).sum(dim=-1)
    expected = WEIGHT * (matching(*vectors) * lengths).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    assert count == int(lengths.sum())
    for name, parameter in student.named_parameters():
        if name.startswith("decoder."):
            assert not parameter.grad.any(), name
    assert any(parameter.grad.any() for parameter in student.encoder.parameters())
    assert float(logs["nll_loss"]) > 0.0


def test_the_teacher_encodes_a_batch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vectors are of the pass whose outputs the decoder reads, in parts too."""
    monkeypatch.setattr(distiller, "PART_COST", {"cpu": 1})
    teacher = build_student(seed=9, **TEACHER).double()
    teacher.encoder.forward = mock.Mock(wraps=teacher.encoder.forward)
    stepped("word_kd", teacher=teacher)
    assert teacher.encoder.forward.call_count == 1


def test_half_precision_sums_in_float32() -> None:
    """A sum of float16 over time, or of products over features, would overflow."""
    outputs = torch.full((300, 2, 8), 1000.0, dtype=torch.float16)
    vectors = mean_over_time({"encoder_out": [outputs], "encoder_padding_mask": []})
    assert vectors.tolist() == [[1000.0] * 8] * 2
    matching = HiddenMatch((8, 4), distance="squared-error", seed=1).half()
    found = matching(vectors.half().requires_grad_(), torch.zeros(2, 4))
    assert found.dtype == torch.float32
    assert bool(found.isfinite().all())
    found.sum().backward()
    assert matching.projection.weight.grad.dtype == torch.float16


def test_the_projection_begins_alike_and_draws_from_no_global_generator() -> None:
    before = torch.get_rng_state()
    one, same, other = (HiddenMatch((8, 4), distance="l1", seed=seed) for seed in (1, 1, 2))
    assert torch.get_rng_state().equal(before)
    assert one.projection.weight.equal(same.projection.weight)
    assert not one.projection.weight.equal(other.projection.weight)


def test_a_teacher_of_another_width(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A new projection is learned if the weights alone are the start. Else the checkpoint is refused."""
    [wide, narrow] = [tiny_criterion("word_kd", tiny_task(), hidden_match=1.0) for _ in range(2)]
    wide.begin_matching(32, 16)
    narrow.begin_matching(32, 8)
    fresh, file = narrow.hidden_match.projection.weight.clone(), tmp_path / "checkpoint_last.pt"
    with caplog.at_level("INFO"):
        narrow.load_state_dict(wide.state_dict(), strict=True)
    assert "the checkpoint has a projection of another width of --hidden-match" in caplog.text
    assert narrow.hidden_match.projection.weight.equal(fresh)
    torch.save({"model": {}, "criterion": wide.state_dict()}, file)
    for flags, named in (
        ({"restore_file": "checkpoint_last.pt"}, "--save-dir"),
        ({"restore_file": str(file)}, "--restore-file"),
    ):
        config = OmegaConf.create({"checkpoint": {"save_dir": str(tmp_path), **flags}})
        check_projection(config, wide)
        with pytest.raises(UsageError, match="of width 16, but here it has 8: use that teacher") as refused:
            check_projection(config, narrow)
        assert str(refused.value).startswith(f"{named} '")
        check_projection(OmegaConf.merge(config, {"checkpoint": {"reset_optimizer": True}}), narrow)
    config.checkpoint = {"save_dir": str(tmp_path / "new"), "finetune_from_model": str(file)}
    check_projection(config, narrow)


def test_vectors_that_are_not_finite_are_refused() -> None:
    teacher = build_student(seed=9, **TEACHER).double()
    nn.init.constant_(teacher.encoder.layers[-1].final_layer_norm.bias, math.inf)
    with pytest.raises(
        RefusedUpdate, match="the outputs of the teacher's encoder are not finite; --teacher-d"
    ):
        stepped("word_kd", teacher=teacher, gold_weight="1")


def test_validation_has_no_term() -> None:
    student, criterion, sample, _ = stepped("word_kd", teacher=build_student(seed=9).double())
    loss, count, logs = criterion.eval()(student.eval(), sample)
    plain = tiny_criterion("word_kd", tiny_task()).eval()(student, sample)
    assert (float(loss), count) == (float(plain[0]), plain[1])
    assert DISTILLATION not in sample
    assert float(logs["hidden_match"]) == 0.0


# ---- Refusals


def test_flags_that_can_t_be_used() -> None:
    assert refusal("word_kd", hidden_match=-1.0).startswith(
        "--hidden-match must be a finite number, 0 or more"
    )
    assert "without --hidden-match: add it" in refusal("word_kd", hidden_match_distance="cosine")
    assert refusal("word_kd", hidden_match_only=True).startswith("--hidden-match-only needs --hidden-match")
    alone: dict[str, Any] = {"hidden_match": 1.0, "hidden_match_only": True}
    for flag in ({"gold_weight": "0.3"}, {"divergence": "jsd"}, {"teacher_topk": 3}, {"loss_chunk": 3}):
        assert "changes nothing with --hidden-match-only" in refusal("word_kd", **alone, **flag)
    assert "--student-share constant:1 lets the student write" in refusal("gkd", **alone)
    assert "--teacher-samples lets the teacher write" in refusal("word_kd", **alone, teacher_samples=True)
    check_settings("gkd", **alone, student_share="0")
    check_settings("word_kd", **alone, loss_average="sentence", hidden_match_distance="cosine")
    check_settings("word_kd", hidden_match=1.0, gold_weight="1")


def test_models_without_vectors_to_match() -> None:
    method, student = tiny_method("word_kd", hidden_match=0.5), build_student()
    with pytest.raises(
        UsageError, match=r"--hidden-match 0.5 matches one teacher, but --teacher-path names 2:"
    ):
        widths_to_match(student, Teacher([build_student(), build_student()]), method)
    with pytest.raises(UsageError, match="the model of --teacher-path, a PromptedModel, has none to compare"):
        widths_to_match(student, Teacher([language_models.build()]), method)
    with pytest.raises(UsageError, match="the model of --arch, a FConvModel, has none to compare"):
        widths_to_match(build_student("fconv"), Teacher([student]), method)
    with pytest.raises(UsageError, match=r"--hidden-match 0.5 needs outputs .* use --teacher-path"):
        _check_method(method, 0, "--teacher-cache 'answers'")

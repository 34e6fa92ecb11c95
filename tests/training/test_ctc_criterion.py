"""Students without a decoder: the loss by its definition, training and decoding, refusals."""

import math
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.losses.ctc import aligned_tokens, ctc_loss
from fairseq_imitkd.models.access import unsupported_reason
from fairseq_imitkd.models.ctc import SpeechCTC, SpeechCTCConfig
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.training.ctc_criterion import (
    CTCDistillationConfig,
    CTCDistillationCriterion,
    SpeechCTCCriterion,
)
from tests.distributed.two_ranks import Optimizer
from tests.helpers import in_process, speech
from tests.helpers.fairseq_models import build_student, give_teacher, letters

EOS, PAD = letters().eos(), letters().pad()
SIZES = {
    "encoder_layers": 1, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 16, "encoder_attention_heads": 2,
    "conv_channels": 16, "conv_kernel_sizes": "3", "dropout": 0.0, "attention_dropout": 0.0,
    "activation_dropout": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speech.write_data(
        tmp_path_factory.mktemp("speech"), {"train": 40, "valid": 10, "test": 10}, shuffle=True
    )


def build(task: Any) -> SpeechCTC:
    """Return an untrained student without dropout."""
    settings = {item.name: item.default for item in fields(SpeechCTCConfig)}
    torch.manual_seed(1)
    return task.build_model(Namespace(**{**settings, **SIZES, "arch": "s2t_ctc", "_name": "s2t_ctc"}))


def ctc_kd(task: Any, **settings: Any) -> CTCDistillationCriterion:
    read = {"seed": 1, "max_update": 9, "max_epoch": 0, "ddp_backend": "legacy_ddp"}
    unset = dict.fromkeys(("find_unused_parameters", "disable_validation", "sentence_avg"), False)
    cfg = CTCDistillationConfig(**{**read, **unset, **settings})
    cfg._name = "ctc_kd"
    return CTCDistillationCriterion(cfg, task)


@pytest.mark.parametrize("reads_text", [True, False])
def test_the_loss_and_its_gradient_by_their_definition(data: Path, reads_text: bool) -> None:
    """In float64: the CTC loss of each sentence, and for each token the mean divergence over its frames.

    The teacher reads the transcripts, or the speech. Sentences with too few frames add nothing.
    """
    task = speech.tiny_task(data)
    student = build(task).double()
    teacher = (build_student(seed=2) if reads_text else speech.build(task, seed=2)).double().eval()
    dataset = speech.spoken(task, reads_text=reads_text)
    sample = speech.batch(dataset)
    inputs = {**sample["net_input"], "src_tokens": sample["net_input"]["src_tokens"].double()}
    short = 1 + int(sample["target"].ne(PAD).sum(dim=-1)[1:].argmax())  # the first one has the most frames
    inputs["src_lengths"] = inputs["src_lengths"].clone()
    inputs["src_lengths"][short] = 2  # frames, for at least three tokens
    sample = {**sample, "net_input": inputs}
    give_teacher(task, Teacher([teacher]))
    task.student = student
    criterion = ctc_kd(task, gold_weight="0.3", teacher_temperature=2.0)
    loss, count, logs = task.train_step(sample, student, criterion, Optimizer(), 0)
    found = {name: each.grad.clone() for name, each in student.named_parameters()}
    student.zero_grad()

    logits, frames = student(**inputs)
    expected, tokens, aligned = torch.zeros((), dtype=torch.float64), 0, 0
    for row, target in enumerate(sample["target"]):
        text = target[(target != PAD) & (target != EOS)]
        prefix = torch.cat([torch.tensor([EOS]), text]).unsqueeze(0)
        with torch.no_grad():
            if reads_text:
                source = dataset.dataset.src_texts[int(sample["id"][row])]
                source = letters().encode_line(source, add_if_not_exist=False).long().unsqueeze(0)
                p = teacher(source, torch.tensor([source.size(1)]), prefix)[0][0]
            else:
                repeated = prefix.expand(len(sample["target"]), -1)
                p = teacher(**{**inputs, "prev_output_tokens": repeated})[0][row]
            p = (p / 2.0).softmax(dim=-1)
        log_q = logits[row, : frames[row]].log_softmax(dim=-1)
        lengths = {"tokens": torch.tensor([len(text)]), "blank": 0}
        own = (log_q[None], frames[row : row + 1], text[None])
        expected = expected + 0.3 * ctc_loss(*own, **lengths).sum()
        places = aligned_tokens(*own, **lengths)[0].tolist()
        for token in range(len(text)):
            at = [frame for frame, place in enumerate(places) if place == token]
            each = [(p[token] * (p[token].log() - log_q[frame])).sum() for frame in at]
            expected = expected + 0.7 * sum(each, torch.zeros(())) / max(len(at), 1)
            aligned += bool(at)
        tokens += len(text)
        assert (max(places) < 0) == (row == short)
    expected.backward()
    assert count == tokens
    assert int(logs["teacher_tokens"]) == aligned < tokens
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-7, atol=1e-9, msg=name)


def test_validation_is_the_ctc_loss(data: Path) -> None:
    """That of ``speech_ctc``, whose training has the same loss."""
    task = speech.tiny_task(data)
    student, sample = build(task), speech.batch(speech.spoken(task, reads_text=False))
    plain = SpeechCTCCriterion(task)(student, sample)
    loss, count, logs = ctc_kd(task).eval()(student, sample)
    assert (float(plain[0]), plain[1]) == (float(loss), count)
    assert float(logs["nll_loss"]) == pytest.approx(float(plain[2]["nll_loss"]))
    losses = SpeechCTCCriterion(task)(student, sample, reduce=False)[0]
    assert losses.shape == (count,)
    assert float(losses.sum()) == pytest.approx(float(loss), rel=1e-5)


def flags_of(**sizes: Any) -> tuple[object, ...]:
    return tuple(word for name, value in sizes.items() for word in (f"--{name.replace('_', '-')}", value))


STUDENT = (
    "--task", "speech_to_text_with_teacher", "--arch", "s2t_ctc", "--batch-size", 8, *flags_of(**SIZES),
)  # fmt: skip
VALIDATION = ("--eval-metrics", "chrf", "--eval-bleu-args", '{"beam": 1}')
TEACHER = (
    "--task", "speech_to_text", "--arch", "s2t_transformer", "--conv-channels", 8, "--encoder-layers", 1,
    "--decoder-layers", 1, "--encoder-embed-dim", 16, "--decoder-embed-dim", 16, "--encoder-ffn-embed-dim",
    16, "--decoder-ffn-embed-dim", 16, "--criterion", "cross_entropy", "--batch-size", 8,
)  # fmt: skip


@pytest.mark.slow
def test_training_and_decoding_by_the_commands(data: Path, tmp_path: Path) -> None:
    """A teacher that hears, a student that learns from it, and texts that fairseq prints as always."""
    in_process.train(data, tmp_path / "teacher", *TEACHER, "--max-update", 2, "--disable-validation")
    flags = (
        *STUDENT, "--criterion", "ctc_kd", "--teacher-path", tmp_path / "teacher" / "checkpoint_last.pt",
        "--teacher-data", data, "--teacher-allow-poor", "--max-update", 30, "--lr", "2e-2", *VALIDATION,
    )  # fmt: skip
    done = in_process.train(data, tmp_path / "student", *flags)
    losses = [each["nll_loss"] for each in done.metrics["train_inner"]]
    assert losses[-1] < 0.7 * losses[0]
    assert 0.0 <= done.metrics["train_inner"][-1]["agreement"] <= 1.0
    assert "chrf" in done.metrics["valid"][-1]
    path = tmp_path / "student" / "checkpoint_last.pt"
    task = ("--task", "speech_to_text_with_teacher")
    found = in_process.generate(data, path, tmp_path, *task, "--beam", 1)
    assert len(found) == 10
    assert any(found)
    twice = in_process.generate(data, f"{path}:{path}", tmp_path / "twice", *task, "--beam", 1)
    assert twice == found


def test_training_without_a_teacher(data: Path, tmp_path: Path) -> None:
    """It can be decoded by the usual command."""
    flags = (*STUDENT, "--criterion", "speech_ctc", "--max-update", 3, *VALIDATION)
    done = in_process.train(data, tmp_path, *flags)
    assert all(math.isfinite(each["loss"]) for each in done.metrics["train_inner"])
    path, task = tmp_path / "checkpoint_last.pt", ("--task", "speech_to_text_with_teacher")
    assert len(in_process.generate(data, path, tmp_path, *task, "--beam", 1)) == 10


# ---- Refusals


def test_criteria_and_students_that_do_not_fit(data: Path) -> None:
    task = speech.tiny_task(data)
    task.student = build(task)
    message = (
        "--criterion cross_entropy trains a decoder, which a student of --arch s2t_ctc does not have: use"
    )
    with pytest.raises(UsageError, match=message):
        task.build_criterion(Namespace(criterion="cross_entropy", sentence_avg=False))
    for settings, message in (
        (
            {"hidden_match": 1.0},
            "--hidden-match 1.0 can't be used with --criterion ctc_kd, whose student has",
        ),
        ({"loss_average": "sentence"}, "--loss-average sentence can't be used with --criterion ctc_kd"),
        (
            {"divergence": "sequence-js"},
            "--divergence sequence-js can't be used with .*: choose one that com",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            ctc_kd(task, **settings)
    task.student = build_student()
    for make in (ctc_kd, SpeechCTCCriterion):
        with pytest.raises(
            UsageError, match="trains students without a decoder, but --arch builds a Transfo"
        ):
            make(task)


def test_texts_are_written_without_a_beam(data: Path) -> None:
    task = speech.tiny_task(data)
    for flags in ({"beam": 5}, {"beam": 1, "sampling": True}):
        with pytest.raises(UsageError, match="writes its most probable path, without a beam or samples: add"):
            task.build_generator([build(task)], Namespace(**flags))
    with pytest.raises(UsageError, match="--path names models with and without a decoder"):
        task.build_generator([build(task), build_student()], Namespace(beam=1))


def test_a_student_without_a_decoder_can_t_teach(data: Path) -> None:
    assert "has no incremental decoder" in str(unsupported_reason(build(speech.tiny_task(data))))

"""Runs that can't work are refused in one line that names the flag and the remedy, before data is read."""

import os
import shutil

import pytest
import torch
from fairseq import tasks
from fairseq.models import (
    FairseqDecoder,
    FairseqEncoderDecoderModel,
    register_model,
    register_model_architecture,
)
from fairseq.models.transformer import TransformerModel

import fairseq_imitkd.checkpoints.safe_load
from fairseq_imitkd.criterion import no_teacher
from fairseq_imitkd.errors import UsageError
from tests.helpers import digit_corpus, in_process


class WholeSequenceDecoder(FairseqDecoder):
    """A decoder that reads whole targets only."""

    def __init__(self, decoder):
        super().__init__(decoder.dictionary)
        self.decoder = decoder

    def forward(self, prev_output_tokens, encoder_out=None, **kwargs):
        return self.decoder(prev_output_tokens, encoder_out=encoder_out)


@register_model("no_incremental_decoder")
class NoIncrementalDecoder(FairseqEncoderDecoderModel):
    """An encoder-decoder that can't write token by token."""

    @staticmethod
    def add_args(parser):
        TransformerModel.add_args(parser)

    @classmethod
    def build_model(cls, args, task):
        transformer = TransformerModel.build_model(args, task)
        return cls(transformer.encoder, WholeSequenceDecoder(transformer.decoder))


@register_model_architecture("no_incremental_decoder", "no_incremental_decoder")
def no_incremental_decoder(args):
    from fairseq.models.transformer import base_architecture

    base_architecture(args)


def refusal(data, save_dir, *flags) -> str:
    """Return the message that ends a training. There are dictionaries alone, so reading data would fail with
    another error.
    """
    with pytest.raises(UsageError) as caught:
        in_process.train(
            data, save_dir, "--source-lang", "src", "--target-lang", "tgt",
            "--task", "translation_with_teacher", "--criterion", "imitkd", "--max-update", 10, *flags,
        )  # fmt: skip
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.code == f"error: {message}"
    return message


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (
            ("--student-share", "exponentially:0.5"),
            ("--student-share", "exponentially:0.5", "exponential:FINAL"),
        ),
        (("--student-share", "linear"), ("--student-share", "linear", "linear:0.5")),
        (("--student-share", "1.5"), ("--student-share", "1.5", "0..1")),
        (("--student-share", "exponential:0"), ("--student-share", "exponential:0", "above 0")),
        (
            ("--max-update", 0, "--max-epoch", 3),
            ("--student-share", "exponential:0.005", "--max-update", "constant"),
        ),
        (("--rollout-topk", 5), ("--rollout-topk", "greedy", "--rollout-policy sampling")),
        (("--rollout-policy", "sampling", "--rollout-topp", 0), ("--rollout-topp", "0", "above 0")),
        (
            ("--rollout-policy", "sampling", "--rollout-temperature", -1),
            ("--rollout-temperature", "-1", "above 0"),
        ),
        (("--gold-weight", 1.5), ("--gold-weight", "1.5", "0..1")),
        (("--left-pad-target",), ("--left-pad-target", "leave it out")),
        (("--adaptive-softmax-cutoff", "5,10"), ("--adaptive-softmax-cutoff", "leave it out")),
        (("--arch", "no_incremental_decoder"), ("--arch", "NoIncrementalDecoder", "incremental")),
        (("--arch", "nonautoregressive_transformer"), ("--arch", "left to right", "choose another")),
    ],
    ids=lambda value: (
        "_".join(map(str, value)).replace("--", "") if value and str(value[0]).startswith("--") else ""
    ),
)
def test_flags(flags, parts, digits, teacher, tmp_path):
    message = refusal(digits.dictionaries, tmp_path, "--teacher-path", teacher, *flags)
    for part in parts:
        assert part in message


@pytest.mark.parametrize("task", ["translation", "translation_multi_simple_epoch"])
def test_another_task(task, digits, tmp_path):
    """By fairseq's own command too, the message names the task with a teacher."""
    pair = ("--lang-pairs", "src-tgt") if task == "translation_multi_simple_epoch" else ()
    message = refusal(digits.dictionaries, tmp_path, "--task", task, *pair)
    assert f"--criterion imitkd has no teacher in --task {task}: use --task {task}_with_teacher" in message
    assert len(message) <= 200


def test_a_task_without_a_twin(digits, tmp_path):
    """The message names the tasks that have a teacher if they fit, and how to make one."""
    message = refusal(digits.dictionaries, tmp_path, "--task", "translation_lev")
    assert "has no teacher in --task translation_lev: use a task that ends in _with_teacher" in message
    assert message.rstrip().endswith("(or CONTRIBUTING.md)")
    assert "sentence_prediction,speech_to_text," in no_teacher("gkd", "masked_lm")
    assert len(message) <= 200


def test_fully_sharded(digits, teacher, tmp_path):
    """No process has a whole student. fairseq itself would ask for fairscale first, so the test builds the
    criterion.
    """
    flags = (
        "--task",
        "translation_with_teacher",
        "--teacher-path",
        teacher,
        "--criterion",
        "imitkd",
        "--max-update",
        10,
    )
    cfg = in_process.config(digits.data, tmp_path, *flags, "--ddp-backend", "fully_sharded")
    with pytest.raises(UsageError, match=r"--ddp-backend fully_sharded .* legacy_ddp"):
        tasks.setup_task(cfg.task).build_criterion(cfg.criterion)


class Harmful:
    """Unpickling it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_teacher_files(digits, teacher, tmp_path, monkeypatch):
    """For any file at --teacher-path, the message names the flag and the file. No code in the file is run."""

    def message(path) -> str:
        text = refusal(digits.dictionaries, tmp_path / "saved", "--teacher-path", path)
        assert f"--teacher-path '{path}'" in text
        return text

    assert "--teacher-path is not given" in refusal(digits.dictionaries, tmp_path / "saved")
    assert "is not a file" in message(tmp_path / "missing.pt")
    assert "is not a file" in message(tmp_path)

    text = tmp_path / "text.pt"
    text.write_text("not a checkpoint\n")
    assert "is damaged or not a checkpoint" in message(text)
    empty = tmp_path / "empty.pt"
    empty.touch()
    assert "is empty; copy it again" in message(empty)
    cut = tmp_path / "cut.pt"
    cut.write_bytes(teacher.read_bytes()[:50_000])
    assert "is damaged or not a checkpoint" in message(cut)
    tensors = tmp_path / "tensors.pt"
    torch.save({"weight": torch.ones(2)}, tensors)
    assert "is not a fairseq checkpoint: it lacks 'model'" in message(tensors)

    harmful = tmp_path / "harmful.pt"
    torch.save({"model": {}, "cfg": Harmful(tmp_path / "made")}, harmful)
    assert "posix.mkdir" in message(harmful)
    assert not (tmp_path / "made").exists()

    second = f"{teacher}:{tmp_path / 'missing.pt'}"
    assert "missing.pt' is not a file" in refusal(
        digits.dictionaries, tmp_path / "saved", "--teacher-path", second
    )

    access = os.access
    monkeypatch.setattr(
        fairseq_imitkd.checkpoints.safe_load.os,
        "access",
        lambda path, mode: str(path) != str(teacher) and access(path, mode),
    )
    assert "can't be read; check the file's permissions" in message(teacher)


def test_other_dictionaries(digits, teacher, tmp_path):
    """Two symbols are swapped. The number of symbols is right, but the teacher's output would be
    meaningless.
    """
    other = tmp_path / "other"
    shutil.copytree(digits.dictionaries, other)
    first, second, *rest = (other / "dict.tgt.txt").read_text().splitlines()
    (other / "dict.tgt.txt").write_text("\n".join([second, first, *rest]) + "\n")
    message = refusal(other, tmp_path / "saved", "--teacher-path", teacher)
    assert f"index 4: teacher '{first.split()[0]}', student '{second.split()[0]}'" in message
    assert str(digits.data / "dict.tgt.txt") in message
    assert "--tgtdict" in message
    same = refusal(
        digits.dictionaries, tmp_path / "saved", "--teacher-path", teacher, "--teacher-data", other
    )
    assert f"index 4: teacher '{second.split()[0]}', student '{first.split()[0]}'" in same
    (other / "dict.tgt.txt").unlink()
    missing = refusal(
        digits.dictionaries, tmp_path / "saved", "--teacher-path", teacher, "--teacher-data", other
    )
    assert "--teacher-data" in missing
    assert "dict.tgt.txt" in missing


@pytest.mark.parametrize(
    ("command", "flags", "start"),
    [
        (
            "fairseq-train",
            (
                "--user-dir",
                digit_corpus.REPO / "fairseq_imitkd",
                "--task",
                "translation_with_teacher",
                "--teacher-path",
                "none.pt",
            ),
            "error: --teacher-path 'none.pt' is not a file",
        ),
        (
            "imitkd-train",
            ("--teacher-path", "none.pt", "--student-share", "1.5"),
            "error: --student-share must be a number in 0..1, but is '1.5'",
        ),
    ],
)
def test_commands_end_with_the_one_line(command, flags, start, digits, tmp_path):
    """Standard error ends with this line and holds no traceback."""
    flags = (
        "--source-lang",
        "src",
        "--target-lang",
        "tgt",
        "--criterion",
        "imitkd",
        "--max-update",
        10,
        *flags,
    )
    done = digit_corpus.train(digits.data, tmp_path, *flags, *digit_corpus.TINY, command=command, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(start)
    assert "Traceback" not in done.stderr + done.stdout

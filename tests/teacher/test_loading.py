"""Loading a teacher: its weights, its dictionaries and its languages."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import tasks
from fairseq.models import BaseFairseqModel

from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.models.tagged import Tags, tags_of
from fairseq_imitkd.teacher.loading import load_teacher
from fairseq_imitkd.teacher.source import TeacherSource
from tests.helpers.fairseq_models import (
    LETTERS,
    checkpoint_state,
    letters,
    make_batch,
    reversed_pairs,
    teacher_logits,
    training_args,
    training_config,
    write_dictionaries,
)
from tests.helpers.teacher_checkpoints import legacy_state, load, refusal, saved, state_with


def test_loaded_teacher_is_the_model_that_was_saved(folder: Path, cfg: Any, model: BaseFairseqModel) -> None:
    """Every weight, in evaluation mode, without gradients; its logits are the model's own."""
    teacher = load(saved(folder, checkpoint_state(model, cfg)))
    [loaded] = teacher.models
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    sample = make_batch(reversed_pairs(4, seed=1))
    logits = teacher_logits(teacher, sample)
    assert not logits.requires_grad
    with torch.no_grad():
        assert logits.equal(model.eval()(**sample["net_input"])[0])


def test_teacher_trained_with_our_own_task_needs_no_teacher_of_its_own(
    folder: Path, model: BaseFairseqModel
) -> None:
    """A student may teach another one after its own teacher's file was deleted."""
    cfg = training_config(
        folder,
        "--task",
        "translation_with_teacher",
        "--criterion",
        "imitkd",
        "--teacher-path",
        "gone.pt",
        "--max-update",
        "10",
    )
    [loaded] = load(saved(folder, checkpoint_state(model, cfg), "student.pt")).models
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "flags",
    [
        ("--task", "translation", "--eval-bleu"),
        (
            "--task",
            "translation_with_teacher",
            "--eval-metrics",
            "chrf,rouge-l",
            "--best-checkpoint-metric",
            "chrf",
        ),
    ],
)
def test_scores_of_the_teachers_own_training_are_not_asked_for(
    folder: Path, model: BaseFairseqModel, flags: tuple[str, ...]
) -> None:
    """A teacher trained with ``--eval-bleu`` or ``--eval-metrics`` loads without its tokeniser."""
    cfg = training_config(folder, *flags, "--eval-bleu-detok", "no-such-detokeniser")
    assert len(load(saved(folder, checkpoint_state(model, cfg), "scored.pt")).models) == 1


def test_several_paths_make_an_ensemble(folder: Path, cfg: Any, model: BaseFairseqModel) -> None:
    """Joined by ``:``."""
    path = saved(folder, checkpoint_state(model, cfg))
    assert len(load(f"{path}:{path}").models) == 2


@pytest.mark.parametrize("side", ["src", "tgt"])
def test_dictionary_that_differs_is_refused(
    tmp_path: Path, cfg: Any, model: BaseFairseqModel, side: str
) -> None:
    """Of equal sizes with two symbols exchanged: the message names the index, both symbols and the remedy."""
    swapped = LETTERS.replace("e", "?").replace("f", "e").replace("?", "f")
    write_dictionaries(tmp_path, **{"src": {"source": swapped}, "tgt": {"target": swapped}}[side])
    message = refusal(saved(tmp_path, checkpoint_state(model, cfg)), data=str(tmp_path))
    assert (
        f"{tmp_path / f'dict.{side}.txt'} differs from the student's at index 8: teacher 'f', student 'e'"
        in message
    )
    assert "(--srcdict, --tgtdict)" in message
    assert "imitkd-seqkd --student-data" in message


@pytest.mark.parametrize(
    ("theirs", "symbols"), [(LETTERS[:-1] + "zy", len(LETTERS) + 5), (LETTERS[:-2], len(LETTERS) + 2)]
)
def test_dictionary_of_another_size_is_refused(
    tmp_path: Path, model: BaseFairseqModel, theirs: str, symbols: int
) -> None:
    """Its folder is not that of the teacher; the data may well be right. The flag is the remedy unless it
    named the folder.
    """
    write_dictionaries(tmp_path, target=theirs)
    path = saved(tmp_path, checkpoint_state(model, training_config(tmp_path, "--task", "translation")))
    sizes = f"the decoder's has {symbols} symbols, not {len(LETTERS) + 4}"
    for data, flag, remedy in ((str(tmp_path), "--teacher-data ", ""), (None, "", " by --teacher-data")):
        message = refusal(path, data=data)
        assert message.startswith(f"{flag}'{tmp_path}' has other dictionaries than the teacher '")
        assert message.endswith(f"{sizes}; name the folder of the teacher's{remedy}")


def test_a_dictionary_that_ends_early_is_refused(tmp_path: Path, cfg: Any, model: BaseFairseqModel) -> None:
    """By one symbol, as that of BART does; the symbols decide."""
    write_dictionaries(tmp_path, target=LETTERS[:-1])
    message = refusal(saved(tmp_path, checkpoint_state(model, cfg)), data=str(tmp_path))
    assert "teacher '(nothing)', student 'p'" in message


def test_dictionaries_that_are_nowhere_are_asked_for(tmp_path: Path, model: BaseFairseqModel) -> None:
    """The message names the folders that were searched, and the flag that names another; the flag works."""
    cfg = training_config(tmp_path / "moved", "--task", "translation")
    (tmp_path / "checkpoints").mkdir()
    path = saved(tmp_path / "checkpoints", checkpoint_state(model, cfg))
    message = refusal(path)
    for word in (
        "--teacher-data",
        "dict.src.txt",
        "dict.tgt.txt",
        str(tmp_path / "checkpoints"),
        str(tmp_path / "moved"),
    ):
        assert word in message
    elsewhere = write_dictionaries(tmp_path / "elsewhere")
    assert len(load(path, data=str(elsewhere)).models) == 1
    assert "--teacher-data" in refusal(path, data=str(tmp_path))


@pytest.mark.parametrize("named", ["the student's", "others"])
@pytest.mark.parametrize("side", ["src", "tgt"])
def test_dictionaries_of_two_places_must_agree(
    tmp_path: Path, model: BaseFairseqModel, side: str, named: str
) -> None:
    """The dictionaries beside the checkpoint and those in the folder that it names may both be wrong."""
    turned = {"src": {"source": LETTERS[::-1]}, "tgt": {"target": LETTERS[::-1]}}[side]
    beside, said = tmp_path / "beside", tmp_path / "said"
    for folder, is_other in ((beside, named != "others"), (said, named == "others")):
        write_dictionaries(folder, **(turned if is_other else {}))
    path = saved(beside, checkpoint_state(model, training_config(said, "--task", "translation")))
    message = refusal(path)
    first, second = ("a", "p") if named == "others" else ("p", "a")
    file = f"dict.{side}.txt"
    assert f"lies beside {beside / file}, but names {said / file}, and they differ at index 4" in message
    assert f"'{first}' and '{second}'" in message
    assert "--teacher-data must name the folder" in message
    right, wrong = (beside, said) if named == "others" else (said, beside)
    assert len(load(path, data=str(right)).models) == 1
    assert "differs from the student's" in refusal(path, data=str(wrong))
    write_dictionaries(wrong)
    assert len(load(path).models) == 1


def test_a_named_folder_that_is_forbidden(
    tmp_path: Path, model: BaseFairseqModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the dictionaries beside the checkpoint are the teacher's."""
    write_dictionaries(tmp_path)
    theirs, stat = tmp_path / "theirs", os.stat
    path = saved(tmp_path, checkpoint_state(model, training_config(theirs, "--task", "translation")))

    def forbidding(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        if str(path).startswith(str(theirs)):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", forbidding)
    assert len(load(path).models) == 1


def test_teacher_of_the_other_direction_is_refused(folder: Path, model: BaseFairseqModel) -> None:
    """With a joined dictionary no other check would notice it."""
    cfg = training_config(folder, "--task", "translation", "--source-lang", "tgt", "--target-lang", "src")
    path = saved(folder, checkpoint_state(model, cfg), "other-way.pt")
    message = refusal(path)
    assert f"--teacher-path '{path}'" in message
    assert "it translates tgt-src, but the student src-tgt" in message


def test_old_teacher_of_the_other_direction_is_refused(folder: Path, model: BaseFairseqModel) -> None:
    """Its languages are in an ``argparse.Namespace``."""
    args = training_args(folder, "--task", "translation", "--source-lang", "tgt", "--target-lang", "src")
    assert "tgt-src" in refusal(saved(folder, legacy_state(args, model.state_dict()), "other-way.pt"))


def test_direction_that_was_not_saved_is_that_of_the_data(
    folder: Path, tmp_path: Path, model: BaseFairseqModel
) -> None:
    """fairseq guesses it from file names and does not save it."""
    for pair, refused in (("tgt-src", True), ("src-tgt", False)):
        data = write_dictionaries(tmp_path / pair)
        (data / f"train.{pair}.src.idx").touch()
        cfg = training_config(data, "--task", "translation")
        state = state_with(model, cfg, "task", data=str(data), source_lang=None, target_lang=None)
        path = saved(folder, state, "unsaid.pt")
        if refused:
            assert "it translates tgt-src, but the student src-tgt" in refusal(path)
        else:
            assert len(load(path).models) == 1


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings of this package."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name in ("fairseq_imitkd.teacher.loading", "fairseq_imitkd.checkpoints.direction")
        and record.levelno >= logging.WARNING
    ]


@pytest.mark.parametrize(
    "unsaved", [("source_lang", "target_lang"), ("source_lang",), ("target_lang",)], ids="+".join
)
def test_teacher_without_languages_takes_the_students(
    tmp_path: Path,
    cfg: Any,
    model: BaseFairseqModel,
    unsaved: tuple[str, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """fairseq may not save them. The folder of ``--teacher-data`` needs to hold only the dictionaries."""
    state = state_with(model, cfg, "task", data=str(tmp_path / "gone"), **dict.fromkeys(unsaved))
    (tmp_path / "checkpoints").mkdir()
    path = saved(tmp_path / "checkpoints", state)
    dictionaries = write_dictionaries(tmp_path / "dictionaries")
    assert sorted(file.name for file in dictionaries.iterdir()) == ["dict.src.txt", "dict.tgt.txt"]
    with caplog.at_level(logging.WARNING, logger="fairseq_imitkd"):
        [loaded] = load(path, data=str(dictionaries)).models
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    ("names", "warns"), [(("de", "en"), True), (("src", "en"), True), (("src", "tgt"), False)]
)
def test_other_language_names_are_warned_of(
    tmp_path: Path,
    model: BaseFairseqModel,
    names: tuple[str, str],
    warns: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """``de`` and ``de_DE`` may mean the same, so the teacher loads; the warning names both pairs."""
    for name in names:
        letters().save(str(tmp_path / f"dict.{name}.txt"))
    cfg = training_config(
        tmp_path, "--task", "translation", "--source-lang", names[0], "--target-lang", names[1]
    )
    path = saved(tmp_path, checkpoint_state(model, cfg))
    with caplog.at_level(logging.WARNING, logger="fairseq_imitkd"):
        assert len(load(path).models) == 1
    messages = warnings(caplog)
    assert len(messages) == warns
    assert all("-".join(names) in message and "src-tgt" in message for message in messages)


def test_a_teacher_whose_tags_the_data_lack_is_refused(folder: Path, model: BaseFairseqModel) -> None:
    """mBART's fine-tuning task adds language tags to the dictionaries of its data."""
    args = training_args(folder, "--task", "translation")
    args.task, args.langs, args.prepend_bos = "translation_from_pretrained_bart", "de,en", False
    message = refusal(saved(folder, legacy_state(args, model.state_dict()), "tags.pt"))
    assert "its task adds [de] [en] <mask> to dict.src.txt, which the student's lacks; use" in message
    assert message.endswith("the dictionaries of: imitkd-dictionary TEACHER --out FOLDER")


def test_a_teacher_gets_the_tags_of_its_settings(tmp_path: Path) -> None:
    """mBART's: the source's tag follows EOS, and the target begins with its own. The student lacks none."""
    symbols = [*LETTERS, "[src]", "[tgt]", "<mask>"]
    folder = write_dictionaries(tmp_path, symbols, symbols)
    args = training_args(folder, "--task", "translation")
    model = tasks.setup_task(args).build_model(args)
    args.task, args.langs, args.prepend_bos = "translation_from_pretrained_bart", "src,tgt", True
    path = saved(folder, legacy_state(args, model.state_dict()))
    full = letters(symbols)
    [loaded] = load_teacher(TeacherSource(path), LanguagePair("src", "tgt", full, full)).models
    eos, bos, src, tgt = full.eos(), full.bos(), full.index("[src]"), full.index("[tgt]")
    assert tags_of(loaded) == Tags((bos,), (eos, src), (tgt, bos))


def test_teachers_with_other_tags_are_no_ensemble(tmp_path: Path) -> None:
    """The same members would need different prefixes."""
    symbols = [*LETTERS, "[src]", "[tgt]", "<mask>"]
    folder = write_dictionaries(tmp_path, symbols, symbols)
    args = training_args(folder, "--task", "translation")
    weights = tasks.setup_task(args).build_model(args).state_dict()
    plain = saved(folder, legacy_state(args, weights), "plain.pt")
    args = training_args(folder, "--task", "translation")
    args.task, args.langs = "translation_from_pretrained_bart", "src,tgt"
    tagged = saved(folder, legacy_state(args, weights), "tagged.pt")
    full = letters(symbols)
    with pytest.raises(UsageError, match=r"tagged.pt' needs other language tags than '.*plain.pt'"):
        load_teacher(TeacherSource(f"{plain}:{tagged}"), LanguagePair("src", "tgt", full, full))


def test_a_teacher_whose_logits_depend_on_earlier_batches_is_refused(
    folder: Path, cfg: Any, model: BaseFairseqModel
) -> None:
    """fairseq's scalar quantisation takes its scales from the batches that the model reads."""
    state = state_with(model, cfg, "model", quant_noise_scalar=0.1)
    assert "it was trained with --quant-noise-scalar" in refusal(saved(folder, state, "scalar.pt"))

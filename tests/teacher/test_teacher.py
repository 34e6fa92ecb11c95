"""The teacher: loaded safely, checked against the student's dictionaries, frozen, asked for its logits."""

import argparse
import codecs
import copy
import fractions
import logging
import math
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import options
from fairseq.models import BaseFairseqModel

from fairseq_imitkd.checkpoints.safe_load import check_files, first_difference, parse_weights, read_checkpoint
from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.teacher.loading import load_teacher
from fairseq_imitkd.teacher.teacher import Teacher
from tests.helpers.fairseq_models import (
    LETTERS,
    POSITIONS,
    build_student,
    checkpoint_state,
    letters,
    make_batch,
    reversed_pairs,
    teacher_logits,
    tiny_task,
    training_args,
    training_config,
    write_dictionaries,
)

STUDENT_SIDE = LanguagePair("src", "tgt", letters(), letters())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dictionaries of the letters."""
    return write_dictionaries(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def cfg(folder: Path) -> Any:
    """The configuration of a translation model trained in that folder."""
    return training_config(folder, "--task", "translation")


@pytest.fixture(scope="module")
def model(cfg: Any) -> BaseFairseqModel:
    """Some weights for it."""
    torch.manual_seed(4)
    return tiny_task().build_model(cfg.model)


def saved(folder: Path, state: Any, name: str = "teacher.pt", **flags: Any) -> str:
    """The path of a file that ``torch.save`` wrote."""
    torch.save(state, folder / name, **flags)
    return str(folder / name)


def refusal(path: str, **settings: Any) -> str:
    """The one line that loading ends with."""
    with pytest.raises(UsageError) as error:
        load_teacher(path, STUDENT_SIDE, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_loaded_teacher_is_the_model_that_was_saved(folder: Path, cfg: Any, model: BaseFairseqModel) -> None:
    """Every weight, in evaluation mode, without gradients; its logits are the model's own."""
    teacher = load_teacher(saved(folder, checkpoint_state(model, cfg)), STUDENT_SIDE)
    [loaded] = teacher.models
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    sample = make_batch(reversed_pairs(4, seed=1))
    logits = teacher_logits(teacher, sample)
    assert not logits.requires_grad
    with torch.no_grad():
        assert logits.equal(model.eval()(**sample["net_input"])[0])


@pytest.mark.parametrize("zipped", [True, False])
def test_optimizer_state_is_dropped(folder: Path, cfg: Any, model: BaseFairseqModel, zipped: bool) -> None:
    """It is twice the model's size and of no use to a teacher; torch's older file format is read too."""
    path = saved(folder, checkpoint_state(model, cfg), "formats.pt", _use_new_zipfile_serialization=zipped)
    state = read_checkpoint(path, None)
    assert "last_optimizer_state" not in state
    assert set(state["model"]) == set(model.state_dict())
    assert len(load_teacher(path, STUDENT_SIDE).models) == 1


def test_legacy_checkpoint_with_args_loads(folder: Path, model: BaseFairseqModel) -> None:
    """Before 2020 fairseq wrote an ``argparse.Namespace`` and no ``cfg``."""
    args = training_args(folder, "--task", "translation")
    state = checkpoint_state(model, None, args=args)
    del state["cfg"]
    assert isinstance(args, argparse.Namespace)
    [loaded] = load_teacher(saved(folder, state, "legacy.pt"), STUDENT_SIDE).models
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_teacher_trained_with_our_own_task_needs_no_teacher_of_its_own(
    folder: Path, model: BaseFairseqModel
) -> None:
    """A student may teach another one when its own teacher's file is long gone."""
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
    [loaded] = load_teacher(saved(folder, checkpoint_state(model, cfg), "student.pt"), STUDENT_SIDE).models
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
    """A teacher trained with ``--eval-bleu`` or ``--eval-metrics`` loads without its tokenizer or generator."""
    cfg = training_config(folder, *flags, "--eval-bleu-detok", "no-such-detokeniser")
    assert (
        len(load_teacher(saved(folder, checkpoint_state(model, cfg), "scored.pt"), STUDENT_SIDE).models) == 1
    )


def test_ensemble_averages_probabilities() -> None:
    """The log of the mean of the members' probabilities, in float64 from the definition; not the mean of logits."""
    members = [build_student(seed=seed).eval() for seed in (1, 2, 3)]
    sample = make_batch(reversed_pairs(4, seed=2))
    logits = teacher_logits(Teacher(members), sample)
    with torch.no_grad():
        scores = [member(**sample["net_input"])[0].double() for member in members]
    probabilities = sum(score.exp() / score.exp().sum(-1, keepdim=True) for score in scores) / 3
    torch.testing.assert_close(logits.double(), probabilities.log(), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits.double().softmax(-1), (sum(scores) / 3).softmax(-1), atol=1e-3)
    assert not logits.requires_grad


def test_max_positions_are_the_tightest_members() -> None:
    """Source and target apart: what one member can't read, the ensemble can't."""
    members = [build_student(max_source_positions=a, max_target_positions=b) for a, b in ((30, 50), (40, 20))]
    assert Teacher(members).max_positions == (30, 20)


def test_several_paths_make_an_ensemble(folder: Path, cfg: Any, model: BaseFairseqModel) -> None:
    """Joined by ``:``."""
    path = saved(folder, checkpoint_state(model, cfg))
    assert len(load_teacher(f"{path}:{path}", STUDENT_SIDE).models) == 2


@pytest.mark.parametrize(
    ("flag", "student", "expected"),
    [
        ("auto", torch.float32, torch.float32),
        ("auto", torch.bfloat16, torch.bfloat16),
        ("fp32", torch.float16, torch.float32),
        ("fp16", torch.float32, torch.float16),
        ("bf16", torch.float32, torch.bfloat16),
    ],
)
def test_place_sets_the_dtype(flag: str, student: torch.dtype, expected: torch.dtype) -> None:
    """What was asked for, or the student's own; placing again changes nothing."""
    teacher = Teacher([build_student()], flag)
    for _ in range(2):
        teacher.place(torch.device("cpu"), student)
        assert {parameter.dtype for parameter in teacher.models[0].parameters()} == {expected}


@pytest.mark.parametrize("flag", ["auto", "fp32", "fp16"])
def test_first_placement_keeps_its_dtype(flag: str) -> None:
    """A student seen in half precision later must not round a teacher that is already in place, nor the other way round."""
    first = torch.float16 if flag == "fp16" else torch.float32
    teacher = Teacher([build_student(), build_student(seed=2)], flag)
    teacher.place(torch.device("cpu"), torch.float32)
    weights = [parameter.clone() for model in teacher.models for parameter in model.parameters()]
    for later in (torch.bfloat16, torch.float16, torch.float32):
        teacher.place(torch.device("cpu"), later)
    placed = [parameter for model in teacher.models for parameter in model.parameters()]
    assert {parameter.dtype for parameter in placed} == {first}
    assert all(after.equal(before) for after, before in zip(placed, weights, strict=True))


@pytest.mark.parametrize("whole", [True, False])
def test_its_own_precision_is_not_autocast_s(whole: bool) -> None:
    """--teacher-dtype fp32 is that under --amp too, also where logits are made later; ``auto`` is the student's."""
    sample, found = make_batch(reversed_pairs(6, seed=3)), {}
    for dtype in ("auto", "fp32"):
        teacher = Teacher([build_student(seed=2)], dtype)
        teacher.place(torch.device("cpu"), torch.float32)
        exact = teacher.score(sample).logits(slice(None))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = teacher.score(sample, teacher.encode(sample), whole=whole)
            logits = (
                scores.at(torch.arange(3)).logits(slice(None)),
                teacher.agreement(sample, teacher.encode(sample), 1, 0),
            )
        found[dtype] = logits[0].dtype, float((logits[0].float() - exact[:3]).abs().max()) > 1e-5
    assert found == {"auto": (torch.bfloat16, True), "fp32": (torch.float32, False)}


def test_constructing_freezes_and_stops_dropout() -> None:
    """Also of a model handed over in training mode: two scores of a batch are equal."""
    model = build_student().train()
    teacher, sample = Teacher([model]), make_batch(reversed_pairs(4, seed=2))
    assert teacher_logits(teacher, sample).equal(teacher_logits(teacher, sample))
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        ("abc", "abc", None),
        ("abc", "abd", (2, "c", "d")),
        ("abc", "bac", (0, "a", "b")),
        ("abc", "ab", (2, "c", "(nothing)")),
        ("ab", "abc", (2, "(nothing)", "c")),
        ("", "", None),
    ],
)
def test_first_difference(teacher: str, student: str, expected: tuple[int, str, str] | None) -> None:
    """The first index at which two dictionaries part, the end of one included."""
    assert first_difference(teacher, student) == expected


@pytest.mark.parametrize("path", [None, ""])
def test_no_path_is_refused(path: str | None) -> None:
    """The message names the flag."""
    with pytest.raises(UsageError, match="--teacher-path is not given"):
        check_files(path)


def test_missing_file_and_folder_are_refused(folder: Path, cfg: Any, model: BaseFairseqModel) -> None:
    """By the path at fault, also as the second of an ensemble."""
    good = saved(folder, checkpoint_state(model, cfg))
    for bad in (str(folder / "missing.pt"), str(folder)):
        for paths in (bad, f"{good}:{bad}"):
            message = refusal(paths)
            assert f"--teacher-path '{bad}' is no file" in message


@pytest.mark.parametrize(
    "content", ["garbage", "nothing", "truncated", "truncated-in-the-middle", "text", "zip"]
)
def test_unreadable_file_is_refused(folder: Path, cfg: Any, model: BaseFairseqModel, content: str) -> None:
    """What is no checkpoint, or only the beginning of one, ends with one line and no traceback."""
    whole = Path(saved(folder, checkpoint_state(model, cfg))).read_bytes()
    bad = folder / "bad.pt"
    bad.write_bytes(
        {
            "garbage": bytes(range(256)) * 8,
            "nothing": b"",
            "truncated": whole[:100],
            "truncated-in-the-middle": whole[: len(whole) // 2],
            "text": b"<html>404 not found</html>\n" * 50,
            "zip": b"PK\x03\x04" + bytes(500),
        }[content]
    )
    message = refusal(str(bad))
    said = "is empty: copy it again" if content == "nothing" else "is damaged or no checkpoint"
    assert f"--teacher-path '{bad}' {said}" in message
    assert "miniz" not in message
    assert len(message) < len(str(bad)) + 140


@pytest.mark.parametrize("state", [{"weights": {}}, {"model": {}}, [1, 2], {"cfg": {}, "model": {}}], ids=str)
def test_other_files_of_torch_are_refused(folder: Path, state: Any) -> None:
    """Readable, and no fairseq checkpoint: the message says what it lacks."""
    message = refusal(saved(folder, state, "other.pt"))
    assert "is no fairseq checkpoint: it lacks 'model' and 'cfg' (or 'args')" in message


class Malicious:
    """Calls a function when a careless loader reads it."""

    def __init__(self, function: Any, *arguments: str):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def write_malicious(file: Path, trace: Path, file_format: str, blocked: bool = False) -> None:
    """A file that looks like a checkpoint and creates ``trace`` when read by plain pickle."""
    harm = Malicious(os.system, f"touch '{trace}'") if blocked else Malicious(codecs.open, str(trace), "w")
    state = {"model": {}, "cfg": {"task": 1}, "extra_state": harm}
    if file_format.startswith("pickle"):
        file.write_bytes(pickle.dumps(state, protocol=int(file_format[-1])))
    else:
        torch.save(state, file, _use_new_zipfile_serialization=file_format == "zip")


@pytest.mark.parametrize("file_format", ["zip", "legacy", "pickle-2"])
def test_malicious_file_is_refused_and_does_nothing(folder: Path, tmp_path: Path, file_format: str) -> None:
    """Its code never runs; the message names what it wanted and the flag that would allow it."""
    trace, file = tmp_path / "executed", folder / "malicious.pt"
    write_malicious(file, trace, file_format)
    message = refusal(str(file))
    assert not trace.exists()
    assert f"--teacher-path '{file}' needs codecs.open" in message
    assert message.endswith("--teacher-allow-globals codecs.open")


@pytest.mark.parametrize("file_format", ["zip", "legacy", "pickle-2"])
def test_what_torch_never_allows_is_named_and_not_advised(
    folder: Path, tmp_path: Path, file_format: str
) -> None:
    """torch blocks some modules, ``os`` among them, whatever is allow-listed: the flag would not help, so it is not named."""
    trace, file = tmp_path / "executed", folder / "malicious.pt"
    write_malicious(file, trace, file_format, blocked=True)
    message = refusal(str(file))
    assert not trace.exists()
    assert f"{os.system.__module__}.system" in message
    assert "--teacher-allow-globals" not in message


def test_pickle_that_torch_cannot_parse_is_refused_and_does_nothing(folder: Path, tmp_path: Path) -> None:
    """A later pickle protocol than torch writes: no code runs, and no one is told to turn the safe loader off."""
    trace, file = tmp_path / "executed", folder / "malicious.pt"
    write_malicious(file, trace, "pickle-4")
    message = refusal(str(file))
    assert not trace.exists()
    assert f"--teacher-path '{file}' is damaged or no checkpoint" in message
    assert "weights_only" not in message


@pytest.mark.parametrize("blocked", [True, False])
def test_the_malicious_file_is_one(tmp_path: Path, blocked: bool) -> None:
    """Plain pickle does run it: the tests above would see it."""
    trace, file = tmp_path / "executed", tmp_path / "malicious.pt"
    write_malicious(file, trace, "pickle-2", blocked)
    pickle.loads(file.read_bytes())
    assert trace.exists()


@pytest.mark.parametrize(
    ("value", "name"),
    [(fractions.Fraction(1, 3), "fractions.Fraction"), (range(3), "builtins.range")],
    ids=["own-module", "module-renamed-since-python-2"],
)
def test_other_types_load_when_they_are_allowed(
    folder: Path, cfg: Any, model: BaseFairseqModel, value: Any, name: str
) -> None:
    """A harmless type is refused by name, then loads with the very flag that the message gives; for that load alone.

    torch saves by a protocol that spells builtins as Python 2 did: the message must not.
    """
    path = saved(folder, checkpoint_state(model, cfg, note=value), "note.pt")
    advice = re.search(r"--teacher-allow-globals (\S+)$", refusal(path))
    assert advice
    assert advice[1] == name
    assert len(load_teacher(path, STUDENT_SIDE, allow_globals=name).models) == 1
    assert len(load_teacher(path, STUDENT_SIDE, allow_globals=f"collections.OrderedDict, {name}").models) == 1
    assert type(value) not in torch.serialization.get_safe_globals()
    assert name in refusal(path)


@pytest.mark.parametrize("names", ["no_such_module.Type", "fractions.NoSuchType", "Fraction", "fractions."])
def test_allowed_name_must_exist(folder: Path, cfg: Any, model: BaseFairseqModel, names: str) -> None:
    """A misspelt one is named with its flag."""
    path = saved(folder, checkpoint_state(model, cfg))
    assert f"--teacher-allow-globals '{names}'" in refusal(path, allow_globals=names)


@pytest.mark.parametrize("side", ["src", "tgt"])
def test_dictionary_that_differs_is_refused(
    tmp_path: Path, cfg: Any, model: BaseFairseqModel, side: str
) -> None:
    """Equal sizes with two symbols exchanged: the index and both symbols are named, with the remedy."""
    swapped = LETTERS.replace("e", "?").replace("f", "e").replace("?", "f")
    write_dictionaries(tmp_path, **{"src": {"source": swapped}, "tgt": {"target": swapped}}[side])
    message = refusal(saved(tmp_path, checkpoint_state(model, cfg)), data=str(tmp_path))
    assert (
        f"{tmp_path / f'dict.{side}.txt'} differs from the student's at index 8: teacher 'f', student 'e'"
        in message
    )
    assert "fairseq-preprocess --srcdict --tgtdict" in message


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [(LETTERS + "z", "teacher 'z', student '(nothing)'"), (LETTERS[:-1], "teacher '(nothing)', student 'p'")],
)
def test_dictionary_of_another_size_is_refused(
    tmp_path: Path, cfg: Any, model: BaseFairseqModel, theirs: str, expected: str
) -> None:
    """A symbol more or fewer at the end."""
    write_dictionaries(tmp_path, target=theirs)
    assert expected in refusal(saved(tmp_path, checkpoint_state(model, cfg)), data=str(tmp_path))


def test_dictionaries_that_are_nowhere_are_asked_for(tmp_path: Path, model: BaseFairseqModel) -> None:
    """The message says where they were looked for and which flag names the folder, which then helps."""
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
    assert len(load_teacher(path, STUDENT_SIDE, data=str(elsewhere)).models) == 1
    assert "--teacher-data" in refusal(path, data=str(tmp_path))


@pytest.mark.parametrize("named", ["the student's", "others"])
@pytest.mark.parametrize("side", ["src", "tgt"])
def test_dictionaries_of_two_places_must_agree(
    tmp_path: Path, model: BaseFairseqModel, side: str, named: str
) -> None:
    """A teacher may be put beside the student's, and another training may fill the folder that it names: who knows?"""
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
    assert len(load_teacher(path, STUDENT_SIDE, data=str(right)).models) == 1
    assert "differs from the student's" in refusal(path, data=str(wrong))
    write_dictionaries(wrong)
    assert len(load_teacher(path, STUDENT_SIDE).models) == 1


def test_a_named_folder_of_somebody_elses(
    tmp_path: Path, model: BaseFairseqModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that may not be looked into is none: the dictionaries beside the checkpoint are the teacher's."""
    write_dictionaries(tmp_path)
    theirs, stat = tmp_path / "theirs", os.stat
    path = saved(tmp_path, checkpoint_state(model, training_config(theirs, "--task", "translation")))

    def forbidding(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        if str(path).startswith(str(theirs)):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", forbidding)
    assert len(load_teacher(path, STUDENT_SIDE).models) == 1


def test_weights_that_do_not_fit_are_refused(folder: Path, cfg: Any, model: BaseFairseqModel) -> None:
    """A checkpoint whose weights are not its configuration's."""
    weights = dict(model.state_dict())
    del weights["decoder.output_projection.weight"]
    path = saved(folder, {**checkpoint_state(model, cfg), "model": weights}, "misfit.pt")
    assert f"--teacher-path '{path}' can't be used" in refusal(path)


def harm(trace: Path) -> str:
    """A Python expression that creates a file when it is evaluated."""
    return f"__import__('os').system('touch {trace}')"


def test_the_harmful_expression_is_one(tmp_path: Path) -> None:
    """Evaluated, as text or as bytes, it does create the file: the tests below would see it."""
    for number, form in enumerate((str, str.encode)):
        trace = tmp_path / f"executed-{number}"
        eval(form(harm(trace)))
        assert trace.exists()


def state_with(model: BaseFairseqModel, cfg: Any, part: str, **settings: Any) -> dict[str, Any]:
    """A checkpoint's state, some settings of its task or model exchanged."""
    state = copy.deepcopy(checkpoint_state(model, cfg))
    node = state["cfg"][part]
    (vars(node) if isinstance(node, argparse.Namespace) else node).update(settings)
    return state


def fconv_args(folder: Path) -> argparse.Namespace:
    """What ``fairseq-train`` reads for a convolutional model: fairseq evaluates its layers and its attention as Python."""
    arguments = [
        str(folder), "--source-lang", "src", "--target-lang", "tgt", "--cpu", "--task", "translation", "--arch", "fconv",
        "--encoder-embed-dim", "32", "--encoder-layers", "[(32, 3)] * 2", "--decoder-embed-dim", "32",
        "--decoder-layers", "[(32, 3)] * 2", "--decoder-out-embed-dim", "32",
    ]  # fmt: skip
    return options.parse_args_and_arch(options.get_training_parser(), arguments)


def legacy_state(args: argparse.Namespace, weights: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of the time before ``cfg``."""
    return {"args": args, "model": weights, "optimizer_history": [], "extra_state": {"epoch": 1}}


EXPRESSIONS = {
    "call": "__import__('os').system('touch {trace}')",
    "call-in-a-list": "[__import__('os').system('touch {trace}')]",
    "call-in-a-layer": "[(32, 3), (32, __import__('os').system('touch {trace}'))] * 2",
    "call-without-quotes": "[exec(chr(49))]",
    "comprehension": "[x for x in [1]]",
    "subscript-of-a-name": "sys.modules[0]",
    "format-string": "f'{{1}}'",
    "power": "2**3",
    "power-in-brackets": "[(2**3, 3)]",
}


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_expression_in_a_setting_is_refused_and_does_nothing(
    folder: Path, tmp_path: Path, cfg: Any, model: BaseFairseqModel, expression: str
) -> None:
    """fairseq evaluates the cutoff as Python: the safe loader lets the text pass, so it is refused by the setting's name."""
    trace = tmp_path / "executed"
    state = state_with(model, cfg, "model", adaptive_softmax_cutoff=expression.format(trace=trace))
    path = saved(folder, state, "expression.pt")
    message = refusal(path)
    assert not trace.exists()
    assert f"--teacher-path '{path}'" in message
    assert "model.adaptive_softmax_cutoff holds an expression" in message


@pytest.mark.parametrize("setting", ["encoder_layers", "decoder_layers", "decoder_attention"])
def test_expression_in_an_old_checkpoint_is_refused(folder: Path, tmp_path: Path, setting: str) -> None:
    """Also one that the older ``args`` holds, for another architecture."""
    trace, args = tmp_path / "executed", fconv_args(folder)
    setattr(args, setting, f"[{harm(trace)}] * 2")
    message = refusal(saved(folder, legacy_state(args, build_student("fconv").state_dict()), "expression.pt"))
    assert not trace.exists()
    assert f".{setting} holds an expression" in message


@pytest.mark.parametrize("disguise", [bytes, bytearray])
def test_expression_that_is_no_text_does_nothing(folder: Path, tmp_path: Path, disguise: Any) -> None:
    """Python evaluates bytes as it does text, and the safe loader lets them pass."""
    trace, args = tmp_path / "executed", fconv_args(folder)
    args.encoder_layers = disguise(harm(trace).encode())
    message = refusal(saved(folder, legacy_state(args, build_student("fconv").state_dict()), "expression.pt"))
    assert not trace.exists()
    assert ".encoder_layers holds " in message


@pytest.mark.parametrize("part", ["task", "model"])
@pytest.mark.parametrize(
    ("nest", "name"),
    [
        (lambda text: {"cutoff": text}, "cutoff"),
        (lambda text: argparse.Namespace(cutoff=text), "cutoff"),
        (lambda text: {"decoder": argparse.Namespace(inner={"cutoff": text})}, "cutoff"),
        (lambda text: [1, text], "1"),
        (lambda text: {"data_path": [text]}, "0"),
    ],
    ids=["mapping", "namespace", "namespace-in-a-mapping", "list", "list-of-paths"],
)
def test_nested_expression_is_refused(
    folder: Path, tmp_path: Path, cfg: Any, model: BaseFairseqModel, part: str, nest: Any, name: str
) -> None:
    """However deep it lies, in the task's settings as in the model's."""
    trace = tmp_path / "executed"
    message = refusal(saved(folder, state_with(model, cfg, part, inner=nest(harm(trace))), "expression.pt"))
    assert not trace.exists()
    assert f"its setting {part}.{name} holds an expression" in message


def test_reference_to_another_setting_is_not_followed(
    folder: Path, tmp_path: Path, model: BaseFairseqModel
) -> None:
    """A path may hold any character, so another setting must not take its text."""
    trace = tmp_path / "executed"
    cfg = {"_name": "fconv", "some_path": harm(trace), "encoder_layers": "${model.some_path}"}
    state = checkpoint_state(model, {"task": {"_name": "translation", "data": str(folder)}, "model": cfg})
    assert "model.encoder_layers holds an expression" in refusal(saved(folder, state, "expression.pt"))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eval_bleu_args", '{"beam": 1}'),
        ("eval_metrics", "chrf,rouge-l"),
        ("eval_bleu_detok_args", '{"target_lang": "de"}'),
        ("adam_betas", "(0.9, 0.98)"),
        ("post_process", "@@ "),
        ("eval_bleu_remove_bpe", "@@ "),
        ("cross_self_attention_text", "True"),
        ("encoder_kernel_size_text", "[3, 7, 15, 31]"),
        ("encoder_layers_text", "[(512, 3)] * 4 + [(1024, -1)]"),
        ("save_dir", "/runs (2019)/it's [old]; copy"),
        ("tensorboard_logdir", "/logs (2019)"),
        ("pretrained_path", "/models (copy)/bart.pt"),
        ("restore_file", "checkpoint (1).pt"),
        ("valid_data", "/data (new)"),
        ("distributed_init_method", "tcp://10.0.0.1:29500"),
        ("source_note", "zh-Hans, 中文"),
        ("nothing", ""),
    ],
)
def test_harmless_text_is_accepted(
    folder: Path, cfg: Any, model: BaseFairseqModel, name: str, value: str
) -> None:
    """What fairseq's own checkpoints hold: numbers in brackets, JSON, subword marks, and paths with any character."""
    path = saved(folder, state_with(model, cfg, "model", **{name: value}), "harmless.pt")
    assert len(load_teacher(path, STUDENT_SIDE).models) == 1


def test_convolutional_teacher_loads(folder: Path) -> None:
    """Its layers are numbers in an expression, which fairseq evaluates, and its attention is ``True``."""
    model, args = build_student("fconv"), fconv_args(folder)
    assert (args.encoder_layers, args.decoder_attention) == ("[(32, 3)] * 2", "True")
    args.max_source_positions = args.max_target_positions = POSITIONS
    [loaded] = load_teacher(
        saved(folder, legacy_state(args, model.state_dict()), "fconv.pt"), STUDENT_SIDE
    ).models
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_teacher_of_the_other_direction_is_refused(folder: Path, model: BaseFairseqModel) -> None:
    """Over a joined dictionary nothing else would tell it from the right one."""
    cfg = training_config(folder, "--task", "translation", "--source-lang", "tgt", "--target-lang", "src")
    path = saved(folder, checkpoint_state(model, cfg), "other-way.pt")
    message = refusal(path)
    assert f"--teacher-path '{path}'" in message
    assert "it translates tgt-src, but the student src-tgt" in message


def test_old_teacher_of_the_other_direction_is_refused(folder: Path, model: BaseFairseqModel) -> None:
    """As an ``argparse.Namespace`` says it."""
    args = training_args(folder, "--task", "translation", "--source-lang", "tgt", "--target-lang", "src")
    assert "tgt-src" in refusal(saved(folder, legacy_state(args, model.state_dict()), "other-way.pt"))


def test_direction_that_was_not_saved_is_that_of_the_data(
    folder: Path, tmp_path: Path, model: BaseFairseqModel
) -> None:
    """fairseq guesses it from the files' names, and saves none."""
    for pair, refused in (("tgt-src", True), ("src-tgt", False)):
        data = write_dictionaries(tmp_path / pair)
        (data / f"train.{pair}.src.idx").touch()
        cfg = training_config(data, "--task", "translation")
        state = state_with(model, cfg, "task", data=str(data), source_lang=None, target_lang=None)
        path = saved(folder, state, "unsaid.pt")
        if refused:
            assert "it translates tgt-src, but the student src-tgt" in refusal(path)
        else:
            assert len(load_teacher(path, STUDENT_SIDE).models) == 1


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the plugin warned of."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "fairseq_imitkd.teacher.loading" and record.levelno >= logging.WARNING
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
    """fairseq guesses them from the data and may save none; ``--teacher-data`` need hold no more than the dictionaries."""
    state = state_with(model, cfg, "task", data=str(tmp_path / "gone"), **dict.fromkeys(unsaved))
    (tmp_path / "checkpoints").mkdir()
    path = saved(tmp_path / "checkpoints", state)
    dictionaries = write_dictionaries(tmp_path / "dictionaries")
    assert sorted(file.name for file in dictionaries.iterdir()) == ["dict.src.txt", "dict.tgt.txt"]
    with caplog.at_level(logging.WARNING, logger="fairseq_imitkd"):
        [loaded] = load_teacher(path, STUDENT_SIDE, data=str(dictionaries)).models
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
    """``de`` and ``de_DE`` may mean the same, so it loads; both pairs are named."""
    for name in names:
        letters().save(str(tmp_path / f"dict.{name}.txt"))
    cfg = training_config(
        tmp_path, "--task", "translation", "--source-lang", names[0], "--target-lang", names[1]
    )
    path = saved(tmp_path, checkpoint_state(model, cfg))
    with caplog.at_level(logging.WARNING, logger="fairseq_imitkd"):
        assert len(load_teacher(path, STUDENT_SIDE).models) == 1
    messages = warnings(caplog)
    assert len(messages) == warns
    assert all(str(names) in message and "('src', 'tgt')" in message for message in messages)


def test_symbols_that_the_teachers_task_adds_are_seen(folder: Path, model: BaseFairseqModel) -> None:
    """mBART's fine-tuning task adds language tags and a mask to the files' symbols: the student's dictionary lacks them."""
    args = training_args(folder, "--task", "translation")
    args.task, args.langs, args.prepend_bos = "translation_from_pretrained_bart", "de,en", False
    message = refusal(saved(folder, legacy_state(args, model.state_dict()), "tags.pt"))
    assert (
        f"differs from the student's at index {len(letters())}: teacher '[de]', student '(nothing)'"
        in message
    )


def test_oldest_checkpoint_loads(folder: Path, model: BaseFairseqModel) -> None:
    """Of 2017: no ``optimizer_history``, but ``best_loss`` and the optimizer's state, and the epoch beside them."""
    state = {
        "args": training_args(folder, "--task", "translation"),
        "model": model.state_dict(),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(8)}}, "param_groups": []},
        "best_loss": 3.0,
        "epoch": 4,
        "batch_offset": 0,
        "val_loss": 3.1,
    }
    path = saved(folder, state, "oldest.pt", _use_new_zipfile_serialization=False)
    [loaded] = load_teacher(path, STUDENT_SIDE).models
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    del state["epoch"], state["batch_offset"], state["val_loss"]
    assert len(load_teacher(saved(folder, state, "oldest.pt"), STUDENT_SIDE).models) == 1


@pytest.mark.parametrize("text", ["a note\n", "teacher: /models/teacher.pt\n", "1\n"])
def test_plain_text_is_refused(folder: Path, text: str) -> None:
    """However short."""
    path = folder / "note.txt"
    path.write_text(text)
    assert f"--teacher-path '{path}' is damaged or no checkpoint: copy it again, or give another" in refusal(
        str(path)
    )


def strange(state: dict[str, Any], part: str, change: Any) -> None:
    """Exchange a part of a checkpoint's configuration, or one setting of it."""
    if part == "cfg":
        state["cfg"] = change
    elif isinstance(change, dict):
        node = state["cfg"][part]
        (vars(node) if isinstance(node, argparse.Namespace) else node).update(change)
    else:
        state["cfg"][part] = change


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("cfg", [1, 2]),
        ("cfg", "a text"),
        ("cfg", 7),
        ("cfg", {"task": {}}),
        ("cfg", torch.ones(1)),
        ("cfg", torch.ones(2)),
        ("task", None),
        ("task", "translation"),
        ("task", {"_name": "no_such_task"}),
        ("model", None),
        ("model", [1]),
        ("model", {"_name": "no_such_arch", "arch": "no_such_arch"}),
        ("model", {"encoder_layers": "many"}),
    ],
    ids=str,
)
def test_strange_configuration_is_refused(
    folder: Path, cfg: Any, model: BaseFairseqModel, part: str, change: Any
) -> None:
    """In one line that names the file, whatever fairseq would raise."""
    state = copy.deepcopy(checkpoint_state(model, cfg))
    strange(state, part, change)
    path = saved(folder, state, "strange.pt")
    assert f"--teacher-path '{path}' " in refusal(path)


@pytest.mark.parametrize(
    "setting", [{"arch": "no_such_arch"}, {"task": "no_such_task"}, {"arch": None}, {"task": None}], ids=str
)
def test_strange_arguments_are_refused(
    folder: Path, model: BaseFairseqModel, setting: dict[str, Any]
) -> None:
    """The same for an old checkpoint's ``args``."""
    args = training_args(folder, "--task", "translation")
    vars(args).update(setting)
    path = saved(folder, legacy_state(args, model.state_dict()), "strange.pt")
    assert f"--teacher-path '{path}' " in refusal(path)


def test_checkpoint_without_weights_that_are_any_is_refused(
    folder: Path, cfg: Any, model: BaseFairseqModel
) -> None:
    """``model`` is there, and no mapping of tensors."""
    for weights in (None, [], 3, {"encoder": 1}):
        path = saved(folder, {**checkpoint_state(model, cfg), "model": weights}, "weights.pt")
        assert f"--teacher-path '{path}' " in refusal(path)


def test_weights_of_an_ensemble() -> None:
    """The weighted mean of probabilities, from the definition."""
    members = [build_student(seed=seed).eval() for seed in (1, 2)]
    sample = make_batch(reversed_pairs(4, seed=2))
    logits = teacher_logits(Teacher(members, weights=[0.8, 0.2]), sample)
    with torch.no_grad():
        probs = [member(**sample["net_input"])[0].double().softmax(-1) for member in members]
    torch.testing.assert_close(logits.double().exp(), 0.8 * probs[0] + 0.2 * probs[1], rtol=1e-5, atol=1e-7)


def test_agreement_weighs_members_by_the_reference() -> None:
    """Each sentence's weights are the members' own, times the geometric mean of the reference's probabilities."""
    members = [build_student(seed=seed).eval() for seed in (1, 2)]
    sample = make_batch(reversed_pairs(5, seed=3))
    teacher = Teacher(members, weights=[0.8, 0.2])
    encoded = teacher.encode(sample)
    for chunk in (0, 4):
        agreement = teacher.agreement(sample, encoded, pad=1, chunk=chunk)
        log_weights = (agreement + teacher.log_weights).log_softmax(-1)
        for row, target in enumerate(sample["target"]):
            products = []
            for member, prior in zip(members, (0.8, 0.2), strict=True):
                with torch.no_grad():
                    lprobs = member(**sample["net_input"])[0].double().log_softmax(-1)[row]
                counted = [float(lprobs[at, token]) for at, token in enumerate(target.tolist()) if token != 1]
                products.append(prior * math.exp(sum(counted) / len(counted)))
            expected = [product / sum(products) for product in products]
            torch.testing.assert_close(
                log_weights[row].exp().double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-5
            )
    logits = teacher_logits(teacher, sample, encoded, None, True, log_weights)
    with torch.no_grad():
        probs = torch.stack([member(**sample["net_input"])[0].double().softmax(-1) for member in members])
    mean = (log_weights.double().exp().t()[:, :, None, None] * probs).sum(0)
    torch.testing.assert_close(logits.double().exp(), mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("text", ["0.5", "0.5:0.5:1", "a:b", "0:1", "-1:2", "nan:1", "inf:1", ""])
def test_weights_of_another_number_are_refused(text: str) -> None:
    """One positive number for each teacher; the flag and its value are named."""
    with pytest.raises(UsageError) as error:
        parse_weights(text, "a.pt:b.pt")
    assert str(error.value).startswith("--teacher-weights must be 2 positive numbers joined by ':'")
    assert f"'{text}'" in str(error.value)


def test_weights_are_made_to_add_up() -> None:
    """``2:1`` and ``0.2:0.1`` mean the same."""
    assert parse_weights("2:1", "a.pt:b.pt") == pytest.approx([2 / 3, 1 / 3])
    assert parse_weights("0.2:0.1", "a.pt:b.pt") == pytest.approx([2 / 3, 1 / 3])
    assert parse_weights(None, "a.pt:b.pt") is None


def test_of_logits_an_ensemble_is_their_mean() -> None:
    """For divergences of logits as they are: one teacher twice is that teacher."""
    member, other = build_student(seed=1).eval(), build_student(seed=2).eval()
    sample = make_batch(reversed_pairs(4, seed=2))
    with torch.no_grad():
        logits = [model(**sample["net_input"])[0] for model in (member, other)]
    twice = teacher_logits(Teacher([member, member]), sample, of_logits=True)
    torch.testing.assert_close(twice, logits[0])
    weighed = teacher_logits(Teacher([member, other], weights=[0.8, 0.2]), sample, of_logits=True)
    torch.testing.assert_close(weighed, 0.8 * logits[0] + 0.2 * logits[1])

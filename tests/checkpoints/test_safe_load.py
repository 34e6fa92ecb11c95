"""Safe loading: damaged and malicious files are refused, in one line, and run no code."""

import codecs
import fractions
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.models import BaseFairseqModel

from fairseq_imitkd.checkpoints.safe_load import read_checkpoint
from tests.helpers.fairseq_models import (
    checkpoint_state,
)
from tests.helpers.teacher_checkpoints import load, refusal, saved


def test_folders_of_trainings_and_exports_are_named(folder: Path, tmp_path: Path) -> None:
    """The remedy is the checkpoint in it, or that it was made of."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint_last.pt").touch()
    last = f"is the folder of a training; use its checkpoint '{tmp_path}/run/checkpoint_last.pt'"
    assert last in refusal(str(tmp_path / "run"))
    (tmp_path / "exported" / "model").mkdir(parents=True)
    for name in ("imitkd.json", "model/model.bin"):
        (tmp_path / "exported" / name).touch()
    for name in ("exported", "exported/model/model.bin"):
        assert f"--teacher-path '{tmp_path}/{name}' is an exported student" in refusal(str(tmp_path / name))


@pytest.mark.parametrize("zipped", [True, False])
def test_optimizer_state_is_dropped(folder: Path, cfg: Any, model: BaseFairseqModel, zipped: bool) -> None:
    """It is twice the model's size and of no use to a teacher; torch's older file format is read too."""
    path = saved(folder, checkpoint_state(model, cfg), "formats.pt", _use_new_zipfile_serialization=zipped)
    state = read_checkpoint(path, None)
    assert "last_optimizer_state" not in state
    assert set(state["model"]) == set(model.state_dict())
    assert len(load(path).models) == 1


def test_missing_file_and_folder_are_refused(folder: Path, cfg: Any, model: BaseFairseqModel) -> None:
    """The message names the path at fault, also as the second of an ensemble."""
    good = saved(folder, checkpoint_state(model, cfg))
    for bad in (str(folder / "missing.pt"), str(folder)):
        for paths in (bad, f"{good}:{bad}"):
            message = refusal(paths)
            assert f"--teacher-path '{bad}' is not a file" in message


@pytest.mark.parametrize(
    "content", ["garbage", "nothing", "truncated", "truncated-in-the-middle", "text", "zip"]
)
def test_unreadable_file_is_refused(folder: Path, cfg: Any, model: BaseFairseqModel, content: str) -> None:
    """A file that is not a checkpoint, or is cut off, ends with one line and no traceback."""
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
    said = "is empty; copy it again" if content == "nothing" else "is damaged or not a checkpoint"
    assert f"--teacher-path '{bad}' {said}" in message
    assert "miniz" not in message
    assert len(message) < len(str(bad)) + 140


@pytest.mark.parametrize("state", [{"weights": {}}, {"model": {}}, [1, 2], {"cfg": {}, "model": {}}], ids=str)
def test_other_files_of_torch_are_refused(folder: Path, state: Any) -> None:
    """The message says what the file lacks to be a fairseq checkpoint."""
    message = refusal(saved(folder, state, "other.pt"))
    assert "is not a fairseq checkpoint: it lacks 'model' and 'cfg' (or 'args')" in message


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
    """torch always blocks some modules, such as ``os``, so the message does not name the flag."""
    trace, file = tmp_path / "executed", folder / "malicious.pt"
    write_malicious(file, trace, file_format, blocked=True)
    message = refusal(str(file))
    assert not trace.exists()
    assert f"{os.system.__module__}.system" in message
    assert "--teacher-allow-globals" not in message


def test_pickle_that_torch_cannot_parse_is_refused_and_does_nothing(folder: Path, tmp_path: Path) -> None:
    """With a later pickle protocol than torch's no code runs, and the message names no unsafe remedy."""
    trace, file = tmp_path / "executed", folder / "malicious.pt"
    write_malicious(file, trace, "pickle-4")
    message = refusal(str(file))
    assert not trace.exists()
    assert f"--teacher-path '{file}' is damaged or not a checkpoint" in message
    assert "weights_only" not in message


@pytest.mark.parametrize("blocked", [True, False])
def test_the_malicious_file_is_malicious(tmp_path: Path, blocked: bool) -> None:
    """Plain pickle runs its code, so the tests above would notice it."""
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
    """A harmless type is refused by name and loads with the flag that the message gives.

    The flag holds for that load alone. torch saves builtins under their names of Python 2, the message uses
    today's.
    """
    path = saved(folder, checkpoint_state(model, cfg, note=value), "note.pt")
    advice = re.search(r"--teacher-allow-globals (\S+)$", refusal(path))
    assert advice
    assert advice[1] == name
    assert len(load(path, allow_globals=name).models) == 1
    assert len(load(path, allow_globals=f"collections.OrderedDict, {name}").models) == 1
    assert type(value) not in torch.serialization.get_safe_globals()
    assert name in refusal(path)


@pytest.mark.parametrize("names", ["no_such_module.Type", "fractions.NoSuchType", "Fraction", "fractions."])
def test_allowed_name_must_exist(folder: Path, cfg: Any, model: BaseFairseqModel, names: str) -> None:
    """A misspelt name is reported with its flag."""
    path = saved(folder, checkpoint_state(model, cfg))
    assert f"--teacher-allow-globals '{names}'" in refusal(path, allow_globals=names)


@pytest.mark.parametrize("text", ["a note\n", "teacher: /models/teacher.pt\n", "1\n"])
def test_plain_text_is_refused(folder: Path, text: str) -> None:
    """Also a short one."""
    path = folder / "note.txt"
    path.write_text(text)
    assert (
        f"--teacher-path '{path}' is damaged or not a checkpoint; copy it again, or use another"
        in refusal(str(path))
    )

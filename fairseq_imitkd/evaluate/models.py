"""What is evaluated: fairseq checkpoints and exported students, all over the dictionaries of one data directory."""

import copy
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from fairseq.models import BaseFairseqModel

from fairseq_imitkd.checkpoints import compact
from fairseq_imitkd.checkpoints.safe_load import first_difference
from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.engines.base import Decoding
from fairseq_imitkd.engines.exported import Engine, ModelEngine
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.export.bundle import MANIFEST, Bundle
from fairseq_imitkd.teacher.loading import load_student

FAIRSEQ = "fairseq"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Model:
    """A model that is ready to translate.

    Args:
        path: the checkpoint, or the exported student's folder.
        kind: ``fairseq``, or one of :data:`~fairseq_imitkd.engines.exported.FORMS`.
        quantization: of an exported student's weights.
        arch: the name of its architecture.
        parameters: how many it has; shared ones count once.
        longest: the most tokens of a source and of a target.
        engine: what translates, greedily.
        fairseq: the model itself, of a checkpoint.
    """

    path: Path
    kind: str
    quantization: str | None
    arch: str | None
    parameters: int
    longest: tuple[int, int]
    engine: Engine
    fairseq: BaseFairseqModel | None = None

    def translating(self, languages: Languages, decoding: Decoding) -> Engine:
        """The same weights, translating by another search."""
        if isinstance(self.engine, ModelEngine):
            return type(self.engine)(self.engine.model, languages, decoding)
        other: Any = copy.copy(self.engine)
        other.decoding = decoding
        return other

    @property
    def bytes_on_disk(self) -> int:
        """Of the file, or of all files of the folder."""
        files = (
            [self.path] if self.path.is_file() else [path for path in self.path.rglob("*") if path.is_file()]
        )
        return sum(path.stat().st_size for path in files)


def parse(texts: list[str]) -> dict[str, Path]:
    """What ``--model NAME=PATH``, given several times, names.

    Raises:
        UsageError: a name is none or comes twice, or a path is not there.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise UsageError(f"--model must be NAME=PATH, but is '{text}': give a name before the path")
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"--model '{text}': its name must be of letters, digits, '.', '_', '+' and '-', but is '{name}'"
            )
        if any(
            name.lower() == other.lower() for other in found
        ):  # files are named by them, and case is not everywhere told
            raise UsageError(f"--model {name} is given twice: give each model a name of its own")
        found[name] = Path(path)
        if not os.path.exists(path):
            raise UsageError(
                f"--model {name}: '{path}' is not there: give a fairseq checkpoint, or a folder that imitkd-export made"
            )
    return found


def load(path: Path, languages: Languages, decoding: Decoding, allow_globals: str | None = None) -> Model:
    """A model that reads and writes the symbols of a data directory.

    Args:
        path: a checkpoint of fairseq, or a folder that ``imitkd-export`` made.
        languages: the data directory's.
        decoding: how it is to translate.
        allow_globals: types that a checkpoint may hold beside fairseq's own.

    Raises:
        UsageError: it is none, is damaged, or is of other dictionaries.
    """
    if os.path.isdir(path):
        return _exported(path, languages, decoding)
    model, arch = load_student(str(path), languages, allow_globals)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    engine = ModelEngine(model, languages, decoding)
    return Model(path, FAIRSEQ, None, arch, parameters, model.max_positions(), engine, model)


def _exported(folder: Path, languages: Languages, decoding: Decoding) -> Model:
    bundle = Bundle.read(folder)
    theirs = (bundle.languages.source, bundle.languages.target)
    if theirs != (languages.source, languages.target):
        raise UsageError(
            f"'{folder}' translates {'-'.join(theirs)}, but --data is {languages.pairs[0]}: give a student of these languages"
        )
    for language, own, other in (
        (languages.source, languages.source_dictionary, bundle.languages.source_dictionary),
        (languages.target, languages.target_dictionary, bundle.languages.target_dictionary),
    ):
        difference = first_difference(other.symbols, own.symbols)
        if difference is not None:
            raise UsageError(
                f"'{folder}' has '{difference[1]}' at index {difference[0]} of its dict.{language}.txt, but --data "
                f"'{difference[2]}': give the --data that the student was trained on"
            )
    try:
        said, longest = (
            bundle.manifest["student"],
            (bundle.longest_source, int(bundle.manifest["longest_target"])),
        )
        quantization = str(bundle.manifest["quantization"])
        parameters, arch = int(said["parameters"]), str(said["arch"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{folder / MANIFEST} is damaged ({error}): export the student again") from error
    model = Model(folder, bundle.manifest["form"], quantization, arch, parameters, longest, bundle.engine)
    return replace(model, engine=model.translating(languages, decoding))


def weight_bytes(path: Path, allow_globals: str | None = None) -> int:
    """What a checkpoint's model takes without all else that the file holds, shared weights once."""
    weights: Mapping[str, torch.Tensor] = compact.read(str(path), allow_globals)["model"]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in weights.values()}.values())

"""The models that are evaluated: fairseq checkpoints and exported students, with one data directory's
dictionaries.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.models import BaseFairseqModel

from fairseq_imitkd.checkpoints import compact
from fairseq_imitkd.checkpoints.safe_load import reported
from fairseq_imitkd.checkpoints.translation import load_student, with_tags
from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.data.dictionaries import first_difference
from fairseq_imitkd.data.files import checkpoint_in
from fairseq_imitkd.engines.base import Engine, SearchSettings
from fairseq_imitkd.engines.fairseq import FairseqEngine
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.export.bundle import MANIFEST, Bundle

FAIRSEQ = "fairseq"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class EvaluatedModel:
    """A model that is ready to translate.

    Args:
        path: the checkpoint, or the exported student's folder.
        kind: ``fairseq``, or one of :data:`~fairseq_imitkd.engines.registry.CONVERTERS`.
        quantization: type of an exported student's weights.
        arch: name of its architecture.
        parameters: number of its parameters; shared ones count once.
        longest: the most tokens of a source and of a target.
        engine: engine that translates greedily.
        fairseq: the model itself if it is a checkpoint.
        taught: whether it was trained with a teacher; None if that is unknown, as of exported students.
    """

    path: Path
    kind: str
    quantization: str | None
    arch: str | None
    parameters: int
    longest: tuple[int, int]
    engine: Engine
    fairseq: BaseFairseqModel | None = None
    taught: bool | None = None

    def translating(self, settings: SearchSettings) -> Engine:
        """Return an engine of the same weights that translates by another search."""
        return self.engine.with_settings(settings)

    @property
    def bytes_on_disk(self) -> int:
        """The size of the file, or of all files of the folder."""
        if self.path.is_file():
            return self.path.stat().st_size
        return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())


def parse(texts: list[str]) -> dict[str, Path]:
    """Return the paths of models by name.

    Args:
        texts: values of ``--model``, each ``NAME=PATH``.

    Raises:
        UsageError: a name is missing, not valid or used twice, or a path does not exist.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise UsageError(f"--model must be NAME=PATH, but is '{text}'; put a name before the path")
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"--model '{text}': its name must consist of letters, digits, '.', '_', '+' and '-', but "
                f"is '{name}'"
            )
        # Files are named after the models, and some file systems ignore case.
        if any(name.lower() == other.lower() for other in found):
            raise UsageError(f"--model {name} is given twice; use a name of its own for each model")
        found[name] = Path(path)
        if not os.path.exists(path):
            raise UsageError(
                f"--model {name}: '{path}' does not exist; use a fairseq checkpoint or a folder of "
                "imitkd-export"
            )
        checkpoint = checkpoint_in(path)
        if checkpoint is not None:
            raise UsageError(
                f"--model {name}: '{path}' is the folder of a training; use its checkpoint '{checkpoint}'"
            )
    return found


def load(
    path: Path, languages: Languages, decoding: SearchSettings, *, allow_globals: str | None = None
) -> EvaluatedModel:
    """Load a model that reads and writes the symbols of a data directory.

    Args:
        path: a checkpoint of fairseq, or a folder that ``imitkd-export`` made.
        languages: dictionaries of the data directory.
        decoding: search settings.
        allow_globals: types that a checkpoint may hold beside fairseq's own.

    Raises:
        UsageError: it is not a model, is damaged, or has other dictionaries.
    """
    if os.path.isdir(path):
        return _load_exported(path, languages, decoding)
    found = load_student(str(path), languages, allow_globals)
    with reported(str(path), "CHECKPOINT"):
        model = with_tags(found.model, found.config, languages)
    return EvaluatedModel(
        path,
        FAIRSEQ,
        None,
        arch=found.arch,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        longest=model.max_positions(),
        engine=FairseqEngine.of_model(model, languages, decoding),
        fairseq=model,
        taught=_is_taught(found.config),
    )


def _is_taught(config: Any) -> bool | None:
    """Whether a checkpoint was trained with a teacher, or on its translations.

    None if the criterion is not known here. A data set of ``imitkd-seqkd`` is recognised as long as it is
    where it was.
    """
    criterion, task = getattr(config, "criterion", None), getattr(config, "task", None)
    kind = CRITERION_REGISTRY.get(getattr(criterion, "_name", None))
    data = Path(str(getattr(task, "data", "") or "").split(os.pathsep)[0])
    is_seqkd = all(os.path.isfile(data.parent / name) for name in ("job.json", "manifest.json"))
    if is_seqkd or getattr(task, "init_from_teacher", None):
        return True
    return None if kind is None else not kind.__module__.startswith("fairseq.")


def without_teacher(models: Mapping[str, EvaluatedModel], teacher: str | None) -> str | None:
    """Return the student that was trained without a teacher, with which the others are compared by default.

    Args:
        models: models by name.
        teacher: name of the teacher, which is not a student; None if it is not known.

    Returns:
        the first that has the size of another student; with a teacher the first one otherwise; None if there
        is none.
    """
    students = {name: model for name, model in models.items() if name != teacher}
    alone = [name for name, model in students.items() if model.taught is False]
    sizes = {model.parameters for model in students.values() if model.taught is not False}
    same = [name for name in alone if students[name].parameters in sizes]
    return next(iter(same or (alone if teacher is not None else [])), None)


def _load_exported(folder: Path, languages: Languages, decoding: SearchSettings) -> EvaluatedModel:
    bundle = Bundle.read(folder)
    _check_languages(folder, bundle, languages)
    try:
        student = bundle.manifest["student"]
        longest = (bundle.longest_source, int(bundle.manifest["longest_target"]))
        quantization = str(bundle.manifest["quantization"])
        parameters, arch = int(student["parameters"]), str(student["arch"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{folder / MANIFEST} is damaged ({error}); export the student again") from error
    form = bundle.manifest["form"]
    model = EvaluatedModel(folder, form, quantization, arch, parameters, longest, bundle.engine)
    return replace(model, engine=model.translating(decoding))


def _check_languages(folder: Path, bundle: Bundle, languages: Languages) -> None:
    theirs = (bundle.languages.source, bundle.languages.target)
    if theirs != (languages.source, languages.target):
        raise UsageError(
            f"'{folder}' translates {'-'.join(theirs)}, but --data is {languages.pairs[0]}; use a student of "
            "these languages"
        )
    for language, own, other in (
        (languages.source, languages.source_dictionary, bundle.languages.source_dictionary),
        (languages.target, languages.target_dictionary, bundle.languages.target_dictionary),
    ):
        difference = first_difference(other.symbols, own.symbols)
        if difference is not None:
            raise UsageError(
                f"'{folder}' has '{difference[1]}' at index {difference[0]} of its dict.{language}.txt, but "
                f"--data has '{difference[2]}'; use the --data that the student was trained on"
            )


def weight_bytes(path: Path, allow_globals: str | None = None) -> int:
    """Return the size of a checkpoint's weights without all else in the file; shared weights count once."""
    weights: Mapping[str, torch.Tensor] = compact.read(str(path), allow_globals)["model"]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in weights.values()}.values())

"""Whether a student that is still to be trained could be exported, told from the flags of its training."""

import contextlib
import difflib
import io
import warnings
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq import options, utils
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_MODEL_REGISTRY, BaseFairseqModel
from fairseq.tasks.translation import TranslationConfig, TranslationTask

import fairseq_imitkd
from fairseq_imitkd.engines.exported import form_of, why_none
from fairseq_imitkd.errors import UsageError

SYMBOLS = 1000  # of the dictionary that the student is built over, at least


@dataclass(frozen=True)
class Verdict:
    """What became of a student.

    Args:
        form: to which it can be exported; None is to none.
        reason: why not.
        in_the_way: flags that keep it from being exported.
        each: whether it would be enough to leave out any one of them.
    """

    form: str | None
    reason: str = ""
    in_the_way: tuple[str, ...] = ()
    each: bool = False


def judge(flags: Sequence[str]) -> Verdict:
    """Build the student of a training's command line, and see.

    Args:
        flags: as ``fairseq-train`` takes them, with its data directory or without.

    Raises:
        UsageError: they describe no student.
    """
    student = build(flags)
    form = form_of(student)
    if form is not None:
        return Verdict(form)
    given = {" ".join(flags[number] for number in words): words for words in _each_flag(flags)}
    alone_in_the_way = [text for text, words in given.items() if _exportable(_without(flags, [words]))]
    if alone_in_the_way:
        return Verdict(None, why_none(student), tuple(alone_in_the_way), each=True)
    bare = _without(flags, given.values())
    together = [
        text
        for text, words in given.items()
        if _exportable([*bare, *(flags[number] for number in words)]) is False
    ]
    return Verdict(None, why_none(student), tuple(together) if _exportable(bare) else ())


def _without(flags: Sequence[str], spans: Iterable[range]) -> list[str]:
    left_out = {number for span in spans for number in span}
    return [word for number, word in enumerate(flags) if number not in left_out]


def _exportable(flags: Sequence[str]) -> bool | None:
    """None where the flags describe no student."""
    try:
        return form_of(build(flags)) is not None
    except UsageError:
        return None


def build(flags: Sequence[str]) -> BaseFairseqModel:
    """The student of a training's command line, over a small dictionary.

    Raises:
        UsageError: they describe no student.
    """
    args = _parsed(flags)
    try:
        dictionary = Dictionary()
        for number in range(max(SYMBOLS, _last_cutoff(args) + 1)):
            dictionary.add_symbol(str(number))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of hydra's age
            cfg = convert_namespace_to_omegaconf(args)
        # Whichever task it will be trained by, it is built so.
        return TranslationTask(TranslationConfig(), dictionary, dictionary).build_model(cfg.model).eval()
    except UsageError:
        raise
    except Exception as error:  # whatever a model raises on settings that it can't have
        raise UsageError(
            f"the flags after --check describe no student: {' '.join(str(error).split())[:300]}"
        ) from error


def _last_cutoff(args: Any) -> int:
    """An adaptive softmax is of more symbols than that."""
    cutoffs = getattr(args, "adaptive_softmax_cutoff", None) or [0]
    return int((cutoffs.split(",") if isinstance(cutoffs, str) else cutoffs)[-1])


def _parsed(flags: Sequence[str]) -> Any:
    flags = _with_user_module(flags)
    arch = _value(flags, "--arch", "-a")
    if arch is None:
        raise UsageError(
            "--check needs the --arch of the student: give the flags that it will be trained with"
        )
    if arch not in ARCH_MODEL_REGISTRY:
        near = difflib.get_close_matches(arch, ARCH_MODEL_REGISTRY, n=3)
        raise UsageError(
            f"--arch {arch} is unknown" + (f": did you mean {' or '.join(near)}?" if near else "")
        )
    words = [*flags] if _value(flags, "--task") else [*flags, "--task", "translation_with_teacher"]
    try:
        return _parse(words)
    except UsageError as error:
        if "required: data" not in str(error):
            raise
        return _parse(["DATA", *words])


def _parse(words: Sequence[str]) -> Any:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return options.parse_args_and_arch(options.get_training_parser(), words)
    except SystemExit as error:
        if isinstance(error, UsageError):
            raise
        detail = said.getvalue().strip().splitlines()[-1:] or ["?"]
        raise UsageError(
            f"the flags after --check are not fairseq-train's: {detail[0].partition('error: ')[2]}"
        ) from error


def _with_user_module(flags: Sequence[str]) -> list[str]:
    """The flags without ``--user-dir``, whose module is imported: it may hold the architecture."""
    folder = _value(flags, "--user-dir")
    if folder is None:
        return list(flags)
    try:
        if Path(folder).resolve() != Path(fairseq_imitkd.__file__).parent.resolve():
            utils.import_user_module(Namespace(user_dir=folder))
    except Exception as error:  # whatever somebody's module raises
        raise UsageError(
            f"--user-dir '{folder}' can't be imported: {' '.join(str(error).split())[:300]}"
        ) from error
    place = next(number for number, word in enumerate(flags) if word.partition("=")[0] == "--user-dir")
    return [*flags[:place], *flags[place + (1 if "=" in flags[place] else 2) :]]


def _value(flags: Sequence[str], *names: str) -> str | None:
    for number, word in enumerate(flags):
        name, equals, value = word.partition("=")
        if name in names:
            return value if equals else next(iter(flags[number + 1 : number + 2]), None)
    return None


def _each_flag(flags: Sequence[str]) -> list[range]:
    """The words of each flag, its own and those of its value; the architecture's name stays."""
    starts = [number for number, word in enumerate(flags) if word.startswith("-") and not word[1:2].isdigit()]
    ends = [*starts[1:], len(flags)]
    spans = [range(start, end) for start, end in zip(starts, ends, strict=True)]
    return [span for span in spans if flags[span.start].partition("=")[0] not in ("--arch", "-a")]

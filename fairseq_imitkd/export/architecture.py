"""``imitkd-export --check``: whether the student that training flags describe could be exported."""

import contextlib
import difflib
import io
import re
import warnings
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import fairseq
import torch
from fairseq import options, utils
from fairseq.data import Dictionary
from fairseq.models import ARCH_MODEL_REGISTRY, BaseFairseqModel, FairseqMultiModel
from fairseq.tasks import TASK_REGISTRY
from fairseq.tasks.multilingual_translation import MultilingualTranslationTask
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask

import fairseq_imitkd
from fairseq_imitkd.checkpoints.kinds import check_kind
from fairseq_imitkd.checkpoints.tags import language_tags, pairs_of
from fairseq_imitkd.engines.registry import engine_for, unsupported_reason
from fairseq_imitkd.errors import UsageError, in_one_line

_TRANSLATION = (TranslationTask, MultilingualTranslationTask, TranslationMultiSimpleEpochTask)
SYMBOLS = 1000  # minimum size of the dictionary that the student is built over
# What a model raises that reads a setting or a part of the task which those of translation do not have.
_OF_OTHER_TASKS = (AttributeError, KeyError, TypeError)


@dataclass(frozen=True)
class Verdict:
    """Whether a student could be exported.

    Args:
        engine: name of the engine that it could be exported to; None if there is none.
        reason: why it could not be exported.
        blocking_flags: the flags, with their values, that prevent the export.
        any_one_suffices: whether leaving out any one of the blocking flags is enough; otherwise all must go.
    """

    engine: str | None
    reason: str = ""
    blocking_flags: tuple[str, ...] = ()
    any_one_suffices: bool = False


def judge(flags: Sequence[str]) -> Verdict:
    """Build the student of a training command line without its weights, and look for an engine that takes it.

    Args:
        flags: arguments of ``fairseq-train``, with or without the data directory.

    Raises:
        UsageError: the flags do not describe a student.
    """
    engine, reason = _engine_or_reason(flags)
    if engine is not None:
        return Verdict(engine)
    spans = {" ".join(flags[index] for index in span): span for span in _flag_spans(flags)}
    sufficient = [text for text, span in spans.items() if _is_exportable(_without(flags, [span]))]
    if sufficient:
        return Verdict(None, reason, tuple(sufficient), any_one_suffices=True)
    # Other flags may be the task's own.
    of_task = [text for text in spans if text.startswith(("--task", "--lang-pairs"))]
    least = [[span for text, span in spans.items() if text not in kept] for kept in (of_task, ())]
    bare = next((words for words in (_without(flags, each) for each in least) if _is_exportable(words)), None)
    if bare is None:
        return Verdict(None, reason)
    blocking = [
        text
        for text, span in spans.items()
        if _is_exportable([*bare, *(flags[index] for index in span)]) is False
    ]
    return Verdict(None, reason, tuple(blocking))


def _engine_or_reason(flags: Sequence[str]) -> tuple[str | None, str]:
    """Return the name of the engine that takes the student, or None and why there is none.

    Raises:
        UsageError: the flags do not describe a student.
    """
    args = _parse_with_defaults(flags)
    reason = _reason_of_task(args)
    if reason is not None:
        return None, reason
    student = _build_or_refuse(args, SYMBOLS)
    engine = engine_for(student)
    return engine, "" if engine is not None else unsupported_reason(student)


def _reason_of_task(args: Namespace) -> str | None:
    """Return why a student of the task can't be exported, whatever its architecture; None if it can."""
    kind = TASK_REGISTRY[args.task]
    is_known = kind.__module__.partition(".")[0] in (fairseq.__name__, fairseq_imitkd.__name__)
    if is_known and not issubclass(kind, _TRANSLATION):
        return f"it is not a translation model, because of --task {args.task}"
    try:
        check_kind(Namespace(model=args, task=args))
    except ValueError as error:
        return str(error)
    tags = language_tags(args)
    return f"it needs the language tags {tags}; export a student of it, which needs none" if tags else None


def _without(flags: Sequence[str], spans: Iterable[range]) -> list[str]:
    left_out = {index for span in spans for index in span}
    return [word for index, word in enumerate(flags) if index not in left_out]


def _is_exportable(flags: Sequence[str]) -> bool | None:
    """Return whether an engine takes the student; None if the flags do not describe one."""
    try:
        return _engine_or_reason(flags)[0] is not None
    except UsageError:
        return None


def build(flags: Sequence[str], symbols: int = SYMBOLS, *, has_weights: bool = False) -> BaseFairseqModel:
    """Build the student of a training command line.

    Args:
        flags: arguments of ``fairseq-train``, with or without the data directory.
        symbols: number of symbols of the dictionary, without fairseq's special ones.
        has_weights: whether the student must have weights; otherwise it is built without them if possible.

    Raises:
        UsageError: the flags do not describe a student.
    """
    return _build_or_refuse(_parse_with_defaults(flags), symbols, has_weights=has_weights)


def _build_or_refuse(args: Namespace, symbols: int, *, has_weights: bool = False) -> BaseFairseqModel:
    try:
        if has_weights:
            return _build(args, symbols)
        # The meta device gives the weights shapes but no memory. Some models can't be built there: BART's
        # initialisation copies weights to the CPU.
        with torch.device("meta"):
            return _build(args, symbols)
    except Exception:
        try:
            return _build(args, symbols)
        except UsageError:
            raise
        except Exception as error:  # models raise many types for settings that they can't have
            if isinstance(error, _OF_OTHER_TASKS) or not str(error):
                raise UsageError(
                    f"--arch {args.arch} does not make a translation model ({in_one_line(error, 90)}); use "
                    "another, such as transformer"
                ) from error
            raise UsageError(
                f"the flags after --check do not describe a student: {in_one_line(error)}"
            ) from error


def _build(args: Namespace, symbols: int) -> BaseFairseqModel:
    dictionary = Dictionary()
    for index in range(max(symbols, _last_cutoff(args) + 1)):
        dictionary.add_symbol(str(index))
    args = Namespace(**vars(args))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if _holds_pairs(args.arch):
            args.lang_pairs = pairs = pairs_of(args)
            languages = {language for pair in pairs for language in pair.split("-")}
            several = MultilingualTranslationTask(args, dict.fromkeys(languages, dictionary), training=True)
            return several.build_model(args).models[pairs[0]].eval()  # an export is of one pair
        # The model does not depend on the task that will train it.
        return TranslationTask(TranslationConfig(), dictionary, dictionary).build_model(args).eval()


def _holds_pairs(arch: str) -> bool:
    """Return whether an architecture holds a model for each language pair."""
    return issubclass(ARCH_MODEL_REGISTRY[arch], FairseqMultiModel)


def _last_cutoff(args: Namespace) -> int:
    """Return the last cutoff of an adaptive softmax, which the dictionary must exceed; 0 without one."""
    cutoffs = getattr(args, "adaptive_softmax_cutoff", None) or [0]
    return int((cutoffs.split(",") if isinstance(cutoffs, str) else cutoffs)[-1])


def _parse_with_defaults(flags: Sequence[str]) -> Namespace:
    """Parse the flags; import ``--user-dir``, and add a task and a data directory where they are missing."""
    flags = import_user_dir(flags)
    arch = _value(flags, "--arch", "-a")
    if arch is None:
        raise UsageError("--check needs the student's --arch; give the flags that it will be trained with")
    if arch not in ARCH_MODEL_REGISTRY:
        near = difflib.get_close_matches(arch, ARCH_MODEL_REGISTRY, n=3)
        raise UsageError(
            f"--arch {arch} is unknown" + (f": did you mean {' or '.join(near)}?" if near else "")
        )
    _check_pairs(arch, flags)
    words = [*flags] if _value(flags, "--task") else [*flags, "--task", "translation_with_teacher"]
    try:
        return _parse(words)
    except UsageError as error:
        if not re.search("required: (data|DIR)", str(error)):  # tasks name the directory differently
            raise
        return _parse(["DATA", *words])


def _check_pairs(arch: str, flags: Sequence[str]) -> None:
    """Refuse an architecture with a model for each language pair without the task that knows the pairs, and
    the task without such an architecture.

    Raises:
        UsageError: naming the flags that are missing.
    """
    task = _value(flags, "--task")
    kind = TASK_REGISTRY.get(task, TranslationTask)
    if _holds_pairs(arch) and not issubclass(kind, MultilingualTranslationTask):
        raise UsageError(
            f"--arch {arch} needs --task multilingual_translation with --lang-pairs, but --task is "
            f"{task or 'not given'}; add both, or use another --arch"
        )
    if not issubclass(kind, MultilingualTranslationTask):
        return
    if not _holds_pairs(arch):
        raise UsageError(
            f"--task {task} needs an --arch such as multilingual_transformer, but --arch is {arch}; use one, "
            "or another --task"
        )
    pairs = _value(flags, "--lang-pairs")
    if pairs is None:
        raise UsageError(f"--task {task} needs --lang-pairs; add them, such as --lang-pairs de-en,en-de")
    if not all(re.fullmatch("[^-]+-[^-]+", pair) for pair in pairs.split(",")):
        raise UsageError(f"--lang-pairs must be pairs such as de-en,en-de, but is '{pairs:.60}'")


def _parse(words: Sequence[str]) -> Namespace:
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return options.parse_args_and_arch(options.get_training_parser(), words)
    except SystemExit as error:
        if isinstance(error, UsageError) or not error.code:  # --help ends without an error
            raise
        detail = stderr.getvalue().strip().splitlines()[-1:] or ["?"]
        raise UsageError(
            f"the flags after --check are not fairseq-train's: {detail[0].partition('error: ')[2]}"
        ) from error


def import_user_dir(flags: Sequence[str]) -> list[str]:
    """Import the module of ``--user-dir``, which may hold the architecture, and return the other flags."""
    folder = _value(flags, "--user-dir")
    if folder is None:
        return list(flags)
    try:
        if Path(folder).resolve() != Path(fairseq_imitkd.__file__).parent.resolve():
            utils.import_user_module(Namespace(user_dir=folder))
    except Exception as error:  # a user's module can raise anything
        raise UsageError(f"--user-dir '{folder}' can't be imported: {in_one_line(error)}") from error
    start = next(index for index, word in enumerate(flags) if word.partition("=")[0] == "--user-dir")
    return [*flags[:start], *flags[start + (1 if "=" in flags[start] else 2) :]]


def _value(flags: Sequence[str], *names: str) -> str | None:
    """Return the value of the first flag with one of these names; None if there is none."""
    for index, word in enumerate(flags):
        name, equals, value = word.partition("=")
        if name in names:
            return value if equals else next(iter(flags[index + 1 : index + 2]), None)
    return None


def _flag_spans(flags: Sequence[str]) -> list[range]:
    """Return the indices of each flag and its values, except for the architecture's."""
    starts = [index for index, word in enumerate(flags) if word.startswith("-") and not word[1:2].isdigit()]
    ends = [*starts[1:], len(flags)]
    spans = [range(start, end) for start, end in zip(starts, ends, strict=True)]
    return [span for span in spans if flags[span.start].partition("=")[0] not in ("--arch", "-a")]

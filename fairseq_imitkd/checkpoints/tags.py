"""Which language tags a checkpoint's model needs, and where they stand in its sentences.

fairseq's multilingual tasks add tags by their settings. ``imitkd-import`` stores the tags of a model in the
checkpoint's settings. All that loads models asks here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeGuard

from fairseq.data import Dictionary
from fairseq.data.multilingual.multilingual_utils import get_lang_tok
from fairseq.tasks import TASK_REGISTRY
from fairseq.tasks.multilingual_translation import MultilingualTranslationTask
from fairseq.tasks.online_backtranslation import OnlineBackTranslationTask
from fairseq.tasks.translation_from_pretrained_bart import TranslationFromPretrainedBARTTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask

from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.models.tagged import Tags

SETTING = "language_tags"  # the setting of a checkpoint's task that imitkd-import writes, as JSON
EOS = "</s>"
_BOS = "<s>"
COMMAND = "imitkd-dictionary"

Pair = tuple[str | None, str | None]


@dataclass(frozen=True)
class TagNames:
    """The symbols of :class:`~fairseq_imitkd.models.tagged.Tags`; EOS is ``</s>``."""

    source_before: tuple[str, ...] = ()
    source_end: tuple[str, ...] = (EOS,)
    target_start: tuple[str, ...] = (EOS,)

    @property
    def sides(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The tags in the source and in the target."""
        source, target = (*self.source_before, *self.source_end), self.target_start
        return tuple(name for name in source if name != EOS), tuple(name for name in target if name != EOS)

    def __str__(self) -> str:
        places = zip(self.sides, ("source", "target"), strict=True)
        return " and ".join(f"{' '.join(names)} in the {side}" for names, side in places if names)

    def __bool__(self) -> bool:
        return self != TagNames()

    def indices(self, pair: LanguagePair) -> Tags:
        """Return the tags in indices of a pair's dictionaries.

        Raises:
            ValueError: a dictionary lacks a tag.
        """
        dictionaries = {
            "source": (pair.source_dictionary, pair.source),
            "target": (pair.target_dictionary, pair.target),
        }
        for names, (dictionary, language) in zip(self.sides, dictionaries.values(), strict=True):
            missing = [name for name in names if name not in dictionary]
            if missing:
                raise ValueError(
                    f"its language tag {missing[0]} is not in dict.{language}.txt; use the "
                    f"dictionaries of: {COMMAND} TEACHER --out FOLDER"
                )

        def found(names: Sequence[str], side: str) -> tuple[int, ...]:
            dictionary: Dictionary = dictionaries[side][0]
            return tuple(dictionary.eos() if name == EOS else dictionary.index(name) for name in names)

        return Tags(
            found(self.source_before, "source"),
            found(self.source_end, "source"),
            found(self.target_start, "target"),
        )

    def setting(self) -> str:
        """Return the text that a checkpoint's settings hold."""
        return json.dumps(asdict(self))


def language_tags(task: Any, pair: Pair = (None, None)) -> TagNames:
    """Return the tags that a model's sentences need.

    Args:
        task: the task's part of a configuration.
        pair: source and target language; None takes those of the configuration.

    Raises:
        ValueError: the settings are damaged.
    """
    stored = getattr(task, SETTING, None)
    if stored is not None:
        return _parsed(stored)
    kind = _kind(task)
    source, target = (
        str(language or side)
        for language, side in zip(languages_of(task, pair), ("SOURCE", "TARGET"), strict=True)
    )
    if issubclass(kind, TranslationFromPretrainedBARTTask):
        own = languages_of(task)  # its tags are the names of its one pair, whatever the data call it
        source, target = own[0] or source, own[1] or target
        before = (_BOS,) if getattr(task, "prepend_bos", False) else ()
        return TagNames(before, (EOS, f"[{source}]"), (f"[{target}]", *before))
    if issubclass(kind, OnlineBackTranslationTask):
        return TagNames((f"__{source}__",), target_start=(EOS, f"__{target}__"))
    if issubclass(kind, MultilingualTranslationTask):
        return _multilingual(task, source, target, replaces=True)
    if issubclass(kind, TranslationMultiSimpleEpochTask):
        replaces = bool(getattr(task, "lang_tok_replacing_bos_eos", False))
        return _multilingual(task, source, target, replaces=replaces)
    return TagNames()


def _multilingual(task: Any, source: str, target: str, *, replaces: bool) -> TagNames:
    """Return the tags of ``--encoder-langtok``, ``--decoder-langtok`` and ``--langtoks``."""
    encoder: Any = getattr(task, "encoder_langtok", None)
    decoder: Any = "tgt" if getattr(task, "decoder_langtok", None) else None
    given = getattr(task, "langtoks", None)
    main = given.get("main") if isinstance(given, Mapping) else None
    if _is_list(main) and len(main) == 2:  # --langtoks goes before the two others
        encoder, decoder = main
    style = "mbart" if getattr(task, "lang_tok_style", None) == "mbart" else "multilingual"
    of_source = of_target = None
    if encoder:
        of_source = get_lang_tok(source if str(encoder).startswith("src") else target, style, str(encoder))
    if decoder:
        of_target = get_lang_tok(target, style, str(decoder))
    if replaces:
        return TagNames((), (of_source or EOS,), (of_target or EOS,))
    return TagNames((of_source,) if of_source else (), target_start=(EOS, of_target) if of_target else (EOS,))


def _parsed(stored: Any) -> TagNames:
    """Return the tags that an import has stored."""
    try:
        content = json.loads(stored)
        names = TagNames(**{name: tuple(content[name]) for name in asdict(TagNames())})
        every = (*names.source_before, *names.source_end, *names.target_start)
        if not all(isinstance(name, str) for name in every) or not (names.source_end and names.target_start):
            raise ValueError("not names")
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise ValueError(f"its {SETTING} are damaged; import the model again") from error
    return names


def pairs_of(task: Any) -> list[str]:
    """Return the language pairs of a multilingual task's settings, such as ``de-en``; empty for others."""
    pairs = getattr(task, "lang_pairs", None) if is_multilingual(task) else None
    pairs = pairs.split(",") if isinstance(pairs, str) else pairs
    return [str(pair) for pair in pairs] if _is_list(pairs) else []


def is_multilingual(task: Any) -> bool:
    """Return whether a task trains one model on several language pairs."""
    return issubclass(_kind(task), (MultilingualTranslationTask, TranslationMultiSimpleEpochTask))


def _kind(task: Any) -> Any:
    name = getattr(task, "task", None) or getattr(task, "_name", None)
    return TASK_REGISTRY.get(name, object) if isinstance(name, str) else object


def languages_of(task: Any, pair: Pair = (None, None)) -> Pair:
    """Return the languages of a pair, and of a task's settings where it has None; None if these lack them."""
    pairs = pairs_of(task)
    only = pairs[0].split("-") if len(pairs) == 1 else []
    known = only if len(only) == 2 else [None, None]
    source, target = (
        pair[number] or getattr(task, f"{side}_lang", None) or known[number]
        for number, side in enumerate(("source", "target"))
    )
    return source, target


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    """Return whether a setting is a list, of Python or of omegaconf."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)

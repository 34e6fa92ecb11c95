"""Refuses checkpoints of models that do not translate as this package reads them.

This package reads models that write from left to right, begin with EOS, and get a source that ends with EOS.
They need nothing else, such as language tags.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import torch
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY, BaseFairseqModel, FairseqMultiModel
from fairseq.models.nat import FairseqNATModel
from fairseq.tasks import TASK_REGISTRY
from fairseq.tasks.multilingual_translation import MultilingualTranslationTask
from fairseq.tasks.online_backtranslation import OnlineBackTranslationTask
from fairseq.tasks.translation import TranslationTask
from fairseq.tasks.translation_from_pretrained_bart import TranslationFromPretrainedBARTTask
from fairseq.tasks.translation_lev import TranslationLevenshteinTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask

from fairseq_imitkd.data.languages import LanguagePair

_MULTILINGUAL = (MultilingualTranslationTask, TranslationMultiSimpleEpochTask)
_OWN_TAGS = (TranslationFromPretrainedBARTTask, OnlineBackTranslationTask)  # they always add tags
# Logits of one prefix in two rows of a batch differ by rounding; logits that read ahead, by far more.
_SAME = 1e-4


def check_kind(cfg: Any, pair: tuple[str | None, str | None] = (None, None)) -> None:
    """Refuse a checkpoint of another kind, before its model is built.

    Args:
        cfg: configuration of the checkpoint.
        pair: source and target language, for the names of tags.

    Raises:
        ValueError: its architecture or task is unknown, or it was trained with language tags or for something
            other than translation.
    """
    names = [getattr(cfg.model, name, None) for name in ("arch", "_name")]
    if not any(name in registry for name in names for registry in (ARCH_MODEL_REGISTRY, MODEL_REGISTRY)):
        raise ValueError(
            f"its architecture {names[0] or names[1]!r} is unknown to fairseq and to this package"
        )
    if getattr(cfg.model, "quant_noise_scalar", 0):
        raise ValueError(
            "it was trained with --quant-noise-scalar, so its logits depend on the batches that it read "
            "before; use another"
        )
    name = task_name(cfg)
    kind = TASK_REGISTRY.get(name)
    if kind is None:
        raise ValueError(f"its task {name!r:.80} is unknown to fairseq and to this package; use another")
    tags = language_tags(cfg.task, pair)
    if tags:
        raise ValueError(
            f"it was trained by --task {name} with the language tags {tags}, which nothing here feeds to it; "
            "use a model that was trained on one language pair without tags (--task translation)"
        )
    if issubclass(kind, TranslationLevenshteinTask):
        raise ValueError(_not_in_order(f"a model of --task {name}"))
    if not issubclass(kind, (TranslationTask, *_MULTILINGUAL)) and kind.__module__.startswith("fairseq."):
        raise ValueError(f"it was trained by --task {name}, which is not translation; use another")


def task_name(cfg: Any) -> str:
    """Return the name of the task that a checkpoint was trained by; empty if it names none."""
    name = getattr(cfg.task, "task", None) or getattr(cfg.task, "_name", None)
    return name if isinstance(name, str) else ""


def language_tags(task: Any, pair: tuple[str | None, str | None] = (None, None)) -> str:
    """Return in words which language tags a task puts into its sentences; empty if it puts none.

    Args:
        task: the task's part of a configuration.
        pair: source and target language; None takes those of the configuration.
    """
    name = getattr(task, "task", None) or getattr(task, "_name", None)
    kind = TASK_REGISTRY.get(name, object) if isinstance(name, str) else object
    source, target = _languages(task, pair)
    if issubclass(kind, _OWN_TAGS):
        form = "[{}]" if issubclass(kind, TranslationFromPretrainedBARTTask) else "__{}__"
        return f"{form.format(source)} in the source and {form.format(target)} in the target"
    if not issubclass(kind, _MULTILINGUAL):
        return ""
    encoder = getattr(task, "encoder_langtok", None)
    decoder = "tgt" if getattr(task, "decoder_langtok", None) else None
    given = getattr(task, "langtoks", None)
    main = given.get("main") if isinstance(given, Mapping) else None
    if _is_list(main) and len(main) == 2:  # --langtoks goes before the two others
        encoder, decoder = main
    form = "[{}]" if getattr(task, "lang_tok_style", None) == "mbart" else "__{}__"
    found = []
    if encoder:
        found.append(f"{form.format(source if str(encoder).startswith('src') else target)} in the source")
    if decoder:
        found.append(f"{form.format(target)} in the target")
    return " and ".join(found)


def _languages(task: Any, pair: tuple[str | None, str | None]) -> tuple[str, str]:
    """Return the names of both languages; ``SOURCE`` and ``TARGET`` where nothing tells them."""
    pairs = getattr(task, "lang_pairs", None)
    pairs = pairs.split(",") if isinstance(pairs, str) else pairs
    only = str(pairs[0]).split("-") if _is_list(pairs) and len(pairs) == 1 else []
    known = only if len(only) == 2 else [None, None]
    names = [
        pair[number] or getattr(task, f"{side}_lang", None) or known[number] or side.upper()
        for number, side in enumerate(("source", "target"))
    ]
    return str(names[0]), str(names[1])


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    """Return whether a setting is a list, of Python or of omegaconf."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def check_model(model: BaseFairseqModel, pair: LanguagePair) -> None:
    """Refuse a model that does not write from left to right.

    The model is switched to evaluation mode, and runs once on two targets that differ at their ends.

    Args:
        model: the model with its weights, on the CPU.
        pair: its dictionaries.

    Raises:
        ValueError: it is not an encoder-decoder model, or its logits depend on tokens that follow.
    """
    name = type(model).__name__
    if isinstance(model, FairseqNATModel):
        raise ValueError(_not_in_order(f"a {name}"))
    if isinstance(model, FairseqMultiModel) or not (hasattr(model, "encoder") and hasattr(model, "decoder")):
        raise ValueError(
            f"it holds a {name}, but must hold one encoder-decoder model; use a model of --task translation"
        )
    if getattr(model.decoder, "adaptive_softmax", None) is not None:
        raise ValueError("it has an adaptive softmax, which gives no logits over the whole vocabulary")
    with torch.no_grad():
        logits = model.eval()(**_two_targets(pair))[0].float()
    if logits.dim() != 3 or logits.size(-1) != len(pair.target_dictionary):
        raise ValueError(
            f"its logits have the shape {tuple(logits.shape)}, but must be over the "
            f"{len(pair.target_dictionary):,} symbols of the target dictionary"
        )
    if not bool(logits.isfinite().all()):
        raise ValueError("its logits are infinite or not a number; use another")
    same = logits[:, :_SHARED]
    if float((same[0] - same[1]).abs().max()) > _SAME * float(logits.abs().max()):
        raise ValueError(_not_in_order(f"a {name}"))


_SHARED = 3  # positions before the first difference of the two targets


def _two_targets(pair: LanguagePair) -> dict[str, torch.Tensor]:
    """Return one source twice, with two targets that have the same start and different ends."""
    source, target = pair.source_dictionary, pair.target_dictionary

    def symbols(dictionary: Any, numbers: list[int]) -> list[int]:
        first, count = dictionary.nspecial, len(dictionary) - dictionary.nspecial
        return [first + number % count if count > 0 else dictionary.unk() for number in numbers]

    sources = [*symbols(source, [0, 1, 2]), source.eos()]
    targets = [[target.eos(), *symbols(target, [0, 1, *end])] for end in ([2, 3, 4], [5, 6, 7])]
    return {
        "src_tokens": torch.tensor([sources, sources]),
        "src_lengths": torch.tensor([len(sources)] * 2),
        "prev_output_tokens": torch.tensor(targets),
    }


def _not_in_order(what: str) -> str:
    return (
        f"{what} does not write from left to right, one token after another; use a model that does, such as "
        "--arch transformer"
    )

"""Refuses checkpoints of models that do not translate as this package reads them.

This package reads models that write from left to right. :mod:`~fairseq_imitkd.checkpoints.tags` knows the
language tags that a model needs.
"""

from typing import Any

import torch
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY, BaseFairseqModel, FairseqMultiModel
from fairseq.models.nat import FairseqNATModel
from fairseq.tasks import TASK_REGISTRY
from fairseq.tasks.language_modeling import LanguageModelingTask
from fairseq.tasks.multilingual_translation import MultilingualTranslationTask
from fairseq.tasks.online_backtranslation import OnlineBackTranslationTask
from fairseq.tasks.speech_to_text import SpeechToTextTask
from fairseq.tasks.translation import TranslationTask
from fairseq.tasks.translation_lev import TranslationLevenshteinTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask

from fairseq_imitkd.checkpoints.tags import language_tags, pairs_of
from fairseq_imitkd.data.languages import LanguagePair

_MULTILINGUAL = (MultilingualTranslationTask, TranslationMultiSimpleEpochTask)
# Logits of one prefix in two rows of a batch differ by rounding; logits that read ahead, by far more.
_SAME = 1e-4


def check_kind(cfg: Any, pair: tuple[str | None, str | None] = (None, None)) -> None:
    """Refuse a checkpoint of another kind, before its model is built.

    Args:
        cfg: configuration of the checkpoint.
        pair: source and target language; None if they are not known.

    Raises:
        ValueError: its architecture or task is unknown, or it was trained for something other than
            translation or for other language pairs.
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
    if issubclass(kind, OnlineBackTranslationTask):
        tags = language_tags(cfg.task, pair)
        raise ValueError(
            f"it was trained by --task {name} with the language tags {tags}, which nothing here feeds to it; "
            "use a model of --task translation or translation_multi_simple_epoch"
        )
    pairs = pairs_of(cfg.task)
    if issubclass(kind, MultilingualTranslationTask) and None not in pair and "-".join(pair) not in pairs:  # type: ignore[arg-type]
        raise ValueError(
            f"it was trained on {', '.join(pairs)[:80] or 'no language pair'}, but not on "
            f"{pair[0]}-{pair[1]}; use a model of that pair"
        )
    if issubclass(kind, TranslationLevenshteinTask):
        raise ValueError(_not_in_order(f"a model of --task {name}"))
    if issubclass(kind, SpeechToTextTask):
        raise ValueError(
            f"it was trained by --task {name}, which reads speech: decode it with imitkd-generate, or let it "
            "teach --task speech_to_text_with_teacher"
        )
    if issubclass(kind, LanguageModelingTask):
        raise ValueError(
            f"it was trained by --task {name}, which is not translation: decode it with imitkd-generate, "
            "and score it by --eval-metrics"
        )
    if not issubclass(kind, (TranslationTask, *_MULTILINGUAL)) and kind.__module__.startswith("fairseq."):
        raise ValueError(f"it was trained by --task {name}, which is not translation; use another")


def task_name(cfg: Any) -> str:
    """Return the name of the task that a checkpoint was trained by; empty if it names none."""
    name = getattr(cfg.task, "task", None) or getattr(cfg.task, "_name", None)
    return name if isinstance(name, str) else ""


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
    return f"{what} does not write from left to right; use a model that does, such as --arch transformer"

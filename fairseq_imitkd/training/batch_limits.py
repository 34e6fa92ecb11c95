"""Data sets whose batches end fairseq in an exception: sentences that are too long, and too few of them."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.text.counted import counted

logger = logging.getLogger(__name__)
# Shares of a training set's sentences that are too long: above the first one is warned of, above the second
# one refused.
MANY, NEARLY_ALL = 0.1, 0.9


@dataclass(frozen=True)
class Split:
    """How messages call a data set.

    Args:
        flag: the flag that names it; empty for sentences that are typed.
        name: its name.
        is_training: whether it is trained on. Only then does fairseq skip sentences that are too long.
        tokens_flag: the flag that limits the tokens of its batches.
        lines_before: number of lines that were typed before it.
    """

    flag: str
    name: str
    is_training: bool
    tokens_flag: str = "--max-tokens"
    lines_before: int = 0

    def __str__(self) -> str:
        return f"{self.flag} '{self.name}'" if self.flag else "the input"


def fitting(dataset: Any, split: Split, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``get_batch_iterator`` with which fairseq makes batches of a data set.

    Sentences beyond the positions of the model are left out, with a warning; of a training set, with one if
    they are many. A typed line beyond
    ``--max-tokens`` is left out too, since others follow.

    fairseq also drops the last ``N % --required-batch-size-multiple`` sentences of each set. Here that
    happens in training only, and not if no sentence would be left: scores are of all sentences.

    Args:
        dataset: the data set.
        split: how messages call it.
        arguments: the arguments, by name.

    Raises:
        UsageError: a sentence is longer than ``--max-tokens``, or no sentence is left; of a training set,
            hardly any.
    """
    limits, max_tokens = arguments.get("max_positions"), arguments.get("max_tokens")
    if not split.flag and max_tokens is not None:
        limits = _within(limits, max_tokens)
        arguments = {**arguments, "max_positions": limits}
    kept = np.arange(len(dataset), dtype=np.int64)
    if limits is not None:
        kept, too_long = dataset.filter_indices_by_size(kept, limits)
        if len(too_long) and not split.is_training:
            _warn_of_long_ones(dataset, split, too_long, limits=limits)
            arguments = {**arguments, "ignore_invalid_inputs": True}
    if len(kept) and split.is_training:
        _judge_left_out(split, len(dataset) - len(kept), len(dataset), limits=limits)
    if not len(kept):
        if not split.flag:
            return arguments
        what = (
            f"holds no sentence of at most {_shown(limits)} tokens" if len(dataset) else "holds no sentence"
        )
        raise UsageError(
            f"{split} {what} (source, target): use other data, or raise --max-tokens, "
            "--max-source-positions and "
            "--max-target-positions"
        )
    _check_tokens(dataset, split, max_tokens, kept=kept)
    multiple = arguments.get("required_batch_size_multiple", 1)
    if multiple > 1 and not split.is_training:
        arguments = {**arguments, "required_batch_size_multiple": 1}
    elif len(kept) < multiple:
        logger.warning(
            "%s has %s, fewer than --required-batch-size-multiple %d, which is not used for it",
            split, counted(len(kept), "sentence"), multiple,
        )  # fmt: skip
        arguments = {**arguments, "required_batch_size_multiple": 1}
    return arguments


def _within(limits: Any, max_tokens: int) -> Any:
    """Return limits that are at most ``--max-tokens``."""
    if limits is None:
        return max_tokens
    if isinstance(limits, tuple | list):
        return tuple(_within(limit, max_tokens) for limit in limits)
    return min(limits, max_tokens)


def _warn_of_long_ones(dataset: Any, split: Split, sentences: Any, *, limits: Any) -> None:
    if not split.flag:
        longest = limits[0] if isinstance(limits, tuple | list) else limits
        for number in sentences:
            logger.warning(
                "line %d is not translated, because it has %d tokens, more than the %s that --max-tokens and "
                "the model allow: shorten it",
                split.lines_before + int(number) + 1, dataset.num_tokens(int(number)), longest,
            )  # fmt: skip
        return
    shown = ", ".join(str(number) for number in list(sentences)[:5]) + (", …" if len(sentences) > 5 else "")
    logger.warning(
        "%d of the sentences of %s have more than %s tokens (source, target) and are left out: %s",
        len(sentences), split, _shown(limits), shown,
    )  # fmt: skip


def _judge_left_out(split: Split, left_out: int, total: int, *, limits: Any) -> None:
    """Warn if many sentences of a training set are left out.

    Raises:
        UsageError: nearly all of them are.
    """
    if left_out <= MANY * total:
        return
    line = (
        f"{left_out:,} of the {total:,} sentences of {split} have more than {_shown(limits)} tokens (source, "
        "target)"
    )
    remedy = "raise --max-tokens, --max-source-positions or --max-target-positions"
    if left_out > NEARLY_ALL * total:
        raise UsageError(f"{line}: {remedy}")
    logger.warning("%s", f"{line} and are left out: {remedy}")


def _check_tokens(dataset: Any, split: Split, max_tokens: int | None, *, kept: np.ndarray) -> None:
    """Refuse a sentence that no batch can hold."""
    if max_tokens is None or split.is_training:  # the trainer counts --max-tokens among the positions
        return
    try:
        longest = int(dataset.num_tokens_vec(kept).max())
    except NotImplementedError:
        longest = max(int(dataset.num_tokens(number)) for number in kept.tolist())
    if longest > max_tokens:
        raise UsageError(
            f"{split.tokens_flag} {max_tokens} is below the longest sentence of {split}, which has {longest} "
            "tokens: raise it"
        )


def _shown(limits: Any) -> str:
    values = limits if isinstance(limits, tuple | list) else (limits,)
    return "/".join(str(value) for value in values)

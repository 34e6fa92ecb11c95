"""Looks for sentences that are too long for the models, before anything runs."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.pipeline.reading import last_value
from fairseq_imitkd.pipeline.recipe import Recipe

LOOKED_AT = 20  # longest lines of each file, in characters, whose tokens are counted
POSITIONS = 1024  # of fairseq's translation, without a flag


def check_lengths(recipe: Recipe, split: Callable[[str], list[str]]) -> list[str]:
    """Refuse validation sentences that no batch can hold: a training would end there.

    Sentences beyond the positions of a model are left out, of the training, the validation and the test.

    Args:
        recipe: the recipe.
        split: returns the tokens of a line. If they are words, more tokens may come of them.

    Returns:
        a warning for each file of validation and test with sentences that will be left out.

    Raises:
        UsageError: a sentence is longer than a batch of the validation.
    """
    warnings, trainings = [], [flags for _, flags in recipe.trainings()]
    for part in ("valid", "test"):
        pair = recipe.text.pairs[part]
        for side, path in (("source", pair.source), ("target", pair.target)):
            positions, flag = min(_positions(flags, side) for flags in trainings)
            tokens = _longest(path, split)
            if tokens and tokens[0] > positions:
                warnings.append(
                    f"text.{part} '{path}' has a sentence of {tokens[0]:,} tokens, but {flag} allows "
                    f"{positions:,}; such sentences are left out"
                )
            batches = [batch for flags in trainings for batch in _batch(flags)] if part == "valid" else []
            kept = next((count for count in tokens if count <= positions), 0)
            if batches and kept > min(batches)[0]:
                limit, flag = min(batches)
                raise UsageError(
                    f"text.{part} '{path}' has a sentence of {kept:,} tokens, but {flag} allows {limit:,}; "
                    "raise it, or leave the sentence out"
                )
    return warnings


def _positions(flags: Sequence[str], side: str) -> tuple[int, str]:
    """Return the most tokens of a sentence that a training's model can read, and the flag of that number.

    Args:
        flags: the flags of the training.
        side: ``source`` or ``target``.
    """
    flag = f"--max-{side}-positions"
    given = last_value(flags, flag)
    return int(given) if given.isdecimal() else POSITIONS, flag


def _batch(flags: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield the most tokens of a batch of a training's validation, and the flag of that number, if any."""
    flag = "--max-tokens-valid" if last_value(flags, "--max-tokens-valid") else "--max-tokens"
    given = last_value(flags, flag)
    if given.isdecimal():
        yield int(given), flag


def _longest(path: Path, split: Callable[[str], list[str]]) -> list[int]:
    """Return the numbers of tokens, with the end of the sentence, of a file's longest lines, in falling
    order.
    """
    with open(path, encoding="utf-8") as file:
        lines = heapq.nlargest(LOOKED_AT, file, key=len)
    return sorted((len(split(line.rstrip("\r\n"))) + 1 for line in lines), reverse=True)

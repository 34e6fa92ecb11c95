"""Looks for sentences that are too long for the models, before anything runs."""

import heapq
from collections.abc import Callable, Sequence
from pathlib import Path

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.pipeline.reading import last_value
from fairseq_imitkd.pipeline.recipe import Recipe

LOOKED_AT = 20  # longest lines of each file, in characters, whose tokens are counted
POSITIONS = 1024  # of fairseq's translation, without a flag
SKIPS = "--skip-invalid-size-inputs-valid-test"


def check_lengths(recipe: Recipe, split: Callable[[str], list[str]]) -> None:
    """Refuse validation and test sentences that are too long: fairseq would stop there.

    It leaves out training sentences that are too long.

    Args:
        recipe: the recipe.
        split: returns the tokens of a line. If they are words, more tokens may come of them.

    Raises:
        UsageError: a sentence is too long.
    """
    for part in ("valid", "test"):
        pair = recipe.text.pairs[part]
        for side, path in (("source", pair.source), ("target", pair.target)):
            limits = [
                _limit(flags, side, validates=part == "valid")
                for _, flags in recipe.trainings()
                if SKIPS not in flags
            ]
            if not limits:
                return
            tokens = _longest(path, split) + 1  # the end of the sentence
            limit, flag = min(limits)
            if tokens > limit:
                raise UsageError(
                    f"text.{part} '{path}' has a sentence of {tokens:,} tokens, but {flag} allows {limit:,}; "
                    f"leave the sentence out, or add {SKIPS} to training"
                )


def _limit(flags: Sequence[str], side: str, *, validates: bool) -> tuple[int, str]:
    """Return the fewest tokens that a flag of a training allows in a sentence, and the flag.

    Args:
        flags: the flags of the training.
        side: ``source`` or ``target``.
        validates: whether the sentence is one of the validation's, whose batches have a limit too.
    """
    positions = f"--max-{side}-positions"
    given = last_value(flags, positions)
    found = [(int(given) if given.isdecimal() else POSITIONS, positions)]
    tokens = "--max-tokens-valid" if last_value(flags, "--max-tokens-valid") else "--max-tokens"
    if validates and last_value(flags, tokens).isdecimal():
        found.append((int(last_value(flags, tokens)), tokens))
    return min(found)


def _longest(path: Path, split: Callable[[str], list[str]]) -> int:
    """Return the number of tokens of a file's longest sentence."""
    with open(path, encoding="utf-8") as file:
        return max(
            (len(split(line.rstrip("\r\n"))) for line in heapq.nlargest(LOOKED_AT, file, key=len)), default=0
        )

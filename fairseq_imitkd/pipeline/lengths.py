"""Looks for sentences that are too long for the models, before anything runs."""

import heapq
from collections.abc import Callable, Iterator
from pathlib import Path

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.pipeline.reading import last_value
from fairseq_imitkd.pipeline.recipe import Recipe

LOOKED_AT = 20  # longest lines of each file, in characters, whose tokens are counted
POSITIONS = 1024  # of fairseq's transformers, without a flag
SKIPS = "--skip-invalid-size-inputs-valid-test"


def check_lengths(recipe: Recipe, split: Callable[[str], list[str]]) -> None:
    """Refuse validation and test sentences that are too long. fairseq would stop at them when it validates.

    fairseq leaves out training sentences that are too long.

    Args:
        recipe: the recipe.
        split: returns the tokens of a line. If they are words, more tokens may come of them.

    Raises:
        UsageError: a sentence is too long.
    """
    trainings = list(_trainings(recipe))
    if all(SKIPS in flags for _, flags in trainings):
        return
    for part in ("valid", "test"):
        pair = recipe.text.pairs[part]
        for side, path in (("source", pair.source), ("target", pair.target)):
            tokens = _longest(path, split) + 1  # the end of the sentence
            flag, limit = min((_limit(key, flags, side) for key, flags in trainings), key=lambda one: one[1])
            if tokens > limit:
                raise UsageError(
                    f"text.{part} '{path}' has a sentence of {tokens:,} tokens, but {flag} allows {limit:,}; "
                    f"leave the sentence out, or add {SKIPS} to training"
                )


def _trainings(recipe: Recipe) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the flags of each kind of training, with the key that gives them."""
    if recipe.teacher.flags:
        yield "teacher.flags", (*recipe.training, *recipe.teacher.flags)
    for number, method in enumerate(recipe.methods, 1):
        taught = recipe.distillation if method.criterion is not None else ()
        yield f"methods[{number}].flags", (*recipe.training, *recipe.student, *taught, *method.flags)


def _limit(key: str, flags: tuple[str, ...], side: str) -> tuple[str, float]:
    """Return the fewest tokens that a flag of a training allows in a sentence, and the flag."""
    found = []
    for flag in (f"--max-{side}-positions", "--max-tokens-valid", "--max-tokens"):
        value = last_value(flags, flag)
        if value.isdecimal() and not (flag == "--max-tokens" and last_value(flags, "--max-tokens-valid")):
            found.append((flag, int(value)))
    if "transformer" in last_value(flags, "--arch") and not last_value(flags, f"--max-{side}-positions"):
        found.append((f"--max-{side}-positions", POSITIONS))
    return min(found, key=lambda one: one[1], default=(key, float("inf")))


def _longest(path: Path, split: Callable[[str], list[str]]) -> int:
    """Return the number of tokens of a file's longest sentence."""
    with open(path, encoding="utf-8") as file:
        return max(
            (len(split(line.rstrip("\r\n"))) for line in heapq.nlargest(LOOKED_AT, file, key=len)), default=0
        )

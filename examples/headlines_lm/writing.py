"""Counts what goes wrong in headlines that evidence.py's models wrote: ``writing.py RUN``.

For each row of the table it prints a line in Markdown, averaged over the seeds with the row's best learning
rate: the mean length, the share of headlines that repeat a pair of words, and the share that the length limit
cuts.
"""

import itertools
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import evidence_tables
from continuations import continuations

LONGEST = 40  # tokens of a headline, of settings.sh; the end of a sentence comes on top


def main() -> None:
    run = Path(sys.argv[1])
    references = (run / "raw" / "test.tgt").read_text(encoding="utf-8").splitlines()
    print("| row | words | repeat a pair of words, % | cut by the limit, % |\n|---|--:|--:|--:|")
    print(f"| the references | {' | '.join(f'{each:.1f}' for each in of_texts(references))} | |")
    for row, records in evidence_tables.chosen(evidence_tables.read(run / "rows")).items():
        seeds = [of_model(run / record["name"] / "test.txt") for record in records]
        means = (statistics.mean(column) for column in zip(*seeds, strict=True))
        print(f"| `{row}` ({len(seeds)}) | {' | '.join(f'{each:.1f}' for each in means)} |")


def of_model(output: Path) -> tuple[float, float, float]:
    """Return :func:`of_texts` and :func:`cut` of what a model wrote, as fairseq-generate prints it."""
    return *of_texts([text for _, text in continuations(output)]), cut(output)


def of_texts(texts: Sequence[str]) -> tuple[float, float]:
    """Return the mean number of words, and the share of texts with the same pair of words twice, in %."""
    words = [text.split() for text in texts]
    return statistics.mean(map(len, words)), 100 * statistics.mean(map(repeats, words))


def repeats(words: Sequence[str]) -> bool:
    """Return whether two neighbouring words come together once more."""
    pairs = list(itertools.pairwise(words))
    return len(set(pairs)) < len(pairs)


def cut(output: Path) -> float:
    """Return the share of headlines that have as many tokens as the limit allows, in %."""
    scores = re.findall(r"^P-\d+\t(.*)$", output.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return 100 * statistics.mean(len(each.split()) > LONGEST for each in scores)


if __name__ == "__main__":
    main()

"""Counts what goes wrong in headlines that evidence.py's models wrote: ``writing.py RUN``.

It writes ``writing.json`` and prints it as a table in Markdown, which tables.py puts into the README: for the
test set's references, the headlines that SeqKD's student learns, and each row of the comparison, the mean
length, the share of headlines that repeat a pair of words, and the share that the length limit cuts. It has
a number for each seed that the comparison shows.
"""

import itertools
import json
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import evidence_tables
from continuations import continuations

HERE = Path(__file__).parent
NAMES = ("words", "repeats", "cut")


def main() -> None:
    run = Path(sys.argv[1])
    found = counts(run)
    (HERE / "writing.json").write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


def counts(run: Path) -> dict[str, dict[str, list[float]]]:
    """Return what each row of the table shows, with a number for each seed."""
    references = (run / "raw" / "test.tgt").read_text(encoding="utf-8").splitlines()
    most = longest(run)
    found = {
        "the references": columns([of_texts(references)]),
        "SeqKD's data": columns([of_model(run / "data_seqkd" / "train.out", most)]),
    }
    for row, records in evidence_tables.chosen(evidence_tables.read(run / "rows")).items():
        outputs = (run / record["name"] / "test.txt" for record in records)
        found[f"`{row}`"] = columns([of_model(output, most) for output in outputs])
    return found


def columns(rows: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    return dict(zip(NAMES, map(list, zip(*rows, strict=True)), strict=False))


def table(found: dict[str, dict[str, list[float]]]) -> str:
    lines = [
        "| row | words, each seed | repeat a pair of words, % | cut by the limit, % |",
        "|---|--:|--:|--:|",
    ]
    for row, values in found.items():
        shown = ("; ".join(f"{value:.1f}" for value in values.get(name, ())) for name in NAMES)
        lines.append(f"| {row} | {' | '.join(shown)} |")
    return "\n".join(lines)


def longest(run: Path) -> int:
    """Return how many tokens a headline has at most; the end of the sentence comes on top."""
    task = json.loads((run / "teacher" / "config.json").read_text())["config"]["task"]
    return int(json.loads(task["eval_bleu_args"])["max_len_b"])


def of_model(output: Path, most: int) -> tuple[float, float, float]:
    """Return :func:`of_texts` and :func:`cut` of what a model wrote, as fairseq-generate prints it."""
    return *of_texts([text for _, text in continuations(output)]), cut(output, most)


def of_texts(texts: Sequence[str]) -> tuple[float, float]:
    """Return the mean number of words, and the share of texts with the same pair of words twice, in %."""
    words = [text.split() for text in texts]
    return statistics.mean(map(len, words)), 100 * statistics.mean(map(repeats, words))


def repeats(words: Sequence[str]) -> bool:
    """Return whether two neighbouring words come together once more."""
    pairs = list(itertools.pairwise(words))
    return len(set(pairs)) < len(pairs)


def cut(output: Path, most: int) -> float:
    """Return the share of headlines that the limit of tokens ended, in %."""
    scores = re.findall(r"^P-\d+\t(.*)$", output.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return 100 * statistics.mean(len(each.split()) > most for each in scores)


if __name__ == "__main__":
    main()

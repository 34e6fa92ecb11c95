"""Chooses the sentences where a student is worst: ``worst.py OUTPUT OUT --share 0.5``.

OUTPUT is what imitkd-generate prints of the student on the teacher's translations, with their lines S, T and
H. OUT gets ``train.src`` and ``train.tgt``: the sources, and the teacher's translations, of the share of
sentences whose chrF is lowest, in the order of the data.
"""

import argparse
import re
from pathlib import Path

from sacrebleu.metrics import CHRF


def main() -> None:
    """Write the chosen sentences."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, required=True)
    args = parser.parse_args()

    text = args.output.read_text(encoding="utf-8")
    sources, targets, own = (columns(text, kind) for kind in ("S", "T", "H"))
    metric = CHRF()
    scores = {number: metric.sentence_score(own[number], [targets[number]]).score for number in targets}
    worst = sorted(sorted(scores, key=scores.__getitem__)[: round(args.share * len(scores))])
    args.out.mkdir(parents=True, exist_ok=True)
    for name, lines in (("train.src", sources), ("train.tgt", targets)):
        (args.out / name).write_text("".join(f"{lines[number]}\n" for number in worst), encoding="utf-8")
    highest = max((scores[number] for number in worst), default=0.0)
    print(f"{len(worst):,} of {len(scores):,} sentences; chrF up to {highest:.1f}")


def columns(text: str, kind: str) -> dict[int, str]:
    """Return the last column of the lines of a kind, by the sentence's number."""
    lines = re.findall(rf"^{kind}-(\d+)\t(?:.*\t)?(.*)$", text, flags=re.MULTILINE)
    return {int(number): line for number, line in lines}


if __name__ == "__main__":
    main()

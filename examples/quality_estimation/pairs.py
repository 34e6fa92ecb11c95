"""Makes pairs of a source and a translation with their sentence chrF:
``pairs.py TEXT OUT --checkpoints N …``.

TEXT holds ``test.src``, all right translations in ``test.all``, and the output of fairseq-generate for each
checkpoint, ``part0.translations`` and so on; checkpoint K has translated the lines whose number, from 1, is K
modulo N. OUT gets ``SPLIT.input0`` (sources), ``SPLIT.input1`` (translations) and ``SPLIT.label`` (chrF of 0
to 1 against the right translations, or ``nan`` for a pair without a label) of the splits ``train``, ``more``
(``train`` and the pairs without labels), ``valid`` and ``test``, each in the order of the pairs' lengths.
"""

import argparse
import re
from pathlib import Path

from sacrebleu.metrics import CHRF

Pair = tuple[str, str, float]


def main() -> None:
    """Write the pairs of each split."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    for name in ("checkpoints", "labelled", "unlabelled", "valid", "test"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()

    sources = (args.text / "test.src").read_text(encoding="utf-8").splitlines()
    answers = (args.text / "test.all").read_text(encoding="utf-8").splitlines()
    translations = translated(args.text, args.checkpoints, len(sources))
    metric, pairs = CHRF(), list[Pair]()
    for number, (source, translation) in enumerate(zip(sources, translations, strict=True)):
        is_labelled = not args.labelled <= number < args.labelled + args.unlabelled
        label = score(metric, translation, answers[number].split("\t")) if is_labelled else float("nan")
        pairs.append((source, translation, label))
    trained = args.labelled + args.unlabelled
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out, "train", pairs[: args.labelled])
    write(args.out, "more", pairs[:trained])
    write(args.out, "valid", pairs[trained : trained + args.valid])
    write(args.out, "test", pairs[trained + args.valid :])


def translated(folder: Path, parts: int, sentences: int) -> list[str]:
    """Return the translations of all checkpoints in the order of the sources."""
    found = [""] * sentences
    for part in range(parts):
        text = (folder / f"part{part}.translations").read_text(encoding="utf-8")
        first = (part - 1) % parts
        for number, translation in re.findall(r"^H-(\d+)\t[^\t]*\t(.*)$", text, flags=re.MULTILINE):
            found[first + parts * int(number)] = translation
    return found


def score(metric: CHRF, translation: str, answers: list[str]) -> float:
    """Return the sentence chrF of a translation, in 0..1, by the nearest of all right translations."""
    return float(metric.sentence_score(translation, answers).score) / 100.0


def write(folder: Path, split: str, pairs: list[Pair]) -> None:
    """Write the three files of a split in the order of the pairs' lengths.

    fairseq batches the task's sentences in the order of the file, so most of a batch would be padding.
    """
    pairs = sorted(pairs, key=lambda pair: len(pair[0].split()) + len(pair[1].split()))
    for name, column in (("input0", 0), ("input1", 1), ("label", 2)):
        lines = (str(pair[column]) for pair in pairs)
        (folder / f"{split}.{name}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()

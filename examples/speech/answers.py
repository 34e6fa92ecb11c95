"""Reads what imitkd-generate wrote: ``answers.py join MANIFEST OUTPUT NEW``, ``score RUN TARGET NAME…``.

``join`` writes a manifest whose targets are the translations. ``score`` compares the models' translations of
the test commands, ``RUN/NAME/test.out``, with the right ones, ``RUN/raw/test.TARGET``. It writes
``RUN/results.json`` and prints the table.
"""

import csv
import re
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    command, *words = sys.argv[1:]
    if command == "join":
        join(*map(Path, words))
    elif command == "score":
        score(Path(words[0]), words[1], words[2:])
    else:
        raise SystemExit(f"the first word must be join or score, but is '{command}'")


def translations(output: Path) -> list[str]:
    """Return the best translations in the order of the data."""
    found: dict[int, str] = {}
    for line in output.read_text(encoding="utf-8").splitlines():
        kind, _, number = line.partition("\t")[0].partition("-")
        if kind == "H" and number.isdecimal():
            found[int(number)] = line.split("\t")[-1]
    return [found[number] for number in sorted(found)]


def join(manifest: Path, output: Path, new: Path) -> None:
    """Write a manifest with other targets."""
    form: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}
    with open(manifest, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, **form))
    with open(new, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n", **form)
        writer.writeheader()
        for row, text in zip(rows, translations(output), strict=True):
            writer.writerow({**row, "tgt_text": text})


def speed(log: Path) -> float:
    """Return the highest speed that imitkd-generate has logged, in sentences a second."""
    return max(map(float, re.findall(r"\(([\d.]+) sentences/s", log.read_text(encoding="utf-8"))))


def rival_of(row: str) -> str:
    """Return the row that a row is compared with: the same student without what the row shows."""
    if row.startswith(("then_", "after_")):
        return "continued"
    return "ctc" if row.startswith("ctc_") else "scratch"


def score(run: Path, target: str, names: list[str]) -> None:
    """Write ``RUN/results.json``, and print the table."""
    from error_rates import chance, errors, packed, unpacked
    from table import ROWS, table
    from trainings import origin, training

    from fairseq_imitkd.checkpoints.safe_load import read_checkpoint
    from fairseq_imitkd.data.files import write_json

    name = "test.all" if target == "de" else f"test.{target}"  # a command has several right translations
    lines = (run / "raw" / name).read_text(encoding="utf-8").splitlines()
    right = [line.split("\t") for line in lines]
    models: dict[str, Any] = {}
    known = {row: place for place, row in enumerate(ROWS)}
    for name in sorted(names, key=lambda name: (known.get(name.partition("-")[0], len(known)), name)):
        state = read_checkpoint(str(run / name / "checkpoint_best.pt"), None)
        weights = {  # tied ones once
            tensor.data_ptr(): tensor.numel()
            for weight, tensor in state["model"].items()
            if not weight.endswith((".version", "._float_tensor"))
        }
        found = errors(translations(run / name / "test.out"), right)
        models[name] = {
            "parameters": sum(weights.values()),
            "seed": state["cfg"]["common"]["seed"],
            "sentence_errors": found.words,
            "word_error_rate": found.phonemes,
            "right": packed(found.right),
        }
        if target == "en":
            models[name]["sentences_per_second"] = speed(run / name / "test.log")
        row, *seed = name.split("-")
        rival = "-".join([rival_of(row), *seed])
        if rival in models and rival != name and row != "teacher":
            ones, others = (unpacked(models[each]["right"], len(right))[None] for each in (name, rival))
            gain, interval, p = chance(ones, others)
            models[name]["against"] = {"rival": rival, "gain": gain, "interval": interval, "p": p}
    results = {
        "recipe": "speech",
        **origin(),
        "target": target,
        "commands": len(right),
        "trainings": {name: training(run, name) for name in models},
        "models": models,
    }
    write_json(run / "results.json", results)
    print(table(results))


if __name__ == "__main__":
    main()

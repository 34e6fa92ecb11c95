"""Scores the headlines that language models wrote: ``scores.py RUN NAME…``.

It compares ``RUN/NAME/test.txt`` with ``RUN/raw/test.tgt`` by ROUGE, writes ``RUN/results.json`` and prints
the table.
"""

import sys
from pathlib import Path
from typing import Any

from continuations import continuations, control_of, in_order, of_checkpoint, validations
from table import table
from trainings import origin, training

from fairseq_imitkd.data.files import write_json
from fairseq_imitkd.text import bootstrap
from fairseq_imitkd.text.scores import rouge_scorer, rouge_signature

KINDS = ("rouge1", "rouge2", "rougeL")


def main() -> None:
    run, names = Path(sys.argv[1]), in_order(sys.argv[2:])
    headlines = (run / "raw" / "test.tgt").read_text(encoding="utf-8").splitlines()
    times = bootstrap.resamples(len(headlines))
    scorer = rouge_scorer(KINDS)
    models: dict[str, Any] = {}
    found: dict[str, dict[str, bootstrap.Bootstrap]] = {}
    for name in names:
        written = [text for _, text in continuations(run / name / "test.txt")]
        every = [scorer.score(right, own) for right, own in zip(headlines, written, strict=True)]
        found[name] = {
            kind: bootstrap.of_means([100.0 * each[kind].fmeasure for each in every], times) for kind in KINDS
        }
        parameters, seed = of_checkpoint(run / name / "checkpoint_best.pt")
        models[name] = {
            "parameters": parameters,
            "seed": seed,
            "scores": {kind: each.score for kind, each in found[name].items()},
            "interval": list(found[name]["rougeL"].interval()),
            "words": sum(len(text.split()) for text in written) / len(written),
            "validations": validations(run / name / "metrics.jsonl", "rougeL"),
        }
        control = control_of(name, names)
        if control is not None:
            own, base = found[name]["rougeL"], found[control]["rougeL"]
            models[name]["against_continued"] = {**vars(own.minus(base)), "p": own.p(base)}
    results = {
        "recipe": "headlines_lm",
        **origin(),
        "headlines": len(headlines),
        "signature": rouge_signature(),
        "trainings": {name: training(run, name) for name in names},
        "models": models,
    }
    write_json(run / "results.json", results)
    print(table(results))


if __name__ == "__main__":
    main()

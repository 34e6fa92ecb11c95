"""Collects the results of a run into its results.json and prints the table: ``results.py RUN --recipe NAME``.

RUN holds the output of imitkd-evaluate in ``evaluation/`` and a folder for each model, with its checkpoints
and ``commands`` (see ``noted`` in common.sh). This script adds the p-values of each student's difference from
``scratch`` and from ``seqkd`` of the same seed. If ``RUN/raw/test.all`` has all right answers of each line,
it adds the share of wrong answers and of wrong symbols. With --tokenised-bleu it adds BLEU of lower-case text
tokenised by Moses, as in the ImitKD paper's tables. ``tables.py RUN`` copies the results into the recipe's
folder and the READMEs.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import error_rates
import tables
import torch
from sacrebleu.metrics import BLEU
from trainings import training

from fairseq_imitkd.evaluate.quality import Metrics
from fairseq_imitkd.evaluate.sentences import Sentences

RIVALS = {"scratch", "seqkd"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--tokenised-bleu", metavar="LANGUAGE")
    args = parser.parse_args()

    evaluation = json.loads((args.run / "evaluation" / "evaluation.json").read_text())
    results = {
        "recipe": args.recipe,
        "trainings": {name: came_to_be(args.run, name) for name in evaluation["models"]},
        "translations": {
            path.parent.name: json.loads(path.read_text()) for path in args.run.glob("data_*/manifest.json")
        },
        "chance": chance(args.run / "evaluation", evaluation),
        "evaluation": evaluation,
    }
    if args.tokenised_bleu:
        results["tokenised"] = tokenised(args.run / "evaluation", evaluation, args.tokenised_bleu)
    if (answers := args.run / "raw" / "test.all").exists():
        results["errors"] = wrong(args.run / "evaluation", evaluation, answers)
    target = args.run / "results.json"
    temporary = target.with_suffix(".part")
    temporary.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    os.replace(temporary, target)
    print(tables.recipe_table(results))


def came_to_be(run: Path, name: str) -> dict[str, Any]:
    """Return how a model was trained. A downloaded teacher and an exported student have no ``commands``."""
    if (run / name / "commands").exists():
        return training(run, name)
    return {
        "commits": [],
        "command": None,
        "updates": None,
        "valid_score": None,
        "minutes": None,
        "peak_bytes": None,
    }


def chance(folder: Path, evaluation: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Return the p-value of each student's difference from each of :data:`RIVALS` of the same seed.

    The score is the table's first one, with greedy decoding.
    """
    references = lines(folder / evaluation["files"]["references"])
    nothing = [torch.empty(0)] * len(references)
    metric = tables.headline(evaluation)
    extra = ["rouge"] if metric.startswith("rouge") else []
    sentences = Sentences(nothing, nothing, references, references)
    metrics = Metrics(sentences, evaluation["data"]["target_lang"], extra=extra, ter=False)
    comparable: dict[tuple[str, int], dict[str, str]] = {}  # kind of student, seed -> row -> name
    for name in evaluation["models"]:
        row, seed = tables.row_and_seed(name)
        kind = tables.kind(row)
        comparable.setdefault((kind, seed), {})[row.removesuffix(kind)] = name
    found: dict[str, dict[str, float | None]] = {name: {} for name in evaluation["models"]}
    for names in comparable.values():
        outputs = {
            row: lines(folder / evaluation["models"][name]["decoding"]["greedy"]["outputs"], len(references))
            for row, name in names.items()
            if row != "teacher"
        }
        for rival in RIVALS & outputs.keys():
            for row, scores in metrics.compare(outputs, rival).items():
                if row != rival:
                    found[names[row]][rival] = scores[metric].p
    return found


def wrong(folder: Path, evaluation: dict[str, Any], answers: Path) -> dict[str, dict[str, float]]:
    """Return each model's greedy error rates, in per cent; see error_rates.py.

    Args:
        folder: folder of the evaluation.
        evaluation: its figures.
        answers: file with a line for each source: its right answers, with tabs between them.
    """
    right = [line.split("\t") for line in lines(answers)]
    found = {}
    for name, model in evaluation["models"].items():
        outputs = lines(folder / model["decoding"]["greedy"]["outputs"], len(right))
        errors = error_rates.errors(outputs, right)
        found[name] = {"words": errors.words, "phonemes": errors.phonemes}
    return found


def tokenised(folder: Path, evaluation: dict[str, Any], language: str) -> dict[str, Any]:
    """Return each model's greedy BLEU on tokenised, lower-case text, and its signature.

    Papers of that time report BLEU this way. Compare it only with such figures.
    """
    from corpora import moses

    tokenise = moses(language)
    references = [tokenise(line) for line in lines(folder / evaluation["files"]["references"])]
    bleu = BLEU(tokenize="none", lowercase=True, force=True)
    scores = {}
    for name, model in evaluation["models"].items():
        outputs = [
            tokenise(line) for line in lines(folder / model["decoding"]["greedy"]["outputs"], len(references))
        ]
        scores[name] = bleu.corpus_score(outputs, [references]).score
    return {"scores": scores, "signature": f"{bleu.get_signature()}|words:moses"}


def lines(path: Path, expected: int | None = None) -> list[str]:
    """Return a file's lines. splitlines() would also split at characters that a sentence may contain."""
    found = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    if expected is not None and len(found) != expected:
        raise SystemExit(
            f"{path} must have {expected} lines, one for each reference, but has {len(found)}; evaluate again"
        )
    return found


if __name__ == "__main__":
    main()

"""The tables of the READMEs, out of each results.json: ``tables.py`` writes them, ``tables.py --check`` names what is stale.

In a README a table stands between ``<!-- results -->`` and ``<!-- /results -->``; nobody types into it.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parent
PLACE = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- /results -->)", re.DOTALL)
KINDS = ("_sru_3", "_sru", "_transformer")  # ends of rows' names where a recipe has several kinds of students
TITLES = {"bleu": "BLEU", "chrf": "chrF", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a README is stale")
    args = parser.parse_args()

    stale = [path for path, text in readmes().items() if path.read_text() != text]
    for path in stale:
        if args.check:
            print(f"{path} is not what its results.json says: run examples/tables.py", file=sys.stderr)
        else:
            path.write_text(readmes()[path])
            print(f"wrote {path}")
    sys.exit(bool(stale) and args.check)


def readmes() -> dict[Path, str]:
    """Every README with a place for results, as it should be."""
    results = [json.loads(path.read_text()) for path in sorted(EXAMPLES.glob("*/results.json"))]
    results = [found for found in results if "evaluation" in found]
    tables = {EXAMPLES / found["recipe"] / "README.md": recipe_table(found) for found in results}
    tables[EXAMPLES / "README.md"] = overview(results)
    return {path: filled(path, table) for path, table in tables.items()}


def filled(path: Path, table: str) -> str:
    text = path.read_text()
    if not PLACE.search(text):
        raise SystemExit(f"{path} must have a place for its table: <!-- results --> and, below, <!-- /results -->")
    return PLACE.sub(lambda _: table + "\n", text, count=1)


def row_and_seed(name: str) -> tuple[str, int]:
    """``imitkd-seed2`` is ``imitkd``'s second seed."""
    row, _, seed = name.partition("-seed")
    return row, int(seed or 1)


def kind(row: str) -> str:
    """Which kind of student a row is of: only those of one kind are compared with each other."""
    return next((end for end in KINDS if row.endswith(end)), "")


def headline(evaluation: dict[str, Any]) -> str:
    """What a recipe's models are compared by: ROUGE-L for summaries, else BLEU."""
    first = next(iter(evaluation["models"].values()))
    return "rougeL" if "rougeL" in first["decoding"]["greedy"] else "bleu"


def recipe_table(results: dict[str, Any]) -> str:
    """One recipe's models, a line each, what the columns are, and where the figures come from."""
    evaluation, trainings = results["evaluation"], results["trainings"]
    metric = headline(evaluation)
    others = ["chrf"] if metric == "bleu" else ["rouge1", "rouge2", "bleu"]
    beam = next(name for name in [*evaluation["models"]["teacher"]["decoding"], ""] if name != "greedy")
    batch = max(evaluation["models"]["teacher"]["speed"], key=int)
    head = ["model", "seed", "parameters", f"{TITLES[metric]} (95%)", "p, scratch", "p, seqkd"]
    head += [TITLES[other] for other in others] + ([f"{TITLES[metric]}, {beam}"] if beam else [])
    tokenised = results.get("tokenised")
    head += ["BLEU, tokenised, lower-case"] if tokenised else []
    head += ["x teacher's speed", "updates to best", "minutes"]
    rows = []
    for name, model in evaluation["models"].items():
        row, seed = row_and_seed(name)
        greedy, training = model["decoding"]["greedy"], trainings[name]
        cells = [row, seed, f"{model['parameters']:,}", interval(greedy[metric], metric)]
        cells += [chance_cell(results["chance"][name].get(rival)) for rival in ("scratch", "seqkd")]
        cells += [points(greedy[other], other) for other in others]
        cells += [points(model["decoding"][beam][metric], metric)] if beam else []
        cells += [f"{tokenised['scores'][name]:.2f}"] if tokenised else []
        cells += [f"{speed(evaluation, name, batch):.1f}", training["updates"] or "", minutes(training["minutes"])]
        rows.append(cells)
    return "\n".join(
        [
            markdown(head, rows, left=1),
            "",
            *spread(results, metric),
            f"Greedy decoding where nothing else is said; {evaluation['data']['sentences']:,} sentences; "
            "p: paired bootstrap against the model of the same seed (1,000 resamples); speed: sentences a second, greedy, "
            f"batches of {batch}, fairseq's decoding, rounds of all models in turn, {evaluation['machine']['threads']} thread; "
            "updates: of the best checkpoint; minutes: of training alone, beside whatever else the machine did. "
            f"{signatures(evaluation, tokenised)} Trained at {commits(trainings)}, evaluated at {evaluation['commit']} on "
            f"{evaluation['machine']['processor']}, {evaluation['machine']['cores']} cores; "
            f"{', '.join(f'{name} {version}' for name, version in evaluation['versions'].items())}. "
            "All commands and figures: [results.json](results.json).",
        ]
    )


def overview(results: list[dict[str, Any]]) -> str:
    """All recipes' models in one table, a line for each row, every seed shown."""
    rows: list[list[Any]] = []
    for found in results:
        models = found["evaluation"]["models"]
        metric = headline(found["evaluation"])
        batch = max(models["teacher"]["speed"], key=int)
        seeds: dict[str, list[str]] = {}
        for name in models:
            seeds.setdefault(row_and_seed(name)[0], []).append(name)
        for row, names in seeds.items():
            scores = [interval(models[name]["decoding"]["greedy"][metric], metric) for name in names]
            gain = mean(models, names, metric) - mean(models, seeds.get("scratch" + kind(row), names), metric)
            rows.append(
                [
                    f"[{found['recipe']}]({found['recipe']}/README.md)",
                    row,
                    f"{models[names[0]]['parameters']:,}",
                    TITLES[metric],
                    "; ".join(scores),
                    f"{gain:+.2f}" if gain else "",
                    f"{speed(found['evaluation'], names[0], batch):.1f}",
                ]
            )
    head = ["recipe", "model", "parameters", "score", "greedy, each seed (95%)", "over scratch", "x teacher's speed"]
    return markdown(head, rows, left=2)


def spread(results: dict[str, Any], metric: str) -> list[str]:
    """Means over seeds, of the rows that have several."""
    models = results["evaluation"]["models"]
    seeds: dict[str, list[str]] = {}
    for name in models:
        seeds.setdefault(row_and_seed(name)[0], []).append(name)
    means = [f"`{row}` {mean(models, names, metric):.2f}" for row, names in seeds.items() if len(names) > 1]
    return [f"Means over seeds: {', '.join(means)}.", ""] if means else []


def mean(models: dict[str, Any], names: list[str], metric: str) -> float:
    scores = [models[name]["decoding"]["greedy"][metric]["score"] for name in names]
    return sum(scores) / len(scores) * scale(metric)


def scale(metric: str) -> float:
    """ROUGE comes as a fraction; papers give it in points, as BLEU is."""
    return 100.0 if metric.startswith("rouge") else 1.0


def points(score: dict[str, float], metric: str) -> str:
    return f"{score['score'] * scale(metric):.2f}"


def interval(score: dict[str, float], metric: str) -> str:
    if "low" not in score:
        return points(score, metric)
    low, high = (score[end] * scale(metric) for end in ("low", "high"))
    return f"{points(score, metric)} ({low:.1f} to {high:.1f})"


def chance_cell(p: float | None) -> str:
    return "" if p is None else f"{p:.3f}"


def minutes(spent: float | None) -> str:
    return "" if spent is None else f"{spent:.0f}"


def speed(evaluation: dict[str, Any], name: str, batch: str) -> float:
    """How many times the teacher's sentences a second."""
    rates = {model: evaluation["models"][model]["speed"][batch]["sentences_per_second"] for model in (name, "teacher")}
    return float(rates[name] / rates["teacher"])


def signatures(evaluation: dict[str, Any], tokenised: dict[str, Any] | None) -> str:
    found = dict(evaluation["signatures"])
    if tokenised:
        found["tokenised"] = tokenised["signature"]
    return "; ".join(f"{metric}: `{signature}`" for metric, signature in found.items()) + "."


def commits(trainings: dict[str, Any]) -> str:
    found = dict.fromkeys(commit for training in trainings.values() for commit in training["commits"])
    return ", ".join(found) or "no commit of this repository"


def markdown(head: list[str], rows: list[list[Any]], left: int) -> str:
    """A table whose first ``left`` columns are words and the others numbers."""
    rule = "|" + "|".join("---" if place < left else "--:" for place in range(len(head))) + "|"
    return "\n".join(["| " + " | ".join(map(str, cells)) + " |" if cells else rule for cells in (head, [], *rows)])


if __name__ == "__main__":
    main()

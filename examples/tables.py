"""Writes the tables of the READMEs from each recipe's results.json: ``tables.py [RUN…]``.

The results.json of each RUN, which a recipe's evaluation writes, is first copied into the recipe's folder.
``tables.py --check`` writes nothing and names the stale files. In a README a table is between
``<!-- NAME -->`` and ``<!-- /NAME -->``; do not edit it by hand. A recipe's ``evaluation.md`` is made from
the same file and holds what imitkd-evaluate prints. A recipe with a special table has its own ``table.py``.

``tables.py RUN --beside NAME`` adds a further run with a teacher of its own. It writes ``results-NAME.json``
and ``evaluation-NAME.md``, and a table at ``<!-- results-NAME -->`` of the recipe's README only.
"""

import argparse
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

EXAMPLES = Path(__file__).parent
KINDS = ("_sru_3", "_sru", "_transformer")  # suffixes of the rows of recipes with several kinds of students
EXPORTED = "_exported"  # suffix of exported students
TITLES = {"bleu": "BLEU", "chrf": "chrF", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
# From a teacher to an exported student: a script, what it makes, and the model whose figures are shown
JOURNEY = (
    ("prepare.sh", "checked text, subwords, binary data", ""),
    ("teacher.sh", "the teacher", "teacher"),
    ("distill.sh imitkd_full", "a student, trained on its own prefixes", "imitkd_full"),
    ("export.sh imitkd_full", "a folder that translates raw text, in int8", "imitkd_full_exported"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    parser.add_argument(
        "--beside", metavar="NAME", help="publish RUN as results-NAME.json instead of the recipe's results"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is stale")
    args = parser.parse_args()
    if args.check and args.runs:
        parser.error("--check writes nothing; use it without RUN")
    if args.beside is not None and not (args.runs and re.fullmatch(r"[\w-]+", args.beside)):
        parser.error(f"--beside must be letters and digits, and needs a RUN, but is '{args.beside}'")

    published = dict(published_by(run, args.beside) for run in args.runs)
    wanted = {
        path: json.dumps(results, indent=1, ensure_ascii=False) + "\n" for path, results in published.items()
    }
    wanted |= documents(published)
    stale = {path: text for path, text in wanted.items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        if args.check:
            print(f"{path} is stale; run examples/tables.py", file=sys.stderr)
        else:
            temporary = path.with_suffix(".part")
            temporary.write_text(text)
            os.replace(temporary, path)
            print(f"wrote {path}")
    sys.exit(bool(stale) and args.check)


def published_by(run: Path, beside: str | None = None) -> tuple[Path, dict[str, Any]]:
    """Return the file in the recipe's folder that a run's results go to, and the results."""
    source = run / "results.json"
    if not source.exists():
        raise SystemExit(f"{source} does not exist; run the recipe's evaluate.sh or run.sh first")
    if (run / ".smoke").exists():
        raise SystemExit(f"{run} is a run with SMOKE=1, whose figures mean nothing; use another")
    try:
        results = json.loads(source.read_text())
        recipe = EXAMPLES / results["recipe"]
        trained = results["trainings"].keys()
        models = results["models"] if (recipe / "table.py").exists() else results["evaluation"]["models"]
        if not trained or not models:
            raise KeyError(source)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SystemExit(f"{source} is not what a recipe's evaluation writes; evaluate again") from None
    if not (recipe / "README.md").exists():
        raise SystemExit(
            f"{source} names the recipe {recipe.name}, but {recipe / 'README.md'} does not exist"
        )
    target = recipe / (f"results-{beside}.json" if beside else source.name)
    if target.exists() and "recipe" not in json.loads(target.read_text()):
        raise SystemExit(f"--beside '{beside}' is a study in {recipe / 'studies.md'}; use another name")
    return target, results


def documents(published: dict[Path, dict[str, Any]]) -> dict[Path, str]:
    """Return the up-to-date text of every file that shows results.

    Args:
        published: new results by the file that they go to.
    """
    found = {path: json.loads(path.read_text()) for path in EXAMPLES.glob("*/results*.json")} | published
    runs = {path: each for path, each in sorted(found.items()) if "evaluation" in each}
    every = [each for path, each in runs.items() if path.stem == "results"]
    made: dict[Path, dict[str, str]] = {}
    for path, each in runs.items():
        made.setdefault(path.parent / "README.md", {})[path.stem] = recipe_table(each, path.name)
    made[EXAMPLES / "README.md"] = {"results": overview(every)}
    made[EXAMPLES.parent / "README.md"] = {"results": headlines(every)}
    if multi30k := runs.get(EXAMPLES / "multi30k" / "results.json"):
        made[EXAMPLES.parent / "README.md"]["journey"] = journey(multi30k)
    for path, each in sorted(found.items()):
        if (own := path.with_name("table.py")).exists():
            table = loaded(own).table(each)
            place = made.setdefault(path.parent / "README.md", {})
            place[path.stem] = f"{table}\n\n{origin(each['trainings'], each, path.name)}"
            if path == EXAMPLES / "quickstart" / "results.json":
                where = origin(each["trainings"], each, "examples/quickstart/results.json")
                short = loaded(own).table(each, short=True)
                made[EXAMPLES.parent / "README.md"]["quickstart"] = f"{short}\n\n{where}"
    for folder in EXAMPLES.glob("*/evidence"):
        import evidence_tables

        shown = evidence_tables.table(evidence_tables.read(folder))
        made.setdefault(folder.parent / "README.md", {})["evidence"] = shown
    for path in EXAMPLES.glob("*/writing.json"):
        made[path.parent / "README.md"]["writing"] = loaded(path.with_suffix(".py")).table(
            json.loads(path.read_text())
        )
    if quickstarts := [each for path, each in found.items() if path.parent.name == "quickstart"]:
        import advice
        import evidence_tables

        made[EXAMPLES.parent / "README.md"]["results-end"] = evidence_tables.across(
            {
                f"[{title}](examples/{recipe}/README.md)": evidence_tables.read(
                    EXAMPLES / recipe / "evidence"
                )
                for title, recipe, _ in advice.ENDED
            }
        )

        made[EXAMPLES.parent / "README.md"]["which-method"] = advice.box(quickstarts, EXAMPLES)
    if (studies := EXAMPLES / "multi30k" / "studies.py").exists():
        made[studies.with_suffix(".md")] = of_studies = loaded(studies).tables()
        made[EXAMPLES.parent / "docs" / "export.md"] = {"speed-exported": of_studies["speed-exported"]}
    texts = {path: filled(path, tables) for path, tables in made.items()}
    for path, each in runs.items():
        texts[path.with_name(path.stem.replace("results", "evaluation") + ".md")] = printed(each)
    for path in EXAMPLES.glob("*/evaluation-*.json"):
        texts[path.with_suffix(".md")] = printed({"evaluation": json.loads(path.read_text())})
    return texts


def loaded(path: Path) -> ModuleType:
    """Import a recipe's own script."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def filled(path: Path, tables: dict[str, str]) -> str:
    """Return the text of a document with these tables at their places."""
    text = path.read_text()
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        place = re.compile(f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", re.DOTALL)
        if not place.search(text):
            raise SystemExit(f"{path} must have a place for its table: {begin.strip()} and, below, {end}")
        text = place.sub(lambda _, table=table: table + "\n", text, count=1)  # type: ignore[misc]
    return text


def printed(results: dict[str, Any]) -> str:
    """Return what imitkd-evaluate prints of a run."""
    from fairseq_imitkd.evaluate.markdown import markdown
    from fairseq_imitkd.evaluate.schema import from_json

    evaluation = from_json(results["evaluation"], "evaluation.json")
    return f"# What imitkd-evaluate prints of the run\n\n{markdown(evaluation)}\n"


def row_and_seed(name: str) -> tuple[str, int]:
    """Split a model's name into its row and seed: ``imitkd-seed2`` is the second seed of ``imitkd``."""
    row, _, seed = name.partition("-seed")
    return row, int(seed or 1)


def by_row(models: Iterable[str]) -> dict[str, list[str]]:
    """Return the models of each row, sorted by seed."""
    rows: dict[str, list[str]] = {}
    for name in models:
        rows.setdefault(row_and_seed(name)[0], []).append(name)
    return {row: sorted(names, key=row_and_seed) for row, names in rows.items()}


def kind(row: str) -> str:
    """Return the kind of student of a row. Only students of one kind are compared with each other."""
    return next((end for end in KINDS if row.removesuffix(EXPORTED).endswith(end)), "")


def headline(evaluation: dict[str, Any]) -> str:
    """Return the score that a recipe compares its models by: ROUGE-L for summaries, else BLEU."""
    first = next(iter(evaluation["models"].values()))
    return "rougeL" if "rougeL" in first["decoding"]["greedy"] else "bleu"


def recipe_table(results: dict[str, Any], source: str = "results.json") -> str:
    """Return the table of one run, with one line per model, and notes on its columns and origin."""
    evaluation, trainings = results["evaluation"], results["trainings"]
    metric = headline(evaluation)
    others = ["chrf"] if metric == "bleu" else ["rouge1", "rouge2", "bleu"]
    beam = next(name for name in [*evaluation["models"]["teacher"]["decoding"], ""] if name != "greedy")
    batch = max(evaluation["models"]["teacher"]["speed"], key=int)
    head = ["model", "seed", "parameters", "MB", f"{TITLES[metric]} (95%)", "p, scratch", "p, seqkd"]
    head += [TITLES[other] for other in others] + ([f"{TITLES[metric]}, {beam}"] if beam else [])
    errors, tokenised = results.get("errors"), results.get("tokenised")
    head += ["word errors, %", "phoneme errors, %"] if errors else []
    head += ["BLEU, tokenised, lower-case"] if tokenised else []
    head += ["x teacher's speed", "updates to best", "minutes"]
    peaks = {name: training.get("peak_bytes") for name, training in trainings.items()}
    head += ["GB"] if any(peaks.values()) else []
    rows = []
    for name, model in evaluation["models"].items():
        row, seed = row_and_seed(name)
        greedy, training = model["decoding"]["greedy"], trainings[name]
        cells = [row, seed, f"{model['parameters']:,}", megabytes(model), interval(greedy[metric], metric)]
        cells += [chance_cell(results["chance"][name].get(rival)) for rival in ("scratch", "seqkd")]
        cells += [points(greedy[other], other) for other in others]
        cells += [points(model["decoding"][beam][metric], metric)] if beam else []
        cells += [f"{rate:.2f}" for rate in errors[name].values()] if errors else []
        cells += [f"{tokenised['scores'][name]:.2f}"] if tokenised else []
        cells += [
            f"{speed(evaluation, name, batch):.1f}",
            training["updates"] or "",
            minutes(training["minutes"]),
        ]
        if any(peaks.values()):
            cells.append(f"{peak / 1e9:.1f}" if (peak := peaks[name]) else "")
        rows.append(cells)
    return "\n".join(
        [
            markdown(head, rows, left=1),
            "",
            *spread(results, metric),
            recipe_notes(results, batch, memory=any(peaks.values()))
            + " "
            + origin(trainings, evaluation, source),
        ]
    )


def recipe_notes(results: dict[str, Any], batch: str, *, memory: bool) -> str:
    """Return the notes on the columns of a recipe's table.

    Args:
        results: results of the run.
        batch: batch size of the speed column.
        memory: whether the table has a column of peak memory.
    """
    evaluation = results["evaluation"]
    return (
        f"Greedy decoding unless stated otherwise; {evaluation['data']['sentences']:,} sentences. "
        "MB: size of the weights, or of an exported folder. "
        "p: sacreBLEU's paired bootstrap against the model of the same seed (one-sided, 1,000 resamples). "
        f"Speed: sentences per second with greedy decoding in batches of {batch}, by fairseq "
        "(an exported student by its own engine), all models taking turns, "
        f"{evaluation['machine']['threads']} thread. Updates: up to the best checkpoint. "
        "Minutes: training time, on a machine that also did other work. "
        f"{'GB: peak host memory of the training. ' if memory else ''}"
        f"{signatures(evaluation, results.get('tokenised'))}"
    )


def origin(trainings: dict[str, Any], evaluation: dict[str, Any], source: str) -> str:
    """Return a sentence on the commits, the machine and the versions of a table's figures."""
    found = dict.fromkeys(commit for training in trainings.values() for commit in training["commits"])
    machine = evaluation["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in evaluation["versions"].items())
    return (
        f"Trained at {', '.join(found) or 'an unknown commit'}, evaluated at {evaluation['commit']} on "
        f"{machine['processor']}, {machine['cores']} cores; {versions}. "
        f"All commands and figures: [{source}]({source})."
    )


def overview(results: list[dict[str, Any]]) -> str:
    """Return all recipes' models in one table, with one line per row and all seeds."""
    rows: list[list[Any]] = []
    for found in results:
        models = found["evaluation"]["models"]
        metric = headline(found["evaluation"])
        batch = max(models["teacher"]["speed"], key=int)
        seeds = by_row(models)
        for row, names in seeds.items():
            scores = [interval(models[name]["decoding"]["greedy"][metric], metric) for name in names]
            shared = alike(names, seeds.get("scratch" + kind(row), []))
            gain = sum(
                mean(models, [one], metric) - mean(models, [other], metric) for one, other in shared
            ) / max(len(shared), 1)
            rows.append(
                [
                    f"[{found['recipe']}]({found['recipe']}/README.md)",
                    row,
                    f"{models[names[0]]['parameters']:,}",
                    TITLES[metric],
                    "; ".join(scores),
                    f"{gain:+.2f}{chances(found['chance'], names)}" if gain else "",
                    f"{speed(found['evaluation'], names[0], batch):.1f}",
                ]
            )
    head = [
        "recipe",
        "model",
        "parameters",
        "score",
        "greedy, each seed (95%)",
        "over scratch (p)",
        "x teacher's speed",
    ]
    return markdown(head, rows, left=2)


def chances(chance: dict[str, dict[str, float | None]], names: list[str]) -> str:
    """Return in brackets p of each model's difference from ``scratch`` of its seed, if any is known."""
    known = [p for name in names if (p := chance.get(name, {}).get("scratch")) is not None]
    return f" (p {', '.join(f'{p:.3f}' for p in known)})" if known else ""


def alike(names: list[str], others: list[str]) -> list[tuple[str, str]]:
    """Return pairs of models of the same seed. A teacher is paired with every model."""
    if names == ["teacher"]:
        return [("teacher", other) for other in others]
    by_seed = {row_and_seed(other)[1]: other for other in others}
    return [(name, by_seed[seed]) for name in names if (seed := row_and_seed(name)[1]) in by_seed]


def headlines(every: list[dict[str, Any]]) -> str:
    """Return a table with one line per row, one column per recipe, and all seeds."""
    scores: dict[str, dict[str, list[str]]] = {}
    for found in every:
        models, metric = found["evaluation"]["models"], headline(found["evaluation"])
        for row, names in by_row(models).items():
            if not row.endswith(EXPORTED):
                shown = [points(models[name]["decoding"]["greedy"][metric], metric) for name in names]
                scores.setdefault(row, {})[found["recipe"]] = shown
    head = [
        f"[{found['recipe']}](examples/{found['recipe']}/README.md), {TITLES[headline(found['evaluation'])]}"
        for found in every
    ]
    rows = [
        [f"`{row}`", *("; ".join(cells.get(found["recipe"], [])) for found in every)]
        for row, cells in scores.items()
    ]
    return markdown(["model", *head], rows, left=1)


def journey(results: dict[str, Any]) -> str:
    """Return the table of the way from a teacher to an exported student, one command per line."""
    models, metric = results["evaluation"]["models"], headline(results["evaluation"])
    rows = []
    for script, makes, name in JOURNEY:
        cells = ["", "", "", ""]
        if name and name not in models:
            continue
        if name:
            model = models[name]
            spent = minutes(results["trainings"][name]["minutes"])
            score = points(model["decoding"]["greedy"][metric], metric)
            cells = [f"{model['parameters']:,}", f"{spent} min" if spent else "", megabytes(model), score]
        precision = "TEACHER_PRECISION=bf16 " if script == "teacher.sh" and in_bf16(results) else ""
        rows.append([f"`{precision}examples/{results['recipe']}/{script}`", makes, *cells])
    return markdown(["command", "makes", "parameters", "time", "MB", f"test {TITLES[metric]}"], rows, left=2)


def in_bf16(results: dict[str, Any]) -> bool:
    """Return whether the teacher was trained in bf16."""
    return "--bf16" in (results["trainings"]["teacher"]["command"] or "").split()


def spread(results: dict[str, Any], metric: str) -> list[str]:
    """Return the line with the means of the rows that have several seeds, if there are any."""
    models = results["evaluation"]["models"]
    means = [
        f"`{row}` {mean(models, names, metric):.2f}"
        for row, names in by_row(models).items()
        if len(names) > 1
    ]
    return [f"Means over seeds: {', '.join(means)}.", ""] if means else []


def mean(models: dict[str, Any], names: list[str], metric: str) -> float:
    scores = [models[name]["decoding"]["greedy"][metric]["score"] for name in names]
    return sum(scores) / len(scores) * scale(metric)


def scale(metric: str) -> float:
    """Return the factor to points: ROUGE is a fraction, but papers give it in points like BLEU."""
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


def megabytes(model: dict[str, Any]) -> str:
    """Return the size of the weights, without the optimizer's state in the checkpoint."""
    return f"{(model['weight_bytes'] or model['bytes']) / 1e6:.1f}"


def minutes(spent: float | None) -> str:
    return "" if spent is None else f"{spent:.0f}"


def speed(evaluation: dict[str, Any], name: str, batch: str) -> float:
    """Return a model's speed as a multiple of the teacher's."""
    rates = {
        model: evaluation["models"][model]["speed"][batch]["sentences_per_second"]
        for model in (name, "teacher")
    }
    return float(rates[name] / rates["teacher"])


def signatures(evaluation: dict[str, Any], tokenised: dict[str, Any] | None) -> str:
    found = dict(evaluation["signatures"])
    if tokenised:
        found["tokenised"] = tokenised["signature"]
    return "; ".join(f"{metric}: `{signature}`" for metric, signature in found.items()) + "."


def markdown(head: list[str], rows: list[list[Any]], left: int) -> str:
    """Return a Markdown table; the first ``left`` columns are aligned left, the others right."""
    rule = "|" + "|".join("---" if place < left else "--:" for place in range(len(head))) + "|"
    return "\n".join(
        ["| " + " | ".join(map(str, cells)) + " |" if cells else rule for cells in (head, [], *rows)]
    )


if __name__ == "__main__":
    main()

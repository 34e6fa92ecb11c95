"""The tables of studies.md, from the stored results of each study (results-first.json and so on).

These files are older than results.py; no script writes them any more.
"""

import json
import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STUDIES = ("results-first", "results-seqkd", "results-compare")
STUDENTS = {"sru": "scratch_sru"}
ENGINES = {"ctranslate2": "CTranslate2", "onnx": "ONNX", "imitkd-generate": "`imitkd-generate`"}


def tables() -> dict[str, str]:
    """Return the tables by their place in studies.md."""
    studies = {
        name: json.loads((HERE / f"{name}.json").read_text()) for name in (*STUDIES, "results-exported")
    }
    exported = studies["results-exported"]
    made = {name: f"{models(studies[name])}\n\n{notes(studies[name], name)}" for name in STUDIES}
    made["means-compare"] = means(studies["results-compare"])
    made["results-exported"] = (
        f"{models(exported['results'])}\n\n{notes(exported['results'], 'results-exported')}"
    )
    made["speed-exported"] = speed(exported["deployed_speed"])
    return made


def models(results: dict[str, Any]) -> str:
    """Return a table with one line per model."""
    tested = compared(results)
    head = "| model | seed | parameters | updates to best | valid BLEU | test BLEU (95%) | chrF |"
    rows = [f"{head} p |" if tested else head, "|---" + "|--:" * (7 if tested else 6) + "|"]
    for name, model in results["models"].items():
        size = f"{model['parameters']:,}"
        if model.get("nonzero", model["parameters"]) != model["parameters"]:
            size += f" ({model['nonzero']:,} not zero)"
        _, half = model["bleu_mean_and_interval"]
        p = model.get("p_against_baseline")
        rows.append(
            f"| {row(name)} | {model['seed']} | {size} | {model['updates']} | {model['valid_bleu']:.2f} | "
            f"{model['bleu']:.2f} ± {half:.1f} | {model['chrf']:.2f} |"
            + (f" {'' if p is None else f'{p:.3f}'} |" if tested else "")
        )
    return "\n".join(rows)


def compared(results: dict[str, Any]) -> bool:
    """Return whether any model was compared with the baseline."""
    return any("p_against_baseline" in model for model in results["models"].values())


def row(name: str) -> str:
    """Return the row of a model: ``imitkd-seed2`` is the second seed of ``imitkd``."""
    return name.partition("-seed")[0]


def means(results: dict[str, Any]) -> str:
    """Return the means over seeds: first the models that all others are compared with, then the best ones."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for name, model in results["models"].items():
        runs.setdefault(row(name), []).append(model)
    scores = {
        name: [statistics.mean(model[score] for model in found) for score in ("valid_bleu", "bleu", "chrf")]
        for name, found in runs.items()
    }
    known = [name for name in ("teacher", "scratch", results["baseline"]) if name in scores]
    others = sorted(scores.keys() - set(known), key=lambda name: -scores[name][1])
    lines = ["| mean over seeds | valid BLEU | test BLEU | chrF |", "|---|--:|--:|--:|"]
    for name in (*known, *others):
        lines.append(
            f"| {name} ({len(runs[name])}) | {' | '.join(f'{score:.2f}' for score in scores[name])} |"
        )
    return "\n".join(lines)


def speed(measured: dict[str, Any]) -> str:
    """Return speeds as multiples of the teacher's beam search, and BLEU of the same sentences."""
    single, batches = measured["speed"]["batch 1"], measured["speed"]["batch 32"]
    reference, *others = single
    rows = ["| | batches of 1 | batches of 32 | BLEU of these |", "|---|--:|--:|--:|"]
    for name in others:
        model, engine, how = name.split(", ")
        shown = f"{STUDENTS.get(model, model)}, {ENGINES.get(engine, engine)}, {how}"
        if name == f"{reference} (again)":
            shown = "teacher again (noise)"
        times = [found[name]["times_teacher"] for found in (single, batches)]
        rows.append(f"| {shown} | {times[0]:.2f} | {times[1]:.2f} | {measured['bleu'][name]:.2f} |")
    return "\n".join(rows)


def notes(results: dict[str, Any], name: str) -> str:
    """Return notes on the columns and on the origin of the figures."""
    first = next(iter(results["models"].values()))
    return (
        f"BLEU with half its 95% bootstrap interval: `{first['bleu_signature']}`; "
        f"chrF: `{first['chrf_signature']}`; "
        + (
            f"p: sacreBLEU's paired bootstrap of BLEU, one-sided, against `{results['baseline']}` of the "
            "same seed; "
            if compared(results)
            else ""
        )
        + f"scored at commit {results['commit']}; {results['machine'].replace('1 threads', '1 thread')}, "
        f"torch {results['versions']['torch']}; [{name}.json]({name}.json)."
    )

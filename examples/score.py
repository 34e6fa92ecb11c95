"""Score the translations that a recipe made and print its table in Markdown: ``score.py --run DIR --reference FILE NAME…``.

Each NAME is a folder of DIR with ``test.hyp`` (a line each sentence), ``test.out`` (fairseq-generate's output) and
``checkpoint_best.pt``; ``NAME-seed2`` is another seed's. Writes ``results.json`` beside them with what a reader needs to
repeat a number.
"""

import argparse
import json
import platform
import re
import statistics
import subprocess
from pathlib import Path
from typing import Any

import sacrebleu
import torch
from fairseq import checkpoint_utils

from fairseq_imitkd.__main__ import versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--baseline", default="continued", help="whose seed each model of that seed is compared with")
    parser.add_argument("names", nargs="+")
    args = parser.parse_args()

    references = _lines(args.reference)
    hypotheses = {name: _lines(args.run / name / "test.hyp", len(references)) for name in args.names}
    models = {name: describe(args.run / name, hypotheses[name], references) for name in args.names}
    for name, model in models.items():
        _, dash, seed = name.partition("-")
        baseline = args.baseline + dash + seed
        if baseline in models and name != baseline:
            model["p_against_baseline"] = _paired(hypotheses[baseline], hypotheses[name], references)
    results = {
        "models": models,
        "baseline": args.baseline,
        "commit": _commit(),
        "versions": dict(line.split(": ", 1) for line in versions().splitlines()),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    (args.run / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))


def describe(folder: Path, hypotheses: list[str], references: list[str]) -> dict[str, Any]:
    """Everything the table says of one model."""
    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
    bleu_score = bleu.corpus_score(hypotheses, [references], n_bootstrap=1000)
    chrf_score = chrf.corpus_score(hypotheses, [references])
    path = str(folder / "checkpoint_best.pt")
    state = checkpoint_utils.load_checkpoint_to_cpu(path)
    [model], _, _ = checkpoint_utils.load_model_ensemble_and_task([path], arg_overrides={"eval_bleu": False})
    return {
        "bleu": bleu_score.score,
        "bleu_mean_and_interval": [bleu_score._mean, bleu_score._ci],
        "bleu_signature": str(bleu.get_signature()),
        "chrf": chrf_score.score,
        "chrf_signature": str(chrf.get_signature()),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "nonzero": sum(int(parameter.count_nonzero()) for parameter in model.parameters()),
        "updates": state["optimizer_history"][-1]["num_updates"],
        "seed": state["cfg"]["common"]["seed"],
        "valid_bleu": float(state["extra_state"]["best"]),
        "decoding": _decoding(folder / "test.out"),
    }


def table(results: dict[str, Any]) -> str:
    """The results as Markdown: every model, the means over seeds where there are several, the signatures."""
    rows = [
        "| model | seed | parameters | updates to best | valid BLEU | test BLEU (95% interval) | p | chrF |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    runs: dict[str, list[dict[str, Any]]] = {}
    for name, model in results["models"].items():
        method = name.partition("-")[0]
        runs.setdefault(method, []).append(model)
        mean, interval = model["bleu_mean_and_interval"]
        # A pruned one; the padding's embedding is zero in all.
        size = f"{model['parameters']:,}"
        if model["nonzero"] < 0.9 * model["parameters"]:
            size += f" ({model['nonzero']:,} not zero)"
        p = model.get("p_against_baseline")
        chance = "" if p is None else f"{p:.3f}"
        rows.append(
            f"| {method} | {model['seed']} | {size} | {model['updates']} | {model['valid_bleu']:.2f} | "
            f"{model['bleu']:.2f} ({mean:.1f} ± {interval:.1f}) | {chance} | {model['chrf']:.2f} |"
        )
    if len(runs) < len(results["models"]):
        rows += ["", "| mean over seeds | valid BLEU | test BLEU | chrF |", "|---|--:|--:|--:|"]
        for method, models in sorted(runs.items(), key=lambda run: -statistics.mean(model["bleu"] for model in run[1])):
            means = " | ".join(
                f"{statistics.mean(model[score] for model in models):.2f}" for score in ("valid_bleu", "bleu", "chrf")
            )
            rows.append(f"| {method} ({len(models)}) | {means} |")
    first = next(iter(results["models"].values()))
    return "\n".join(
        [
            *rows,
            "",
            f"BLEU: `{first['bleu_signature']}`; chrF: `{first['chrf_signature']}`; p: paired bootstrap of BLEU against "
            f"`{results['baseline']}` of the same seed; commit {results['commit']}.",
        ]
    )


def _paired(baseline: list[str], system: list[str], references: list[str]) -> float | None:
    """sacreBLEU's paired bootstrap: how probably the difference from the baseline is chance."""
    from sacrebleu.significance import PairedTest

    if baseline == system:
        return None
    test = PairedTest(
        [("baseline", baseline), ("system", system)], {"BLEU": sacrebleu.BLEU()}, [references], test_type="bs", n_samples=1000
    )
    return test()[1]["BLEU"][1].p_value


def _decoding(output: Path) -> str:
    """fairseq-generate's own line on speed."""
    found = re.search(r"Translated .*", output.with_name("test.err").read_text() + output.read_text())
    return found.group(0) if found else ""


def _lines(path: Path, expected: int | None = None) -> list[str]:
    """A file's lines. Not splitlines(), which also splits at characters that may stand in a sentence."""
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    if expected is not None and len(lines) != expected:
        raise SystemExit(f"{path} must have {expected} lines, one for each reference, but has {len(lines)}")
    return lines


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()

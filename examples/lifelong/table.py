"""Decode both tasks' test sets with every model of RUN; write its table in Markdown, table.md, and results.json."""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from evaluate import BLEU, DECODING, quality, read_hypotheses  # the quickstart's
from fairseq import options
from fairseq_cli import generate

from fairseq_imitkd.__main__ import versions

TASKS = ("first", "second")
MODELS = {
    "teacher of the first": "teacher-first",
    "teacher of the second": "teacher-second",
    "student after the first": "first",
    "then the second by its teacher alone": "forgetful",
    "then the second, lifelong": "lifelong",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args()
    device = ["--cpu"] if args.cpu else []
    models = {label: {task: score(args.run, folder, task, device) for task in TASKS} for label, folder in MODELS.items()}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    results = {
        "models": models,
        "seed": args.seed,
        "signature": str(BLEU.get_signature()),
        "decoding": " ".join(DECODING),
        "commit": commit.stdout.strip() or "unknown",
        "versions": dict(line.split(": ", 1) for line in versions().splitlines()),
    }
    (args.run / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (args.run / "table.md").write_text(table(results) + "\n", encoding="utf-8")


def score(run: Path, folder: str, task: str, device: list[str]) -> dict[str, Any]:
    """The quality of one model on one task's test set."""
    out = run / folder / task
    paths = [str(run / "data-bin" / task), "--path", str(run / folder / "checkpoint_last.pt"), "--results-path", str(out)]
    generate.main(options.parse_args_and_arch(options.get_generation_parser(), [*paths, *DECODING, *device]))
    text = run / "text" / task
    sources = (text / "test.src").read_text(encoding="utf-8").splitlines()
    right = [line.split("\t") for line in (text / "test.all").read_text(encoding="utf-8").splitlines()]
    return quality(sources, right, read_hypotheses(out / "generate-test.txt"))


def table(results: dict[str, Any]) -> str:
    """The results as Markdown, the signature below."""
    rows = ["| model | first: BLEU | right | second: BLEU | right |", "|---|--:|--:|--:|--:|"]
    for label, tasks in results["models"].items():
        cells = [f"{tasks[t]['bleu']:.2f} ± {tasks[t]['bleu_interval']:.2f} | {tasks[t]['right']:.1f}%" for t in TASKS]
        rows.append(f"| {label} | {' | '.join(cells)} |")
    rows += [
        "",
        f"BLEU ± 95% bootstrap interval: `{results['signature']}`; seed {results['seed']}; commit {results['commit']}.",
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    main()

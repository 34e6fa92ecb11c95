"""Decode the test set with every model in the same way; score, time and count. Prints a table, writes results.json and
quickstart.png into RUN.
"""

import argparse
import json
import logging
import platform
import re
import statistics
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib.pyplot as pyplot
import sacrebleu
from fairseq import checkpoint_utils, options
from fairseq_cli import generate

import fairseq_imitkd  # noqa: F401  lets torch's safe loader read fairseq's checkpoints

warnings.simplefilter("ignore")  # of hydra and torch, about how fairseq calls them

MODELS = {"teacher": "teacher", "student": "scratch", "student, continued": "continued", "student, ImitKD": "imitkd"}
COLOURS = ("#888888", "#e6a532", "#c8641e", "#1f6fb4")
ROUNDS = 3
BUCKETS = ((1, 8), (9, 12), (13, 16), (17, 20), (21, 99))
BLEU = sacrebleu.BLEU(tokenize="none", force=True)  # the text is made of words already
GREEDY = ["--beam", "1", "--batch-size", "100", "--max-len-a", "1.2", "--max-len-b", "10"]
DECODING = ["--task", "translation", "--gen-subset", "test", *GREEDY]


class Speed(logging.Handler):
    """Reads in fairseq's log how fast it decoded, start-up and loading not counted."""

    last = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the number of the latest "(… sentences/s"."""
        if found := re.search(r"\(([\d.]+) sentences/s", record.getMessage()):
            self.last = float(found[1])


def read_hypotheses(path: Path) -> list[str]:
    """The hypotheses in an output of ``imitkd-generate``, in the order of the test set."""
    found = re.findall(r"^H-(\d+)\t[^\t]*\t(.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [text for _, text in sorted((int(number), text) for number, text in found)]


def quality(sources: list[str], right: list[list[str]], hypotheses: list[str]) -> dict[str, Any]:
    """BLEU with its 95% bootstrap interval, chrF, the share of right sentences, BLEU by the source's length.

    ``right`` holds all right translations of each source: BLEU and chrF take each sentence against all of them.
    """
    most = max(map(len, right))
    references = [[every[min(i, len(every) - 1)] for every in right] for i in range(most)]
    bleu = BLEU.corpus_score(hypotheses, references, n_bootstrap=1000)
    by_length = {}
    for low, high in BUCKETS:
        rows = [i for i, source in enumerate(sources) if low <= len(source.split()) <= high]
        score = BLEU.corpus_score([hypotheses[i] for i in rows], [[column[i] for i in rows] for column in references])
        by_length[f"{low}-{high}" if high < 99 else f"{low}+"] = round(score.score, 2)
    return {
        "bleu": round(bleu.score, 2),
        "bleu_interval": round(bleu._ci, 2),
        "chrf": round(sacrebleu.corpus_chrf(hypotheses, references).score, 2),
        "right": round(100 * statistics.mean(h in every for h, every in zip(hypotheses, right, strict=True)), 1),
        "bleu_by_source_length": by_length,
    }


def measure(run: Path, device: list[str]) -> dict[str, dict[str, Any]]:
    """Everything about every model. The rounds of decoding are interleaved, so that a busy machine hurts all alike."""
    speed = Speed()
    logging.basicConfig(handlers=[speed], level=logging.INFO, force=True)
    speeds: dict[str, list[float]] = {label: [] for label in MODELS}
    for turn in range(ROUNDS):
        for label, folder in MODELS.items():
            print(f"  decoding, round {turn + 1} of {ROUNDS}: {label}", file=sys.stderr, flush=True)
            paths = [str(run / "data-bin"), "--path", str(run / folder / "checkpoint_last.pt")]
            flags = [*paths, "--results-path", str(run / folder), *DECODING, *device]
            generate.main(options.parse_args_and_arch(options.get_generation_parser(), flags))
            speeds[label].append(speed.last)
    sources = (run / "text" / "test.src").read_text(encoding="utf-8").splitlines()
    right = [line.split("\t") for line in (run / "text" / "test.all").read_text(encoding="utf-8").splitlines()]
    results: dict[str, dict[str, Any]] = {}
    for label, folder in MODELS.items():
        checkpoint = run / folder / "checkpoint_last.pt"
        (model,), cfg = checkpoint_utils.load_model_ensemble([str(checkpoint)])
        results[label] = {
            **quality(sources, right, read_hypotheses(run / folder / "generate-test.txt")),
            "parameters": sum(p.numel() for p in model.parameters()),
            "sentences_per_second": round(statistics.median(speeds[label]), 1),
            "sentences_per_second_rounds": speeds[label],
            "file_bytes": checkpoint.stat().st_size,
            "updates": cfg.optimization.max_update,
            "criterion": vars(cfg.criterion) if isinstance(cfg.criterion, argparse.Namespace) else dict(cfg.criterion),
        }
    return results


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results as a table for the console."""
    rows = [f"{'':20} {'BLEU':>13} {'chrF':>6} {'right':>6} {'parameters':>11} {'sent./s':>8} {'file':>8}"]
    for label, r in results.items():
        scores = f"{r['bleu']:6.2f} ± {r['bleu_interval']:4.2f} {r['chrf']:6.2f} {r['right']:5.1f}%"
        size = f"{r['parameters']:11,d} {r['sentences_per_second']:8.0f} {r['file_bytes'] / 1e6:5.2f} MB"
        rows.append(f"{label:20} {scores} {size}")
    return "\n".join(rows)


def figure(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Left: BLEU and right sentences of every model. Right: BLEU by source length, where drifting shows."""
    pyplot.switch_backend("Agg")
    whole, (bars, lines) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for i, (colour, (label, result)) in enumerate(zip(COLOURS, results.items(), strict=True)):
        shown = bars.bar([i * 0.2, i * 0.2 + 1], [result["bleu"], result["right"]], 0.19, color=colour, label=label)
        bars.bar_label(shown, fmt="%.0f", fontsize=8)
        by_length = result["bleu_by_source_length"]
        lines.plot(list(by_length), list(by_length.values()), marker="o", color=colour, label=label)
    bars.set_xticks([0.3, 1.3], ["BLEU", "right sentences, %"])
    lines.set(xlabel="words in the source sentence", ylabel="BLEU")
    whole.legend(*bars.get_legend_handles_labels(), loc="outside lower center", ncols=len(MODELS))
    pyplot.savefig(path, dpi=120)


def main() -> None:
    """Evaluate the models in RUN."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--cpu", action="store_true")
    arguments = parser.parse_args()
    results = measure(arguments.run, ["--cpu"] if arguments.cpu else [])
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    record = {
        "seed": arguments.seed,
        "commit": commit.stdout.strip() if commit.returncode == 0 else None,
        "versions": {name: version(name) for name in ("fairseq-imitkd", "fairseq-fixed", "torch", "sacrebleu")},
        "python": platform.python_version(),
        "signature": str(BLEU.get_signature()),
        "decoding": " ".join(DECODING),
        "models": results,
    }
    (arguments.run / "results.json").write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
    figure(results, arguments.run / "quickstart.png")
    notes = f"right: equals one of the right translations. BLEU ± 95% bootstrap interval: {BLEU.get_signature()}"
    text = f"{table(results)}\n\n{notes}\nSeed {arguments.seed}.\n"
    (arguments.run / "table.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

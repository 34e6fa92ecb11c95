"""Decodes the test set with every model, and scores and times them.

Writes results.json, table.md and quickstart.png into RUN.
"""

import logging
import re
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any

import matplotlib.pyplot as pyplot
from fairseq import checkpoint_utils
from scoring import asked, decode, score, write
from table import table
from trainings import needed, training

warnings.simplefilter("ignore")  # hydra and torch warn of how fairseq calls them

MODELS = {
    "teacher": "teacher",
    "student": "scratch",
    "student, continued": "continued",
    "student, KD on the corpus": "on_corpus",
    "student, ImitKD": "imitkd",
    "student, SeqKD": "seqkd",
    "student, SeqKD, continued": "seqkd_continued",
    "student, SeqKD, ImitKD": "seqkd_imitkd",
}
COLOURS = ("#888888", "#e6a532", "#c8641e", "#6a9a48", "#1f6fb4", "#b39bc8", "#7a4f9e", "#0b3c5d")
ROUNDS = 3


def main() -> None:
    """Evaluate the models in RUN."""
    run, seed, device = asked(__doc__)
    trainings = {folder: training(run, folder) for folder in MODELS.values()}
    models = measure(run, device)
    results = {"recipe": "quickstart", "seed": seed, "trainings": trainings, "models": models}
    results["translations"] = {"cpu_seconds": needed(run / "data_seqkd.needs" / "cpu")}
    write(run, results, device, table)
    figure(models, run / "quickstart.png")


class Speed(logging.Handler):
    """Reads the decoding speed from fairseq's log; start-up and loading are not counted."""

    last = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the number of the last "(… sentences/s"."""
        if found := re.search(r"\(([\d.]+) sentences/s", record.getMessage()):
            self.last = float(found[1])


def measure(run: Path, device: list[str]) -> dict[str, dict[str, Any]]:
    """Return the results of every model. The models take turns, so a busy machine slows all of them alike."""
    speed = Speed()
    logging.basicConfig(handlers=[speed], level=logging.INFO, force=True)
    speeds: dict[str, list[float]] = {label: [] for label in MODELS}
    for turn in range(ROUNDS):
        for label, folder in MODELS.items():
            print(f"  decoding, round {turn + 1} of {ROUNDS}: {label}", file=sys.stderr, flush=True)
            decode(run / "data-bin", run / folder / "checkpoint_last.pt", run / folder, device)
            speeds[label].append(speed.last)
    results: dict[str, dict[str, Any]] = {}
    for label, folder in MODELS.items():
        checkpoint = run / folder / "checkpoint_last.pt"
        (model,), _ = checkpoint_utils.load_model_ensemble([str(checkpoint)])
        results[label] = {
            "folder": folder,
            **score(run / "text", run / folder / "generate-test.txt"),
            "parameters": sum(p.numel() for p in model.parameters()),
            "sentences_per_second": round(statistics.median(speeds[label]), 1),
            "sentences_per_second_rounds": speeds[label],
        }
    return results


def figure(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw the figure. Left: BLEU and right sentences of every model. Right: BLEU by source length."""
    pyplot.switch_backend("Agg")
    whole, (bars, lines) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for i, (colour, (label, result)) in enumerate(zip(COLOURS, results.items(), strict=True)):
        places = [i / (len(results) + 1), i / (len(results) + 1) + 1]
        width = 0.94 / (len(results) + 1)
        shown = bars.bar(places, [result["bleu"], result["right"]], width, color=colour, label=label)
        bars.bar_label(shown, fmt="%.0f", fontsize=8)
        by_length = result["bleu_by_source_length"]
        lines.plot(list(by_length), list(by_length.values()), marker="o", color=colour, label=label)
    middle = (len(results) - 1) / 2 / (len(results) + 1)
    bars.set_xticks([middle, middle + 1], ["BLEU", "right sentences, %"])
    lines.set(xlabel="words in the source sentence", ylabel="BLEU")
    whole.legend(*bars.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    pyplot.savefig(path, dpi=120)


if __name__ == "__main__":
    main()

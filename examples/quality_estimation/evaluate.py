"""Scores the test pairs with the models of a run and prints a Markdown table:
``evaluate.py --run DIR NAME…``.

Each NAME is a folder of DIR with ``checkpoint_best.pt``; ``NAME-seed2`` is another seed. The script writes
``results.json`` into DIR.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import checkpoint_utils, utils
from numpy.typing import NDArray
from scipy.stats import pearsonr, rankdata
from table import table
from trainings import origin, training

from fairseq_imitkd.data.files import write_json

Scores = NDArray[np.float64]
SAMPLES = 1000  # of the bootstrap
ROWS = ("teacher", "scratch", "distilled", "more")


def main() -> None:
    """Evaluate the models of a run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("names", nargs="+")
    args = parser.parse_args()

    logging.disable(logging.INFO)  # fairseq logs much about each file that it opens
    models: dict[str, Any] = {}
    scores: dict[str, Scores] = {}
    labels = np.empty(0)
    for name in sorted(args.names, key=order):
        models[name], scores[name], labels = describe(args.run, name, "cpu" if args.cpu else "cuda")
    drawn = np.random.default_rng(1).integers(len(labels), size=(SAMPLES, len(labels)))
    for name, found in scores.items():
        baseline = rival(name)
        compared = scores.get(baseline) if baseline != name else None
        models[name].update(correlations(found, labels, drawn, compared))
    results = {
        "recipe": "quality_estimation",
        **origin(),
        "pairs": len(labels),
        "chrf": {"mean": float(labels.mean()), "deviation": float(labels.std())},
        "trainings": {name: training(args.run, name) for name in models},
        "models": models,
    }
    write_json(args.run / "results.json", results)
    print(table(results))


def order(name: str) -> tuple[int, str, str]:
    """Return a sort key: the teacher, then the students of half its size, in the order of ROWS."""
    row, _, size = name.partition("-")[0].partition("_")
    return ROWS.index(row) if row in ROWS else len(ROWS), size, name


def rival(name: str) -> str:
    """Return the student without a teacher that a student of the same size and seed is compared with."""
    row, _, rest = name.partition("_")
    return f"scratch_{rest}" if rest else row


def describe(run: Path, name: str, device: str) -> tuple[dict[str, Any], Scores, Scores]:
    """Return the size and seed of a model, its scores of the test pairs, and their labels, ``(N,)`` each."""
    [model], cfg, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(run / name / "checkpoint_best.pt")], arg_overrides={"data": str(run / "data-bin")}
    )
    model = model.to(device).eval()
    task.load_dataset("test")
    data = task.dataset("test")
    scores, labels = np.zeros(len(data)), np.zeros(len(data))
    for sample in task.get_batch_iterator(data, max_sentences=64).next_epoch_itr(shuffle=False):
        sample = utils.move_to_cuda(sample) if device == "cuda" else sample
        head = task.cfg.classification_head_name
        with torch.no_grad():
            found = model(**sample["net_input"], features_only=True, classification_head_name=head)[0]
        numbers = sample["id"].cpu().numpy()
        scores[numbers] = found.squeeze(-1).double().cpu().numpy()
        labels[numbers] = sample["target"].view(-1).double().cpu().numpy()
    sizes = {part: parameter.numel() for part, parameter in model.named_parameters()}
    used = sum(size for part, size in sizes.items() if not part.startswith("encoder.lm_head."))
    return {"parameters": used, "seed": cfg.common.seed}, scores, labels


def correlations(
    scores: Scores, labels: Scores, drawn: NDArray[np.int64], rival: Scores | None
) -> dict[str, Any]:
    """Return Pearson's and Spearman's correlation with their 95% bootstrap intervals.

    Args:
        scores: ``(N,)``, the model's.
        labels: ``(N,)``.
        drawn: ``(K, N)``, the pairs of each sample of the bootstrap, the same for all models.
        rival: ``(N,)``, the scores of a model that this one is compared with; None compares it with none.
    """
    found: dict[str, Any] = {"rmse": float(np.sqrt(np.mean((scores - labels) ** 2)))}
    for name, ranks in (("pearson", False), ("spearman", True)):
        # Spearman's correlation is Pearson's of the ranks, here those in the whole test set.
        own, truth = (rankdata(values) if ranks else values for values in (scores, labels))
        sampled = np.array([pearsonr(own[rows], truth[rows])[0] for rows in drawn])
        low, high = np.percentile(sampled, [2.5, 97.5])
        found[name] = float(pearsonr(own, truth)[0])
        found[f"{name}_interval"] = [float(low), float(high)]
        if rival is not None:
            other = rankdata(rival) if ranks else rival
            gains = sampled - np.array([pearsonr(other[rows], truth[rows])[0] for rows in drawn])
            tail = min(int(np.sum(gains <= 0.0)), int(np.sum(gains >= 0.0)))
            found[f"{name}_p"] = min(1.0, 2.0 * (tail + 1) / (len(drawn) + 1))
    return found


if __name__ == "__main__":
    main()

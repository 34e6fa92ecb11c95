"""Classifies dev and test with the models of a run and prints a Markdown table:
``evaluate.py --run DIR NAME…``.

Each NAME is a folder of DIR with ``checkpoint_best.pt``; ``NAME-seed2`` is another seed. The script writes
``results.json`` into DIR.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils, utils
from proportions import mcnemar, wilson
from table import table
from torch import Tensor
from trainings import origin, training

from fairseq_imitkd.data.files import write_json

SPLITS = {"dev": "valid", "test": "test"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument(
        "--baseline", default="scratch", help="model that all others of the same seed are compared with"
    )
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("names", nargs="+")
    args = parser.parse_args()

    logging.disable(logging.INFO)  # fairseq logs much about each file that it opens
    trainings = {name: training(args.run, name) for name in args.names}
    models, right = {}, {}
    for name in sorted(args.names, key=lambda name: order(name, args.baseline)):
        models[name], right[name] = describe(args.run, name, "cpu" if args.cpu else "cuda")
    for name, model in models.items():
        _, _, seed = name.partition("-")
        baseline = f"{args.baseline}-{seed}" if seed else args.baseline
        if baseline in models and name != baseline:
            model["against_baseline"] = mcnemar(right[baseline], right[name])
    results = {
        "recipe": "sst2",
        **origin(),
        "baseline": args.baseline,
        "trainings": trainings,
        "models": models,
    }
    write_json(args.run / "results.json", results)
    print(table(results))


def order(name: str, baseline: str) -> tuple[int, str]:
    """Return a sort key: the teacher first, then the baseline, then all others."""
    method = name.partition("-")[0]
    return {"teacher": 0, baseline: 1}.get(method, 2), name


def describe(run: Path, name: str, device: str) -> tuple[dict[str, Any], Tensor]:
    """Return the figures of one model, and which test sentences it classifies correctly, ``(N,)`` bool."""
    path = str(run / name / "checkpoint_best.pt")
    [model], cfg, task = checkpoint_utils.load_model_ensemble_and_task(
        [path], arg_overrides={"data": str(run / "data-bin")}
    )
    model = model.to(device).eval()
    right = {split: classify(model, task, folder, device) for split, folder in SPLITS.items()}
    sizes = {part: parameter.numel() for part, parameter in model.named_parameters()}
    described: dict[str, Any] = {
        "parameters": sum(size for part, size in sizes.items() if not part.startswith("encoder.lm_head.")),
        "parameters_with_unused_lm_head": sum(sizes.values()),
        "seed": cfg.common.seed,
    }
    for split, found in right.items():
        described[f"{split}_right"], described[f"{split}_sentences"] = int(found.sum()), found.numel()
        described[f"{split}_accuracy"] = 100.0 * float(found.double().mean())
        described[f"{split}_interval"] = [100.0 * end for end in wilson(int(found.sum()), found.numel())]
    return described, right["test"]


@torch.no_grad()
def classify(model: torch.nn.Module, task: Any, split: str, device: str) -> Tensor:
    """Return which sentences of a split are classified correctly, ``(N,)`` bool in the data's order."""
    task.load_dataset(split)
    data = task.dataset(split)
    right = torch.zeros(len(data), dtype=torch.bool)
    for sample in task.get_batch_iterator(data, max_sentences=64).next_epoch_itr(shuffle=False):
        sample = utils.move_to_cuda(sample) if device == "cuda" else sample
        logits = model(
            **sample["net_input"],
            features_only=True,
            classification_head_name=task.cfg.classification_head_name,
        )[0]
        right[sample["id"].cpu()] = (logits.argmax(dim=-1) == sample["target"].view(-1)).cpu()
    return right


if __name__ == "__main__":
    main()

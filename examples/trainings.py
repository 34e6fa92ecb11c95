"""Records how the models of a run were trained, and what evaluated them."""

import json
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils

from fairseq_imitkd.evaluate import provenance


def training(run: Path, name: str) -> dict[str, Any]:
    """Return how a model was trained, from its checkpoints and ``commands`` (see ``noted`` in common.sh)."""
    log = run / name / "commands"
    if not log.exists():
        raise SystemExit(
            f"{log} must hold the training command of {name}, but does not exist; delete "
            f"{run}/.done/{name} and train it again"
        )
    calls = [line.split("\t") for line in log.read_text().splitlines()]
    commands = [shlex.join(shlex.split(call[1].replace(str(run.resolve()), "run"))) for call in calls]
    best = checkpoint_utils.load_checkpoint_to_cpu(str(run / name / "checkpoint_best.pt"))
    last = checkpoint_utils.load_checkpoint_to_cpu(str(run / name / "checkpoint_last.pt"))
    return {
        # More than one if a later commit resumed the training.
        "commits": list(dict.fromkeys(call[0] for call in calls)),
        "command": commands[-1],
        "earlier_commands": [command for command in dict.fromkeys(commands) if command != commands[-1]],
        "threads": list(dict.fromkeys(call[2] for call in calls if len(call) > 2)),
        "updates": best["optimizer_history"][-1]["num_updates"],
        "updates_in_all": last["optimizer_history"][-1]["num_updates"],
        "valid_score": best["extra_state"]["best"],
        "valid_metric": best["cfg"]["checkpoint"]["best_checkpoint_metric"],
        "minutes": None if (begun := before(calls[-1][1])) is None else (spent(last) - begun) / 60,
        "peak_bytes": int(needed(run / name / "peak") or 0) or None,
        "cpu_seconds": needed(run / name / "cpu"),
    }


def logged(folder: Path) -> list[dict[str, Any]]:
    """Return what a training has logged of its rollouts and its validations, in the order of its updates."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [
        entry for entry in map(json.loads, lines) if entry["tag"] == "train_inner" or "valid" in entry["tag"]
    ]
    kept = ("tag", "num_updates", "truncated", "repetition", "bleu")
    found = [{name: entry[name] for name in kept if name in entry} for entry in entries]
    return [entry for entry in found if len(entry) > 2]


def needed(path: Path) -> float | None:
    """Return a number that needs.py wrote; None if the model was trained without it."""
    return float(path.read_text()) if path.exists() else None


def spent(checkpoint: dict[str, Any]) -> float:
    """Return the seconds of training; fairseq includes those of the checkpoint that it started from:

    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/trainer.py#L638-L639
    """
    return float(checkpoint["extra_state"].get("previous_training_time", 0.0))


def before(command: str) -> float | None:
    """Return the seconds of the checkpoint that a training started from; None if the file is gone."""
    words = shlex.split(command)
    starts = [value for flag, value in pairwise(words) if flag in ("--restore-file", "--finetune-from-model")]
    if not starts:
        return 0.0
    path = Path(starts[-1])  # like fairseq, take the last value of a repeated flag
    return spent(checkpoint_utils.load_checkpoint_to_cpu(str(path))) if path.exists() else None


def origin() -> dict[str, Any]:
    """Return what evaluates: the commit, the machine and the versions."""
    return {
        "commit": provenance.commit(),
        "machine": vars(provenance.machine()),
        "versions": provenance.versions(()),
    }

"""Files of trainings and evaluations as the commands write them, for the tests of the report."""

import json
import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

TIME = "2026-01-02 03:04:05 | INFO | "
CONFIG = {
    "_name": None,
    "common": {"_name": None, "seed": 1, "log_format": "simple"},
    "dataset": {"_name": None, "valid_subset": "valid", "max_tokens": 4096},
    "optimization": {"_name": None, "lr": [0.002]},
    "checkpoint": {
        "_name": None,
        "save_dir": "/home/someone/run",
        "best_checkpoint_metric": "bleu",
        "maximize_best_checkpoint_metric": True,
    },
    "model": {
        "_name": "transformer",
        "arch": "transformer",
        "seed": 1,
        "dropout": 0.1,
        "lr": [0.002],
        "stop_min_lr": -1.0,
    },
    "criterion": {"_name": "imitkd", "divergence": "forward-kl", "prune_scope": "global"},
    "task": {"_name": "translation_with_teacher", "teacher_path": "/models/a/t.pt:/models/b/u.pt"},
}


def metrics(update: int, seed: int = 0, rollouts: bool = True) -> dict[str, float]:
    """Return what a training logs at an update."""
    noise, far = random.Random(update * 1000 + seed), update / 1000
    found = {"loss": 3 + 9 * math.exp(-5 * far) + noise.random() / 5 + seed / 10}
    if rollouts:
        found.update(
            loss_data=found["loss"] + 0.2,
            loss_rollout=found["loss"] - 0.2,
            student_share=1 - 0.005**far,
            rollout_len=14 + noise.random(),
            truncated=0.02 * noise.random(),
            agreement=0.9 - 0.4 * math.exp(-far),
            rollout_time=0.3 + noise.random() / 20,
            teacher_time=0.2 + noise.random() / 20,
            rollout_work=1.0,
            padding=1.1,
        )
    return {**found, "num_updates": update, "lr": 0.001, "wall": update * 2}


def line(tag: str, values: dict[str, float]) -> str:
    """Return a line of ``metrics.jsonl``."""
    return json.dumps({"tag": tag, "epoch": 1, **values}) + "\n"


def inner(values: dict[str, float]) -> str:
    """Return a log's line of metrics of the training."""
    content = {"epoch": 1, "update": 0.5, **{name: f"{value:g}" for name, value in values.items()}}
    return f"{TIME}train_inner | {json.dumps(content)}\n"


def valid(values: dict[str, float], subset: str = "valid") -> str:
    """Return a log's line of metrics of a validation."""
    content = {"epoch": 1, **{f"{subset}_{name}": f"{value:g}" for name, value in values.items()}}
    return f"{TIME}{subset} | {json.dumps(content)}\n"


START = f"{TIME}fairseq_cli.train | num. shared model params: 370,176 (num. trained: 1)\n"
DONE = f"{TIME}fairseq_cli.train | done training in 12.5 seconds\n"


def run(
    folder: Path,
    *,
    updates: Iterable[int] = range(50, 1001, 50),
    seed: int = 0,
    rollouts: bool = True,
    from_log: bool = False,
) -> Path:
    """Write the files of a whole training, or only its log in ``--log-format json``; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [START if from_log else line("epoch_begins", {"num_updates": 0})]
    for update in updates:
        values = metrics(update, seed, rollouts)
        lines.append(inner(values) if from_log else line("train_inner", values))
        if update % 250 == 0:
            bleu = 30 + seed / 2 - 2500 / (update + 250)
            values = {"loss": 40 / bleu, "bleu": bleu, "num_updates": update, "best_bleu": bleu}
            lines.append(valid(values) if from_log else line("valid", values))
    if from_log:
        (folder / "train.log").write_text("".join([*lines, DONE]))
    else:
        (folder / "metrics.jsonl").write_text("".join([*lines, line("train", values)]))
        write_config(folder, seed)
    return folder


def write_config(folder: Path, seed: int = 1, **sections: Any) -> None:
    """Write a ``config.json``, with other sections than usual if they are given."""
    config = {
        **CONFIG,
        "common": {**CONFIG["common"], "seed": seed},
        "model": {**CONFIG["model"], "seed": seed},
        **sections,
    }
    content = {
        "format": 1,
        "starts": 1,
        "parameters": 370_176,
        "versions": {"torch": "2.6"},
        "config": config,
    }
    (folder / "config.json").write_text(json.dumps(content))


def model(number: int) -> dict[str, Any]:
    """Return the results of one model; a model of a higher number is faster and worse."""
    bleu, speed = 38 - 1.2 * number + (number % 3), 60 * 1.9**number
    decoding = {}
    for search, more in (("greedy", 0.0), ("beam 5", 0.9)):
        score = {
            "score": bleu + more,
            "low": bleu + more - 1.5,
            "high": bleu + more + 1.5,
            "p": 0.01 if number else None,
        }
        decoding[search] = {
            "bleu": score,
            "chrf": {**score, "score": bleu + 20},
            "ter": {**score, "score": 90 - bleu},
            "empty": 0,
            "truncated": number,
            "repeating": 2 * number,
            "outputs": f"m{number}.{search.replace(' ', '')}.txt",
            "by_length": [
                {"from": 0, "to": 10, "sentences": 162, "bleu": bleu + 8},
                {"from": 11, "to": 20, "sentences": 658, "bleu": bleu},
                {"from": 21, "to": None, "sentences": 20, "bleu": bleu - 4 - number},
            ],
        }
    decoding["beam 5"]["speed"] = {"batch_size": 32, "decoding": "beam 5", "sentences_per_second": speed / 4}
    times = {"median": 1.9**number, "low": 1.8**number, "high": 2.0**number}
    return {
        "kind": "fairseq",
        "quantization": None,
        "path": "checkpoint_best.pt",
        "arch": "transformer",
        "parameters": 10**7 // (number + 1),
        "bytes": 4 * 10**7 // (number + 1),
        "peak_memory_bytes": None,
        "decoding": decoding,
        "speed": {
            "1": {
                "decoding": "greedy",
                "sentences_per_second": speed / 9,
                "times_baseline": times,
                "p50_ms": 9000 / speed,
            },
            "32": {"decoding": "greedy", "sentences_per_second": speed, "times_baseline": times},
        },
        "probes": None
        if number == 0
        else {
            "agreement_gold": 0.7 + number / 100,
            "agreement_own": 0.72 - number / 100,
            "kl_gold": 0.7,
            "kl_own": 0.8,
            "nll_gold": 1.9,
            "nll_own": 0.6,
            "exposure": {
                "student": bleu,
                "student_then_teacher": bleu + 2,
                "teacher_then_student": bleu + 1,
                "teacher": 38.0,
            },
            "by_position": [
                {"from": 1, "to": 5, "gold": {"agreement": 0.72}, "own": {"agreement": 0.72 - number / 200}},
                {"from": 6, "to": None, "gold": {"agreement": 0.7}, "own": {"agreement": 0.7 - number / 50}},
            ],
        },
    }


def evaluation(folder: Path, count: int = 3, sentences: int = 20) -> Path:
    """Write a whole evaluation; return the folder. Model ``m0`` is the teacher, ``m1`` the baseline."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "format": 1,
        "command": "imitkd-evaluate …",
        "commit": "0123456789ab",
        "versions": {"fairseq_imitkd": "0.1.0"},
        "machine": {"processor": "A fast one", "cores": 2, "threads": 1},
        "baseline": "m1",
        "teacher": "m0",
        "data": {"split": "test", "source_lang": "de", "target_lang": "en", "sentences": sentences},
        "signatures": {"bleu": "nrefs:1|case:mixed|version:2.6.0"},
        "failed": {},
        "seconds": {"total": 1.0},
        "files": {"sources": "sources.txt", "references": "references.txt"},
        "models": {f"m{number}": model(number) for number in range(count)},
    }
    (folder / "evaluation.json").write_text(json.dumps(content))
    words = [
        f"{first}{second}" for first in ("man", "dog", "sun", "house") for second in ("", "s", "'s", "less")
    ]
    draw = random.Random(1)
    references = [" ".join(draw.choices(words, k=12)) for _ in range(sentences)]
    (folder / "sources.txt").write_text("".join(f"{text[::-1]}\n" for text in references))
    (folder / "references.txt").write_text("".join(f"{text}\n" for text in references))
    for number in range(count):
        for search in ("greedy", "beam5"):
            lines = [
                " ".join(draw.choice(words) if draw.random() < number / 20 else word for word in text.split())
                for text in references
            ]
            (folder / f"m{number}.{search}.txt").write_text("".join(f"{line}\n" for line in lines))
    return folder


def change(folder: Path, **fields: Any) -> None:
    """Change fields of an evaluation."""
    path = folder / "evaluation.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

"""Measures imitkd-distill: what it adds to its commands, trainings side by side, runs that are killed.

    python benchmarks/pipeline.py overhead [--recipe quickstart]    processor time beside that of the commands
    python benchmarks/pipeline.py parallel [--rounds 3]              two trainings side by side, and in turn
    python benchmarks/pipeline.py kills [--kills 30] [--warm]        a run that is killed at random moments

Each part prints its figures as JSON. ``overhead`` compares processor times, so other work on the machine does
not count. ``parallel`` compares times on the clock, so it does; it prints the load.
``kills`` runs a small recipe once without a kill. Then it kills the same run at random moments and continues
it, anew after each end, until ``--kills`` calls were killed. Data, weights, translations and table of every
run are compared with those of the first. ``--warm`` runs commands as forks of a process that has imported
torch, as the tests do, so that most kills hit work instead of imports.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

REPO = Path(__file__).resolve().parent.parent
COMMAND = "import sys; sys.argv[0] = 'imitkd-distill'; from fairseq_imitkd.cli.door import main; main()"
WARM = (
    "import sys; from pathlib import Path; from fairseq_imitkd.cli import distill; "
    "distill.PROGRAMS = Path('{programs}'); distill.main()"
)
TINY = (
    "--encoder-layers 1 --decoder-layers 1 --encoder-attention-heads 2 --decoder-attention-heads 2 "
    "--encoder-embed-dim 16 --decoder-embed-dim 16 --encoder-ffn-embed-dim 32 --decoder-ffn-embed-dim 32"
)
SMALL: dict[str, Any] = {
    "languages": "src-tgt",
    "text": {"made_up": {"train": 400, "valid": 20, "test": 20}},
    # The teacher must learn to end its sentences, because imitkd-seqkd drops translations that were cut.
    "teacher": {"arch": "transformer", "flags": f"{TINY} --lr 5e-2 --dropout 0 --max-update 200"},
    "student": {"arch": "transformer", "flags": TINY},
    "training": "--optimizer adam --lr 5e-3 --lr-scheduler inverse_sqrt --warmup-updates 5 --max-tokens 400 "
    "--max-update 20 --num-workers 0 --no-epoch-checkpoints --log-interval 5 --save-interval-updates 5 "
    "--keep-interval-updates 1 --validate-interval-updates 10",
    "seqkd": "--beam 1 --teacher-allow-poor",
    "methods": [
        "none",
        {"criterion": "seqkd", "flags": "--max-update 10"},
        {"criterion": "imitkd_full", "start": "none", "flags": "--teacher-allow-poor"},
    ],
    "evaluate": "--quick --batch-sizes 8 --no-ter --probe-sentences 8",
    "export": {"flags": "--sentences 16 --max-loss 100"},
    "device": "cpu",
}


def main() -> None:
    """Run the part that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parts = parser.add_subparsers(dest="part", required=True)
    own = parts.add_parser("overhead", help="processor time beside that of the commands")
    own.add_argument(
        "--recipe", default="quickstart", help="YAML file, name, or small (default: %(default)s)"
    )
    own = parts.add_parser("parallel", help="two trainings side by side, and in turn")
    own.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    own.add_argument("--updates", type=int, default=300, help="of each training (default: %(default)s)")
    own = parts.add_parser("kills", help="a run that is killed at random moments")
    own.add_argument("--kills", type=int, default=30, help="default: %(default)s")
    own.add_argument("--seed", type=int, default=1, help="of the moments (default: %(default)s)")
    own.add_argument("--warm", action="store_true", help="run commands as forks of a process with torch")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pipeline-") as folder:
        found = {"overhead": overhead, "parallel": parallel, "kills": kills}[args.part](args, Path(folder))
    print(json.dumps({"part": args.part, "cores": len(os.sched_getaffinity(0)), **found}, indent=2))


def overhead(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run a recipe; compare the processor time of the whole with that of its commands."""
    before = used()
    recipe = write(folder, SMALL) if args.recipe == "small" else args.recipe
    run([recipe, "--out", "run"], folder)
    whole = used() - before
    commands = sum(note["cpu"] for note in notes(folder / "run"))
    return {
        "steps": len(list(notes(folder / "run"))),
        "cpu_seconds": round(whole, 1),
        "cpu_seconds_of_commands": round(commands, 1),
        "added_seconds": round(whole - commands, 1),
        "added_percent": round(100 * (whole / commands - 1), 2),
    }


def parallel(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train two students in turn and side by side, in an order that alternates."""
    training = SMALL["training"].replace("--max-update 20", f"--max-update {args.updates}")
    training = training.replace("interval-updates 5", f"interval-updates {args.updates}")
    training = training.replace("interval-updates 10", f"interval-updates {args.updates}")
    # Both wait for the teacher's training, so they begin together.
    methods = [{"criterion": "imitkd_full", "flags": "--teacher-allow-poor"}]
    content = {**SMALL, "methods": methods, "seeds": [1, 2], "training": training}
    content |= {
        "evaluate": False,
        "export": False,
        "teacher": {"arch": "transformer", "flags": f"{TINY} --max-update 2"},
    }
    del content["seqkd"]  # which no method learns from here
    seconds: dict[str, list[float]] = {"1": [], "2": []}
    for number in range(args.rounds):
        for cores in ("1", "2") if number % 2 else ("2", "1"):
            out = folder / f"{number}-{cores}"
            run([write(folder, content), "--out", str(out), "--cores", cores], folder)
            times = [note for note in notes(out) if note["name"].startswith("train-imitkd_full")]
            seconds[cores].append(max(note["ended"] for note in times) - min(note["began"] for note in times))
    ratios = [two / one for one, two in zip(seconds["1"], seconds["2"], strict=True)]
    return {
        "in_turn": seconds["1"],
        "side_by_side": seconds["2"],
        "ratios": ratios,
        "load": os.getloadavg()[1],
    }


def kills(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the small recipe without kills, then with kills, and compare the results."""
    command = [sys.executable, "-c", COMMAND]
    if args.warm:
        sys.path.insert(0, str(REPO))
        from tests.helpers import warm_commands

        command[-1] = WARM.format(programs=warm_commands.folder())
    file, moments = write(folder, SMALL), random.Random(args.seed)
    began = time.time()
    run([file, "--out", "whole", "--cores", "2"], folder, command)
    seconds, expected = time.time() - began, results(folder / "whole")
    checks = min(note["began"] for note in notes(folder / "whole")) - began  # before the first step
    states, ended, differing = dict[str, int](), 0, set[str]()
    while sum(states.values()) < args.kills or (folder / f"killed-{ended}").exists():
        out = folder / f"killed-{ended}"
        process = start([file, "--out", out.name, "--cores", "2"], folder, command)
        is_last = sum(states.values()) >= args.kills
        try:
            process.wait(None if is_last else checks + moments.uniform(0.0, 0.5) * (seconds - checks))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            at = sorted(note["name"] for note in notes(out) if note["state"] == "running")
            name = at[-1] if at else "between steps"
            states[name] = states.get(name, 0) + 1
            print(f"kill {sum(states.values())} of {args.kills}: {name}", file=sys.stderr, flush=True)
            continue
        if process.returncode:
            sys.exit(f"imitkd-distill failed: {(folder / 'log').read_text(encoding='utf-8')[-1000:]}")
        found = results(out)
        differing |= {
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        }
        ended += 1
    return {
        "kills": sum(states.values()),
        "seconds": round(seconds),
        "killed_in": states,
        "runs": ended,
        "files": len(expected),
        "differing": sorted(differing),
    }


def results(out: Path) -> dict[str, str]:
    """Return what a run has made: hashes of text, data, translations and weights, and the table."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        is_dictionary = name in ("data-bin/dict.src.txt", "data-bin/dict.tgt.txt")
        is_translation = name.startswith("evaluation/") and path.suffix == ".txt"
        if path.suffix in (".src", ".tgt", ".bin", ".idx", ".all") or is_dictionary or is_translation:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif name == "table.md":  # without its last column, which is a measured speed
            lines = path.read_text(encoding="utf-8").splitlines()
            found[name] = "\n".join(line.removesuffix("|").rpartition("|")[0] for line in lines)
        elif path.name in ("checkpoint_best.pt", "checkpoint_last.pt"):
            weights = torch.load(path, weights_only=False)["model"]  # of our own run
            parts = [name.encode() + tensor.numpy().tobytes() for name, tensor in sorted(weights.items())]
            found[name] = hashlib.sha256(b"".join(parts)).hexdigest()
    return found


def notes(out: Path) -> Iterator[dict[str, Any]]:
    """Yield what is noted about each step of a run."""
    for path in sorted((out / ".steps" / "notes").glob("*.json")):
        yield {"name": path.stem, **json.loads(path.read_text(encoding="utf-8"))}


def write(folder: Path, content: dict[str, Any]) -> str:
    """Write a recipe, and return its path."""
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def start(words: list[str], folder: Path, command: list[str]) -> "subprocess.Popen[bytes]":
    """Start imitkd-distill in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    with open(folder / "log", "ab") as log:
        return subprocess.Popen([*command, *words], cwd=folder, env=environment, stdout=log, stderr=log)


def run(words: list[str], folder: Path, command: list[str] | None = None) -> None:
    """Run imitkd-distill to its end."""
    process = start(words, folder, command or [sys.executable, "-c", COMMAND])
    if process.wait():
        sys.exit(f"imitkd-distill failed: {(folder / 'log').read_text(encoding='utf-8')[-1000:]}")


def used() -> float:
    """Return the processor time in seconds of all processes that this one has waited for."""
    times = resource.getrusage(resource.RUSAGE_CHILDREN)
    return times.ru_utime + times.ru_stime


if __name__ == "__main__":
    main()

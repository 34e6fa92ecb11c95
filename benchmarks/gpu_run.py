"""The stages of ``gpu.sh``: measurements on one GPU in less than ten minutes, those worth most first.

    python benchmarks/gpu_run.py RUN OUT [--device cuda] [--minutes 9]

RUN holds the binary data of Multi30k (``gpu.sh prepare`` makes it) and gets everything that a stage makes.
After every stage, OUT gets its results: ``report.md`` has the tables, ``figures.json`` all figures, and
``stages.log`` the end of what each stage printed. A stage that fails or takes too long does not stop the
others. When the minutes are over, the stages that are left are named as left out. The exit status is 1 if a
stage failed.

With ``--device cpu`` every stage runs with small models on made-up text; the figures mean nothing.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import table

REPO = Path(__file__).resolve().parents[1]
FIRST = 25.0  # least seconds that a stage needs; with less left it does not begin
KEPT = 3000  # characters of a stage's output in the log
LOGGED = re.compile(r"\| train_inner \| (\{.*\})")
# Precisions of the trainings that are compared, with fairseq's flags.
FLAGS = {"fp32": (), "fp16": ("--fp16",), "bf16": ("--bf16",), "amp": ("--amp",)}
TRAINING = (
    "--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--clip-norm", "1", "--dropout", "0.3",
    "--lr-scheduler", "inverse_sqrt", "--disable-validation", "--no-epoch-checkpoints",
    "--log-format", "json",
)  # fmt: skip
TINY = (
    "--encoder-embed-dim", "16", "--decoder-embed-dim", "16", "--encoder-ffn-embed-dim", "32",
    "--decoder-ffn-embed-dim", "32", "--encoder-layers", "1", "--decoder-layers", "1",
    "--encoder-attention-heads", "2", "--decoder-attention-heads", "2",
)  # fmt: skip
ARCH = ("--arch", "transformer_iwslt_de_en", "--share-all-embeddings")


@dataclass
class Stage:
    """A step of the run.

    Args:
        name: its name; a JSON file of this name in RUN has its figures.
        seconds: after these it is stopped.
        commands: what it runs, all at once, by name.
        tables: returns its tables, from what the commands printed on standard output; None: all of that.
        done: None until it has run, then what came of it.
        took: the seconds that it took.
    """

    name: str
    seconds: float
    commands: dict[str, Sequence[str]]
    tables: Callable[[dict[str, str]], str] | None = None
    done: str | None = None
    took: float = 0.0
    report: str = ""
    log: str = field(default="", repr=False)


@dataclass(frozen=True)
class Size:
    """How much is measured: on a GPU, or to try the script.

    Args:
        device: ``cuda`` or ``cpu``.
        precisions: precisions of the updates, each with ``--max-tokens``, in the order of their value.
        trainings: precisions whose trainings are compared.
        patience: factor of the seconds that a stage may take.
    """

    device: str
    precisions: tuple[tuple[str, int], ...]
    trainings: tuple[str, ...]
    patience: float = 1.0

    @property
    def is_real(self) -> bool:
        """Whether figures mean something."""
        return self.device == "cuda"

    def flags(self, real: str, tiny: str) -> list[str]:
        """Return the flags of a stage."""
        return (real if self.is_real else tiny).split()


SIZES = {
    "cuda": Size(
        "cuda",
        (("fp16", 4096), ("fp16", 8192), ("bf16", 4096), ("amp", 4096), ("bf16", 8192), ("amp", 8192)),
        ("fp32", "fp16", "bf16", "amp"),
    ),
    "cpu": Size("cpu", (("bf16", 300),), ("fp32", "bf16"), patience=20.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", choices=list(SIZES), default="cuda")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all stages (default: %(default)s)")
    args = parser.parse_args()
    run, out = args.run.resolve(), args.out.resolve()
    for folder in (run, out):
        folder.mkdir(parents=True, exist_ok=True)
    size = SIZES[args.device]
    if size.is_real and not (run / "data-bin" / "train.de-en.de.bin").exists():
        sys.exit(
            f"{run} has no data-bin; run `RUN={args.run} benchmarks/gpu.sh prepare` where there is a network"
        )
    stages = list(stages_of(run, size))
    seconds, begun = 60.0 * size.patience * args.minutes, time.monotonic()
    for stage in stages:
        left = seconds - (time.monotonic() - begun)
        if left < min(FIRST, stage.seconds):
            stage.done = "left out: no time left"
            continue
        print(f"== {time.monotonic() - begun:.0f} s: {stage.name}", flush=True)
        execute(stage, run, min(size.patience * stage.seconds, left))
        print(f"   {stage.done} after {stage.took:.0f} s", flush=True)
        publish(stages, run, out)
    publish(stages, run, out)
    print((out / "report.md").read_text())
    sys.exit(1 if any(stage.done not in ("done", None) for stage in stages) else 0)


def stages_of(run: Path, size: Size) -> Iterator[Stage]:
    """Yield all stages, those worth most first."""
    if not size.is_real:
        yield from made_up_data(run)
    data, teacher = run / "data-bin", run / "teacher" / "checkpoint_last.pt"
    models = (data, "--student", teacher, "--teacher", teacher)

    def measure(script: str, *flags: object, name: str = "", seconds: float) -> Stage:
        name = name or script
        file = run / f"{name}.json"
        command = flat((python(f"benchmarks/{script}.py"), flags, "--device", size.device, "--json", file))
        return Stage(name, seconds, {name: command})

    # Do graphs write the same tokens on the device?
    chosen = size.flags("-n 8 -k real", "-n 0 -k test_sizes_are_rounded")
    tests = "tests/rollout/test_cuda_graphs.py"
    yield Stage("parity", 80, {"parity": flat((python("-m", "pytest"), "-q", chosen, tests))})
    step = size.flags(
        "--seconds 45", "--tiny --rows 4 --precisions bf16 --policies greedy --steps 3 --symbols 50"
    )
    yield measure("decoding_step", step, size.flags("", "--archs transformer_iwslt_de_en"), seconds=75)
    yield teachers_training(run, size, data)
    profile = size.flags("--precision fp16", "--precision bf16 --max-tokens 300 --warmup 1")
    yield measure("update_profile", models, profile, seconds=45)
    rounds = size.flags("--pool 4 --rounds 5", "--pool 2 --warmup 0 --rounds 2")
    costs = [
        measure(
            "update_cost", models, "--precision", precision, "--max-tokens", tokens, rounds,
            name=f"update_cost_{precision}_{tokens}", seconds=60,
        )
        for precision, tokens in size.precisions
    ]  # fmt: skip
    yield from costs[:4]
    loss = size.flags(
        "--dtype float16 --timed-positions 8192 --timed-symbols 32768 --symbols 32768",
        "--dtype bfloat16 --positions 64 --symbols 50 --timed-positions 64 --timed-symbols 50 --rounds 4",
    )
    yield measure("losses", "--divergences", "forward-kl", loss, seconds=45)
    speed = size.flags(
        "--precision fp16 --rounds 1 --sentences 2000",
        "--precision bf16 --rounds 2 --sentences 80 --max-tokens 300",
    )
    yield measure("rollout_speed", data, "--student", teacher, speed, seconds=60)
    yield trainings(run, size, data, teacher=teacher)
    yield from costs[4:]
    peak = size.flags("--precision fp16 --max-tokens 4096 --updates 4", "--max-tokens 300 --updates 1")
    yield measure("memory", models, "--rounds", 2, peak, seconds=180)


def made_up_data(run: Path) -> Iterator[Stage]:
    """Yield the stages that make data of a made-up language."""
    text, data = run / "text", run / "data-bin"
    language = (python("fairseq_imitkd/pipeline/made_up.py"), text)
    counts = ("--train", 160, "--valid", 16, "--test", 16)
    yield Stage("text", 60, {"text": flat((language, counts))}, no_tables)
    sides = ("--source-lang", "src", "--target-lang", "tgt", "--joined-dictionary", "--destdir", data)
    splits = ("--trainpref", text / "train", "--validpref", text / "valid")
    yield Stage(
        "data", 60, {"data": flat((python("-m", "fairseq_cli.preprocess"), sides, splits))}, no_tables
    )


def teachers_training(run: Path, size: Size, data: Path) -> Stage:
    """Return the training of the model that is the teacher, and the student."""
    objective = "--task translation --criterion label_smoothed_cross_entropy --label-smoothing 0.1"
    command = flat((
        train(run, "teacher", data, size=size), objective.split(),
        size.flags("--max-tokens 8192 --max-update 600 --warmup-updates 300 --fp16 --lr 1e-3",
                   "--max-tokens 300 --max-update 60 --warmup-updates 1 --lr 5e-2"),
    ))  # fmt: skip
    return Stage("teacher", 60, {"teacher": command}, no_tables)


def trainings(run: Path, size: Size, data: Path, *, teacher: Path) -> Stage:
    """Return trainings in every precision, with and without graphs, all at once."""
    objective = "--task translation_with_teacher --criterion imitkd --student-share constant:1 --no-save"
    models = ("--teacher-path", teacher, "--teacher-allow-poor", "--finetune-from-model", teacher)
    length = size.flags(
        "--max-tokens 4096 --max-update 60 --lr 1e-4 --warmup-updates 10 --log-interval 10",
        "--max-tokens 300 --max-update 3 --lr 1e-3 --warmup-updates 1 --log-interval 1",
    )
    commands: dict[str, Sequence[str]] = {}
    for precision in size.trainings:
        for graphs in ("auto", "off") if size.is_real else ("auto",):
            begin = train(run, f"imitkd_{precision}_{graphs}", data, size=size)
            own = (FLAGS[precision], "--rollout-cuda-graphs", graphs)
            commands[f"{precision}, graphs {graphs}"] = flat((begin, objective.split(), models, length, own))
    return Stage("trainings", 90, commands, losses_by_update)


def no_tables(_: dict[str, str]) -> str:
    """Return nothing."""
    return ""


def losses_by_update(printed: dict[str, str]) -> str:
    """Return a table of the losses that trainings logged."""
    logs = {name: [json.loads(line) for line in LOGGED.findall(text)] for name, text in printed.items()}
    updates = sorted({int(log["num_updates"]) for each in logs.values() for log in each})
    rows = []
    for name, each in logs.items():
        losses = {int(log["num_updates"]): str(log["loss"]) for log in each}
        rows.append([name, *(losses.get(update, "") for update in updates)])
    return table(["loss after updates", *map(str, updates)], rows)


def python(*arguments: object) -> list[str]:
    """Return a command of the Python that runs this."""
    first, *others = map(str, arguments)
    return [sys.executable, str(REPO / first) if first.endswith(".py") else first, *others]


def train(run: Path, name: str, data: Path, *, size: Size) -> list[object]:
    """Return the beginning of a training's command."""
    tiny = () if size.is_real else ("--cpu", *TINY)
    return ["imitkd-train", data, "--save-dir", run / name, *ARCH, *TRAINING, *tiny]


def flat(parts: Sequence[Any]) -> list[str]:
    """Return the words of a command, some of which are in lists."""
    words: list[str] = []
    for part in parts:
        words += flat(part) if isinstance(part, (list, tuple)) else [str(part)]
    return words


def execute(stage: Stage, run: Path, seconds: float) -> None:
    """Run a stage's commands at once; stop those that take too long."""
    begun = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])}
    folder = run / "printed" / stage.name
    folder.mkdir(parents=True, exist_ok=True)
    started, printed, failed = {}, {}, []
    for name, command in stage.commands.items():
        with (folder / f"{name}.out").open("w") as out, (folder / f"{name}.err").open("w") as err:
            started[name] = subprocess.Popen(
                list(map(str, command)),
                stdout=out,
                stderr=err,
                env=environment,
                cwd=REPO,
                start_new_session=True,
            )
    for name, process in started.items():
        status: object
        try:
            status = process.wait(max(begun + seconds - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            status = f"stopped after {seconds:.0f} s"
        printed[name] = (folder / f"{name}.out").read_text()
        errors = (folder / f"{name}.err").read_text()
        stage.log += f"\n== {stage.name}, {name}: {status}\n{printed[name][-KEPT:]}\n{errors[-KEPT:]}\n"
        if status != 0:
            failed.append(f"{name}: {status}")
    stage.took = time.monotonic() - begun
    stage.done = "done" if not failed else f"failed ({'; '.join(failed)})"
    try:
        stage.report = stage.tables(printed) if stage.tables else "\n".join(printed.values())
    except (ValueError, KeyError) as error:  # a log that was cut
        stage.report, stage.done = "", f"failed (its tables: {error!r})"


def publish(stages: Sequence[Stage], run: Path, out: Path) -> None:
    """Write the results so far."""
    rows = [[stage.name, f"{stage.took:.0f}", stage.done or ""] for stage in stages]
    parts = [versions(), table(["stage", "seconds", "result"], rows)]
    parts += [f"## {stage.name}\n\n{stage.report.strip()}" for stage in stages if stage.report.strip()]
    figures: dict[str, Any] = {"seconds": {stage.name: stage.took for stage in stages}}
    for stage in stages:
        file = run / f"{stage.name}.json"
        if stage.done and file.exists():
            figures[stage.name] = json.loads(file.read_text())
    write(out / "report.md", "\n\n".join(parts) + "\n")
    write(out / "figures.json", json.dumps(figures, indent=1) + "\n")
    write(out / "stages.log", "".join(stage.log for stage in stages))


def versions() -> str:
    """Return the versions of what is measured, as a list."""
    from fairseq_imitkd.__main__ import versions as lines

    return "\n".join(f"- {line}" for line in lines().splitlines())


def write(path: Path, text: str) -> None:
    """Replace a file at once: a run that is stopped leaves the results of the stages before."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


if __name__ == "__main__":
    main()

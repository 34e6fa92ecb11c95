"""Runs a plan with Snakemake, and watches how its steps go."""

import fcntl
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from fairseq_imitkd.data.files import write_json
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.pipeline import step as step_program
from fairseq_imitkd.pipeline.plan import STATE, Plan, Step
from fairseq_imitkd.pipeline.recipe import SEQKD, TEACHER

SNAKEFILE = Path(__file__).with_name("Snakefile")
PLAN = f"{STATE}/plan.json"
LOGS, ENGINE_LOG = "logs", "logs/snakemake.log"
WATCHED_EVERY = 0.2  # seconds
PATIENCE = 10.0  # seconds in which the steps of a killed run end
LONGEST = 100  # characters of a message of Snakemake
TAIL = 65536  # bytes at the end of a log that are searched for its error

WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"


@dataclass(frozen=True)
class Status:
    """How a step goes.

    Args:
        state: ``waiting``, ``running``, ``done`` or ``failed``.
        began, ended: times in seconds since 1970; 0 if unknown.
        updates: updates that a training has done.
    """

    state: str = WAITING
    began: float = 0.0
    ended: float = 0.0
    updates: int = 0


@dataclass(frozen=True)
class Engine:
    """How Snakemake runs the steps.

    Args:
        cores: threads that all steps together may take on this machine; None leaves it to the profile.
        gpus: names of this machine's GPUs.
        profile: a profile of Snakemake, such as that of a cluster.
        flags: further flags of Snakemake.
    """

    cores: int | None = None
    gpus: tuple[str, ...] = ()
    profile: str | None = None
    flags: tuple[str, ...] = ()

    def words(self, out: Path) -> list[str]:
        """Return the command that runs the plan in a folder."""
        # -P: a file such as queue.py of the current folder must not stand for Python's own.
        words = [sys.executable, "-P", "-m", "snakemake"]
        words += ["--snakefile", str(SNAKEFILE), "--directory", str(out)]
        words += ["--config", f"plan={PLAN}", f"python={sys.executable}", f"step={step_program.__file__}"]
        # The names of finished steps hold their keys, so nothing else decides: neither times, nor parameters
        # such as the path of Python. Snakemake wants a trigger; of software-env the steps have none.
        words += [
            "--rerun-triggers",
            "software-env",
            "--rerun-incomplete",
            "--nolock",
            "--scheduler",
            "greedy",
        ]
        if self.cores is not None:
            words += ["--cores", str(self.cores)]
        if self.profile is not None:
            words += ["--profile", self.profile]
        elif self.gpus:
            words += ["--resources", f"gpu={len(self.gpus)}"]
        return words + list(self.flags)


def check_flags_of_snakemake(flags: Sequence[str]) -> None:
    """Refuse flags that Snakemake does not know, before any step runs.

    Its own parser looks at them, in another process: to import it would change the settings of logging.

    Args:
        flags: the flags.

    Raises:
        UsageError: with what Snakemake's parser says.
    """
    if not flags:
        return
    program = "import sys; from snakemake.cli import get_argument_parser as made; made().parse_args()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, "--cores", "1", *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it left no message"])[-1].partition("error: ")
        problem = shorten(said[2] or said[0], LONGEST).replace("unrecognized arguments:", "it does not know")
        raise UsageError(
            f"after -- come flags of Snakemake: {problem}; those of a training are in the recipe's "
            "key training"
        )


class Run:
    """A plan in a folder.

    Args:
        plan: the plan.
        out: the folder.
    """

    def __init__(self, plan: Plan, out: Path):
        self.plan, self.out = plan, out

    def statuses(self) -> dict[str, Status]:
        """Return how each step goes, by its name. A step that is done has its results, and so have the steps
        that it needs.
        """
        found: dict[str, Status] = {}
        for step in self.plan.steps:
            may_be_done = all(found[name].state == DONE for name in step.needs) and self._has_results(step)
            found[step.name] = self._status(step, may_be_done=may_be_done)
        return found

    def continues(self, step: Step) -> bool:
        """Whether a step continues what an earlier attempt has begun."""
        begun = self.out / STATE / "begun" / step.name
        is_begun = begun.is_file() and begun.read_text() == step.key
        return step.resumes and is_begun and self._has_results(step)

    def log(self, name: str) -> Path:
        """Return the path of a step's log."""
        return self.out / LOGS / f"{name}.log"

    def run(
        self,
        engine: Engine,
        programs: Path,
        show: Callable[[Mapping[str, Status]], None] = lambda _: None,
        *,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        """Run all steps that are not done.

        Args:
            engine: how.
            programs: folder of the commands.
            show: called again and again with how each step goes.
            begin: called once, when no other run is at work in the folder.

        Raises:
            UsageError: a step failed, or another run is at work in the folder.
        """
        (self.out / STATE).mkdir(parents=True, exist_ok=True)
        (self.out / LOGS).mkdir(exist_ok=True)
        began = time.time()
        with self._held() as lock:
            begin()
            self._forget()
            environment = {"IMITKD_GPUS": ",".join(engine.gpus)} if engine.gpus and not engine.profile else {}
            write_json(self.out / PLAN, self.plan.to_json(programs, environment))
            with open(self.out / ENGINE_LOG, "wb") as log:
                # It ends when this process ends, and so do the steps; until then it holds the lock, too.
                process = subprocess.Popen(
                    [sys.executable, "-IS", step_program.__file__, "--engine", *engine.words(self.out)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[lock],
                )
                try:
                    while process.poll() is None:
                        show(self.statuses())
                        time.sleep(WATCHED_EVERY)
                finally:
                    _end(process)
        show(self.statuses())
        if process.returncode:
            raise self._failure(began)

    @contextmanager
    def _held(self) -> Iterator[int]:
        """Keep other runs out of the folder; yield the descriptor of the lock."""
        with open(self.out / STATE / "lock", "w") as file:
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if time.monotonic() > deadline:
                        raise UsageError(
                            f"--out '{self.out}' is in use by another imitkd-distill; wait for its end, or "
                            "use another folder"
                        ) from error
                    time.sleep(WATCHED_EVERY)
            yield file.fileno()

    def _forget(self) -> None:
        """Take away that steps were done whose results are missing, and those after them."""
        for name, status in self.statuses().items():
            if status.state != DONE:
                self._mark(self.plan.step(name)).unlink(missing_ok=True)

    def _mark(self, step: Step) -> Path:
        """Return the path of the file that says that a step is done."""
        return self.out / STATE / "done" / f"{step.name}.{step.key}"

    def _has_results(self, step: Step) -> bool:
        return all((self.out / result).exists() for result in step.results)

    def _status(self, step: Step, *, may_be_done: bool) -> Status:
        note = _json(self.out / STATE / "notes" / f"{step.name}.json")
        if note.get("key") != step.key:
            note = {}
        began, ended = float(note.get("began") or 0), float(note.get("ended") or 0)
        with suppress(FileNotFoundError):  # the note of its end comes after this file
            end = self._mark(step).stat().st_mtime
            if may_be_done:
                return Status(DONE, began, ended or end)
        state = str(note.get("state", WAITING))
        if state == RUNNING and step.updates is not None:
            return Status(state, began, ended, _updates(self.out / step.results[0] / "metrics.jsonl"))
        return Status(WAITING if state == DONE else state, began, ended)

    def _failure(self, began: float) -> UsageError:
        statuses = sorted(self.statuses().items(), key=lambda each: each[1].ended)
        for name, status in statuses:
            if status.state == FAILED and status.ended >= began:
                message = last_error(self.log(name))
                flag = re.search(r" add (--[\w-]+)", message)
                key = key_of_step(name, flag[1]) if flag else ""
                place = (
                    f"key {key} of {self.out / 'recipe.yaml'}" if key else f"in {self.out / 'recipe.yaml'}"
                )
                where = f" ({place})" if flag else ""
                return UsageError(f"{name}: {message}{where}")
        path = self.out / ENGINE_LOG
        return UsageError(f"Snakemake stopped: {shorten(last_error(path), LONGEST)} (log: {path})")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End Snakemake. At an interrupt it takes back its jobs from a cluster; at SIGTERM it would wait."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def key_of_step(step: str, flag: str = "") -> str:
    """Return the key of a recipe in which a flag of a step's command is written; empty if none has it."""
    kind, _, name = step.partition("-")  # a shard's name, or that of text without references, begins so too
    if kind == "train":
        return "teacher.flags" if name == TEACHER else "distillation" if "--teacher" in flag else "training"
    if kind in ("evaluate", "export", SEQKD):
        return kind
    return (
        ""
        if kind in ("text", "subwords", "import", "encode", "binarise", "report")
        else f"translations.{kind}"
    )


def last_error(path: Path) -> str:
    """Return the line of a log that says what went wrong with its last command."""
    text = ""
    with suppress(OSError), open(path, "rb") as file:
        file.seek(max(0, file.seek(0, 2) - TAIL))
        text = file.read().decode("utf-8", "replace")
    every = text.splitlines()
    last = max((place for place, line in enumerate(every) if line.startswith("$ ")), default=-1)
    lines = [line.strip() for line in every[last + 1 :] if line.strip()]
    errors = [line.partition("error: ")[2] for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it left no message"])[-1]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _updates(path: Path) -> int:
    """Return the last number of updates in a training's metrics."""
    with suppress(OSError, ValueError), open(path, "rb") as file:
        file.seek(max(0, file.seek(0, 2) - 4096))
        for line in reversed(file.read().splitlines()):
            with suppress(ValueError, TypeError, AttributeError):
                return int(json.loads(line).get("num_updates"))
    return 0


def described(steps: Sequence[Step]) -> str:
    """Return the graph of some steps in the language of Graphviz."""
    lines = [f'  "{step.name}";' for step in steps]
    lines += [f'  "{needed}" -> "{step.name}";' for step in steps for needed in step.needs]
    return "\n".join(["digraph steps {", "  rankdir=LR;", *lines, "}"])

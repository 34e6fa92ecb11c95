"""Runs one step of a plan: its commands, with a log, complete results or none, and a note of how it goes.

    python -IS step.py PLAN NAME          run a step; Snakemake calls this
    python -IS step.py --engine WORDS…    become the program WORDS, which ends when its parent ends
    python -IS step.py --rank WORDS…      the same for a process that torchrun starts, which learns its rank

It imports the standard library alone, so it starts in a moment.
"""

import contextlib
import ctypes
import fcntl
import itertools
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl
_NO_MEMORY = ", probably because memory was short; free some, or give fewer --cores"


def main(words: list[str]) -> int:
    """Run the command line; return its exit status."""
    if words[0] in ("--engine", "--rank"):
        end_with_parent(signal.SIGKILL)  # at SIGTERM, Snakemake waits for the steps
        rank = ["--distributed-rank", os.environ["RANK"]] if words[0] == "--rank" else []
        os.execvp(words[1], words[1:] + rank)
    end_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # then the commands end, too
    plan = json.loads(Path(words[0]).read_text(encoding="utf-8"))
    step = next(step for step in plan["steps"] if step["name"] == words[1])
    return Step(step, plan).run()


def end_with_parent(number: int) -> None:
    """Ask the system for a signal when the parent of this process ends, however it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_DIES_WITH_PARENT, int(number), 0, 0, 0)


class Step:
    """A step of a plan.

    Args:
        step: its entry in the plan.
        plan: the plan. The working directory is the run's folder.
    """

    def __init__(self, step: dict[str, Any], plan: dict[str, Any]):
        self.step, self.name, self.key = step, step["name"], step["key"]
        self.state, self.programs = Path(plan["state"]), Path(plan["programs"])
        self.log = Path("logs", f"{self.name}.log")
        processes = max(command.get("processes", 1) for command in step["commands"])
        threads = max(1, step["threads"] // processes)
        self.environment = {**os.environ, **plan["environment"], "OMP_NUM_THREADS": str(threads)}

    def run(self) -> int:
        """Run the commands in turn; return the exit status of the first one that fails, or 0."""
        for folder in (self.state / "done", self.state / "begun", self.state / "notes", self.log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        began, (spent, largest) = time.time(), self._earlier()
        self._note(state="running", began=began, ended=None, status=None, cpu=spent, peak=largest)
        status = 1
        try:
            self._clear()
            status = self._commands()
            if status == 0:
                self._finish()
        except OSError as error:  # a full disk, above all
            status = 1
            print(f"error: {self.name}: {error}; mend that, and run the same command again", file=sys.stderr)
            with contextlib.suppress(OSError), open(self.log, "a", encoding="utf-8") as log:
                of = f"{error.filename}: " if error.filename else ""
                print(f"error: {of}{error.strerror or error}", file=log)
        finally:
            state, used = "done" if status == 0 else "failed", resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu, peak = spent + used.ru_utime + used.ru_stime, max(largest, used.ru_maxrss * 1024)
            self._note(state=state, began=began, ended=time.time(), status=status, cpu=cpu, peak=peak)
        return status

    def _continues(self) -> bool:
        """Return whether the step's commands continue what an earlier attempt with the same key began."""
        begun = self.state / "begun" / self.name
        return bool(self.step["resumes"]) and begun.exists() and begun.read_text() == self.key

    def _earlier(self) -> tuple[float, int]:
        """Return the processor time, in seconds, and the peak memory, in bytes, of the attempts that this one
        continues. What an attempt used that was killed by SIGKILL is not known.
        """
        note = self._noted(self.name)
        if not self._continues() or note.get("key") != self.key:
            return 0.0, 0
        return note.get("cpu", 0.0), note.get("peak", 0)

    def _clear(self) -> None:
        """Delete what this step has made before. What an earlier attempt with the same key began is kept if
        the step's commands can continue it. Another step that made one of the results is no longer done.
        """
        others = [name for name in self._steps_noted() if name != self.name and self._shares_with(name)]
        for name in (self.name, *others):
            for former in (self.state / "done").glob(f"{name}.*"):
                former.unlink()
        for name in others:
            (self.state / "begun" / name).unlink(missing_ok=True)
        continues = self._continues()
        for result in self.step["results"]:
            remove(Path(f"{result}.part"))
            if not continues:
                remove(Path(result))
        if not continues:
            self.log.unlink(missing_ok=True)
        write(self.state / "begun" / self.name, self.key)

    def _steps_noted(self) -> list[str]:
        """Return the names of all steps that have ever begun in this folder."""
        return [path.stem for path in (self.state / "notes").glob("*.json")]

    def _shares_with(self, name: str) -> bool:
        """Return whether another step has made one of this step's results."""
        return not set(self.step["results"]).isdisjoint(self._noted(name).get("results", ()))

    def _commands(self) -> int:
        with open(self.log, "ab") as log, _gpus(self.step["gpus"], self.state, self.environment):
            for command in self.step["commands"]:
                status = self._command(command, log)
                if status < 0:
                    cause = _NO_MEMORY if status == -signal.SIGKILL else ""
                    log.write(f"error: killed by signal {-status}{cause}\n".encode())
                if status not in command["statuses"]:
                    return status or 1
        return 0

    def _command(self, command: dict[str, Any], log: BinaryIO) -> int:
        """Run a command, and return its exit status."""
        words, out = started(command, self._program), command["out"]
        log.write(f"$ {typed(command, self._program)}\n".encode())
        log.flush()
        for result in self.step["results"]:
            Path(result).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as opened:
            given = opened.enter_context(_beginning(command)) if command["given"] else None
            written = opened.enter_context(open(out, "wb")) if out else log
            process = subprocess.Popen(
                words,
                stdin=given or subprocess.DEVNULL,
                stdout=written,
                stderr=log,
                env=self.environment,
                # The command ends with this process, even if this one is killed.
                preexec_fn=lambda: end_with_parent(signal.SIGKILL),
            )
            try:
                return process.wait()
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()

    def _program(self, name: str) -> str:
        beside = self.programs / name
        return str(beside) if beside.exists() else name

    def _finish(self) -> None:
        """Give the results their names, and note that the step is done."""
        for result in self.step["results"]:
            part = Path(f"{result}.part")
            if part.exists():
                part.replace(result)
        write(self.state / "done" / f"{self.name}.{self.key}", "")

    def _note(self, **facts: Any) -> None:
        note = {"key": self.key, "results": self.step["results"], **facts}
        write(self.state / "notes" / f"{self.name}.json", json.dumps(note))

    def _noted(self, name: str) -> dict[str, Any]:
        """Return the note of a step; an empty one if it can't be read."""
        try:
            note = json.loads((self.state / "notes" / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}


def started(command: Mapping[str, Any], program: Callable[[str], str] = str) -> list[str]:
    """Return the words that start a command's process, or its processes by torchrun.

    Args:
        command: the command's entry in the plan.
        program: returns the path of a program.
    """
    own = [program(command["words"][0]), *command["words"][1:]]
    processes = command.get("processes", 1)
    if processes == 1:
        return own
    python = program("python")
    launch = [python, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*launch, "--no-python", python, "-IS", __file__, "--rank", *own]


def typed(command: Mapping[str, Any], program: Callable[[str], str] = str) -> str:
    """Return the line by which a shell runs a command, with its input and output; arguments as above."""
    line, given = shlex.join(started(command, program)), command["given"] or ""
    if given and command.get("lines") is not None:
        line = f"head -n {command['lines']} {shlex.quote(given)} | {line}"
    elif given:
        line += f" < {shlex.quote(given)}"
    return f"{line} > {shlex.quote(command['out'])}" if command["out"] else line


class _gpus:
    """Keeps some of the visible GPUs for a step while others run beside it; a cluster has its own way.

    Snakemake begins no step beyond the number of GPUs, so steps that wait for each other's GPUs can't be.

    Args:
        count: GPUs that the step needs.
        state: folder of the locks.
        environment: of the step's commands; names the GPUs at the end.
    """

    def __init__(self, count: int, state: Path, environment: dict[str, str]):
        visible = environment.get("IMITKD_GPUS", "")
        self._names = visible.split(",") if count and visible else []
        self._count, self._state, self._environment = count, state, environment
        self._locks: dict[str, Any] = {}

    def __enter__(self) -> None:
        while self._names and len(self._locks) < self._count:
            for name in self._names:
                if name in self._locks or len(self._locks) == self._count:
                    continue
                lock = open(self._state / f"gpu{name}.lock", "w")
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._locks[name] = lock
                except OSError:
                    lock.close()
            if len(self._locks) < self._count:
                time.sleep(1)
        if self._locks:
            self._environment["CUDA_VISIBLE_DEVICES"] = ",".join(self._locks)

    def __exit__(self, *_: object) -> None:
        for lock in self._locks.values():
            lock.close()


@contextlib.contextmanager
def _beginning(command: dict[str, Any]) -> Iterator[IO[bytes]]:
    """Return a context with a command's standard input: a file, or its first lines."""
    with open(command["given"], "rb") as given, tempfile.TemporaryFile() as first:
        if command.get("lines") is None:
            yield given
            return
        first.writelines(itertools.islice(given, command["lines"]))
        first.seek(0)
        yield first


def write(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

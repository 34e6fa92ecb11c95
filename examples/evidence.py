"""Trains a recipe's rows to their end, one training a core, and publishes them.

evidence.py run RECIPE [--run DIR] [--workers N] [--most N]
evidence.py status RECIPE [--run DIR]
evidence.py publish RECIPE [--run DIR]

RECIPE is a folder with an ``evidence.toml``, whose comments explain the rows and the queue. ``run`` takes the
jobs from the queue in order. It can be stopped at any moment, and a second call goes on: a finished row is
not trained again, and a training continues from its last checkpoint. A row fails if the folder has its
training with other flags. It writes ``DIR/evidence.log`` and, for each finished row, ``DIR/rows/NAME.json``
with the commands, every validation with its updates and CPU seconds, and the scores on the test set.
``publish`` copies these files into ``RECIPE/evidence`` and makes the table and the figure of the recipe's
README from them; without --run it makes them again.
"""

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import evidence_rows
import evidence_tables
import tables
from evidence_rows import Record
from evidence_scores import MEASURES

WAIT = 2.0  # seconds between looks at the running trainings


@dataclass(frozen=True)
class Row:
    """A row of the comparison.

    Args:
        script: a script of the recipe, with its arguments.
        rates: learning rates that are tried; without any the script's own is used.
        start: row from whose best student this one goes on.
        teacher: row whose best student of seed 1 is the teacher; None means the teacher itself.
        student: kind of student, the variable STUDENT of the recipe; None means its default.
    """

    script: str
    rates: tuple[str, ...] = ()
    start: str | None = None
    teacher: str | None = None
    student: str | None = None


class Job(NamedTuple):
    """A training of the queue. Without a ``rate`` it is the best one of the row, or the script's own."""

    row: str
    seed: int = 1
    rate: str | None = None


class Training(NamedTuple):
    """A job that can be started: its name, and the rate, the start and the teacher that were chosen."""

    job: Job
    name: str
    rate: str | None
    start: str | None
    teacher: str | None = None


class Plan:
    """The rows, the queue and the environment of an ``evidence.toml``.

    Raises:
        SystemExit: a name is unknown, or a row has fewer rates than the queue asks for.
    """

    def __init__(self, path: Path):
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        self.rows = {
            name: Row(**{**row, "rates": tuple(row.get("rates", ()))})
            for name, row in content["rows"].items()
        }
        self.measure: str = content.get("measure", "word_errors")
        if self.measure not in MEASURES:
            raise SystemExit(f"{path}: measure must be one of {', '.join(MEASURES)}, but is '{self.measure}'")
        self.environment: dict[str, str] = content.get("environment", {})
        self.jobs: list[Job] = []
        for entry in content["queue"]:
            for row in entry["rows"]:
                if row not in self.rows:
                    raise SystemExit(f"{path}: the queue must hold {', '.join(self.rows)}, but has '{row}'")
                tried = entry.get("rates", 0)
                if tried > len(self.rows[row].rates):
                    raise SystemExit(f"{path}: rates of {row} must be at most {len(self.rows[row].rates)}")
                jobs = [Job(row, 1, rate) for rate in self.rows[row].rates[:tried]]
                jobs += [Job(row, seed) for seed in entry.get("seeds", ())]
                self.jobs += [job for job in jobs or [Job(row)] if job not in self.jobs]

    def training(self, job: Job, finished: dict[str, Record]) -> Training | None:
        """Return what a job trains; None as long as it waits for others.

        Only jobs that come earlier in the queue choose its rate and its start, so the choice does not depend
        on when the job is reached.

        Args:
            job: a job of the queue.
            finished: the finished rows by name.
        """
        row, rate, start, teacher = self.rows[job.row], job.rate, None, None
        earlier = self.jobs[: self.jobs.index(job)]
        if rate is None and row.rates:
            best = self._best([one for one in earlier if one.row == job.row and one.seed == 1], finished)
            if best is None:
                return None
            rate = best["rate"]
        if row.start is not None:
            bases = [one for one in earlier if (one.row, one.seed) == (row.start, job.seed)]
            best = self._best(bases, finished)
            if best is None:
                return None
            start = best["name"]
        if row.teacher is not None:
            assistants = [one for one in earlier if (one.row, one.seed) == (row.teacher, 1)]
            best = self._best(assistants, finished)
            if best is None:
                return None
            teacher = best["name"]
        if job.row != "teacher" and Job("teacher") in earlier and "teacher" not in finished:
            return None
        name = f"{job.row}_lr{rate}" if rate else job.row
        return Training(job, name if job.seed == 1 else f"{name}-seed{job.seed}", rate, start, teacher)

    def _best(self, jobs: list[Job], finished: dict[str, Record]) -> Record | None:
        trainings = [self.training(job, finished) for job in jobs]
        records = [finished.get(each.name) for each in trainings if each is not None]
        if not records or len(records) < len(jobs) or None in records:
            return None
        return evidence_rows.best([record for record in records if record is not None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=("run", "status", "publish"))
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--run", type=Path, metavar="DIR", help="default: RECIPE/run")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="trainings at a time")
    parser.add_argument("--most", type=int, metavar="N", help="end after N trainings")
    args = parser.parse_args()
    recipe = args.recipe.resolve()
    if not (recipe / "evidence.toml").exists():
        parser.error(f"RECIPE must be a folder with an evidence.toml, but is '{args.recipe}'")
    plan, run = Plan(recipe / "evidence.toml"), (args.run or recipe / "run").resolve()
    if args.action == "run":
        Queue(plan, recipe, run).work(args.workers, args.most)
    elif args.action == "status":
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a traceback
        print("\n".join(status(plan, run)))
    else:
        publish(recipe, run if args.run else None)


def publish(recipe: Path, run: Path | None) -> None:
    """Copy a run's finished rows into the recipe's ``evidence``, and make its table and figure.

    Raises:
        SystemExit: nothing is finished, the run has tiny models, or the published rows are of another run.
    """
    folder = recipe / "evidence"
    if run is not None:
        if (run / ".smoke").exists():
            raise SystemExit(f"{run} is a run with SMOKE=1, whose figures mean nothing; use another")
        folder.mkdir(exist_ok=True)
        evidence_rows.check_one_run([*evidence_tables.read(folder), *finished_rows(run).values()])
        for name, record in finished_rows(run).items():
            evidence_rows.write(folder / f"{name}.json", record)
    records = evidence_tables.read(folder)
    if not records:
        raise SystemExit(f"{folder} has no rows yet; use --run DIR of a run with finished rows")
    evidence_tables.figure(records, recipe / "evidence.svg")
    readme = recipe / "README.md"
    readme.write_text(tables.filled(readme, {"evidence": evidence_tables.table(records)}))
    print(f"wrote {len(records)} rows, {recipe / 'evidence.svg'} and the table in {readme}")


def finished_rows(run: Path) -> dict[str, Record]:
    """Return the finished rows of a run by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((run / "rows").glob("*.json"))}


class Queue:
    """Works the queue off, with one thread for each training."""

    def __init__(self, plan: Plan, recipe: Path, run: Path):
        self.plan, self.recipe, self.run = plan, recipe, run
        self.running: dict[Training, subprocess.Popen[bytes]] = {}
        self.failed: set[Job] = set()
        (run / "rows").mkdir(parents=True, exist_ok=True)
        (run / "logs").mkdir(exist_ok=True)
        # The trainings inherit the lock, so those of a killed call still hold it.
        self.lock = os.open(run / "evidence.lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            message = f"{run} is in use by another call or a training that it left; stop that first"
            raise SystemExit(message) from None

    def work(self, workers: int, most: int | None = None) -> None:
        """Train until nothing is left that can be trained. SIGTERM and SIGINT end the trainings too.

        Args:
            workers: number of trainings at a time.
            most: number of trainings to begin; None for all.
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        begun = 0
        self.note(f"begins with {len(finished_rows(self.run))} finished rows, {workers} at a time")
        try:
            self.prepare()
            while True:
                while len(self.running) < workers and begun != most:
                    if (training := next(self.ready(), None)) is None:
                        break
                    self.start(training)
                    begun += 1
                if not self.running:
                    break
                time.sleep(WAIT)
                for training, process in list(self.running.items()):
                    if process.poll() is not None:
                        self.end(training, process.returncode)
        finally:
            for process in self.running.values():
                os.killpg(process.pid, signal.SIGTERM)
            for process in self.running.values():
                process.wait()
            self.note(f"ends with {len(finished_rows(self.run))} finished rows, {len(self.failed)} failed")

    def prepare(self) -> None:
        """Make the data, unless they are there."""
        process = self.call("prepare", f"'{self.recipe}'/prepare.sh")
        if process.wait():
            raise SystemExit(f"prepare.sh failed; see {self.run / 'logs' / 'prepare.log'}")

    def ready(self) -> Iterator[Training]:
        """Yield the trainings that can be started now, in the order of the queue."""
        finished = finished_rows(self.run)
        busy = {training.job for training in self.running}
        making = any("seqkd" in self.plan.rows[job.row].script for job in busy)
        made = (self.run / ".done" / "data_seqkd").exists()
        for job in self.plan.jobs:
            training = self.plan.training(job, finished)
            if training is None or training.name in finished or job in busy | self.failed:
                continue
            if not made and making and "seqkd" in self.plan.rows[job.row].script:
                continue  # another job makes the data that this one needs
            yield training

    def start(self, training: Training) -> None:
        script, *arguments = self.plan.rows[training.job.row].script.split()
        rate = f" --lr {training.rate}" if training.rate else ""
        more = " ".join(arguments)
        path = f"'{self.recipe}'"
        command = f"{path}/{script} {more}{rate} && {path}/decode.sh {training.name}"
        name = training.name.removesuffix(f"-seed{training.job.seed}")
        environment = {"AS": name, "SEED": str(training.job.seed), "START": training.start or ""}
        environment |= {"TEACHER": training.teacher or ""}
        if (student := self.plan.rows[training.job.row].student) is not None:
            environment |= {"STUDENT": student}
        self.note(f"{training.name}: starts" + (f" from {training.start}" if training.start else ""))
        self.running[training] = self.call(training.name, command, **environment)

    def call(self, name: str, command: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a bash command with one thread; its output goes to ``logs/NAME.log``."""
        variables = {"OMP_NUM_THREADS": "1", "RUN": str(self.run), "DEVICE": "cpu", "OTHER_FLAGS": "refuse"}
        with open(self.run / "logs" / f"{name}.log", "ab") as log:
            return subprocess.Popen(
                ["bash", "-c", command],
                env={**os.environ, **self.plan.environment, **variables, **environment},
                stdout=log,
                stderr=log,
                process_group=0,
                pass_fds=[self.lock],
            )

    def end(self, training: Training, status: int) -> None:
        del self.running[training]
        row = self.plan.rows[training.job.row]
        if status == 0:
            record = evidence_rows.record(
                self.run,
                training.name,
                row=training.job.row,
                seed=training.job.seed,
                measure=self.plan.measure,
                needs=[*stages(row.script), *filter(None, (training.start, training.teacher))],
                rate=training.rate,
                start=training.start,
                teacher=training.teacher,
            )
            evidence_rows.write(self.run / "rows" / f"{training.name}.json", record)
            self.note(f"{training.name}: finished, {evidence_rows.summary(record)}")
        else:
            self.failed.add(training.job)
            self.note(f"{training.name}: failed with status {status}; see logs/{training.name}.log")

    def note(self, text: str) -> None:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}"
        print(line, flush=True)
        with open(self.run / "evidence.log", "a", encoding="utf-8") as log:
            log.write(line + "\n")


def stages(script: str) -> list[str]:
    """Return what a script's training needs beside its start: the teacher and its translations."""
    name, *arguments = script.split()
    row = arguments[0] if arguments else "scratch"
    if name == "teacher.sh" or row in ("scratch", "continued"):
        return []
    return ["teacher", "data_seqkd"] if "seqkd" in row else ["teacher"]


def status(plan: Plan, run: Path) -> list[str]:
    """Return a line for each job: finished, how far it is, or that it waits."""
    finished, lines = finished_rows(run), []
    for job in plan.jobs:
        training = plan.training(job, finished)
        name = training.name if training else f"{job.row} seed {job.seed} {job.rate or 'best rate'}"
        if name in finished:
            state = evidence_rows.summary(finished[name])
        elif training and (found := evidence_rows.validations(run, name)):
            progress = evidence_rows.progress({"validations": found, "measure": plan.measure})
            state = f"running or stopped, {progress}"
        else:
            state = "waits"
        lines.append(f"{name:32} {state}")
    return lines


if __name__ == "__main__":
    main()

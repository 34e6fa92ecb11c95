"""Measures the memory that a model needs, in a process that loads it and translates one batch.

``python -m fairseq_imitkd.evaluate.memory`` imports what all models need, once. Each model is then loaded in
a fork of that process, which has the same imports and no model. The model's need is the fork's peak of
resident memory minus its resident memory before: the weights, what loading them takes besides, and the states
of one batch. Python, torch and the other libraries are in both numbers. All of their code is read in first,
so a model is not charged for code that it is the first to run.
"""

import ctypes
import gc
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fairseq_imitkd
from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.engines.base import SearchSettings
from fairseq_imitkd.evaluate import models

logger = logging.getLogger(__name__)
PACKAGES = {"ctranslate2": "ctranslate2", "onnx": "onnxruntime"}  # of exported students, by kind
POPULATE_READ = 22  # Linux's MADV_POPULATE_READ; older systems ignore it
SECONDS = 600  # that all models together may take


class MemoryMeasurement:
    """Measures models in another process, while this one does other things.

    Args:
        found: models by name.
        languages: the dictionaries.
        decoding: how the models translate.
        batch: ``(S,)`` int64 tokens each, with an EOS; the longest first.
        threads: number of threads.
        allow_globals: types that a checkpoint may hold beside fairseq's own.
    """

    def __init__(
        self,
        found: Mapping[str, models.EvaluatedModel],
        languages: Languages,
        *,
        decoding: SearchSettings,
        batch: list[Tensor],
        threads: int,
        allow_globals: str | None,
    ):
        self.names = list(found)
        common = {
            "data": str(languages.folder), "source": languages.source, "target": languages.target,
            "decoding": asdict(decoding), "batch": [source.tolist() for source in batch], "threads": threads,
            "allow_globals": allow_globals,
        }  # fmt: skip
        paths = {
            name: {"path": str(model.path.resolve()), "kind": model.kind} for name, model in found.items()
        }
        with tempfile.TemporaryFile("w+", encoding="utf-8") as jobs:
            json.dump({"common": common, "models": paths}, jobs)
            jobs.seek(0)
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__],
                stdin=jobs,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,  # its forks are of the same group
            )

    def peaks(self) -> dict[str, int | None]:
        """Return the bytes that each model needs; None if they could not be measured."""
        try:
            output, _ = self.process.communicate(timeout=SECONDS)
            found = json.loads(output)
        except (subprocess.TimeoutExpired, ValueError):
            found = {}
        finally:
            self.close()
        unknown = [name for name in self.names if found.get(name) is None]
        if unknown:
            logger.warning("the peak memory of %s could not be measured", ", ".join(unknown))
        return {name: found.get(name) for name in self.names}

    def close(self) -> None:
        """End the process and its forks at once."""
        with suppress(ProcessLookupError):  # it has ended
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def _environment() -> dict[str, str]:
    """Return the variables of a process that finds this package and, to be forked, has one thread."""
    paths = [str(Path(fairseq_imitkd.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
    }  # fmt: skip


def main() -> None:
    """Measure the models of the jobs on the standard input."""
    jobs = json.load(sys.stdin)
    gc.collect()
    gc.freeze()  # so that a fork's collector does not touch, and copy, what was there before
    found = {name: _in_a_fork({**jobs["common"], **job}) for name, job in jobs["models"].items()}
    print(json.dumps(found))


def _in_a_fork(job: dict[str, Any]) -> int | None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(2, 1)  # libraries may print
            os.write(writing, str(_needed(job)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        found = file.read()
    os.waitpid(child, 0)
    return int(found) if found else None


def _needed(job: dict[str, Any]) -> int:
    torch.set_num_threads(job["threads"])
    languages = Languages.of(Path(job["data"]), job["source"], job["target"])
    if job["kind"] in PACKAGES:
        import_module(PACKAGES[job["kind"]])
    batch = [torch.tensor(source) for source in job["batch"]]
    _read_in_all_code()
    # Sets the peak back to what is resident now. Where that is not allowed, it is the peak of the imports.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    decoding = SearchSettings(**job["decoding"])
    model = models.load(Path(job["path"]), languages, decoding, allow_globals=job["allow_globals"])
    model.engine.translate(range(len(batch)), batch, 1)
    return _peak() - before


def _read_in_all_code() -> None:
    """Make every page of the libraries resident, as otherwise a model's first use of it would."""
    library = ctypes.CDLL(None)
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, mode, *_, name = line.split(maxsplit=5)
        if name.startswith("/") and mode.startswith("r"):
            first, end = (int(address, 16) for address in span.split("-"))
            library.madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), POPULATE_READ)


def _peak() -> int:
    """Return the most bytes that this process has had resident."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()

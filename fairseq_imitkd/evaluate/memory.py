"""How much memory a model needs: it is loaded and translates a batch in a process of its own.

``python -m fairseq_imitkd.evaluate.memory`` imports what all models need, once. Each model is then loaded in a fork of that
process, which has imported the same and no model. What it needs is the most memory that the fork ever has resident (``VmHWM``
of Linux) less what it had before: the weights, what loading them takes besides, and the states of one batch. Python, torch
and the other libraries are in both, all of their code read in, so that code which a model is the first to run is none of it.
"""

import ctypes
import gc
import json
import logging
import os
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
from fairseq_imitkd.engines.base import Decoding
from fairseq_imitkd.evaluate import models

logger = logging.getLogger(__name__)
PACKAGES = {"ctranslate2": "ctranslate2", "onnx": "onnxruntime"}  # of exported students, by kind
POPULATE_READ = 22  # Linux's MADV_POPULATE_READ; a system that has none does nothing
SECONDS = 600  # that all models together may take


class Measurement:
    """Measures models in another process, while this one does other things.

    Args:
        found: the models, by name.
        languages: the dictionaries.
        decoding: how they translate.
        batch: ``(S,)`` int64 each, with an EOS, by falling length.
        threads: to compute with.
        allow_globals: types that a checkpoint may hold beside fairseq's own.
    """

    def __init__(
        self,
        found: Mapping[str, models.Model],
        languages: Languages,
        decoding: Decoding,
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
        places = {
            name: {"path": str(model.path.resolve()), "kind": model.kind} for name, model in found.items()
        }
        paths = [
            str(Path(fairseq_imitkd.__file__).parent.parent),
            *filter(None, [os.environ.get("PYTHONPATH")]),
        ]
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore",
            "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",  # a process that has threads can't be forked
        }  # fmt: skip
        with tempfile.TemporaryFile("w+", encoding="utf-8") as jobs:
            json.dump({"common": common, "models": places}, jobs)
            jobs.seek(0)
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=jobs,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )

    def peaks(self) -> dict[str, int | None]:
        """What each model needs; None where it could not be measured."""
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
        """End the process, whatever it is doing."""
        self.process.kill()
        self.process.communicate()


def main() -> None:
    """Measure the models of the jobs that are read from the standard input."""
    jobs = json.load(sys.stdin)
    gc.collect()
    gc.freeze()  # a fork has nothing to collect that was there before it
    found = {name: _in_a_fork({**jobs["common"], **job}) for name, job in jobs["models"].items()}
    print(json.dumps(found))


def _in_a_fork(job: dict[str, Any]) -> int | None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(2, 1)  # what libraries print is no result
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
    with suppress(OSError):  # not everywhere allowed; the highest so far is then that of the imports
        Path("/proc/self/clear_refs").write_text("5")
    before = _highest()
    model = models.load(Path(job["path"]), languages, Decoding(**job["decoding"]), job["allow_globals"])
    model.engine.translate(range(len(batch)), batch, 1)
    return _highest() - before


def _read_in_all_code() -> None:
    """A page of a library is resident once it was used: without this, a model would be charged for those it is first to use."""
    library = ctypes.CDLL(None)
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, mode, *_, name = line.split(maxsplit=5)
        if name.startswith("/") and mode.startswith("r"):
            first, end = (int(address, 16) for address in span.split("-"))
            library.madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), POPULATE_READ)


def _highest() -> int:
    """The most bytes that this process had resident."""
    [line] = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")
    ]
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()

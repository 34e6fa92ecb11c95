"""Where results come from: the commit, the machine, and the versions of what computed them."""

import os
import platform
import re
import subprocess
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import fairseq_imitkd
from fairseq_imitkd.evaluate.schema import Machine
from fairseq_imitkd.training import run_files

# Packages that only some evaluations use, by kind of model and by metric.
PACKAGES = {
    "ctranslate2": "ctranslate2",
    "onnx": "onnxruntime",
    "rouge": "rouge-score",
    "comet": "unbabel-comet",
}


def commit() -> str | None:
    """Return the commit of this package; None if it is an installed copy, not a checkout."""
    folder = Path(fairseq_imitkd.__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def machine() -> Machine:
    """Return the processor, its cores, and the number of torch's threads."""
    return Machine(_processor(), os.cpu_count(), torch.get_num_threads())


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def versions(used: Collection[str]) -> dict[str, str]:
    """Return the versions of all packages that results depend on.

    Args:
        used: kinds of models and metrics; those in :data:`PACKAGES` add their packages.
    """
    packages = ["sacrebleu", *(package for name, package in PACKAGES.items() if name in used)]
    return {**run_files.versions(), **{name: _version(name) for name in packages}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # installed under another name, such as onnxruntime-gpu
        return "unknown"

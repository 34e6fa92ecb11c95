"""Where figures come from: the commit, the machine, the versions of what computed them."""

import os
import platform
import re
import subprocess
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import fairseq_imitkd

# What is used only by some evaluations: names of kinds of models and of metrics, and the packages.
PACKAGES = {
    "ctranslate2": "ctranslate2",
    "onnx": "onnxruntime",
    "rouge": "rouge-score",
    "comet": "unbabel-comet",
}


def commit() -> str | None:
    """Of this package, where it is a checkout of its repository and no installed copy."""
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


def machine() -> dict[str, Any]:
    """What computes, on as many threads as torch has."""
    return {"processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def versions(used: Collection[str]) -> dict[str, str]:
    """Of everything that figures depend on; ``used`` are some of :data:`PACKAGES`."""
    packages = {"fairseq": "fairseq-fixed", "sacrebleu": "sacrebleu"}
    packages.update({package: package for name, package in PACKAGES.items() if name in used})
    return {
        "fairseq_imitkd": fairseq_imitkd.__version__,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        **{name: _version(package) for name, package in packages.items()},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # it came under another name, as onnxruntime-gpu does
        return "unknown"

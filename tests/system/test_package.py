"""The sdist and the wheel: built once, and tried from another folder without the repository."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

import pytest

from tests.helpers.digit_corpus import REPO

ADDRESS = "https://example.org/someone/fairseq-imitkd"
# Files that pip reads to build the package from a clone, beside the package's own
ROOT_FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")
BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, "build_" + sys.argv[1])(sys.argv[2]), file=sys.stderr)
"""


def call(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return done


def build(kind: str, source: Path, out: Path) -> Path:
    """Build an ``sdist`` or a ``wheel`` as pip does. Return its path."""
    out.mkdir()
    call(sys.executable, "-c", BUILD, kind, out, cwd=source, PYTHONPATH="")
    (built,) = out.iterdir()
    return built


def tracked() -> set[str]:
    """Return the package's files, or all of them where the repository has no git."""
    files = {str(path.relative_to(REPO)) for path in (REPO / "fairseq_imitkd").rglob("*") if path.is_file()}
    listed = subprocess.run(
        ["git", "ls-files", "fairseq_imitkd"], cwd=REPO, capture_output=True, text=True, check=False
    ).stdout.split()
    return (files & set(listed)) if listed else {file for file in files if "__pycache__" not in file}


@dataclass(frozen=True)
class Package:
    """What was built.

    Args:
        sdist: built from a clone.
        wheel: built from the sdist.
        installed: folder that the wheel was installed into.
        elsewhere: an empty folder.
    """

    sdist: Path
    wheel: Path
    installed: Path
    elsewhere: Path

    @property
    def metadata(self) -> Message:
        """The wheel's METADATA."""
        with zipfile.ZipFile(self.wheel) as archive:
            (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
            return email.message_from_bytes(archive.read(name))


def clone(folder: Path) -> Path:
    """Copy what a clone has that matters to a build."""
    for name in [*tracked(), *(name for name in ROOT_FILES if (REPO / name).exists())]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("package")
    source = clone(folder / "clone")
    call("git", "init", "--quiet", cwd=source)
    call("git", "remote", "add", "origin", f"{ADDRESS}.git", cwd=source)
    sdist = build("sdist", source, folder / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    wheel = build("wheel", unpacked, folder / "wheel")
    installed, elsewhere = folder / "installed", folder / "elsewhere"
    elsewhere.mkdir()
    options = ("--quiet", "--no-deps", "--no-index", "--no-compile", "--target", installed)
    call(sys.executable, "-m", "pip", "install", *options, wheel, cwd=elsewhere, PYTHONPATH="")
    return Package(sdist, wheel, installed, elsewhere)


def test_the_wheel_holds_the_package_s_files_and_no_others(package: Package) -> None:
    with zipfile.ZipFile(package.wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == tracked()


def test_the_long_description_has_absolute_links(package: Package) -> None:
    text = str(package.metadata.get_payload())
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert f"{ADDRESS}/blob/HEAD/docs/methods.md" in links
    assert [link for link in links if not link.startswith("https://")] == []
    assert package.metadata["Project-URL"] == f"Source, {ADDRESS}"


@pytest.mark.parametrize(
    "origin", ["", "/home/someone/fairseq-imitkd", "git@example.org:someone/fairseq-imitkd"]
)
def test_links_where_the_address_is_unknown(origin: str, tmp_path: Path) -> None:
    """They become plain text; a link without an address leads nowhere on the index's page."""
    source = clone(tmp_path / "clone")
    if origin:
        call("git", "init", "--quiet", cwd=source)
        call("git", "remote", "add", "origin", origin, cwd=source)
    shown = call(sys.executable, "setup.py", "--long-description", cwd=source, PYTHONPATH="").stdout
    links = set(re.findall(r"\]\(([^)\s]+)\)", shown))
    assert {link for link in links if not link.startswith("https://")} == set()
    assert (f"{ADDRESS}/blob/HEAD/LICENSE" in links) == (origin.startswith("git@"))
    assert "MIT licence" in shown


def test_every_module_is_imported_from_the_installed_wheel(package: Package) -> None:
    program = """
import importlib, pkgutil, sys
import fairseq_imitkd
names = [found.name for found in pkgutil.walk_packages(fairseq_imitkd.__path__, "fairseq_imitkd.")]
for name in names:
    if not name.endswith(("__main__", "triton_kernel")):  # Triton is part of torch for CUDA
        importlib.import_module(name)
files = {m.__file__ for name, m in sys.modules.items() if name.partition(".")[0] == "fairseq_imitkd"}
print(len(names), *sorted(files), sep="\\n")
"""
    environment = {"PYTHONPATH": str(package.installed), "OMP_NUM_THREADS": "1"}
    count, *files = call(
        sys.executable, "-c", program, cwd=package.elsewhere, **environment
    ).stdout.splitlines()
    assert int(count) > 100
    assert all(file.startswith(str(package.installed)) for file in files), files


def pythons() -> list[str]:
    """Return the Pythons of this machine that the package is for: those on PATH, and pyenv's."""
    names = [f"python3.{minor}" for minor in range(11, 14)]
    found = [shutil.which(name) for name in names]
    found += map(str, (Path.home() / ".pyenv" / "versions").glob("3.1[1-3].*/bin/python3"))
    versions: dict[str, str] = {}
    for path in filter(None, found):
        done = subprocess.run(
            [path, "-c", "import sys; print(sys.version_info[:2])"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode == 0:  # pyenv has a python3.12 on PATH that can only say that it is not chosen
            versions.setdefault(done.stdout, path)
    return list(versions.values())


@pytest.mark.parametrize("python", pythons())
def test_it_answers_under_every_python(python: str, package: Package) -> None:
    """``--version``, ``--help`` and the syntax need no torch, so every installed Python can try them."""
    environment = {"PYTHONPATH": str(package.installed), "PYTHONDONTWRITEBYTECODE": "1"}

    def imitkd(*words: str) -> str:
        script = package.installed / "bin" / "imitkd"
        return call(python, script, *words, cwd=package.elsewhere, **environment).stdout

    assert package.metadata["Version"] in imitkd("--version")
    assert "--teacher-path" in imitkd("train", "--help")
    parse = (
        "import ast, pathlib, sys\n"
        "for file in pathlib.Path(sys.argv[1]).rglob('*.py'): compile(file.read_bytes(), file, 'exec')"
    )
    call(python, "-W", "error", "-c", parse, package.installed / "fairseq_imitkd", cwd=package.elsewhere)


def made(folder: Path, torch: str, driver: bool = False) -> subprocess.CompletedProcess[str]:
    """Run ``make install`` with commands that only write down their arguments."""
    commands = folder / "bin"
    commands.mkdir(parents=True)
    python = (
        f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\necho "python $*" >>{folder}/calls\n'
        'case "$*" in *venv*) mkdir -p .venv/bin; cp "$0" .venv/bin/python; cp "$0" .venv/bin/imitkd;; esac\n'
    )
    for name, text in {"python3": python, "nvidia-smi": f"#!/bin/sh\nexit {int(not driver)}\n"}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    for name in ("Makefile", "constraints.txt", "setup.py", "pyproject.toml"):
        shutil.copy(REPO / name, folder)
    environment = {name: value for name, value in os.environ.items() if name not in ("TORCH", "PYTHON")}
    environment["PATH"] = f"{commands}:{environment['PATH']}"
    return subprocess.run(
        ["make", "install", *([f"TORCH={torch}"] if torch else [])],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("torch", "driver", "cpu"),
    [("", False, True), ("", True, False), ("cuda", False, False), ("cpu", True, True)],
)
def test_without_a_gpu_make_installs_torch_for_cpus(
    torch: str, driver: bool, cpu: bool, tmp_path: Path
) -> None:
    done = made(tmp_path, torch, driver)
    assert done.returncode == 0, done.stderr
    assert "[3/4] fairseq" in done.stdout
    calls = (tmp_path / "calls").read_text().splitlines()
    installs = [call for call in calls if "pip install" in call]
    builds = [call for call in installs if re.search(r" torch==\S+\+cpu$", call)]
    # It comes first, so the later commands find their torch installed.
    assert (builds == installs[:1]) if cpu else (builds == [])
    assert any(call.endswith("--editable .[dev]") for call in installs)


def test_another_build_of_torch_is_refused(tmp_path: Path) -> None:
    done = made(tmp_path, "rocm")
    assert done.returncode != 0
    assert "TORCH must be cpu or cuda, but is 'rocm'" in done.stderr

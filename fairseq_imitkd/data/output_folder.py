"""A command's ``--out`` folder: whose it is, who may write to it, and what a failed write says.

A command uses it in this order::

    folder = OutputFolder(out, "a teacher cache", marks=("cache.json", "progress.json"), resumes=True)
    folder.check(identity)                 # refuses another's folder before anything slow happens
    with folder.errors(), folder.lock():   # an OSError becomes one line; other runs wait or are refused
        is_new = folder.claim(identity)    # the identity is the first file that is written
        ...                                # the work; a run that was killed is resumed here
        folder.write_json("cache.json", {**identity, ...})
        folder.remove_leftovers()

``with folder.built() as work: ...`` makes a folder that is complete or absent (``imitkd-export``).
``with folder.files(*names) as files: ...`` replaces several files together (``imitkd-evaluate``).
"""

import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from fairseq_imitkd.data.files import atomic_files, remedy_to_write, sync, write_json
from fairseq_imitkd.errors import UsageError

LOCK = ".lock"
PATIENCE = 30.0  # seconds to wait for a lock: a run that was killed may leave a process that is just ending
NEW = "a new folder"  # the kind of a folder that no command goes on with
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class OutputFolder:
    """The folder that a command writes.

    A folder belongs to a command if it holds one of the command's marks. A mark is a JSON file with the
    identity of a job: the settings and inputs that decide the result. A command accepts folders that are
    absent or empty, and folders of its own with the same identity.

    Args:
        path: the folder.
        kind: what messages call such a folder, after "is not".
        marks: names of the marks, the most complete first; :meth:`claim` writes the last one. Without marks,
            the folder must be new or empty.
        entries: names that a mark must hold.
        resumes: whether the same command continues where an interrupted run stopped.
    """

    path: Path
    kind: str
    marks: tuple[str, ...] = ()
    entries: tuple[str, ...] = ("format",)
    resumes: bool = False

    def read(self, name: str) -> dict[str, Any] | None:
        """Return what a JSON file of the folder holds; None if the file is missing.

        Raises:
            UsageError: the file is not a JSON object.
        """
        path = self.path / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise UsageError(f"'{path}' is damaged or another program's file; use another --out")
        return content

    def identity(self) -> dict[str, Any] | None:
        """Return the content of the first mark that is there; None if the folder has no mark.

        Raises:
            UsageError: a mark is damaged, or another program's file of the same name.
        """
        for name in self.marks:
            content = self.read(name)
            if content is not None:
                if not all(entry in content for entry in self.entries):
                    raise UsageError(
                        f"--out '{self.path}' is not {self.kind}: its {name} is another program's; "
                        "use another folder"
                    )
                return content
        return None

    def check(self, identity: Mapping[str, Any] | None = None) -> bool:
        """Refuse a folder that this job may not write to.

        Args:
            identity: what a mark of this job must hold; None accepts every folder of this kind.

        Returns:
            whether the folder has a mark already.

        Raises:
            UsageError: the folder holds something else, belongs to another job, or can't be read.
        """
        with self.errors():
            found = self.identity()
            if found is None and not self._is_free():
                found = self.identity()  # another machine may have claimed it in between
                if found is None:
                    what = "is not empty" if self.kind == NEW else f"is not {self.kind}"
                    raise UsageError(f"--out '{self.path}' exists and {what}; use a new or empty folder")
        if found is None:
            return False
        unlike = difference(found, identity or {})
        if unlike is not None:
            name, theirs, own = unlike
            raise UsageError(
                f"--out '{self.path}' was begun with {name} = {theirs}, but now it is {own}; "
                "use another folder or the former setting"
            )
        return True

    def claim(self, identity: Mapping[str, Any]) -> bool:
        """Make the folder this job's, or check that it is.

        Args:
            identity: what distinguishes the job from others.

        Returns:
            whether the folder was free before.

        Raises:
            UsageError: the folder belongs to another job; it is unchanged.
        """
        while not self.check(identity):
            self.path.mkdir(parents=True, exist_ok=True)
            if self.write_json(self.marks[-1], identity, replace=False):
                return True
        return False

    def _is_free(self) -> bool:
        """Whether the folder is absent, or holds nothing but leftovers."""
        if not os.path.lexists(self.path):
            return True
        return self.path.is_dir() and all(map(is_leftover, self.path.iterdir()))

    def lock(self, share: str | None = None) -> AbstractContextManager[None]:
        """Keep other runs out of the folder. An absent folder is made, and removed again if it stays empty.

        Args:
            share: this run's part of a job that several machines share; runs of different shares may write
                at the same time. None: no other run may.

        Raises:
            UsageError: another run has the folder, or its file system has no locks.
        """
        return self._locked(self.path, share)

    @contextmanager
    def _locked(self, folder: Path, share: str | None = None) -> Iterator[None]:
        is_new = not os.path.lexists(folder)
        with ExitStack() as locks:
            if is_new:
                locks.callback(_remove_if_empty, folder)
            # Every run takes the first lock. A share keeps only its own one; a run alone keeps all of them.
            if share is None:
                locks.enter_context(self._held(folder / LOCK))
                for path in sorted(folder.glob(f"{LOCK}.*")):
                    locks.enter_context(self._held(path))
            else:
                with self._held(folder / LOCK):
                    locks.enter_context(self._held(folder / f"{LOCK}.{share}"))
            yield

    @contextmanager
    def _held(self, path: Path) -> Iterator[None]:
        """Hold one lock file, and remove it afterwards."""
        # Without flock, filelock would fall back to a lock by existence, which a killed run leaves behind.
        lock, until = FileLock(path, fallback_to_soft=False), time.monotonic() + PATIENCE
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)  # the run before may have removed it
            try:
                lock.acquire(timeout=0)
                break
            except FileNotFoundError:
                continue
            except Timeout:
                if time.monotonic() > until:
                    raise UsageError(
                        f"another run is writing --out '{self.path}'; wait for it or use another folder"
                    ) from None
                time.sleep(0.1)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                raise UsageError(
                    f"--out '{self.path}' is on a file system that can't lock files ({error.strerror}); "
                    "use a folder on another file system"
                ) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # first: filelock discards a lock on a removed file
            lock.release()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn an ``OSError`` of the folder, or of a file that the command reads, into one line.

        Raises:
            UsageError: such an error was raised.
        """
        try:
            yield
        except (ConnectionError, ChildProcessError):  # not about files
            raise
        except OSError as error:
            if error.errno is None:
                raise
            if not self._concerns(error.filename):
                raise UsageError(
                    f"'{error.filename}' can't be read ({error.strerror}); check the file and its permissions"
                ) from error
            is_elsewhere = error.filename is not None and os.fspath(error.filename) != str(self.path)
            where = f": '{error.filename}'" if is_elsewhere else ""
            remedy = remedy_to_write(error, "another folder")
            remedy += "; the same command then continues where it stopped" if self.resumes else ""
            raise UsageError(
                f"--out '{self.path}' can't be written ({error.strerror}{where}); {remedy}"
            ) from error

    def _concerns(self, filename: Any) -> bool:
        """Whether a file is the folder, in it or around it; a file without a name is taken for one."""
        if not isinstance(filename, str | os.PathLike):
            return True
        file, folder = (Path(os.path.abspath(path)) for path in (filename, self.path))
        return file.is_relative_to(folder.parent / f".{folder.name}.partial") or (
            file.is_relative_to(folder) or folder.is_relative_to(file)
        )

    def write_json(self, name: str, content: Any, replace: bool = True) -> bool:
        """Write a JSON file of the folder; see :func:`~fairseq_imitkd.data.files.write_json`."""
        return write_json(self.path / name, content, replace)

    def files(self, *names: str) -> AbstractContextManager[list[BinaryIO]]:
        """Open files of the folder for writing; see :func:`~fairseq_imitkd.data.files.atomic_files`."""
        return atomic_files(*(self.path / name for name in names))

    def remove_leftovers(self) -> None:
        """Delete the unfinished files of runs that were killed. The caller holds the lock."""
        for path in list(self.path.rglob("*.partial")):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _remove_all_leftovers(self) -> None:
        """Delete the files that :meth:`_is_free` passes over, also the locks of runs that were killed."""
        for path in filter(is_leftover, list(self.path.iterdir())):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def check_new(self) -> None:
        """Refuse a folder that :meth:`built` can't make.

        Raises:
            UsageError: the folder is not empty, is the current one, or can't be written.
        """
        with self.errors():
            if self.path.is_symlink() or self.path.resolve() == Path.cwd() or self.path.name in ("", ".."):
                raise UsageError(f"--out '{self.path}' must be the name of a new folder; use another")
            self._try_to_write()
        self.check()

    def _try_to_write(self) -> None:
        """Make and remove a folder there: root may write everywhere, but not in /proc or on a full disk."""
        there = next(path for path in (self.path.parent, *self.path.absolute().parents) if path.is_dir())
        try:
            os.rmdir(tempfile.mkdtemp(dir=there))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    @contextmanager
    def built(self) -> Iterator[Path]:
        """Yield an empty folder, which becomes this one when the block ends without an error.

        Raises:
            UsageError: the folder is not new, can't be written, or another run is making it.
        """
        work = self.path.with_name(f".{self.path.name}.partial")
        folder = work / "bundle"
        try:
            with self.errors(), self._locked(work):
                self.check_new()  # the run that was waited for may have made it
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                try:
                    yield folder
                    for path in folder.rglob("*"):
                        sync(path)
                    if self.path.exists():
                        self._remove_all_leftovers()
                        self.path.rmdir()
                    folder.rename(self.path)
                    sync(self.path.parent)
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
        finally:
            _remove_if_empty(work)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def is_leftover(path: Path) -> bool:
    """Whether a file has no meaning once the run that wrote it has ended."""
    return path.name.endswith(".partial") or path.name == LOCK or path.name.startswith(f"{LOCK}.")


def difference(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Return the first setting in which two identities differ.

    Args:
        theirs: an identity that was read; it may hold further entries.
        own: the identity of this job.

    Returns:
        the setting's name, its value there and its value here; None if ``theirs`` holds all of ``own``.
    """
    own = json.loads(json.dumps(own))
    return _difference({name: theirs.get(name) for name in own}, own)


def _difference(theirs: Any, own: Any, name: str = "") -> tuple[str, str, str] | None:
    if isinstance(theirs, dict) and isinstance(own, dict):
        for key in {**theirs, **own}:
            found = _difference(theirs.get(key), own.get(key), f"{name}.{key}" if name else key)
            if found:
                return found
        return None
    return None if theirs == own else (name, shown(theirs), shown(own))


def shown(value: Any) -> str:
    """Return a setting's value as a message shows it; SHA-256 sums are cut."""
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text

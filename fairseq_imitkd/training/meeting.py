"""Where processes that train together meet: torch's store, and how each of them reaches it."""

import re
import socket
import threading
import time
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import torch.distributed
from fairseq.dataclass.configs import DistributedTrainingConfig
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.distributed import utils
from omegaconf import OmegaConf

from fairseq_imitkd.data.files import atomic_files
from fairseq_imitkd.errors import UsageError

ARRIVAL = 1800.0  # seconds in which all processes must begin; it is torch's own limit
ANSWER = 30.0  # seconds in which torch's store must answer


@dataclass(frozen=True)
class Meeting:
    """Where processes that train together meet.

    Args:
        host: the host of ``--distributed-init-method``; empty if a file says it.
        port: the port on which torch's store listens.
        rank: the number of this process (0 = first).
        world_size: the number of processes, 2 or more.
        hosts_store: whether this process opens torch's store.
        attempt: tells apart runs that use the same store, one after the other.
        file: a file in which the first process leaves the host and port.
    """

    host: str
    port: int
    rank: int
    world_size: int
    hosts_store: bool
    attempt: str = ""
    file: Path | None = None

    def __str__(self) -> str:
        return f"--distributed-init-method '{self.file or f'{self.host}:{self.port}'}'"

    def open_store(self) -> Any:
        """Open torch's store in the first process, or connect to that of ``torchrun``.

        Raises:
            OSError: the file can't be written.
            RuntimeError: the port is in use, or the address is not one of this machine.
        """
        host = own_address() if self.file is not None else self.host
        store = self._store(host, self.port)
        if self.file is not None:
            with atomic_files(self.file) as [file]:
                file.write(f"{host} {store.port}\n".encode())
        return self._part_of(store)

    def reach_store(self, is_stopped: Callable[[], bool], answer: float = ANSWER) -> Any:
        """Connect to torch's store as soon as the first process has opened it.

        Args:
            is_stopped: whether to give up.
            answer: seconds in which the store must answer, when its port is open.

        Raises:
            UsageError: it can't be reached.
        """
        until = time.monotonic() + ARRIVAL
        while not is_stopped() and time.monotonic() < until:
            try:
                host, port = self._address()
                # torch prints a warning each time that it finds nobody.
                socket.create_connection((host, port), timeout=5.0).close()
                return self._part_of(_within(answer, partial(self._store, host, port)))
            except socket.gaierror as error:
                raise UsageError(
                    f"{self} names a host that is not known here ({error.strerror}); use the address of rank "
                    "0's machine"
                ) from error
            except RuntimeError as error:
                if self.file is None:
                    raise UsageError(f"{self} is not rank 0, but another program; use a free port") from error
            except (OSError, ValueError):
                pass
            time.sleep(0.2)
        raise UsageError(f"rank 0 has not opened {self} within {ARRIVAL / 60:.0f} minutes")

    def clear(self) -> None:
        """Remove the file that says where the processes meet."""
        if self.file is not None and self.rank == 0:
            self.file.unlink(missing_ok=True)

    def _address(self) -> tuple[str, int]:
        if self.file is None:
            return self.host, self.port
        host, port = self.file.read_text().split()
        return host, int(port)

    def _store(self, host: str, port: int) -> Any:
        store = torch.distributed.TCPStore(
            host,
            port,
            self.world_size,
            self.hosts_store,
            timeout=timedelta(seconds=ANSWER),
            wait_for_workers=False,
        )
        store.set_timeout(timedelta(seconds=ARRIVAL))
        return store

    def _part_of(self, store: Any) -> Any:
        return torch.distributed.PrefixStore(f"imitkd/{self.attempt}", store)


def _within(seconds: float, connect: Callable[[], Any]) -> Any:
    """Return a connection. torch waits for ever for a program that does not answer.

    Raises:
        RuntimeError: it is not there after so many seconds.
    """
    found: Future[Any] = Future()

    def work() -> None:
        try:
            found.set_result(connect())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return found.result(seconds)
    except TimeoutError:
        raise RuntimeError(f"no answer within {seconds:.0f} s") from None


def own_address() -> str:
    """Return the address by which other machines reach this one."""
    with suppress(OSError):
        found = str(socket.getaddrinfo(socket.gethostname(), 0, type=socket.SOCK_STREAM)[0][4][0])
        if not is_loopback(found):
            return found
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 1))  # nothing is sent; it chooses the address of the default route
        return probe.getsockname()[0]
    return "127.0.0.1"


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address is this machine, on each machine."""
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def meeting_of_command(arguments: Sequence[str], environment: Mapping[str, str]) -> Meeting | None:
    """Return where the processes of a command line meet; None if it has one process, or spawns them.

    Args:
        arguments: the command line, which may not have been checked yet.
        environment: variables of ``torchrun`` or Slurm.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    try:
        gen_parser_from_dataclass(parser, DistributedTrainingConfig())
        given, _ = parser.parse_known_args(list(arguments))
        chosen = OmegaConf.create({**vars(given), "tpu": "--tpu" in arguments})
        utils.infer_init_method(chosen)
        return meeting_of_config(chosen, environment) if chosen.distributed_no_spawn else None
    except Exception:  # fairseq's own parser refuses this command line in a moment
        return None


def meeting_of_config(chosen: Any, environment: Mapping[str, str]) -> Meeting | None:
    """Return where processes meet; None if there is one process, or torch meets in a way not known here.

    Args:
        chosen: fairseq's settings of distributed training.
        environment: variables of ``torchrun``.
    """
    method, rank, count = (
        chosen.distributed_init_method or "",
        int(chosen.distributed_rank or 0),
        int(chosen.distributed_world_size),
    )
    if method == "env://":
        rank = int(environment.get("RANK", rank))
    if count < 2 or not 0 <= rank < count:
        return None
    if method == "env://" and {"MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        # torchrun keeps a store of its own, which outlives the processes that it starts again.
        is_kept = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "")
        return Meeting(host, port, rank, count, hosts_store=rank == 0 and not is_kept, attempt=attempt)
    if found := re.fullmatch(r"tcp://\[?([^/\[\]?]+)\]?:(\d+)/?", method):
        return Meeting(found[1], int(found[2]), rank, count, hosts_store=rank == 0)
    if found := re.fullmatch(r"file://(/[^?]+)", method):
        return Meeting("", 0, rank, count, hosts_store=rank == 0, file=Path(unquote(found[1])))
    return None

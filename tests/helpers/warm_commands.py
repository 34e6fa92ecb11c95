"""Console commands that start at once: forks of a server that has imported torch, fairseq and the package.

A new Python spends more than three seconds of processor time on these imports; most stages of a script
compute for less. :func:`folder` starts the server and returns a folder of executables with the commands'
names. Each of them asks the server for a process with its own arguments, environment, working directory
and standard streams. It passes signals on to that process and ends as that process ends. Each process
has fresh state, as after a real start.

A test that checks what is imported, how a process is killed, or how much memory it holds needs a real
command.
"""

import array
import atexit
import contextlib
import copy
import functools
import gc
import importlib
import json
import logging
import os
import resource
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

COMMANDS = ("imitkd", "fairseq-", "subword-nmt")
# Not fairseq_cli: its modules set up logging when they are imported, so each command imports its own.
PRELOADED = (
    "multiprocessing.spawn",  # remembers the real Python, whose workers inherit more than three descriptors
    "torch._dynamo",
    "torch.utils.tensorboard",
    "sacrebleu",
    "sentencepiece",
    "rouge_score.rouge_scorer",
    "fairseq_imitkd.cli.cache",
    "fairseq_imitkd.cli.evaluate",
    "fairseq_imitkd.cli.export",
    "fairseq_imitkd.cli.fairseq_commands",
    "fairseq_imitkd.cli.prune",
    "fairseq_imitkd.cli.report",
    "fairseq_imitkd.cli.seqkd",
)
REPO = Path(__file__).resolve().parents[2]
# Environment variables: the most bytes of memory that a process may map, and seconds that it may compute.
LIMITS = {"WARM_ADDRESS_SPACE": resource.RLIMIT_AS, "WARM_SECONDS": resource.RLIMIT_CPU}

# It imports only the standard library, without `site`, so a command starts fast.
CLIENT = """#!{python} -IS
import array, json, os, signal, socket, sys
path, name = os.path.split(os.path.abspath(sys.argv[0]))
request = json.dumps([name, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.path.join(path, "socket"))
    streams = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))
    server.sendmsg([len(request).to_bytes(8, "big")], [streams])
    server.sendall(request)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: server.send(bytes([number])))
    status = int(server.makefile().read() or 70)
if status < 0:
    if status != -signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


@functools.cache
def folder() -> Path:
    """Start the server, which ends with this process. Return the folder of commands and of ``python``."""
    made = Path(tempfile.mkdtemp(prefix="warm-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    scripts = {point.name for point in entry_points(group="console_scripts")}
    for name in ("python", *(name for name in scripts if name.startswith(COMMANDS))):
        (made / name).write_text(CLIENT.format(python=sys.executable))
        (made / name).chmod(0o755)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.warm_commands", str(made / "socket")],
        stdin=subprocess.PIPE,  # its end tells the server that this process has ended
        stdout=subprocess.PIPE,
        cwd=REPO,
        env=environment,
        text=True,
    )
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    atexit.register(server.wait)
    atexit.register(server.stdin.close)  # type: ignore[union-attr]
    return made


def compose_settings_quickly() -> None:
    """Make hydra do less in this process: fairseq composes the same 300 settings for every training, which
    takes longer than a few updates.

    Each setting is parsed once. And the known configurations are not copied for each composition. hydra
    copies them because it then reads their folders again, but that only assigns a new list of sources.
    """
    from hydra._internal.config_repository import CachingConfigRepository
    from hydra.core.override_parser.overrides_parser import OverridesParser

    def keep(self: CachingConfigRepository, delegate: Any) -> None:
        self.delegate, self.cache = copy.copy(delegate), {}

    CachingConfigRepository.__init__ = keep

    parser = OverridesParser.create()
    parse = functools.cache(OverridesParser.parse_rule)
    OverridesParser.parse_rule = lambda _, text, rule: copy.copy(parse(parser, text, rule))


def parse_settings() -> None:
    """Parse the settings of a training and of a translation, which the commands then find in the cache."""
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    compose_settings_quickly()
    chosen = ("--arch", "transformer", "--criterion", "imitkd", "--optimizer", "adam", "--lr-scheduler")
    for parser, flags in (
        (options.get_training_parser("translation_with_teacher"), (*chosen, "inverse_sqrt")),
        (options.get_generation_parser(default_task="translation_with_teacher"), ("--path", "model.pt")),
    ):
        convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, ["data", *flags]))


def serve(path: str) -> None:
    """Fork a process for each connection to the socket at ``path``, until standard input ends."""
    for name in PRELOADED:
        with contextlib.suppress(ModuleNotFoundError):  # an extra that is not installed
            importlib.import_module(name)
    parse_settings()
    gc.freeze()  # then a child's garbage collection copies no page of these objects
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads can't be forked safely"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    print("ready", flush=True)
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(listener, selectors.EVENT_READ)
    running: dict[int, tuple[int, socket.socket]] = {}  # by the process's descriptor: its number, its client
    while True:
        for key, _ in selector.select():
            if key.fd == 0:
                return
            if key.fileobj is listener:
                client = listener.accept()[0]
                received = receive(client)
                if received is None:  # the client was killed while it asked
                    client.close()
                    continue
                pid = fork(*received, (client, listener, selector))
                process = os.pidfd_open(pid)
                running[process] = (pid, client)
                selector.register(process, selectors.EVENT_READ)
                selector.register(client, selectors.EVENT_READ, pid)
            elif key.data is not None:
                received = key.fileobj.recv(1)  # type: ignore[union-attr]
                os.kill(key.data, received[0] if received else signal.SIGKILL)
                if not received:  # the client was killed
                    selector.unregister(key.fileobj)
            elif key.fd in running:
                pid, client = running.pop(key.fd)
                selector.unregister(key.fd)
                os.close(key.fd)
                with contextlib.suppress(KeyError):
                    selector.unregister(client)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(OSError):
                    client.sendall(str(status).encode())
                    client.shutdown(socket.SHUT_RDWR)  # processes that were forked since then hold it too
                client.close()


def receive(client: socket.socket) -> tuple[bytes, array.array] | None:
    """Return a client's request and its standard streams, or None if the client has ended."""
    length, control, _, _ = client.recvmsg(8, socket.CMSG_SPACE(3 * 4))
    if not control:
        return None
    streams = array.array("i", control[0][2])
    request = b""
    while len(request) < int.from_bytes(length, "big"):
        part = client.recv(1 << 20)
        if not part:
            for stream in streams:
                os.close(stream)
            return None
        request += part
    return request, streams


def fork(request: bytes, streams: array.array, ours: tuple) -> int:
    """Fork the process that a client asks for.

    Args:
        request: the command, its arguments, its working directory and its environment, in JSON.
        streams: descriptors of its standard input, output and error.
        ours: what the server has open. The process closes it.

    Returns:
        The process's number.
    """
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            for opened in ours:
                opened.close()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            status = run(*json.loads(request))
        finally:
            os._exit(status)
    for stream in streams:
        os.close(stream)
    return pid


def run(name: str, arguments: list[str], folder: str, environment: dict[str, str]) -> int:
    """Run a command to its end in this process. Return its exit status."""
    import numpy
    import torch

    sys.executable = str(Path(sys.argv[1]).parent / "python")  # for what this command starts in turn
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[1:1] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    for variable, kind in LIMITS.items():
        if variable in environment:
            resource.setrlimit(kind, (int(environment[variable]),) * 2)
    wanted = environment.get("PYTHONWARNINGS")
    sys.warnoptions[:] = [wanted] if wanted else []  # not those of the process that began this one
    if wanted == "ignore":
        warnings.simplefilter("ignore")
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", 1)))
    numpy.random.seed()  # otherwise all processes would draw the same numbers
    try:
        python(arguments) if name == "python" else script(name, arguments)
        status: object = 0
    except SystemExit as ended:
        status = ended.code
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return int(status or 0)  # type: ignore[call-overload]


def script(name: str, arguments: list[str]) -> None:
    """Run a console script, as pip writes it."""
    sys.argv = [name, *arguments]
    if name.startswith("fairseq-"):
        logging.root.handlers.clear()  # these import the plugin after they have set up logging, or not at all
        logging.root.setLevel(logging.WARNING)
    [point] = entry_points(group="console_scripts", name=name)
    sys.exit(point.load()())


def python(arguments: list[str]) -> None:
    """Run ``python -c CODE``, ``python -m MODULE``, ``python FILE`` or ``python -P FILE`` with arguments."""
    match arguments:
        case ["-c", code, *_]:
            sys.argv = arguments[:1] + arguments[2:]
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        case ["-m", name, *rest]:
            sys.argv = [name, *rest]
            sys.path.insert(0, os.getcwd())
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        case ["-P", file, *_]:
            sys.argv = arguments[1:]
            runpy.run_path(file, run_name="__main__")
        case [file, *_]:
            sys.argv = arguments
            sys.path.insert(0, str(Path(file).resolve().parent))
            runpy.run_path(file, run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1])

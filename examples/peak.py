"""Runs a command and records its peak memory and CPU time: ``peak.py FILE COMMAND…``.

FILE gets the resident memory, in bytes, of the largest process among the command and its children. A larger
value that an earlier call left there is kept: this call may resume its work. FILE.cpu gets the CPU seconds of
all these processes, added to those of earlier calls. Signals are passed on to the command. The exit status is
the command's.
"""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path


def main() -> None:
    path, command = Path(sys.argv[1]), sys.argv[2:]
    running = subprocess.Popen(command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the command too
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: running.send_signal(received))
    status = running.wait()
    unit = 1 if sys.platform == "darwin" else 1024
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = path.with_name(f"{path.name}.cpu")
    write(path, f"{max(used.ru_maxrss * unit, int(before(path)))}")
    write(spent, f"{before(spent) + used.ru_utime + used.ru_stime:.1f}")
    sys.exit(status if status >= 0 else 128 - status)


def before(path: Path) -> float:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return 0.0


def write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(f"{text}\n")
    os.replace(temporary, path)


if __name__ == "__main__":
    main()

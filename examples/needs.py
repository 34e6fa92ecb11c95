"""Runs a command and records what it needed: ``needs.py FOLDER COMMAND…``.

FOLDER/peak gets the resident memory, in bytes, of the largest process among the command and its children.
FOLDER/cpu gets their processor time in seconds. A call may resume the work of an earlier one, so the larger
peak is kept and the times are added. Signals are passed on to the command. The exit status is the command's.
"""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path


def main() -> None:
    folder, command = Path(sys.argv[1]), sys.argv[2:]
    running = subprocess.Popen(command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the command too
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: running.send_signal(received))
    status = running.wait()
    unit = 1 if sys.platform == "darwin" else 1024
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    write(folder / "peak", str(max(used.ru_maxrss * unit, int(before(folder / "peak")))))
    write(folder / "cpu", f"{used.ru_utime + used.ru_stime + before(folder / 'cpu'):.1f}")
    sys.exit(status if status >= 0 else 128 - status)


def before(path: Path) -> float:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return 0.0


def write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_text(f"{text}\n")
    os.replace(temporary, path)


if __name__ == "__main__":
    main()

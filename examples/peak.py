"""Runs a command and records its peak memory: ``peak.py FILE COMMAND…``.

FILE gets the resident memory, in bytes, of the largest process among the command and its children. A larger
value that an earlier call left there is kept: this call may resume its work. Signals are passed on to the
command. The exit status is the command's.
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
    held = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    temporary = path.with_suffix(".part")
    temporary.write_text(f"{max(held, before(path))}\n")
    os.replace(temporary, path)
    sys.exit(status if status >= 0 else 128 - status)


def before(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


if __name__ == "__main__":
    main()

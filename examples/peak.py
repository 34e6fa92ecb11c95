"""Run a command and note the most memory that it held: ``peak.py FILE COMMAND…``.

FILE gets the bytes of its process that held most (of its parent and children, as the system counts resident memory), unless an
earlier call, of which this one is the continuation, has noted more. Ends with the command's status.
"""

import resource
import subprocess
import sys
from pathlib import Path


def main() -> None:
    path, command = Path(sys.argv[1]), sys.argv[2:]
    try:
        status = subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:  # the command got it too, and has said so
        status = 130
    unit = 1 if sys.platform == "darwin" else 1024
    held = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    before = int(path.read_text()) if path.exists() else 0
    path.write_text(f"{max(held, before)}\n")
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()

"""Copies fairseq's training log from stdin to a file, and prints a short line every few seconds.

Usage: imitkd-train … --log-format simple 2>&1 | python progress.py LOG NAME MAX_UPDATE
"""

import re
import signal
import sys
import time
from collections import deque

SECONDS_BETWEEN_LINES = 3.0
LAST_LINES = 12
LONGEST_LINE = 400  # longer lines are fairseq's dump of its settings


def main(log_path: str, name: str, max_update: int) -> None:
    """Filter stdin to its end. If the training did not finish, show its last lines."""
    # Ctrl-C reaches both sides of the pipe. fairseq's last lines still have to be read.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    last: deque[str] = deque(maxlen=LAST_LINES)
    begin, shown, done = None, 0.0, False
    with open(log_path, "a", encoding="utf-8") as log:
        for line in sys.stdin:
            log.write(line)
            log.flush()
            short = len(line) <= LONGEST_LINE or line.startswith("error:")
            last.append(line if short else line[:80] + " …\n")
            done = done or "done training" in line
            step = re.search(r"\bloss=([\d.]+).*\bnum_updates=(\d+)", line)
            if not step:
                continue
            now, update = time.monotonic(), int(step[2])
            begin = begin or (now, update)  # the ETA ignores the time before the first step
            if now - shown < SECONDS_BETWEEN_LINES and update < max_update:
                continue
            shown = now
            left = (now - begin[0]) / max(1, update - begin[1]) * (max_update - update)
            eta = f"{left:4.0f} s left" if update > begin[1] else ""
            print(f"{name:>12} {update:5d}/{max_update}  loss {float(step[1]):6.3f}  {eta}", flush=True)
    if not done:
        sys.stderr.write("".join(last) + f"{name}: the training did not finish; see {log_path}\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

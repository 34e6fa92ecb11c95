"""Read fairseq's training log on stdin: all of it goes to a file, and a short line every few seconds to the console.

Usage: imitkd-train … --log-format simple 2>&1 | python progress.py LOG NAME MAX_UPDATE
"""

import re
import sys
import time
from collections import deque

NUMBER = r"([\d.e+-]+)"


def main(log_path: str, name: str, max_update: int) -> None:
    """Filter stdin. If the training never says that it is done, show the last lines it wrote."""
    last = deque(maxlen=12)
    first = None  # (time, update) of the first line seen: start-up does not count into the ETA
    done = False
    with open(log_path, "a", encoding="utf-8") as log:
        for line in sys.stdin:
            log.write(line)
            log.flush()
            last.append(line)
            done = done or "done training" in line
            update = re.search(rf"num_updates={NUMBER}", line)
            loss = re.search(rf"\bloss={NUMBER}", line)
            if not (update and loss):
                continue
            now = (time.monotonic(), int(update[1]))
            first = first or now
            per_update = (now[0] - first[0]) / max(1, now[1] - first[1])
            eta = f"{per_update * (max_update - now[1]):4.0f} s left" if now[1] > first[1] else ""
            print(f"{name:>18}  {now[1]:5d}/{max_update}  loss {float(loss[1]):6.3f}  {eta}", flush=True)
    if not done:
        sys.stderr.write("".join(last) + f"{name}: the training did not finish; its log is {log_path}\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

"""Reads the rollouts that ``--log-rollouts`` has written beside a training's metrics; they are not
trusted.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_imitkd.report import logs
from fairseq_imitkd.training.rollout_log import Part, ShownRollout
from fairseq_imitkd.training.run_files import ROLLOUTS

TIMES = 4  # updates of a run that are shown, the first and the last among them
SENTENCES = 5  # of an update
LONGEST = 2000  # characters of a sentence's parts


@dataclass(frozen=True)
class RolloutsAt:
    """The rollouts of an update.

    Args:
        update: its number.
        rollouts: what is shown of them.
    """

    update: int
    rollouts: list[ShownRollout]


def read(folder: Path) -> list[RolloutsAt]:
    """Return rollouts of a run, of a few updates spread over the training; empty if it has none.

    Args:
        folder: the ``--save-dir`` of the run.

    Raises:
        OSError: the file is there and can't be read.
    """
    times: list[RolloutsAt] = []
    try:
        for at in _lines(folder / ROLLOUTS):
            # A run that went back to an earlier checkpoint has written its later updates again.
            while times and times[-1].update >= at.update:
                times.pop()
            times.append(at)
    except FileNotFoundError:
        return []
    if len(times) <= TIMES:
        return times
    return [times[round(step * (len(times) - 1) / (TIMES - 1))] for step in range(TIMES)]


def _lines(path: Path) -> Iterator[RolloutsAt]:
    for line in logs.lines(path):
        try:
            content = json.loads(line or "")
            update = content["num_updates"]
            rollouts = [_rollout(each) for each in content["rollouts"][:SENTENCES]]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(update, int) and 0 <= update < logs.LARGEST and rollouts:
            yield RolloutsAt(update, rollouts)


def _rollout(content: Any) -> ShownRollout:
    """Return a rollout of the file.

    Raises:
        TypeError, ValueError, KeyError: the file holds something else.
    """
    source, length = content["source"], 0
    parts: list[Part] = []
    for part in content["student"]:
        words = [str(text) for text in part]
        if not isinstance(part, list) or len(words) not in (1, 2):
            raise ValueError("a part is the words of both, or one token of each")
        length += sum(map(len, words))
        if length > LONGEST:
            parts.append((" …",))
            break
        parts.append((words[0],) if len(words) == 1 else (words[0], words[1]))
    return ShownRollout(str(source)[:LONGEST], parts)

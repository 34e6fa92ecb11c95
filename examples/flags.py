"""Compares the flags of two training commands: ``flags.py COMMAND COMMAND`` exits with 0 if they are the
same.

Their order, the device, and the task with which imitkd-train translates do not matter.
"""

import shlex
import sys


def main() -> None:
    one, two = (flags(command) for command in sys.argv[1:])
    sys.exit(one != two)


def flags(command: str) -> dict[str, list[str]]:
    """Return the last values of each flag; the words before the first flag have the key ``""``."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for word in shlex.split(command):
        if word.startswith("--"):
            name = word
            found[name] = []
        else:
            found[name].append(word)
    found.pop("--cpu", None)
    if found.get("--task") in (["translation"], ["translation_with_teacher"]):
        del found["--task"]
    return found


if __name__ == "__main__":
    main()

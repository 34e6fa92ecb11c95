"""``flags.py COMMAND COMMAND``: ends with 0 if both trainings have the same flags, in whatever order and on whatever device."""

import shlex
import sys


def main() -> None:
    one, two = (flags(command) for command in sys.argv[1:])
    sys.exit(one != two)


def flags(command: str) -> dict[str, list[str]]:
    """Flag -> its values, of which the last ones count; what stands before the first flag is named ``""``."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for word in shlex.split(command):
        if word.startswith("--"):
            name = word
            found[name] = []
        else:
            found[name].append(word)
    found.pop("--cpu", None)
    return found


if __name__ == "__main__":
    main()

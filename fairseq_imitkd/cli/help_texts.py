"""The help of every command as a text. ``python -m fairseq_imitkd.cli.help_texts`` writes ``cli/help/``."""

import os
from argparse import ArgumentParser

from fairseq_imitkd.cli import door, fairseq_help
from fairseq_imitkd.quick import FAIRSEQS, HELP, SUMMARIES

WIDTH = 100  # columns


def parser(command: str) -> ArgumentParser:
    """Return the parser whose help a command shows."""
    if command in FAIRSEQS:
        return fairseq_help.short_parser(command)
    made: ArgumentParser = door.module_of(command).parser()
    made.prog = f"imitkd {command}"
    return made


def main() -> None:
    """Write the texts of all commands."""
    os.environ["COLUMNS"] = str(WIDTH)
    for command in SUMMARIES:
        (HELP / f"{command}.txt").write_text(parser(command).format_help(), encoding="utf-8")


if __name__ == "__main__":
    main()

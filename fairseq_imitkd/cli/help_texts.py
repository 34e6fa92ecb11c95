"""The help of every command as a text, and the words that this package's own commands take.

``python -m fairseq_imitkd.cli.help_texts`` writes both, so that commands answer without importing torch.
"""

import json
import os
from argparse import ArgumentParser

from fairseq_imitkd.cli import door, fairseq_help
from fairseq_imitkd.cli.fairseq_parser import known_flags
from fairseq_imitkd.pipeline import packaged
from fairseq_imitkd.quick import FAIRSEQS, HELP, RECIPES, SUMMARIES, WORDS
from fairseq_imitkd.quick.one_line_parser import described

WIDTH = 100  # columns


def parser(command: str) -> ArgumentParser:
    """Return the parser whose help a command shows."""
    if command in FAIRSEQS:
        return fairseq_help.short_parser(command)
    made: ArgumentParser = door.module_of(command).parser()
    return made


def words() -> str:
    """Return the words that the commands take, as JSON; of fairseq's, the flags alone."""
    found = {
        command: " ".join(sorted(known_flags(command)))
        if command in FAIRSEQS
        else list(described(door.module_of(command).parser()))
        for command in SUMMARIES
    }
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the texts of all commands."""
    WORDS.write_text(words(), encoding="utf-8")
    os.environ["COLUMNS"] = str(WIDTH)
    for command in SUMMARIES:
        (HELP / f"{command}.txt").write_text(parser(command).format_help(), encoding="utf-8")
    RECIPES.write_text(packaged.listed() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

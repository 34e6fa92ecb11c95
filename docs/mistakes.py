"""Types wrong commands and shows what comes: one line each, with the remedy.

    python docs/mistakes.py            print the page
    python docs/mistakes.py --write    write it to mistakes.md

DATA is a data directory of digits and their names, teacher.pt and student.pt are models of it, and text.txt
is a file of text.
"""

import contextlib
import io
import logging
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fairseq_imitkd.cli import door

REPO = Path(__file__).parents[1]
sys.path.insert(0, str(REPO))
from tests.helpers.exports import make_students  # noqa: E402

PAGE = Path(__file__).with_name("mistakes.md")
LONGEST = 200  # characters of a line
ARCH = (
    "--arch transformer --encoder-layers 1 --decoder-layers 1 --encoder-embed-dim 32 --decoder-embed-dim 32 "
    "--encoder-ffn-embed-dim 64 --decoder-ffn-embed-dim 64 --encoder-attention-heads 2 "
    "--decoder-attention-heads 2"
)
# What the commands below leave out of a command that works.
BASE = {
    "train": f"--teacher-path teacher.pt --criterion imitkd --optimizer adam --lr 0.001 --max-tokens 400 "
    f"--max-update 10 --cpu --source-lang src --target-lang tgt {ARCH}",
    "generate": "--path student.pt --cpu",
    "interactive": "--path student.pt --cpu",
    "seqkd": "--teacher-path teacher.pt --cpu --out out",
    "cache": "--teacher-path teacher.pt --cpu --keep hidden --out out",
    "evaluate": "--model student=student.pt --data DATA --out out",
    "export": "--data DATA --out out",
    "report": "--out out.html",
}
# A line is typed as it stands; what follows … is that command's entry in BASE, without flags typed before.
MISTAKES = {
    "The command": """
imitkd trian
imitkd distil
imitkd --lr 3
imitkd --print-completion fish
""",
    "What is missing": """
imitkd train …
imitkd train DATA --teacher-path teacher.pt
imitkd generate DATA
imitkd seqkd DATA --out out
imitkd seqkd DATA --teacher-path teacher.pt
imitkd cache DATA --teacher-path teacher.pt --out out
imitkd evaluate --data DATA --out out
imitkd export student.pt --out out
imitkd prune
imitkd report
imitkd serve
""",
}


def typed() -> Iterator[tuple[str, list[str]]]:
    """Yield each heading's commands, in the order of the page."""
    for heading, lines in MISTAKES.items():
        yield heading, [line for line in lines.splitlines() if line]


def whole(line: str) -> list[str]:
    """Return the words of a command, with those that … stands for."""
    words = shlex.split(line)
    if "…" not in words:
        return words
    command = words[1]
    given = set(words)
    rest = shlex.split(BASE.get(command, ""))
    position = 0
    more: list[str] = []
    while position < len(rest):
        flag = rest[position]
        width = 1 if position + 1 == len(rest) or rest[position + 1].startswith("--") else 2
        if flag not in given:
            more += rest[position : position + width]
        position += width
    return [word for word in words if word != "…"] + more


def make_files(folder: Path) -> None:
    """Make the files that the commands name."""
    make_students(folder)
    (folder / "data").rename(folder / "DATA")
    shutil.copy(folder / "transformer.pt", folder / "teacher.pt")
    shutil.copy(folder / "transformer.pt", folder / "student.pt")
    (folder / "text.txt").write_text("a b c\n")


def answer(line: str) -> tuple[int, str]:
    """Type a command in this process. Return its status, and the last line that it prints."""
    out, errors, arguments = io.StringIO(), io.StringIO(), sys.argv
    handlers, level = logging.root.handlers[:], logging.root.level
    status: object = 0
    sys.argv = whole(line)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            door.main()
    except SystemExit as end:
        status = end.code
        if isinstance(status, str):
            print(status, file=errors)
    finally:
        sys.argv = arguments
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
    lines = errors.getvalue().strip().splitlines() or out.getvalue().strip().splitlines() or [""]
    return (status if isinstance(status, int) else 0 if status is None else 1), lines[-1]


def page() -> str:
    """Return the page."""
    text = [(__doc__ or "").split("\n\n")[0]]
    return "\n".join(text)


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp())
    make_files(folder)
    os.chdir(folder)
    for heading, lines in typed():
        print("##", heading)
        for line in lines:
            print(line, "->", answer(line))

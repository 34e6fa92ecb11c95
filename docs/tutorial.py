"""Make the notebook of the tutorial: run its commands, and keep what they print.

    python docs/tutorial.py FOLDER       run everything in FOLDER; write tutorial.ipynb and the page's outputs
    python docs/tutorial.py --text       keep the outputs; take text and commands from the page again

``tutorial.md`` is the source: its ``bash`` blocks are commands, and a ``python`` block is the file that its first line names. A
``text`` block holds what the block before it printed.
"""

import argparse
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from nbformat import v4

PAGE = Path(__file__).with_name("tutorial.md")
NOTEBOOK = PAGE.with_suffix(".ipynb")
SITE = "https://example.invalid/"
FENCE = re.compile(r"^```(bash|python|text)\n(.*?)^```$\n?", re.MULTILINE | re.DOTALL)


class Part(NamedTuple):
    """A part of the page: ``markdown``, or the content of a ``bash``, ``python`` or ``text`` block."""

    kind: str
    text: str

    @property
    def file(self) -> str:
        """The name of the file that a ``python`` block is."""
        return self.text.splitlines()[0].removeprefix("# ")


def parts(page: str) -> Iterator[Part]:
    """Yield the parts of a page, in order."""
    end = 0
    for block in FENCE.finditer(page):
        if between := page[end : block.start()].strip():
            yield Part("markdown", between)
        yield Part(block[1], block[2])
        end = block.end()
    if rest := page[end:].strip():
        yield Part("markdown", rest)


def cells(page: str) -> list[Any]:
    """Return the cells of the notebook, without outputs."""
    made = []
    for number, part in enumerate(part for part in parts(page) if part.kind != "text"):
        match part.kind:
            case "markdown":
                cell = v4.new_markdown_cell(re.sub(r"<!--.*?-->", "", part.text))
            case "python":
                cell = v4.new_code_cell(f"%%writefile {part.file}\n{part.text.partition(chr(10))[2]}".strip())
            case _:
                cell = v4.new_code_cell(f"%%bash\n{part.text}".strip())
        cell["id"] = f"part-{number}"
        made.append(cell)
    return made


def notebook(page: str) -> Any:
    """Return the notebook of a page, without outputs."""
    made = v4.new_notebook(cells=cells(page))
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return made


def printed(cell: Any) -> str:
    """Return what a cell's command printed, as one text."""
    return "".join(output["text"] for output in cell.get("outputs", []) if output["output_type"] == "stream")

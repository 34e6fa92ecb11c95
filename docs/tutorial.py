"""Make the notebook of the tutorial: run its commands, and keep what they print.

    python docs/tutorial.py FOLDER     run everything in FOLDER; write tutorial.ipynb and the page's outputs
    python docs/tutorial.py --text     keep all outputs; take the text between the commands from the page

``tutorial.md`` is the source. Its ``bash`` blocks are commands. A ``python`` block is the file that its first
line names. A ``text`` block holds what the block before it printed.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from nbclient import NotebookClient
from nbformat import v4

PAGE = Path(__file__).with_name("tutorial.md")
NOTEBOOK = PAGE.with_suffix(".ipynb")
WIDEST = 400  # characters of a line
LONGEST, LAST = 140, 20  # of a longer output, only the last lines are kept
TABLE = re.compile(r"(?<=<!-- evaluation -->\n).*?(?=<!-- /evaluation -->)", re.DOTALL)
MINUTES = re.compile(r"(?<=<!-- minutes -->).*?(?=<!-- /minutes -->)")
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


def run(made: Any, folder: Path) -> None:
    """Run a notebook's cells in a folder, with the commands and the packages of this Python.

    Raises:
        CellExecutionError: a command failed.
    """
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    NotebookClient(made, timeout=None, resources={"metadata": {"path": str(folder)}}).execute()
    for cell in made.cells:
        if cell.cell_type == "code":
            text = kept(printed(cell), folder)
            cell["outputs"] = [v4.new_output("stream", name="stdout", text=text)] if text else []
            cell.metadata.clear()
    made.metadata.pop("language_info", None)


def kept(text: str, folder: Path) -> str:
    """Return an output without this machine's folders: of a bar the last state, of a long text the end."""
    names = {folder.resolve(): ".", Path(sys.prefix): ".venv", PAGE.parents[1]: "fairseq-imitkd"}
    for path, name in names.items():
        text = text.replace(str(path), name)
    lines = [line.rpartition("\r")[2].rstrip() for line in text.removesuffix("\n").split("\n")]
    lines = [line if len(line) <= WIDEST else f"{line[:WIDEST]} ..." for line in lines]
    if len(lines) > LONGEST:
        lines = [f"[... {len(lines) - LAST} lines ...]", *lines[-LAST:]]
    return "".join(f"{line}\n" for line in lines)


def with_outputs_of(former: Any, made: Any) -> Any:
    """Return a notebook with the outputs of another.

    Raises:
        SystemExit: their commands differ.
    """
    code, old = ([cell for cell in each.cells if cell.cell_type == "code"] for each in (made, former))
    if [cell.source for cell in code] != [cell.source for cell in old]:
        sys.exit(f"the commands of {PAGE.name} have changed; run them again: python docs/tutorial.py FOLDER")
    for cell, before in zip(code, old, strict=True):
        cell["outputs"], cell["execution_count"] = before["outputs"], before["execution_count"]
    return made


def with_outputs(page: str, made: Any) -> str:
    """Return the page with each ``text`` block, and the first table of the evaluation, as the notebook has
    them.
    """
    outputs = [printed(cell) for cell in made.cells if cell.cell_type == "code"]
    code = -1

    def replaced(block: re.Match[str]) -> str:
        nonlocal code
        if block[1] != "text":
            code += 1
            return block[0]
        return f"```text\n{outputs[code]}```\n"

    [evaluation] = [
        printed(cell) for cell in made.cells if "imitkd-evaluate" in cell.source and cell.cell_type == "code"
    ]
    table = re.search(r"(^\|.*\n)+", evaluation, re.MULTILINE)
    page = TABLE.sub(lambda _: f"\n{table[0] if table else ''}\n", page)
    return FENCE.sub(replaced, page)


def main() -> None:
    """Write the notebook, and the outputs on the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="an empty folder to run the commands in")
    parser.add_argument("--text", action="store_true", help="keep the outputs of the notebook")
    args = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    made = notebook(page)
    if args.text:
        made = with_outputs_of(nbformat.read(NOTEBOOK, as_version=4), made)
        PAGE.write_text(with_outputs(page, made), encoding="utf-8")
        made = with_outputs_of(made, notebook(PAGE.read_text(encoding="utf-8")))
    elif args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        run(made, args.folder)
        minutes = round((time.monotonic() - start) / 60)
        PAGE.write_text(MINUTES.sub(str(minutes), with_outputs(page, made)), encoding="utf-8")
        made = with_outputs_of(made, notebook(PAGE.read_text(encoding="utf-8")))
    else:
        parser.error("name a folder, or give --text")
    nbformat.validate(made)
    NOTEBOOK.write_text(nbformat.writes(made) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""The folder that an evaluation writes: its results, the sentences, and the translations of every model."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from fairseq_imitkd.data.output_folder import OutputFolder
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.evaluate.schema import FILE as RESULTS
from fairseq_imitkd.evaluate.sentences import Sentences
from fairseq_imitkd.evaluate.speed import Run

SOURCES, REFERENCES = "sources.txt", "references.txt"
RIGHT = "right.tsv"  # all right translations of each sentence, if --references gives them


def output_folder(out: Path) -> OutputFolder:
    """Return the output folder at a path."""
    return OutputFolder(out, "an evaluation", marks=(RESULTS,), entries=("format", "models"))


def check(out: Path) -> None:
    """Refuse a folder that an evaluation may not be written to; a former evaluation is replaced.

    Raises:
        UsageError: the folder holds something else, or can't be read.
    """
    output_folder(out).check()


def named(sentences: Sentences) -> dict[str, str]:
    """Return the names of the files with the sentences."""
    files = {"sources": SOURCES, "references": REFERENCES}
    return files if sentences.right is None else {**files, "right": RIGHT}


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Keep other runs out of the folder. An absent folder is made, and removed again if nothing is written.

    Raises:
        UsageError: the folder can't be made or written, or another run has it.
    """
    folder = output_folder(out)
    with ExitStack() as stack:
        with folder.errors():
            stack.enter_context(folder.lock())
        yield


def outputs(run: Run) -> str:
    """Return the name of the file with a model's translations."""
    name, search = run
    return f"{name}.{search.replace(' ', '')}.txt"


def write(
    out: Path, sentences: Sentences, texts: Mapping[Run, Sequence[str]], *, results: dict[str, Any]
) -> None:
    """Write all files together, the results last, and delete the translations of a former evaluation.

    A full disk leaves the former evaluation as it is. Other files in the folder stay.

    Args:
        out: the folder.
        sentences: the sentences.
        texts: the translations of each run.
        results: the content of ``evaluation.json``.

    Raises:
        UsageError: the files can't be written.
    """
    lines = {SOURCES: sentences.source_texts, REFERENCES: sentences.reference_texts}
    if sentences.right is not None:
        lines[RIGHT] = ["\t".join(texts) for texts in sentences.right]
    lines.update({outputs(run): translations for run, translations in texts.items()})
    contents = {name: "".join(f"{line}\n" for line in some) for name, some in lines.items()}
    contents[RESULTS] = json.dumps(results, indent=2) + "\n"
    former, folder = former_outputs(out), output_folder(out)
    with folder.errors(), folder.files(*contents) as files:
        for file, content in zip(files, contents.values(), strict=True):
            file.write(content.encode())
    written = {name.lower() for name in contents}  # a file system may ignore case
    for path in former:
        if path.name.lower() not in written:
            with suppress(OSError):  # nothing names it any more, so it may stay
                path.unlink(missing_ok=True)


def former_outputs(out: Path) -> list[Path]:
    """Return the translations that a former evaluation has left; nothing outside of the folder."""
    try:
        if output_folder(out).identity() is None:
            return []
        text = (out / RESULTS).read_text("utf-8")
    except (OSError, UsageError):
        return []
    return [out / name for name in re.findall(r'"outputs": "([A-Za-z0-9][\w.+-]*\.txt)"', text)]

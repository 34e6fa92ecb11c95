"""The model card of an exported student: the README.md that model hubs show."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fairseq_imitkd
from fairseq_imitkd.huggingface.written_tokens import Subwords

CARD = "README.md"
_TEXT = """\
---
library_name: transformers
pipeline_tag: text2text-generation
tags:
- distillation
---

# A small model for {source} to {target}

A small model that learned from a larger one, its teacher, with fairseq-imitkd {version}.

| | |
|---|---|
{table}

## Use

```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForSeq2SeqLM.from_pretrained("FOLDER")
batch = tokenizer([{text}], return_tensors="pt", padding=True)
print(tokenizer.batch_decode(model.generate(**batch), skip_special_tokens=True))
```
{tags}{scores}
## Checks

{checks}
"""
_TAGS = "\nEach source holds its language tags, as in this example.\n"
_SCORES = """
## Scores

| metric | score |
|---|---|
{rows}
"""


@dataclass(frozen=True)
class Origin:
    """Where a student comes from.

    Args:
        method: name of its ``--criterion``.
        teacher: name of its teacher; None if it has none.
        data: name of its data.
        arch: name of its architecture in fairseq.
        parameters: number of its parameters; shared ones count once.
    """

    method: str | None
    teacher: str | None
    data: str | None
    arch: str
    parameters: int


def origin_of(config: Any, *, arch: str, parameters: int) -> Origin:
    """Return where a student comes from, by the configuration of its checkpoint. Only names, no paths.

    Args:
        config: configuration of the training.
        arch: name of the architecture.
        parameters: number of parameters.
    """
    task = config.task
    criterion = getattr(config, "criterion", None)
    method = getattr(criterion, "_name", None) or getattr(criterion, "criterion", None) or criterion
    return Origin(
        str(method) if isinstance(method, str) else None,
        _name(getattr(task, "teacher_path", None)),
        _name(getattr(task, "data", None)),
        arch,
        parameters,
    )


def _name(path: Any) -> str | None:
    """Return the names of the files or folders that a setting joins by ``:``, without where they are. A
    checkpoint's own name says little, so its folder's comes before it.
    """
    if not isinstance(path, str) or not path:
        return None
    names = []
    for each in path.split(os.pathsep):
        parts = [part for part in Path(each).parts if part not in ("/", ".", "..")]
        names.append("/".join(parts[-2:] if each.endswith(".pt") else parts[-1:]))
    return ", ".join(filter(None, names)) or None


def write_card(
    folder: Path,
    origin: Origin,
    *,
    model: Mapping[str, Any],
    subwords: Subwords,
    pair: tuple[str, str],
    scores: Sequence[tuple[str, str]],
    checks: Sequence[str],
) -> None:
    """Write the model card.

    Args:
        folder: the exported folder.
        origin: where the student comes from.
        model: content of its ``config.json``.
        subwords: how its text is split.
        pair: source and target language.
        scores: names and values of scores.
        checks: what the export has compared, one sentence each.
    """
    table = [
        ("teacher", origin.teacher),
        ("method (`--criterion`)", origin.method),
        ("data", origin.data),
        ("languages", " → ".join(pair)),
        ("parameters", f"{origin.parameters:,}"),
        ("architecture", f"{model['architectures'][0]} (fairseq: {origin.arch})"),
    ]
    text = _TEXT.format(
        source=pair[0],
        target=pair[1],
        version=fairseq_imitkd.__version__,
        table=_rows((name, value) for name, value in table if value is not None),
        text=json.dumps(subwords.with_tags("TEXT"), ensure_ascii=False),
        tags=_TAGS if subwords.with_tags("") else "",
        scores=_SCORES.format(rows=_rows(scores)) if scores else "",
        checks="\n".join(f"- {check}" for check in checks),
    )
    (folder / CARD).write_text(text, encoding="utf-8")


def _rows(cells: Iterable[tuple[str, str]]) -> str:
    """Return the rows of a table of two columns."""
    return "\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in cells)


def _cell(value: str) -> str:
    """Return text for a cell of a table."""
    return " ".join(value.replace("|", "\\|").split())

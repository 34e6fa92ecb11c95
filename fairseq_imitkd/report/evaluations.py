"""Reads the folders that ``imitkd-evaluate`` has written. Anything in them may be missing."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fairseq_imitkd.data.files import kind_of
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.evaluate import schema
from fairseq_imitkd.evaluate.schema import FILE, EvaluationResults, Machine, ModelResults

# Title of each metric, whether a higher value is better, and decimal places.
METRICS = {
    "bleu": ("BLEU", True, 2),
    "chrf": ("chrF", True, 2),
    "ter": ("TER", False, 2),
    "rouge1": ("ROUGE-1", True, 4),
    "rouge2": ("ROUGE-2", True, 4),
    "rougeL": ("ROUGE-L", True, 4),
    "comet": ("COMET", True, 4),
}


@dataclass
class Evaluation:
    """Models on one test set.

    Args:
        path: folder of the evaluation.
        results: content of its file.
        notes: remarks for readers, one line each.
    """

    path: Path
    results: EvaluationResults
    notes: list[str] = field(default_factory=list)

    @property
    def models(self) -> dict[str, ModelResults]:
        """The models by name."""
        return self.results.models

    @property
    def baseline(self) -> str | None:
        """The name of the model that the others are compared with."""
        return self.results.baseline if self.results.baseline in self.models else None

    @property
    def teacher(self) -> str | None:
        """The name of the model that the others are students of."""
        return self.results.teacher if self.results.teacher in self.models else None

    @property
    def data(self) -> str:
        """What was translated, in words."""
        data = self.results.data
        parts = [
            f"{data.sentences:,} sentences" if data.sentences is not None else "",
            f"of {data.split}" if data.split else "",
            f"from {data.source_lang} to {data.target_lang}" if data.source_lang and data.target_lang else "",
        ]
        return " ".join(part for part in parts if part)

    @property
    def languages(self) -> tuple[str, str]:
        """The codes of source and target language; empty text if unknown."""
        return self.results.data.source_lang or "", self.results.data.target_lang or ""

    @property
    def signatures(self) -> dict[str, str]:
        """What a reader needs to get the same numbers, by title."""
        results = self.results
        found = {METRICS.get(name, (name,))[0]: value for name, value in results.signatures.items()}
        if results.data.unknown_words:
            found["references"] = f"{results.data.unknown_words:,} unknown words, which match no translation"
        found["machine"] = _machine(results.machine)
        found["versions"] = ", ".join(f"{name} {number}" for name, number in results.versions.items())
        found |= {"commit": results.commit or "", "command": results.command}
        return {name: value for name, value in found.items() if value}

    def lines(self, name: str | None) -> list[str] | None:
        """Return the lines of one of the folder's files; None if the file does not exist.

        A name that leads out of the folder is ignored. A file that can't be read makes a note.

        Args:
            name: name of the file as the evaluation gives it.
        """
        if not name or not name.isprintable() or Path(name).name != name:
            return None
        path = self.path / name
        try:
            return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        except OSError as error:
            self.notes.append(f"'{path}' can't be read ({error.strerror}), so there are no examples of it")
            return None


def read_evaluations(paths: Iterable[Path]) -> tuple[list[Evaluation], list[str]]:
    """Read all evaluations that can be read.

    Args:
        paths: folders of evaluations.

    Returns:
        the evaluations, and a line for each folder that can't be read.
    """
    found: dict[Path, Evaluation] = {}
    notes = []
    for path in paths:
        if path.resolve() in found:
            notes.append(f"--evaluation '{path}' is given twice; it is shown once")
            continue
        try:
            found[path.resolve()] = read_evaluation(path)
        except UsageError as error:
            notes.append(str(error))
    return list(found.values()), notes


def check_evaluation(path: Path) -> None:
    """Check that a folder is that of an evaluation.

    Raises:
        UsageError: it has no ``evaluation.json``.
    """
    if kind_of(path / FILE, "--evaluation") != "file":
        inner = path / "evaluation"  # a run of imitkd-distill has it
        if (inner / FILE).is_file():
            raise UsageError(f"--evaluation '{path}' is not an evaluation: did you mean {inner}?")
        raise UsageError(
            f"--evaluation '{path}' has no {FILE}; use the --out folder of imitkd-evaluate, or leave it out"
        )


def read_evaluation(path: Path) -> Evaluation:
    """Read the evaluation of a folder.

    Raises:
        UsageError: its file is missing, damaged or of another format.
    """
    file = path / FILE
    results = schema.read(file, f"--evaluation '{file}'")
    notes = [f"'{file}' says that {name} failed {why}" for name, why in results.failed.items()]
    return Evaluation(path, results, notes)


def _machine(machine: Machine) -> str:
    parts = [machine.processor or ""]
    for count, what in ((machine.cores, "core"), (machine.threads, "thread")):
        parts.append("" if count is None else f"{count} {what}{'' if count == 1 else 's'}")
    return ", ".join(part for part in parts if part)

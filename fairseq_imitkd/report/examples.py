"""Translations side by side: those that are worst beside the baseline's, and how each differs from the reference."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from sacrebleu.metrics import CHRF

from fairseq_imitkd.report.evaluations import Evaluation

COUNT = 12
LONGEST = 150  # words of a sentence that are shown


@dataclass(frozen=True)
class Output:
    """A model's translation: its sentence chrF, and runs of words, each "both", "extra" or "missing"."""

    name: str
    chrf: float
    parts: list[tuple[str, str]]


@dataclass(frozen=True)
class Example:
    """A sentence, and what every model makes of it; ``drop`` is the most that one loses against the baseline."""

    number: int
    source: str
    reference: str
    outputs: list[Output]
    worst: str
    drop: float | None

    @property
    def chrf(self) -> float:
        """Of the worst."""
        return next(output.chrf for output in self.outputs if output.name == self.worst)


def examples(evaluation: Evaluation, count: int = COUNT) -> list[Example]:
    """The sentences with the worst regressions, the worst first; without a baseline, the worst translations.

    What can't be read makes a note of the evaluation.
    """
    references, sources = evaluation.lines("references"), evaluation.lines("sources")
    if not references:
        return []
    texts = {}
    for name, model in evaluation.models.items():
        path = model.first.outputs if model.first else None
        lines = evaluation.read(path) if path else None
        if lines is not None and len(lines) != len(references):
            counts = f"{len(lines):,} lines, but there are {len(references):,} references"
            evaluation.notes.append(f"'{path}' has {counts}: there are no examples of it")
        elif lines is not None:
            texts[name] = lines
    if not texts:
        return []
    chrf = CHRF()
    scores = {
        name: [
            chrf.sentence_score(text, [reference]).score
            for text, reference in zip(lines, references, strict=True)
        ]
        for name, lines in texts.items()
    }
    base = evaluation.baseline.name if evaluation.baseline and evaluation.baseline.name in texts else None
    teacher = evaluation.teacher.name if evaluation.teacher else None
    others = [name for name in texts if name not in (base, teacher)] or [
        name for name in texts if name != base
    ]
    if not others:
        base, others = None, list(texts)
    found = []
    for number, reference in enumerate(references):
        worst = min(others, key=lambda name: scores[name][number])
        drop = None if base is None else scores[base][number] - scores[worst][number]
        if drop is not None and drop <= 0:
            continue
        rank = -scores[worst][number] if drop is None else drop
        found.append((rank, number, worst, drop, reference))
    found.sort(key=lambda each: (-each[0], each[1]))
    chosen = []
    for _, number, worst, drop, reference in found[:count]:
        outputs = [
            Output(name, scores[name][number], compared(reference, lines[number]))
            for name, lines in texts.items()
        ]
        source = sources[number] if sources and number < len(sources) else ""
        chosen.append(Example(number, source, reference, outputs, worst, drop))
    return chosen


def compared(reference: str, text: str) -> list[tuple[str, str]]:
    """What would make a reference a translation: words that both have, extra ones, and missing ones, in order."""
    wanted, words = _words(reference), _words(text)
    parts: list[tuple[str, str]] = []
    for kind, a, b, c, d in SequenceMatcher(None, wanted, words, autojunk=False).get_opcodes():
        if kind == "equal":
            parts.append(("both", " ".join(words[c:d])))
            continue
        parts += [("missing", " ".join(wanted[a:b]))] if a < b else []
        parts += [("extra", " ".join(words[c:d]))] if c < d else []
    return parts


def _words(text: str) -> Sequence[str]:
    words = text.split()
    return words if len(words) <= LONGEST else [*words[:LONGEST], "…"]

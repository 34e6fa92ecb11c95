"""The worst translations side by side, and how each differs from its reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from sacrebleu.metrics import CHRF

from fairseq_imitkd.report.evaluations import Evaluation
from fairseq_imitkd.text.scored import readable

COUNT = 12
LONGEST = 150  # words of a sentence that are shown


@dataclass(frozen=True)
class Output:
    """A model's translation.

    Args:
        name: name of the model.
        chrf: chrF of the sentence.
        parts: runs of words, each with its kind: "both", "extra" or "missing".
    """

    name: str
    chrf: float
    parts: list[tuple[str, str]]


@dataclass(frozen=True)
class Example:
    """A sentence and its translations.

    Args:
        number: number of the sentence.
        source, reference: its texts.
        outputs: the translations of all models.
        worst: name of the model with the worst one.
        drop: chrF that it loses against the baseline; None without a baseline.
    """

    number: int
    source: str
    reference: str
    outputs: list[Output]
    worst: str
    drop: float | None

    @property
    def chrf(self) -> float:
        """The worst translation's chrF."""
        return next(output.chrf for output in self.outputs if output.name == self.worst)


def examples(evaluation: Evaluation, count: int = COUNT) -> list[Example]:
    """Return the sentences with the worst regressions, the worst first; without a baseline, the worst
    translations.

    A file that can't be read makes a note of the evaluation.
    """
    files = evaluation.results.files
    references, sources = evaluation.lines(files.get("references")), evaluation.lines(files.get("sources"))
    texts = _outputs(evaluation, references) if references else {}
    if not references or not texts:
        return []
    chrf = CHRF()
    scores = {
        name: [
            chrf.sentence_score(text, [reference]).score
            for text, reference in zip(lines, references, strict=True)
        ]
        for name, lines in texts.items()
    }
    found = []
    for number, worst, drop in _ranked(evaluation, scores)[:count]:
        reference = references[number]
        outputs = [
            Output(name, scores[name][number], _readable(compared(reference, lines[number])))
            for name, lines in texts.items()
        ]
        source = sources[number] if sources and number < len(sources) else ""
        found.append(Example(number, source, readable(reference), outputs, worst, drop))
    return found


def _readable(parts: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(kind, readable(words)) for kind, words in parts]


def _outputs(evaluation: Evaluation, references: Sequence[str]) -> dict[str, list[str]]:
    """Return the translations of each model whose file has a line for each reference."""
    texts = {}
    for name, model in evaluation.models.items():
        file = model.main.outputs if model.main else None
        lines = evaluation.lines(file)
        if lines is not None and len(lines) != len(references):
            counts = f"{len(lines):,} lines, but there are {len(references):,} references"
            evaluation.notes.append(
                f"'{evaluation.path / str(file)}' has {counts}, so there are no examples of it"
            )
        elif lines is not None:
            texts[name] = lines
    return texts


def _ranked(
    evaluation: Evaluation, scores: Mapping[str, Sequence[float]]
) -> list[tuple[int, str, float | None]]:
    """Return sentences, the worst first, each with the name of the worst model and what it loses.

    Args:
        evaluation: names the baseline and the teacher, which are not candidates if there are others.
        scores: chrF of each sentence by model.
    """
    base = evaluation.baseline if evaluation.baseline in scores else None
    candidates = [name for name in scores if name not in (base, evaluation.teacher)]
    candidates = candidates or [name for name in scores if name != base]
    if not candidates:
        base, candidates = None, list(scores)
    ranked: list[tuple[float, int, str, float | None]] = []
    for number in range(len(scores[candidates[0]])):
        worst = min(candidates, key=lambda name: scores[name][number])
        drop = None if base is None else scores[base][number] - scores[worst][number]
        if drop is None or drop > 0:
            ranked.append((scores[worst][number] if drop is None else -drop, number, worst, drop))
    ranked.sort(key=lambda each: each[:2])
    return [(number, worst, drop) for _, number, worst, drop in ranked]


def compared(reference: str, text: str) -> list[tuple[str, str]]:
    """Return the words of reference and translation in order: those of both, extra ones and missing ones."""
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

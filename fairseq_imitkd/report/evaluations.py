"""What ``imitkd-evaluate`` has written, as far as it is there: every figure may be missing."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq_imitkd.errors import UsageError

FILE, FORMAT, GREEDY = "evaluation.json", 1, "greedy"
# Scores by their keys: what they are called, whether more is better, and decimal places.
METRICS = {
    "bleu": ("BLEU", True, 2), "chrf": ("chrF", True, 2), "ter": ("TER", False, 2), "rouge1": ("ROUGE-1", True, 4),
    "rouge2": ("ROUGE-2", True, 4), "rougeL": ("ROUGE-L", True, 4), "comet": ("COMET", True, 4),
}  # fmt: skip
LARGEST = 1e15  # beyond, a number is none of these, and no axis is long enough for it
Group = tuple[int, int | None]  # of tokens: from, to
EXPOSURE = ("student", "student_then_teacher", "teacher_then_student", "teacher")


@dataclass(frozen=True)
class Score:
    """A score, its 95% interval, and p of its difference from the baseline's."""

    score: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class Speed:
    """How fast a model decodes; ``times`` is the baseline's speed, ``low`` to ``high`` its quartiles."""

    sentences: float
    tokens: float | None = None
    times: float | None = None
    low: float | None = None
    high: float | None = None
    p50: float | None = None
    p95: float | None = None


@dataclass(frozen=True)
class Decoding:
    """A model's translations by one search."""

    scores: dict[str, Score]
    faults: dict[str, int]
    by_length: dict[Group, tuple[int, float]]  # by tokens of the source: sentences, BLEU
    speed: Speed | None
    outputs: Path | None

    @property
    def bleu(self) -> Score | None:
        """The score that everything is drawn by."""
        return self.scores.get("bleu")


@dataclass(frozen=True)
class Model:
    """A model. ``speeds`` are of greedy decoding, by sentences of a batch; ``drift`` is agreement by position in the target."""

    name: str
    kind: str
    quantization: str
    arch: str
    parameters: float | None
    size: float | None
    memory: float | None
    decodings: dict[str, Decoding]
    speeds: dict[int, Speed]
    probes: dict[str, float]
    drift: dict[Group, tuple[float, float]]  # after the references' prefixes and after its own

    @property
    def first(self) -> Decoding | None:
        """Greedy decoding, or what there is instead."""
        return self.decodings.get(GREEDY) or next(iter(self.decodings.values()), None)

    @property
    def batch(self) -> int | None:
        """The largest batch that was timed."""
        return max(self.speeds, default=None)

    def fast(self, search: str) -> Speed | None:
        """The speed of a search with that batch."""
        found = self.decodings[search].speed if search in self.decodings else None
        return found or (self.speeds[max(self.speeds)] if search == GREEDY and self.speeds else None)


@dataclass
class Evaluation:
    """Models on one test set.

    Args:
        path: its folder.
        content: all of its file.
        models: by name.
        notes: what a reader should know about it, each a line.
    """

    path: Path
    content: dict[str, Any]
    models: dict[str, Model]
    notes: list[str] = field(default_factory=list)

    @property
    def baseline(self) -> Model | None:
        """The one that others are compared with."""
        return self.models.get(str(self.content.get("baseline")))

    @property
    def teacher(self) -> Model | None:
        """The one that others have learnt from."""
        return self.models.get(str(self.content.get("teacher")))

    @property
    def data(self) -> str:
        """What was translated, in words."""
        found = _dict(self.content.get("data"))
        count, languages = (
            _number(found.get("sentences")),
            [found.get(f"{side}_lang") for side in ("source", "target")],
        )
        parts = [
            f"{count:,.0f} sentences" if count is not None else "",
            f"of {found['split']}" if found.get("split") else "",
        ]
        if all(languages):
            parts.append("from {} to {}".format(*languages))
        return " ".join(part for part in parts if part)

    @property
    def languages(self) -> tuple[str, str]:
        """Codes of both, or nothing."""
        found = _dict(self.content.get("data"))
        return str(found.get("source_lang") or ""), str(found.get("target_lang") or "")

    @property
    def signatures(self) -> dict[str, str]:
        """Everything that a reader needs to get the same numbers, by what it is."""
        machine, versions = _dict(self.content.get("machine")), _dict(self.content.get("versions"))
        found = {
            METRICS.get(name, (name,))[0]: value
            for name, value in _dict(self.content.get("signatures")).items()
        }
        parts = [machine.get("processor"), *(_counted(machine, each) for each in ("core", "thread"))]
        found["machine"] = ", ".join(str(part) for part in parts if part)
        found["versions"] = ", ".join(f"{name} {number}" for name, number in versions.items())
        found.update({name: self.content.get(name) for name in ("commit", "command")})
        return {str(name): str(value) for name, value in found.items() if value}

    def lines(self, kind: str) -> list[str] | None:
        """``sources`` or ``references``, if they are there."""
        name = _dict(self.content.get("files")).get(kind)
        path = _inside(self.path, name)
        return self.read(path) if path else None

    def read(self, path: Path) -> list[str] | None:
        """The lines of one of its files; what can't be read makes a note."""
        try:
            return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        except OSError as error:
            self.notes.append(f"'{path}' can't be read ({error.strerror}): there are no examples of it")
            return None


def read_evaluations(paths: Iterable[Path]) -> tuple[list[Evaluation], list[str]]:
    """All evaluations that can be read, and a line about each that can't."""
    found: dict[Path, Evaluation] = {}
    notes = []
    for path in paths:
        if path.resolve() in found:
            notes.append(f"--evaluation '{path}' is there twice; it is shown once")
            continue
        try:
            found[path.resolve()] = read_evaluation(path)
        except UsageError as error:
            notes.append(str(error))
    return list(found.values()), notes


def read_evaluation(path: Path) -> Evaluation:
    """One evaluation.

    Args:
        path: its folder.

    Raises:
        UsageError: it is damaged, of another format or not there.
    """
    file = path / FILE
    remedy = "let imitkd-evaluate write it again"
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UsageError(
            f"--evaluation '{file}' can't be read ({error.strerror}): give imitkd-evaluate's --out"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--evaluation '{file}' is damaged, it is no JSON: {remedy}") from error
    form = content.get("format") if isinstance(content, dict) else None
    if form != FORMAT:
        raise UsageError(
            f"--evaluation '{file}' must be of format {FORMAT}, but is of {form!r}"[:300] + f": {remedy}"
        )
    models = {name: _model(path, name, model) for name, model in _dict(content.get("models")).items()}
    if not any(model.decodings or model.speeds or model.probes for model in models.values()):
        raise UsageError(f"--evaluation '{file}' has no figures of any model: {remedy}")
    failed = [f"'{file}' says that {name} failed {why}" for name, why in _dict(content.get("failed")).items()]
    return Evaluation(path, content, models, failed)


def _model(path: Path, name: str, content: Any) -> Model:
    content = _dict(content)
    probes = _dict(content.get("probes"))
    flat = {
        **{name: probes.get(name) for name in probes if name != "exposure"},
        **_dict(probes.get("exposure")),
    }
    sizes = {
        size: _speed(speed)
        for size, speed in _dict(content.get("speed")).items()
        if size.isdecimal() and len(size) < 10
    }
    kind, quantization, arch = (str(content.get(each) or "") for each in ("kind", "quantization", "arch"))
    parameters, size, memory = (
        _number(content.get(each)) for each in ("parameters", "bytes", "peak_memory_bytes")
    )
    return Model(
        name, kind, quantization, arch, parameters, size, memory,
        {search: _decoding(path, found) for search, found in _dict(content.get("decoding")).items()},
        {int(size): speed for size, speed in sorted(sizes.items(), key=lambda each: int(each[0])) if speed},
        {name: number for name, value in flat.items() if (number := _number(value)) is not None},
        _drift(probes.get("by_position")),
    )  # fmt: skip


def _decoding(path: Path, content: Any) -> Decoding:
    content = _dict(content)
    scores = {metric: score for metric in METRICS if (score := _score(content.get(metric)))}
    faults = {name: _number(content.get(name)) for name in ("empty", "truncated", "repeating")}
    groups = {}
    for group, figures in _groups(content.get("by_length")):
        count, bleu = (_number(figures.get(name)) for name in ("sentences", "bleu"))
        if bleu is not None:
            groups[group] = int(count or 0), bleu
    return Decoding(
        scores, {name: int(count) for name, count in faults.items() if count is not None}, groups,
        _speed(content.get("speed")), _inside(path, content.get("outputs")),
    )  # fmt: skip


def _drift(content: Any) -> dict[Group, tuple[float, float]]:
    drift = {}
    for group, figures in _groups(content):
        gold, own = (_number(_dict(figures.get(prefix)).get("agreement")) for prefix in ("gold", "own"))
        if gold is not None and own is not None:
            drift[group] = gold, own
    return drift


def _groups(content: Any) -> Iterator[tuple[Group, dict[str, Any]]]:
    """Of a list of figures by length those that say of which."""
    for figures in map(_dict, content if isinstance(content, list) else []):
        first, last = (_number(figures.get(name)) for name in ("from", "to"))
        if first is not None:
            yield (int(first), None if last is None else int(last)), figures


def _score(content: Any) -> Score | None:
    score, low, high, p = (_number(_dict(content).get(name)) for name in ("score", "low", "high", "p"))
    return None if score is None else Score(score, low, high, p)


def _speed(content: Any) -> Speed | None:
    content = _dict(content)
    sentences, tokens = (_number(content.get(f"{of}_per_second")) for of in ("sentences", "tokens"))
    times = [_number(_dict(content.get("times_baseline")).get(name)) for name in ("median", "low", "high")]
    latencies = [_number(content.get(name)) for name in ("p50_ms", "p95_ms")]
    return Speed(sentences, tokens, *times, *latencies) if sentences and sentences > 1 / LARGEST else None


def _inside(path: Path, name: Any) -> Path | None:
    """A file of the folder itself, whatever a name says."""
    if not isinstance(name, str) or not name.isprintable() or not name or Path(name).name != name:
        return None
    return path / name


def _counted(machine: dict[str, Any], what: str) -> str:
    count = machine.get(f"{what}s")
    return "" if count is None else f"{count} {what}{'' if count == 1 else 's'}"


def _dict(content: Any) -> dict[str, Any]:
    return content if isinstance(content, dict) else {}


def _number(content: Any) -> float | None:
    """A number that can be drawn."""
    if isinstance(content, bool) or not isinstance(content, int | float):
        return None
    return (
        float(content) if abs(content) < LARGEST else None
    )  # so is no infinity, and not a number that is none

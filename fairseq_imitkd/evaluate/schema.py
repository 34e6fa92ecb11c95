"""The content of ``evaluation.json``: what imitkd-evaluate writes, and what its Markdown and imitkd-report
read.
"""

import json
import types
import typing
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from fairseq_imitkd.errors import UsageError

FILE, FORMAT = "evaluation.json", 1
GREEDY = "greedy"  # name of the search that every model decodes by; others are such as "beam 5"
# Metrics by their keys in the file.
ROUGE = ("rouge1", "rouge2", "rougeL")
METRICS = ("bleu", "chrf", "ter", *ROUGE, "comet")
# Keys of ProbeResults.exposure: who writes the first half of a translation, and then the second.
EXPOSURE = ("student", "student_then_teacher", "teacher_then_student", "teacher")
# Keys of ModelResults.drafts: how both models decode.
DRAFTS = ("greedy", "sampling")
LARGEST = 1e15  # larger numbers are implausible, and no axis of a figure can show them

# Metadata of fields: the field's name in the file; that the file lacks it where there is nothing to say.
_FROM, _TO = {"key": "from"}, {"key": "to"}
_LEFT_OUT = {"left_out": True}

Read = TypeVar("Read")


@dataclass(frozen=True)
class QualityScore:
    """A metric's value, and how much of it may be chance; COMET has the value alone.

    Args:
        score: the value.
        low, high: its 95% interval.
        p: p of its difference from the baseline's.
        difference_low, difference_high: 95% interval of this difference. Files of early versions have none.
    """

    score: float
    low: float | None = field(default=None, metadata=_LEFT_OUT)
    high: float | None = field(default=None, metadata=_LEFT_OUT)
    p: float | None = None
    difference_low: float | None = field(default=None, metadata=_LEFT_OUT)
    difference_high: float | None = field(default=None, metadata=_LEFT_OUT)


@dataclass(frozen=True)
class Quartiles:
    """The median, and the quartiles around it."""

    median: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Rounds:
    """Sentences a second of each batch.

    Args:
        count: number of batches.
        median, low, high: as of :class:`Quartiles`.
    """

    count: int
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class SpeedResult:
    """How fast a model decodes batches of one size.

    Args:
        sentences_per_second, tokens_per_second: totals over the total time; tokens are those of the output.
        decoding: name of the search.
        batch_size: sentences of a batch; given only with a beam search's results.
        rounds: rates of the single batches.
        times_baseline: speed in multiples of the baseline's, from the same batches.
        p50_ms, p95_ms: percentiles of a sentence's time, for batches of one sentence.
    """

    batch_size: int | None = field(default=None, metadata=_LEFT_OUT, kw_only=True)
    decoding: str | None = field(default=None, kw_only=True)
    sentences_per_second: float
    tokens_per_second: float | None = None
    rounds: Rounds | None = None
    times_baseline: Quartiles | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None

    @property
    def rate(self) -> float:
        """Sentences a second of the median batch, which the quartiles of :attr:`rounds` surround; the total
        rate if single batches are unknown.
        """
        return self.rounds.median if self.rounds else self.sentences_per_second


@dataclass(frozen=True)
class LengthGroup:
    """BLEU of the sentences whose sources have ``first`` to ``last`` tokens; ``last`` is None for the
    longest.
    """

    first: int = field(metadata=_FROM)
    last: int | None = field(metadata=_TO)
    sentences: int
    bleu: float


@dataclass(frozen=True)
class SearchResults:
    """A model's translations by one search.

    Args:
        scores: values by metric, some of :data:`METRICS`; in the file they stand beside the other fields.
        empty, truncated, repeating: numbers of translations that are visibly wrong.
        by_length: BLEU by length of the source.
        outputs: name of the file of the translations.
        speed: at the largest batch size; None for greedy decoding, whose speeds are the model's.
    """

    scores: dict[str, QualityScore] = field(default_factory=dict, metadata={"inline": METRICS})
    empty: int | None = None
    truncated: int | None = None
    repeating: int | None = None
    by_length: list[LengthGroup] = field(default_factory=list)
    outputs: str | None = None
    speed: SpeedResult | None = field(default=None, metadata=_LEFT_OUT)

    @property
    def bleu(self) -> QualityScore | None:
        """The main score."""
        return self.scores.get("bleu")


@dataclass(frozen=True)
class TeacherDistance:
    """How student and teacher differ after some prefixes.

    Args:
        tokens: number of prefixes.
        agreement: share of prefixes after which both find the same token the most probable.
        kl: mean of KL(teacher || student), in nats.
        nll: mean of the teacher's negative log-likelihood of the next token, in nats. Files of early versions
            have none.
    """

    tokens: int | None = field(default=None, kw_only=True)
    agreement: float
    kl: float | None = None
    nll: float | None = field(default=None, metadata=_LEFT_OUT)


@dataclass(frozen=True)
class PositionGroup:
    """Distances at the target's tokens ``first`` to ``last``, after the reference's prefixes and the
    student's own.
    """

    first: int = field(metadata=_FROM)
    last: int | None = field(metadata=_TO)
    gold: TeacherDistance
    own: TeacherDistance


@dataclass(frozen=True)
class ProbeResults:
    """What a teacher says about a student.

    Args:
        agreement_gold, kl_gold: distance after the references' prefixes, as of :class:`TeacherDistance`.
        agreement_own, kl_own: distance after the student's own prefixes.
        nll_gold, nll_own: the teacher's negative log-likelihood of the references and of the student's own
            translations, as of :class:`TeacherDistance`.
        by_position: the same by position. Files of early versions have none.
        exposure: BLEU of translations that one begins and another completes, by :data:`EXPOSURE`.
    """

    agreement_gold: float | None = None
    agreement_own: float | None = None
    kl_gold: float | None = None
    kl_own: float | None = None
    nll_gold: float | None = field(default=None, metadata=_LEFT_OUT)
    nll_own: float | None = field(default=None, metadata=_LEFT_OUT)
    by_position: list[PositionGroup] = field(default_factory=list)
    exposure: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DraftResults:
    """A student as the draft of its teacher in speculative decoding.

    Args:
        tokens: number of tokens of the teacher's outputs, on whose prefixes the student drafts.
        acceptance: mean probability that the teacher accepts a drafted token, in 0..1.
        length: number of tokens in a draft: that of the greatest ``speedup``.
        tokens_per_call: tokens that a pass of the teacher yields with such drafts, counted on these outputs.
        cost: time of a token of the student divided by that of the teacher.
        speedup: how many times as fast as the teacher alone, by the formula of Leviathan et al. 2023.
    """

    tokens: int
    acceptance: float
    length: int
    tokens_per_call: float
    cost: float
    speedup: float


@dataclass
class ModelResults:
    """One model.

    Args:
        kind: ``fairseq``, or one of :data:`~fairseq_imitkd.engines.registry.CONVERTERS`.
        quantization: type of an exported student's weights.
        path: name of its file or folder.
        arch: name of its architecture.
        parameters: their number; shared ones count once.
        bytes: size on disk.
        weight_bytes: size of a checkpoint's weights alone.
        peak_memory_bytes: memory that loading it and decoding a batch adds to a process.
        searches: translations by name of the search.
        speeds: speed of greedy decoding by batch size.
        probes: what the teacher says about it, if it is a student.
        drafts: how the teacher accepts its drafts, by :data:`DRAFTS`. Files of early versions have none.
    """

    kind: str | None = None
    quantization: str | None = None
    path: str | None = None
    arch: str | None = None
    parameters: int | None = None
    bytes: int | None = None
    weight_bytes: int | None = None
    peak_memory_bytes: int | None = None
    searches: dict[str, SearchResults] = field(default_factory=dict, metadata={"key": "decoding"})
    speeds: dict[int, SpeedResult] = field(default_factory=dict, metadata={"key": "speed"})
    probes: ProbeResults | None = None
    drafts: dict[str, DraftResults] = field(default_factory=dict, metadata=_LEFT_OUT)

    @property
    def served_bytes(self) -> int | None:
        """Size of what is needed to translate: a checkpoint's weights, without the optimiser's state, or all
        files of an exported student.
        """
        return self.bytes if self.weight_bytes is None else self.weight_bytes

    @property
    def is_exported(self) -> bool:
        """Whether it is a folder of ``imitkd-export``."""
        return self.kind not in (None, "fairseq")

    @property
    def main_search(self) -> str | None:
        """Greedy decoding, or what there is instead."""
        return GREEDY if GREEDY in self.searches else next(iter(self.searches), None)

    @property
    def main(self) -> SearchResults | None:
        """The results of :attr:`main_search`."""
        return self.searches[self.main_search] if self.main_search else None

    @property
    def batch(self) -> int | None:
        """The largest batch size that was timed."""
        return max(self.speeds, default=None)

    def speed(self, search: str) -> SpeedResult | None:
        """Return a search's speed at that batch size."""
        found = self.searches[search].speed if search in self.searches else None
        return found or (self.speeds.get(self.batch or 0) if search == GREEDY else None)


@dataclass(frozen=True)
class Machine:
    """What computed, and on how many threads."""

    processor: str | None = None
    cores: int | None = None
    threads: int | None = None


@dataclass(frozen=True)
class EvaluatedData:
    """What was translated.

    Args:
        split: name of the split.
        source_lang, target_lang: its languages.
        sentences: number of its sentences.
        unknown_words: number of the references' words that the dictionary lacks. They match no translation.
            The text of ``--references`` has none. Files of early versions do not have the number.
        probe_sentences: number of the probes' sentences.
    """

    split: str | None = None
    source_lang: str | None = None
    target_lang: str | None = None
    sentences: int | None = None
    unknown_words: int | None = field(default=None, metadata=_LEFT_OUT)
    probe_sentences: int | None = None


@dataclass(frozen=True)
class Seconds:
    """The time that was spent in decoding, in the probes, and in all."""

    decoding: float | None = None
    probes: float | None = None
    total: float | None = None


@dataclass
class EvaluationResults:
    """Models on one test set.

    Args:
        command: command line.
        commit: commit of this package, if it is a checkout.
        versions: versions of packages by name.
        machine: what computed.
        data: what was translated.
        baseline: name of the model that the others are compared with.
        teacher: name of the model that the others are students of.
        signatures: exact settings of each metric.
        files: names of the files of ``sources`` and ``references``, and of all ``right`` translations.
        models: results by name.
        failed: why models or metrics failed, by name.
        seconds: time that was spent.
    """

    command: str = ""
    commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    machine: Machine = field(default_factory=Machine)
    data: EvaluatedData = field(default_factory=EvaluatedData)
    baseline: str | None = None
    teacher: str | None = None
    signatures: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    models: dict[str, ModelResults] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: Seconds = field(default_factory=Seconds)


def to_json(results: EvaluationResults) -> dict[str, Any]:
    """Return the content of the file."""
    return {"format": FORMAT, **plain(results)}


def from_json(content: Any, name: str) -> EvaluationResults:
    """Check a file's content and return it. A figure that is missing or odd is left out, with what needs it.

    Args:
        content: whatever the file holds.
        name: name of the file for messages.

    Raises:
        UsageError: the format is another one, or there are no results of any model.
    """
    form = content.get("format") if isinstance(content, dict) else None
    remedy = "let imitkd-evaluate write it again"
    if form is True or form != FORMAT:  # True equals 1
        raise UsageError(f"{name} must have format {FORMAT}, but has {form!r}"[:300] + f"; {remedy}")
    results = _read(EvaluationResults, content)
    if results is None or not any(
        model.searches or model.speeds or model.probes for model in results.models.values()
    ):
        raise UsageError(f"{name} has no results of any model; {remedy}")
    if "right" in results.files and results.data.unknown_words:
        # Early versions counted those of the data, which no score has read beside --references.
        results.data = replace(results.data, unknown_words=0)
    return results


def read(path: Path, name: str) -> EvaluationResults:
    """Read a file.

    Args:
        path: the file.
        name: name of the file for messages.

    Raises:
        UsageError: the file can't be read, is not JSON, or is refused by :func:`from_json`.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{name} can't be read ({error.strerror}); use imitkd-evaluate's --out") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not JSON; let imitkd-evaluate write it again") from error
    return from_json(content, name)


def plain(value: Any) -> Any:
    """Return a value in JSON's types, dataclasses by their fields."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if not is_dataclass(value):
        return value
    if isinstance(value, QualityScore) and value == QualityScore(value.score):
        return {"score": value.score}
    found: dict[str, Any] = {}
    for each in fields(value):
        content = plain(getattr(value, each.name))
        if "inline" in each.metadata:
            found.update(content)
        elif content not in (None, {}) or "left_out" not in each.metadata:
            found[each.metadata.get("key", each.name)] = content
    return found


def _read(kind: type[Read], content: Any) -> Read | None:
    """Return a dataclass from an object of JSON; None if a field without a default is missing or odd."""
    if not isinstance(content, dict):
        return None
    hints, given = typing.get_type_hints(kind), dict[str, Any]()
    for each in fields(kind):  # type: ignore[arg-type]
        if "inline" in each.metadata:
            own: Any = {key: content[key] for key in each.metadata["inline"] if key in content}
        else:
            own = content.get(each.metadata.get("key", each.name))
        value = _value(hints[each.name], own)
        has_default = each.default is not MISSING or each.default_factory is not MISSING
        if value is not None:
            given[each.name] = value
        elif not has_default:
            if type(None) not in typing.get_args(hints[each.name]):
                return None
            given[each.name] = None
    return kind(**given)


def _value(hint: Any, content: Any) -> Any:
    """Return what a type hint asks for; None if the content is not that."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:  # X | None
        return _value(inner[0], content)
    if origin is dict:
        return _dict(inner[0], inner[1], content if isinstance(content, dict) else {})
    if origin is list:
        values = [_value(inner[0], value) for value in content] if isinstance(content, list) else []
        return [value for value in values if value is not None]
    if hint is str:
        return content if isinstance(content, str) else None
    if hint in (int, float):
        return _number(hint, content)
    found = _read(hint, content)
    return None if any(rate is not None and rate <= 1 / LARGEST for rate in _rates(found)) else found


def _rates(found: Any) -> tuple[float | None, ...]:
    """Return what figures divide by, or draw on an axis without zero."""
    if isinstance(found, SpeedResult):
        return (found.sentences_per_second,)
    return (found.median, found.low, found.high) if isinstance(found, Rounds | Quartiles) else ()


def _dict(key_hint: type, hint: Any, content: dict[str, Any]) -> dict[Any, Any]:
    """Return the entries that are as the hints ask for; those with numbers as keys are sorted."""
    found: dict[Any, Any] = {}
    for name, value in content.items():
        key = _dict_key(key_hint, name)
        read = None if key is None else _value(hint, value)
        if read is not None:
            found[key] = read
    return dict(sorted(found.items())) if key_hint is int else found


def _dict_key(hint: type, key: str) -> str | int | None:
    if hint is not int:
        return key
    return int(key) if key.isdecimal() and len(key) < 10 else None


def _number(hint: type, content: Any) -> int | float | None:
    """Return a number that a figure has room for; NaN, infinities and what is not a number are None."""
    if isinstance(content, bool) or not isinstance(content, int | float) or not abs(content) < LARGEST:
        return None
    return int(content) if hint is int else content

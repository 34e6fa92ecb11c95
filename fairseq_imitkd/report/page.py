"""Makes the page: its sections, and what each holds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

import fairseq_imitkd
from fairseq_imitkd.evaluate.schema import GREEDY, QualityScore, Quartiles
from fairseq_imitkd.report import curves, probes, tables
from fairseq_imitkd.report.evaluations import Evaluation
from fairseq_imitkd.report.examples import Example, examples
from fairseq_imitkd.report.pareto import pareto
from fairseq_imitkd.report.paths import disambiguate, shortened, shortened_value
from fairseq_imitkd.report.picture import Picture
from fairseq_imitkd.report.rollouts import RolloutsAt
from fairseq_imitkd.report.runs import Run
from fairseq_imitkd.report.svg import Style, figure_settings, styles
from fairseq_imitkd.report.tables import Table

SIGNIFICANT = 0.025  # a difference with a larger p may be chance; p is one-sided


@dataclass(frozen=True)
class Fact:
    """A number of the summary.

    Args:
        number: the number.
        what: what it is.
        between: its interval; empty for a number that is not measured.
    """

    number: str
    what: str
    between: str = ""


@dataclass
class EvaluationPart:
    """What the page shows of an evaluation."""

    evaluation: Evaluation
    name: str
    headline: str
    facts: list[Fact]
    chosen: str
    served: Table | None
    signatures: dict[str, str]
    models: Table | None
    faults: Table | None
    pareto: Picture | None
    by_length: Picture | None
    probes: list[Picture]
    examples: list[Example]


@dataclass
class TrainingPart:
    """What the page shows of the trainings."""

    runs: Table
    curves: list[Picture] = field(default_factory=list)
    rollouts: list[Picture] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    sentences: dict[str, list[RolloutsAt]] = field(default_factory=dict)  # by the name of the run
    settings: Table | None = None


def page(
    runs: Sequence[Run], evaluations: Sequence[Evaluation], notes: Sequence[str] = ()
) -> tuple[str, list[str]]:
    """Make the page.

    Args:
        runs, evaluations: what to show; at least one of either.
        notes: remarks about what can't be shown.

    Returns:
        its HTML, and all notes, with those about the evaluations' files.
    """
    looks = styles([*(name for each in evaluations for name in each.models), *(run.name for run in runs)])
    with figure_settings():
        names = disambiguate([evaluation.path for evaluation in evaluations])
        compared = [_compared(*each, looks) for each in zip(evaluations, names, strict=True)]
        trained = _trained(runs, looks) if runs else None
    notes = [*notes, *(note for evaluation in evaluations for note in evaluation.notes)]
    folder = files("fairseq_imitkd.report")
    sources = {
        name: (folder / name).read_text(encoding="utf-8")
        for name in ("template.html", "parts.html", "style.css")
    }
    environment = Environment(
        loader=DictLoader(sources),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "shortened": shortened,
        "shortened_value": shortened_value,
        "breakable": breakable,
    }
    title = "Distillation report"
    html = environment.get_template("template.html").render(
        title=title,
        compared=compared,
        trained=trained,
        runs=runs,
        notes=notes,
        sections=_sections(compared, trained),
        missing=_missing(compared, trained),
        version=fairseq_imitkd.__version__,
        style=Markup(sources["style.css"]),
    )
    return html, notes


def breakable(name: str) -> Markup:
    """Return a name that a narrow cell can break after its underscores."""
    return Markup("_<wbr>").join(name.split("_"))


def _sections(compared: Sequence[EvaluationPart], trained: TrainingPart | None) -> dict[str, str]:
    """Return the titles of the sections that are not empty, by their anchors."""
    there = {
        "models": ("Quality, speed and size", any(each.models or each.pareto for each in compared)),
        "training": ("Training", trained is not None),
        "rollouts": ("Rollouts and teacher", trained is not None and bool(trained.rollouts)),
        "sentences": ("What the students write", trained is not None and bool(trained.sentences)),
        "length": ("Quality by length", any(each.by_length for each in compared)),
        "exposure": ("Exposure bias", any(each.probes for each in compared)),
        "examples": (_examples_title(compared), any(each.examples for each in compared)),
        "settings": ("Settings", True),
    }
    return {name: title for name, (title, filled) in there.items() if filled}


def _examples_title(compared: Sequence[EvaluationPart]) -> str:
    known = any(one.drop is not None for each in compared for one in each.examples)
    return "Worst regressions" if known else "Worst translations"


def _missing(compared: Sequence[EvaluationPart], trained: TrainingPart | None) -> list[str]:
    """Return why sections are missing, a line each."""
    lines = []
    if not compared:
        lines.append(
            "Quality and speed are missing: imitkd-evaluate measures them, and --evaluation adds its "
            "folder to the page."
        )
    elif not any(each.probes for each in compared):
        lines.append("Exposure bias is missing: imitkd-evaluate --teacher measures it.")
    if compared and not any(each.examples for each in compared):
        lines.append(
            "Examples are missing: the evaluation has no translations, or none is worse than the baseline's."
        )
    if trained is None:
        lines.append("Training is missing: no RUN_DIR was given.")
    elif not trained.rollouts:
        lines.append("Rollouts are missing: no run was trained by one of the plugin's criteria.")
    return lines


def _compared(evaluation: Evaluation, name: str, looks: dict[str, Style]) -> EvaluationPart:
    headline, facts, chosen = summary(evaluation)
    probed = [
        probes.agreement(evaluation, looks),
        probes.exposure(evaluation, looks),
        curves.by_position(evaluation, looks),
    ]
    return EvaluationPart(
        evaluation, name, headline, facts, chosen, tables.served(evaluation, looks), evaluation.signatures,
        tables.models(evaluation, looks), tables.faults(evaluation), pareto(evaluation, looks),
        curves.by_length(evaluation, looks), [each for each in probed if each], examples(evaluation),
    )  # fmt: skip


def _trained(runs: Sequence[Run], looks: dict[str, Style]) -> TrainingPart:
    sentences = {run.name: run.rollouts for run in runs if run.rollouts}
    return TrainingPart(
        tables.runs(runs, looks), curves.training(runs, looks), curves.rollouts(runs, looks),
        [run.name for run in runs if not run.is_distillation], sentences, tables.differences(runs),
    )  # fmt: skip


def summary(evaluation: Evaluation) -> tuple[str, list[Fact], str]:
    """Sum up the best model beside the baseline and the teacher, by greedy decoding. A measured number has
    its interval.

    Returns:
        a line, a few numbers, and a warning if the model was chosen among several; all empty without a
        baseline or without a model to compare with it.
    """
    bleus = {name: model.main.bleu for name, model in evaluation.models.items() if model.main}
    scores = {name: bleu for name, bleu in bleus.items() if bleu}
    base, teacher = evaluation.baseline, evaluation.teacher
    others = [name for name in scores if name not in (base, teacher)]
    if base is None or base not in scores or not others:
        return "", [], ""
    best = max(others, key=lambda name: scores[name].score)
    found, facts = scores[best], list[Fact]()
    if found.low is not None and found.high is not None:
        between = f"95% interval {found.low:.1f} to {found.high:.1f}"
        beside = f" ({teacher}: {scores[teacher].score:.1f})" if teacher in scores else ""
        facts.append(Fact(f"{found.score:.1f}", f"BLEU of {best}{beside}", between))
    larger = teacher or base
    for slower in dict.fromkeys([larger, base]):
        if times := _times(evaluation, best, slower):
            between = f"quartiles {times.low:.1f} to {times.high:.1f}"
            facts.append(
                Fact(f"{times.median:.1f}\N{MULTIPLICATION SIGN}", f"the speed of {slower}", between)
            )
            break
    size, whole = evaluation.models[best].served_bytes, evaluation.models[larger].served_bytes
    if size and whole:
        facts.append(Fact(f"{size / whole:.0%}", f"of {larger}'s megabytes"))
    beside = " and ".join(dict.fromkeys(filter(None, (base, teacher))))
    chosen = (
        f"{best} is named because it has the highest BLEU of the {len(others)} models beside {beside}. A "
        "lead that is picked on the test set tends to be too high."
        if len(others) > 1
        else ""
    )
    return _headline(best, base, found, base_score=scores[base].score), facts, chosen


def _times(evaluation: Evaluation, name: str, other: str) -> Quartiles | None:
    """Return a model's greedy speed in multiples of another's; None if one was not measured.

    Both are known in multiples of the baseline's, from the same batches. If the other is not the baseline,
    the quartiles are the widest that theirs allow.
    """
    speeds = [evaluation.models[each].speed(GREEDY) for each in (name, other)]
    own, its = (speed.times_baseline if speed else None for speed in speeds)
    if own is None or own.low is None or own.high is None:
        return None
    if other == evaluation.baseline:
        return own
    if its is None or its.low is None or its.high is None:
        return None
    return Quartiles(median=own.median / its.median, low=own.low / its.high, high=own.high / its.low)


def _headline(best: str, base: str, found: QualityScore, *, base_score: float) -> str:
    """Return how the best model compares with the baseline, as far as its bootstrap tells."""
    p, low, high = found.p, found.difference_low, found.difference_high
    if p is None:
        return f"{best} beside {base}"
    if p >= SIGNIFICANT:
        return f"{best} and {base} differ by no more than chance explains (p {tables.probability(p)})"
    difference = found.score - base_score
    if round(abs(difference), 1) == 0.0:
        return f"{best} is as good as {base}, to a tenth of a BLEU point"
    verb = "better" if difference > 0 else "worse"
    if low is None or high is None:
        return f"{best} is {verb} than {base} (p {tables.probability(p)})"
    low, high = (low, high) if difference > 0 else (-high, -low)
    between = f"95% interval {low:.1f} to {high:.1f}, p {tables.probability(p)}"
    return f"{best} is {verb} than {base} by {abs(difference):.1f} BLEU ({between})"

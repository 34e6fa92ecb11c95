"""The page itself: which sections there are, and what stands in each."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

import fairseq_imitkd
from fairseq_imitkd.report import curves, probes, tables
from fairseq_imitkd.report.evaluations import GREEDY, Evaluation
from fairseq_imitkd.report.examples import Example, examples
from fairseq_imitkd.report.logs import Run
from fairseq_imitkd.report.pareto import pareto
from fairseq_imitkd.report.paths import shortened, told_apart
from fairseq_imitkd.report.picture import Picture
from fairseq_imitkd.report.svg import Style, drawing, styles
from fairseq_imitkd.report.tables import Table

SURE = 0.05  # a difference with a larger p is not called one


@dataclass(frozen=True)
class Fact:
    """A number that sums up, and what it is."""

    number: str
    what: str


@dataclass
class Compared:
    """What the page shows of an evaluation."""

    evaluation: Evaluation
    name: str
    headline: str
    facts: list[Fact]
    signatures: dict[str, str]
    models: Table | None
    faults: Table | None
    pareto: Picture | None
    by_length: Picture | None
    probes: list[Picture]
    examples: list[Example]


@dataclass
class Trained:
    """What the page shows of the runs."""

    runs: Table
    curves: list[Picture] = field(default_factory=list)
    rollouts: list[Picture] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    settings: Table | None = None


def page(
    runs: Sequence[Run], evaluations: Sequence[Evaluation], notes: Sequence[str] = ()
) -> tuple[str, list[str]]:
    """The page.

    Args:
        runs, evaluations: at least one of either.
        notes: what could not be shown, and why.

    Returns:
        its HTML, and all notes: those that came up while it was made too.
    """
    looks = styles([*(name for each in evaluations for name in each.models), *(run.name for run in runs)])
    with drawing():
        names = told_apart([evaluation.path for evaluation in evaluations])
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
    environment.filters["shortened"] = shortened
    title = "Distillation report"
    html = environment.get_template("template.html").render(
        title=title, compared=compared, trained=trained, runs=runs, notes=notes, sections=_sections(compared, trained),
        missing=_missing(compared, trained), version=fairseq_imitkd.__version__, style=Markup(sources["style.css"]),
    )  # fmt: skip
    return html, notes


def _sections(compared: Sequence[Compared], trained: Trained | None) -> dict[str, str]:
    """Titles of those with something in them, by their anchors."""
    there = {
        "models": ("Quality, speed and size", any(each.models or each.pareto for each in compared)),
        "training": ("Training", trained is not None),
        "rollouts": ("Rollouts and teacher", trained is not None and bool(trained.rollouts)),
        "length": ("Quality by length", any(each.by_length for each in compared)),
        "exposure": ("Exposure bias", any(each.probes for each in compared)),
        "examples": (_examples_title(compared), any(each.examples for each in compared)),
        "settings": ("Settings", True),
    }
    return {name: title for name, (title, filled) in there.items() if filled}


def _examples_title(compared: Sequence[Compared]) -> str:
    known = any(one.drop is not None for each in compared for one in each.examples)
    return "Worst regressions" if known else "Worst translations"


def _missing(compared: Sequence[Compared], trained: Trained | None) -> list[str]:
    """Why sections are left out, a line each."""
    lines = []
    if not compared:
        lines.append(
            "Nothing of quality and speed: imitkd-evaluate measures them, and imitkd-report shows its --evaluation."
        )
    elif not any(each.probes for each in compared):
        lines.append("Nothing of exposure bias: imitkd-evaluate probes it when it is told the --teacher.")
    if compared and not any(each.examples for each in compared):
        lines.append(
            "No examples: there are no translations beside the evaluation, or none is worse than the baseline's."
        )
    if trained is None:
        lines.append("Nothing of training: no run was given.")
    elif not trained.rollouts:
        lines.append("Nothing of rollouts: no run was trained by one of the plugin's criteria.")
    return lines


def _compared(evaluation: Evaluation, name: str, looks: dict[str, Style]) -> Compared:
    headline, facts = summary(evaluation)
    probed = [
        probes.agreement(evaluation, looks),
        probes.exposure(evaluation, looks),
        curves.by_position(evaluation, looks),
    ]
    return Compared(
        evaluation, name, headline, facts, evaluation.signatures,
        tables.models(evaluation, looks), tables.faults(evaluation), pareto(evaluation, looks),
        curves.by_length(evaluation, looks), [each for each in probed if each], examples(evaluation),
    )  # fmt: skip


def _trained(runs: Sequence[Run], looks: dict[str, Style]) -> Trained:
    return Trained(
        tables.runs(runs, looks), curves.training(runs, looks), curves.rollouts(runs, looks),
        [run.name for run in runs if not run.is_distillation], tables.differences(runs),
    )  # fmt: skip


def summary(evaluation: Evaluation) -> tuple[str, list[Fact]]:
    """What came of it in a line and a few numbers: the best of the models beside the baseline, both decoding greedily."""
    base = evaluation.baseline
    aside = {model.name for model in (evaluation.teacher, base) if model}
    found = {
        name: model.first.bleu.score
        for name, model in evaluation.models.items()
        if name not in aside and model.first and model.first.bleu
    }
    if base is None or base.first is None or base.first.bleu is None or not found:
        return "", []
    best = evaluation.models[max(found, key=found.__getitem__)]
    assert best.first is not None
    assert best.first.bleu is not None
    difference = best.first.bleu.score - base.first.bleu.score
    p = best.first.bleu.p
    chance = "" if p is None else f"p {tables.probability(p)}"
    facts = [Fact(f"{best.first.bleu.score:.1f}", f"BLEU, {tables.signed(difference)} against {base.name}")]
    teacher = evaluation.teacher
    if (
        teacher
        and teacher is not base
        and teacher.first
        and teacher.first.bleu
        and teacher.first.bleu.score > 0
    ):
        share = best.first.bleu.score / teacher.first.bleu.score
        facts.append(Fact(f"{share:.0%}", f"of {teacher.name}'s {teacher.first.bleu.score:.1f} BLEU"))
    speed = best.fast(GREEDY)
    if speed and speed.times:
        facts.append(Fact(f"{speed.times:.1f}\N{MULTIPLICATION SIGN}", f"the speed of {base.name}"))
    larger = teacher or base
    if best.size and larger.size and larger is not best:
        facts.append(Fact(f"{best.size / larger.size:.0%}", f"of {larger.name}'s size on disk"))
    amount = f"{abs(difference):.1f} BLEU" + (f" ({chance})" if chance else "")
    if p is not None and p >= SURE:
        return f"{best.name} and {base.name} differ by {amount}: that may be chance", facts
    return f"{best.name} is {'better' if difference > 0 else 'worse'} than {base.name} by {amount}", facts

"""The page's tables, beside those that belong to a figure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fairseq_imitkd.report import settings
from fairseq_imitkd.report.evaluations import GREEDY, METRICS, Decoding, Evaluation, Model, Speed
from fairseq_imitkd.report.logs import Run
from fairseq_imitkd.report.svg import Style


@dataclass
class Cell:
    """What a table says at one place.

    Args:
        text: of it.
        aside: smaller, behind it.
        best: of its column.
        style: of the model or run that it names.
        again: it is as in the row above, which need not be seen twice.
    """

    text: str
    aside: str = ""
    best: bool = False
    style: Style | None = None
    again: bool = False


@dataclass
class Table:
    """Rows under a header.

    Args:
        header: a title for each column.
        rows: their cells.
        words: how many columns, the first ones, hold words and no numbers.
        notes: what is to be said beneath it.
    """

    header: list[str]
    rows: list[list[Cell]]
    words: int = 1
    notes: list[str] = field(default_factory=list)


def _nothing(*_: object) -> str:
    return ""


@dataclass(frozen=True)
class _Column:
    """A column of numbers: how to find one, how to show it, and which is best."""

    title: str
    find: Callable[[Model, str, Decoding], float | None]
    show: Callable[[float], str]
    more_is_better: bool | None = True
    aside: Callable[[Model, str, Decoding], str] = _nothing
    of_model: bool = False  # however it decodes


def models(evaluation: Evaluation, styles: Mapping[str, Style]) -> Table | None:
    """Quality, speed and size of every model, the best of each column marked; only columns with something in them."""
    every = [
        (model, search, decoding)
        for model in evaluation.models.values()
        for search, decoding in model.decodings.items()
    ]
    if not every:
        return None
    columns = [each for each in _columns(evaluation) if any(each.find(*row) is not None for row in every)]
    with_search = len({search for _, search, _ in every}) > 1
    table = Table(
        ["model", *(["decoding"] if with_search else []), *(column.title for column in columns)], []
    )
    table.words = 2 if with_search else 1
    best = {}
    for column in columns:
        value = _best([column.find(*row) for row in every], column.more_is_better)
        best[column.title] = None if value is None else column.show(value)
    before = None
    for model, search, decoding in every:
        again, before = model is before, model
        about = ", ".join(part for part in (model.arch, model.quantization or model.kind) if part)
        row = [
            Cell(model.name, about, style=styles.get(model.name), again=again),
            *([Cell(search)] if with_search else []),
        ]
        for column in columns:
            value = column.find(model, search, decoding)
            if value is None or (again and column.of_model):
                row.append(Cell(""))
            else:
                text = column.show(value)  # what looks alike is as good
                row.append(Cell(text, column.aside(model, search, decoding), best=text == best[column.title]))
        table.rows.append(row)
    table.notes = list(_notes(evaluation))
    return table


def _columns(evaluation: Evaluation) -> list[_Column]:
    found: list[_Column] = []
    baseline = evaluation.baseline.name if evaluation.baseline else "baseline"

    def score(metric: str, title: str, better: bool, digits: int) -> None:
        def interval(model: Model, search: str, decoding: Decoding) -> str:
            one = decoding.scores[metric]
            return "" if one.low is None or one.high is None else f"{one.low:.1f} to {one.high:.1f}"

        def find(model: Model, search: str, decoding: Decoding) -> float | None:
            return decoding.scores[metric].score if metric in decoding.scores else None

        def chance(model: Model, search: str, decoding: Decoding) -> float | None:
            return decoding.scores[metric].p if metric in decoding.scores else None

        aside = interval if metric == "bleu" else _nothing
        found.append(_Column(title, find, lambda value: f"{value:.{digits}f}", better, aside))
        if metric == "bleu":
            found.append(_Column("p", chance, lambda value: probability(value).removeprefix("= "), None))

    def speed(
        title: str,
        get: Callable[[Speed], float | None],
        show: Callable[[float], str],
        aside: Callable[..., str] = _nothing,
    ) -> None:
        def find(model: Model, search: str, decoding: Decoding) -> float | None:
            fast = model.fast(search)
            return get(fast) if fast else None

        found.append(_Column(title, find, show, True, aside))

    def times(model: Model, search: str, decoding: Decoding) -> str:
        fast = model.fast(search)
        if (
            fast is None or fast.low is None or fast.high is None or fast.low == fast.high
        ):  # the baseline's own
            return ""
        return f"{fast.low:.2f} to {fast.high:.2f}"

    for metric, (title, better, digits) in METRICS.items():
        score(metric, title, better, digits)
    speed("sentences/s", lambda each: each.sentences, lambda value: f"{value:,.{0 if value >= 100 else 1}f}")
    speed(f"\N{MULTIPLICATION SIGN} {baseline}", lambda each: each.times, lambda value: f"{value:.2f}", times)
    found += [
        _Column("ms", _latency, lambda value: f"{value:,.1f}", False),
        _Column(
            "parameters",
            lambda model, *_: model.parameters,
            lambda value: f"{value:,.0f}",
            False,
            of_model=True,
        ),
        _Column("MB", lambda model, *_: model.size, megabytes, False, of_model=True),
        _Column("memory MB", lambda model, *_: model.memory, megabytes, False, of_model=True),
    ]
    return found


def _latency(model: Model, search: str, decoding: Decoding) -> float | None:
    return model.speeds[1].p50 if search == GREEDY and 1 in model.speeds else None


def megabytes(size: float) -> str:
    """Bytes as millions of them, to three places that matter."""
    return (
        f"{size / 1e6:,.0f}" if size >= 1e8 else f"{size / 1e6:.1f}" if size >= 1e7 else f"{size / 1e6:.2f}"
    )


def _best(values: Sequence[float | None], more_is_better: bool | None) -> float | None:
    """None where nothing is better than something else."""
    known = [value for value in values if value is not None]
    if more_is_better is None or len(set(known)) < 2:
        return None
    return max(known) if more_is_better else min(known)


def _notes(evaluation: Evaluation) -> list[str]:
    every = [decoding for model in evaluation.models.values() for decoding in model.decodings.values()]
    notes = ["● is the best of its column; the range after BLEU is its 95% interval."]
    if evaluation.baseline and any(
        one.p is not None for decoding in every for one in decoding.scores.values()
    ):
        notes.append(
            f"p: how often a difference from {evaluation.baseline.name} this large comes by chance (paired bootstrap)."
        )
    batches = {model.batch for model in evaluation.models.values() if model.batch}
    if len(batches) == 1:
        [batch] = batches
        if batch > 1:
            notes.append(
                f"Speed is with {batch} sentences a batch; ms, the median of a sentence's time, with one."
            )
    return notes


def faults(evaluation: Evaluation) -> Table | None:
    """Translations that are visibly wrong."""
    every = [
        (model.name, search, decoding.faults)
        for model in evaluation.models.values()
        for search, decoding in model.decodings.items()
        if decoding.faults
    ]
    if not every:
        return None
    names = [
        name for name in ("empty", "truncated", "repeating") if any(name in found for *_, found in every)
    ]
    rows = [
        [Cell(model), Cell(search), *(Cell(f"{found[name]:,}" if name in found else "") for name in names)]
        for model, search, found in every
    ]
    notes = ["Truncated: ended by the length cap. Repeating: the same words three times or more in a row."]
    return Table(["model", "decoding", *names], rows, 2, notes)


def runs(every: Sequence[Run], styles: Mapping[str, Style]) -> Table:
    """What each training was and came to."""
    metrics = list(dict.fromkeys(run.metric for run in every if run.best))
    header = ["run", "criterion", "architecture", "parameters", "updates", "last loss"]
    header += [f"best validation {named(metric)}" for metric in metrics] + ["hours"]
    rows = []
    best = {
        metric: _best(
            [run.best[1] for run in every if run.best and run.metric == metric], _better(every, metric)
        )
        for metric in metrics
    }
    for run in every:
        state = "" if run.finished or not run.settings else "not finished"
        if run.starts > 1:
            state = ", ".join(part for part in (f"{run.starts} starts", state) if part)
        losses, wall = run.training("loss"), run.training("wall")
        row = [
            Cell(run.name, style=styles.get(run.name)),
            *(Cell(str(run.settings.get(name, ""))) for name in ("criterion", "arch")),
        ]
        row.append(Cell("" if run.parameters is None else f"{run.parameters:,}"))
        row += [Cell(f"{run.updates:,}", state), Cell(f"{losses[-1][1]:.3f}" if losses else "")]
        for metric in metrics:
            if run.best and run.metric == metric:
                update, value = run.best
                row.append(
                    Cell(f"{value:.2f}", f"at {update:,}", best=value == best[metric] and metric != "loss")
                )
            else:
                row.append(Cell(""))
        rows.append([*row, Cell(f"{wall[-1][1] / 3600:.2f}" if wall else "")])
    return Table(header, rows, 3)


def _better(every: Sequence[Run], metric: str) -> bool:
    return next(run.more_is_better for run in every if run.metric == metric)


def named(metric: str) -> str:
    """A figure's name in words."""
    return {"bleu": "BLEU", "ppl": "perplexity", "nll_loss": "likelihood loss"}.get(
        metric, metric.replace("_", " ")
    )


def probability(p: float) -> str:
    """With its sign, as it follows "p": what rounds to nothing is still more than that."""
    return f"= {p:.3f}" if p >= 0.0005 else "< 0.001"


def signed(value: float) -> str:
    """A difference, with a sign as wide as a plus."""
    return f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")


def differences(every: Sequence[Run]) -> Table | None:
    """The settings side by side, those in which runs differ marked."""
    told = [run for run in every if run.settings]
    rows = settings.compared([run.settings for run in told])
    if not rows:
        return None
    cells = [
        [
            Cell(name.replace("_", " ").replace(".", ": "), "differs" if len(set(values)) > 1 else ""),
            *map(Cell, values),
        ]
        for name, values in rows
    ]
    return Table(["setting", *(run.name for run in told)], cells, words=1 + len(told))

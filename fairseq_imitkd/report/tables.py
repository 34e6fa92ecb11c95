"""The page's tables, except those that belong to a figure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fairseq_imitkd.evaluate.schema import GREEDY, ModelResults, QualityScore, SearchResults, SpeedResult
from fairseq_imitkd.report import settings
from fairseq_imitkd.report.evaluations import METRICS, Evaluation
from fairseq_imitkd.report.runs import Run
from fairseq_imitkd.report.svg import Style


@dataclass
class Cell:
    """A cell of a table.

    Args:
        text: its text.
        aside: smaller text behind it.
        best: whether it is the best of its column.
        style: style of the model or run that it names.
        again: whether the cell above says the same, so it is not shown twice.
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
        header: titles of the columns.
        rows: cells of each row.
        words: number of columns, from the first, that hold words and not numbers.
        notes: remarks below the table.
    """

    header: list[str]
    rows: list[list[Cell]]
    words: int = 1
    notes: list[str] = field(default_factory=list)


SIZE_NOTE = (
    "MB: the weights of a checkpoint, without the optimiser's state, or all files of an exported student."
)


def _nothing(*_: object) -> str:
    return ""


@dataclass(frozen=True)
class _Row:
    """A model with one search."""

    name: str
    model: ModelResults
    search: str
    found: SearchResults

    @property
    def speed(self) -> SpeedResult | None:
        """The speed of the search."""
        return self.model.speed(self.search)

    def score(self, metric: str) -> QualityScore | None:
        """The score of a metric."""
        return self.found.scores.get(metric)


@dataclass(frozen=True)
class _Column:
    """A column of numbers.

    Args:
        title: its title.
        find: returns the number of a row.
        show: formats the number.
        more_is_better: which numbers are better; None marks none as best.
        aside: returns what stands behind the number.
        of_model: whether a model has the same number for all searches.
    """

    title: str
    find: Callable[[_Row], float | None]
    show: Callable[[float], str]
    more_is_better: bool | None = True
    aside: Callable[[_Row], str] = _nothing
    of_model: bool = False


def _rows(evaluation: Evaluation) -> list[_Row]:
    return [
        _Row(name, model, search, found)
        for name, model in evaluation.models.items()
        for search, found in model.searches.items()
    ]


def models(evaluation: Evaluation, styles: Mapping[str, Style]) -> Table | None:
    """Show quality, speed and size of the models with the best of each column marked; empty columns are left
    out.
    """
    every = _rows(evaluation)
    if not every:
        return None
    columns = [each for each in _columns(evaluation) if any(each.find(row) is not None for row in every)]
    with_search = len({row.search for row in every}) > 1
    best = {}
    for column in columns:
        value = _best([column.find(row) for row in every], column.more_is_better)
        best[column.title] = None if value is None else column.show(value)
    header = ["model", *["decoding"] * with_search, *(column.title for column in columns)]
    table = Table(header, [], words=1 + with_search, notes=_notes(evaluation, every))
    before = None
    for row in every:
        again, before = row.model is before, row.model
        about = ", ".join(part for part in (row.model.arch, row.model.quantization or row.model.kind) if part)
        cells = [
            Cell(row.name, about, style=styles.get(row.name), again=again),
            *[Cell(row.search)] * with_search,
        ]
        table.rows.append(
            [*cells, *(_cell(column, row, again=again, best=best[column.title]) for column in columns)]
        )
    return table


def _cell(column: _Column, row: _Row, *, again: bool, best: str | None) -> Cell:
    value = column.find(row)
    if value is None or (again and column.of_model):
        return Cell("")
    text = column.show(value)  # numbers that look the same are equally good
    return Cell(text, column.aside(row), best=text == best)


def _columns(evaluation: Evaluation) -> list[_Column]:
    baseline = evaluation.baseline or "baseline"
    columns = [column for metric in METRICS for column in _score_columns(metric)]
    return [
        *columns,
        _RATE,
        _Column(
            f"\N{MULTIPLICATION SIGN} {baseline}", _times, lambda value: f"{value:.2f}", aside=_quartiles
        ),
        _Column("ms", _latency, lambda value: f"{value:,.1f}", False),
        _Column(
            "parameters",
            lambda row: row.model.parameters,
            lambda value: f"{value:,.0f}",
            False,
            of_model=True,
        ),
        _SIZE,
        _Column("memory MB", lambda row: row.model.peak_memory_bytes, megabytes, False, of_model=True),
    ]


def _score_columns(metric: str) -> list[_Column]:
    """Return a metric's column; for BLEU, its interval and a column of p too."""
    title, more_is_better, digits = METRICS[metric]

    def score(row: _Row) -> float | None:
        found = row.score(metric)
        return found.score if found else None

    def interval(row: _Row) -> str:
        found = row.score(metric)
        known = found is not None and found.low is not None and found.high is not None
        return f"{found.low:.1f} to {found.high:.1f}" if found and known else ""

    def p(row: _Row) -> float | None:
        found = row.score(metric)
        return found.p if found else None

    def show(value: float) -> str:
        return f"{value:.{digits}f}"

    if metric != "bleu":
        return [_Column(title, score, show, more_is_better)]
    return [
        _Column(title, score, show, more_is_better, aside=interval),
        _Column("p", p, lambda value: probability(value).removeprefix("= "), None),
    ]


def _rate(row: _Row) -> float | None:
    return row.speed.rate if row.speed else None


def _shown_rate(rate: float) -> str:
    return f"{rate:,.{0 if rate >= 100 else 1}f}"


def _rate_quartiles(row: _Row) -> str:
    rounds = row.speed.rounds if row.speed else None
    return f"{_shown_rate(rounds.low)} to {_shown_rate(rounds.high)}" if rounds else ""


def _times(row: _Row) -> float | None:
    return row.speed.times_baseline.median if row.speed and row.speed.times_baseline else None


def _quartiles(row: _Row) -> str:
    times = row.speed.times_baseline if row.speed else None
    if times is None or times.low is None or times.high is None or times.low == times.high:
        return ""  # the baseline's own are all 1
    return f"{times.low:.2f} to {times.high:.2f}"


def _latency(row: _Row) -> float | None:
    return row.model.speeds[1].p50_ms if row.search == GREEDY and 1 in row.model.speeds else None


def megabytes(size: float) -> str:
    """Return bytes as megabytes, with three significant digits."""
    return (
        f"{size / 1e6:,.0f}" if size >= 1e8 else f"{size / 1e6:.1f}" if size >= 1e7 else f"{size / 1e6:.2f}"
    )


_RATE = _Column("sentences/s", _rate, _shown_rate, aside=_rate_quartiles)
_SIZE = _Column("MB", lambda row: row.model.served_bytes, megabytes, False, of_model=True)


def _best(values: Sequence[float | None], more_is_better: bool | None) -> float | None:
    """Return the best value; None if none is better than another."""
    known = [value for value in values if value is not None]
    if more_is_better is None or len(set(known)) < 2:
        return None
    return max(known) if more_is_better else min(known)


def _notes(evaluation: Evaluation, rows: Sequence[_Row]) -> list[str]:
    notes = [
        "● marks the best value of a column. The range after BLEU is its 95% interval; a lead within it may "
        "be chance."
    ]
    has_p = any(score.p is not None for row in rows for score in row.found.scores.values())
    if evaluation.baseline and has_p:
        notes.append(
            f"p: chance of a lead this large over {evaluation.baseline}, or behind it, if the two are "
            "equally good (sacreBLEU's paired bootstrap, one-sided)."
        )
    batches = {model.batch for model in evaluation.models.values() if model.batch}
    if len(batches) == 1 and max(batches) > 1:
        notes.append(
            f"Speed is that of the median batch of {max(batches)} sentences, with the quartiles of the "
            "batches; ms is the median time of a sentence alone."
        )
    return [*notes, SIZE_NOTE]


def served(evaluation: Evaluation, styles: Mapping[str, Style]) -> Table | None:
    """Show the models that can be served, in a table that fits a phone: exported students, or all students if
    none was exported.
    """
    every = [row for row in _rows(evaluation) if row.found.bleu]
    exported = [row for row in every if row.model.is_exported]
    rows = exported or [
        row for row in every if row.name != evaluation.teacher and row.search == row.model.main_search
    ]
    if not rows or len(rows) == len(every):
        return None  # the table of all models says as much
    bleu = _score_columns("bleu")[0]
    columns = [column for column in (bleu, _RATE, _SIZE) if any(column.find(row) is not None for row in rows)]
    title = "exported student" if exported else "student"
    notes = ["Ranges: the 95% interval of BLEU, and the quartiles of the batches' speeds."]
    table = Table([title, *(column.title for column in columns)], [], notes=notes)
    for row in rows:
        name = Cell(row.name, row.search, style=styles.get(row.name))
        table.rows.append([name, *(_cell(column, row, again=False, best=None) for column in columns)])
    return table


def faults(evaluation: Evaluation) -> Table | None:
    """Show the numbers of translations that are visibly wrong."""
    names = ("empty", "truncated", "repeating")
    every = [(row, [getattr(row.found, name) for name in names]) for row in _rows(evaluation)]
    every = [(row, counts) for row, counts in every if any(count is not None for count in counts)]
    if not every:
        return None
    shown = [place for place in range(len(names)) if any(counts[place] is not None for _, counts in every)]
    rows = [
        [
            Cell(row.name),
            Cell(row.search),
            *(Cell("" if counts[place] is None else f"{counts[place]:,}") for place in shown),
        ]
        for row, counts in every
    ]
    notes = ["Truncated: ended by the length cap. Repeating: the same words three times or more in a row."]
    return Table(["model", "decoding", *(names[place] for place in shown)], rows, 2, notes)


def runs(every: Sequence[Run], styles: Mapping[str, Style]) -> Table:
    """Show what each training was and what it reached."""
    metrics = list(dict.fromkeys(run.best_metric for run in every if run.best))
    header = ["run", "criterion", "architecture", "parameters", "updates", "last training loss"]
    header += [f"best validation {named(metric)}" for metric in metrics] + ["hours"]
    rows = []
    for run in every:
        losses, wall = run.training("loss"), run.training("wall")
        rows.append(
            [
                Cell(run.name, style=styles.get(run.name)),
                *(Cell(str(run.settings.get(name, ""))) for name in ("criterion", "arch")),
                Cell("" if run.parameters is None else f"{run.parameters:,}"),
                Cell(f"{run.updates:,}", _state(run)),
                Cell(f"{losses[-1][1]:.3f}" if losses else ""),
                *(_best_cell(run, metric) for metric in metrics),
                Cell(f"{wall[-1][1] / 3600:.2f}" if wall else ""),
            ]
        )
    notes = [] if comparable(every) else [LOSSES_DIFFER]
    return Table(header, rows, 3, notes)


LOSSES_DIFFER = (
    "These runs compute different losses: compare a loss only with that of a run with the same criterion and "
    "settings."
)


def comparable(every: Sequence[Run]) -> bool:
    """Return whether all runs are known to compute the same loss."""
    first = every[0].loss
    return len(every) == 1 or (first is not None and all(run.loss == first for run in every))


def _state(run: Run) -> str:
    parts = [f"{run.starts} starts"] if run.starts > 1 else []
    parts += [run.origin] if run.origin else []
    return ", ".join([*parts, "not finished"] if run.is_finished is False else parts)


def _best_cell(run: Run, metric: str) -> Cell:
    if run.best is None or run.best_metric != metric:
        return Cell("")
    update, value = run.best
    return Cell(f"{value:.2f}", f"at {update:,}")


def named(metric: str) -> str:
    """Return the name of a metric in words."""
    return {"bleu": "BLEU", "ppl": "perplexity", "nll_loss": "likelihood loss"}.get(
        metric, metric.replace("_", " ")
    )


def probability(p: float) -> str:
    """Return what follows "p", with its sign; a value that rounds to zero is shown as less than 0.001."""
    return f"= {p:.3f}" if p >= 0.0005 else "< 0.001"


def differences(every: Sequence[Run]) -> Table | None:
    """Show settings side by side, with those marked in which runs differ."""
    known = [run for run in every if run.settings]
    rows = settings.compared([run.settings for run in known])
    if not rows:
        return None
    cells = [
        [
            Cell(name.replace("_", " ").replace(".", ": "), "differs" if len(set(values)) > 1 else ""),
            *map(Cell, values),
        ]
        for name, values in rows
    ]
    return Table(["setting", *(run.name for run in known)], cells, words=1 + len(known))

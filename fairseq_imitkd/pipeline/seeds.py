"""The table of methods: the mean of each over its seeds, its interval, and p of its difference."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sacrebleu.metrics import BLEU

from fairseq_imitkd.evaluate import folder, schema
from fairseq_imitkd.evaluate.sentences import reference_columns
from fairseq_imitkd.pipeline.plan import Plan, last_value
from fairseq_imitkd.pipeline.recipe import EXPORTED, TEACHER
from fairseq_imitkd.text import bootstrap
from fairseq_imitkd.text.bootstrap import Bootstrap

HEAD = (
    "method", "seeds", "BLEU, mean (95%)", "lowest to highest", "from {baseline} (95%)", "p",
    "from the teacher", "times its speed",
)  # fmt: skip
RIGHT = "right"  # a column of recipes that have all right translations
USELESS = 0.1  # share of the teacher's BLEU


class Comparison(NamedTuple):
    """What a run's models score, as a Markdown ``table``, and a ``warning`` of useless students."""

    table: str
    warning: str | None


def compared(plan: Plan, out: Path) -> Comparison:
    """Compare the models of a run, by greedy decoding.

    A mean over seeds is resampled as one system: its interval and its p say how much of it is chance of the
    test sentences. How much seeds differ is in a column of its own.

    Args:
        plan: the plan, whose steps are done.
        out: its folder.

    Raises:
        UsageError: the evaluation can't be read.
    """
    evaluation = out / "evaluation"
    results = schema.read(evaluation / schema.FILE, str(evaluation))
    right = _right(evaluation, has_several=plan.recipe.text.references is not None)
    columns = reference_columns(right)
    flags = plan.recipe.evaluation.flags if plan.recipe.evaluation else ()
    tokenize = last_value(flags, "--bleu-tokenize") or None
    bleu = BLEU(tokenize=tokenize, trg_lang=plan.recipe.target, references=columns, force=True)
    times = bootstrap.resamples(len(columns[0]))

    def outputs(name: str) -> list[str] | None:
        found = results.models.get(name)
        if found is None or found.main is None or found.main.outputs is None:
            return None
        return _lines(evaluation / found.main.outputs)

    names = [(TEACHER, TEACHER), *((method.name, name) for name, method, _ in plan.students())]
    names.append((EXPORTED, EXPORTED))  # the folder that is served, in its own precision
    systems: dict[str, list[Bootstrap]] = {system: [] for system, _ in names}
    speeds: dict[str, list[float]] = {system: [] for system, _ in names}
    shares: dict[str, list[float]] = {system: [] for system, _ in names}
    for system, name in names:
        lines = outputs(name)
        if lines is not None:
            systems[system].append(bootstrap.of_metric(bleu, lines, times))
            is_right = [line in every for line, every in zip(lines, right, strict=True)]
            shares[system].append(statistics.mean(is_right))
            if speed := results.models[name].speed(schema.GREEDY):
                speeds[system].append(speed.sentences_per_second)
    has_all = plan.recipe.text.references is not None
    made = rows(systems, plan.recipe.baseline.name, speeds, right=shares if has_all else None)
    return Comparison("\n".join(made), warning(systems))


def _right(evaluation: Path, *, has_several: bool) -> list[list[str]]:
    """Return the references of each sentence that the evaluation compared with."""
    lines = _lines(evaluation / (folder.RIGHT if has_several else folder.REFERENCES))
    return [line.split("\t") if has_several else [line] for line in lines]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def rows(
    systems: Mapping[str, Sequence[Bootstrap]],
    baseline: str,
    speeds: Mapping[str, Sequence[float]],
    *,
    right: Mapping[str, Sequence[float]] | None = None,
) -> list[str]:
    """Return the lines of the table.

    Args:
        systems: the scores of each system's seeds.
        baseline: name of the system that others are compared with.
        speeds: sentences per second of each system's seeds, with greedy decoding.
        right: share of translations that equal a right one, of each system's seeds; None if it has no column.
    """
    head = [each.format(baseline=baseline) for each in HEAD]
    head[3:3] = [] if right is None else [RIGHT]
    lines = [f"| {' | '.join(head)} |", "|---" + "|--:" * (len(head) - 1) + "|"]
    base, teacher = (mean(systems[name]) if systems.get(name) else None for name in (baseline, TEACHER))
    for name, seeds in systems.items():
        if not seeds:
            continue
        own = mean(seeds)
        low, high = own.interval()
        scores = [each.score for each in seeds]
        cells = [name, str(len(seeds)), f"{own.score:.2f} ({low:.2f} to {high:.2f})"]
        cells += [] if right is None else [f"{np.mean(right[name]):.1%}"]
        cells.append(f"{min(scores):.2f} to {max(scores):.2f}" if len(seeds) > 1 else "")
        if base is None or name == baseline:
            cells += ["", ""]
        else:
            gain, p = own.minus(base), own.p(base)
            values = (signed(each) for each in (gain.value, gain.low, gain.high))
            cells += ["{} ({} to {})".format(*values), "" if p is None else f"{p:.3f}"]
        is_compared = teacher is not None and name != TEACHER
        cells.append(signed(own.score - teacher.score) if is_compared and teacher is not None else "")
        has_speeds = is_compared and speeds.get(name) and speeds.get(TEACHER)
        cells.append(f"{np.mean(speeds[name]) / np.mean(speeds[TEACHER]):.1f}" if has_speeds else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def warning(systems: Mapping[str, Sequence[Bootstrap]]) -> str | None:
    """Return what to say about students that have less than a tenth of their teacher's BLEU."""
    if not systems.get(TEACHER):
        return None
    least = USELESS * mean(systems[TEACHER]).score
    bad = [name for name, seeds in systems.items() if seeds and mean(seeds).score < least]
    if not bad:
        return None
    return (
        f"{', '.join(bad)}: less than a tenth of the teacher's BLEU; train with more updates "
        "(--max-update in the recipe's key training, or --updates), and see docs/troubleshooting.md of the "
        "repository"
    )


def signed(value: float) -> str:
    """Return a difference with its sign and two digits; one that is rounded to zero has no sign."""
    return f"{value:+.2f}" if abs(value) >= 0.005 else "0.00"


def mean(seeds: Sequence[Bootstrap]) -> Bootstrap:
    """Return the mean of some systems on the same resamples, as one system."""
    return Bootstrap(
        sum(each.score for each in seeds) / len(seeds), np.mean([each.resampled for each in seeds], axis=0)
    )

"""The table of methods: the mean of each over its seeds, its interval, and p of its difference."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from sacrebleu.metrics import BLEU

from fairseq_imitkd.evaluate import folder, schema
from fairseq_imitkd.evaluate.sentences import reference_columns
from fairseq_imitkd.pipeline.plan import Plan, last_value
from fairseq_imitkd.pipeline.recipe import EXPORTED, TEACHER
from fairseq_imitkd.text import bootstrap
from fairseq_imitkd.text.bootstrap import Bootstrap

HEAD = ("method", "seeds", "BLEU, mean (95%)", "lowest to highest", "difference (95%)", "p")


def table(plan: Plan, out: Path) -> str:
    """Return the table as Markdown, of greedy decoding.

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
    columns = _references(evaluation, has_several=plan.recipe.text.references is not None)
    flags = plan.recipe.evaluation.flags if plan.recipe.evaluation else ()
    tokenize = last_value(flags, "--bleu-tokenize") or None
    bleu = BLEU(tokenize=tokenize, trg_lang=plan.recipe.target, references=columns, force=True)
    times = bootstrap.resamples(len(columns[0]))

    def scored(name: str) -> Bootstrap | None:
        found = results.models.get(name)
        if found is None or found.main is None or found.main.outputs is None:
            return None
        lines = (evaluation / found.main.outputs).read_text(encoding="utf-8").split("\n")[:-1]
        return bootstrap.of_metric(bleu, lines, times)

    names = [(TEACHER, TEACHER), *((method.name, name) for name, method, _ in plan.students())]
    names.append((EXPORTED, EXPORTED))  # the folder that is served, in its own precision
    systems: dict[str, list[Bootstrap]] = {system: [] for system, _ in names}
    for system, name in names:
        own = scored(name)
        if own is not None:
            systems[system].append(own)
    return "\n".join(rows(systems, plan.recipe.baseline.name))


def _references(evaluation: Path, *, has_several: bool) -> list[list[str]]:
    """Return the columns of references that the evaluation compared with."""
    if not has_several:
        return [(evaluation / folder.REFERENCES).read_text(encoding="utf-8").split("\n")[:-1]]
    lines = (evaluation / folder.RIGHT).read_text(encoding="utf-8").split("\n")[:-1]
    return reference_columns([line.split("\t") for line in lines])


def rows(systems: Mapping[str, Sequence[Bootstrap]], baseline: str) -> list[str]:
    """Return the lines of the table.

    Args:
        systems: the scores of each system's seeds.
        baseline: name of the system that others are compared with.
    """
    lines = [f"| {' | '.join(HEAD)} |", "|---|--:|--:|--:|--:|--:|"]
    base = mean(systems[baseline]) if systems.get(baseline) else None
    for name, seeds in systems.items():
        if not seeds:
            continue
        own = mean(seeds)
        low, high = own.interval()
        scores = [each.score for each in seeds]
        cells = [name, str(len(seeds)), f"{own.score:.2f} ({low:.2f} to {high:.2f})"]
        cells.append(f"{min(scores):.2f} to {max(scores):.2f}" if len(seeds) > 1 else "")
        if base is None or name == baseline:
            cells += ["", ""]
        else:
            gain, p = own.minus(base), own.p(base)
            cells += [
                f"{gain.value:+.2f} ({gain.low:+.2f} to {gain.high:+.2f})",
                "" if p is None else f"{p:.3f}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def mean(seeds: Sequence[Bootstrap]) -> Bootstrap:
    """Return the mean of some systems on the same resamples, as one system."""
    return Bootstrap(
        sum(each.score for each in seeds) / len(seeds), np.mean([each.resampled for each in seeds], axis=0)
    )

"""Shows an evaluation as Markdown, ready for a README."""

import re
from collections.abc import Mapping, Sequence

from fairseq_imitkd.evaluate.probes import LEAST
from fairseq_imitkd.evaluate.schema import (
    EXPOSURE,
    ROUGE,
    EvaluationResults,
    ModelResults,
    ProbeResults,
    QualityScore,
    SearchResults,
    SpeedResult,
    TeacherDistance,
)
from fairseq_imitkd.evaluate.speed import SEED
from fairseq_imitkd.text.scores import TITLES

TESTED = ("chrf", "ter", *ROUGE)  # metrics with an interval and a p, beside BLEU

Models = Mapping[str, ModelResults]


def markdown(results: EvaluationResults) -> str:
    """Return tables of quality, speed, size and probes, and what a reader needs to get the same numbers."""
    data, models = results.data, results.models
    languages = f"{data.source_lang} to {data.target_lang}"
    parts = [
        f"{_counted(data.sentences, 'sentence')} of `{data.split}`, {languages}.",
        _quality(models),
        _by_length(models),
        _speed(models, results.baseline),
        _size(models),
    ]
    probes = {name: model.probes for name, model in models.items() if model.probes}
    if probes:
        parts.append(_probes(probes, results.teacher, data.probe_sentences))
    if any(each.by_position for each in probes.values()):
        parts.append(_by_position(probes))
    if any(model.drafts for model in models.values()):
        parts.append(_drafts(models, results.teacher))
    parts += [f"`{name}` failed {_cell(why)}" for name, why in results.failed.items()]
    return "\n\n".join([*parts, _notes(results), f"```\n{results.command}\n```"])


def table(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Return a table whose first ``words`` columns are aligned left and whose numbers are aligned right."""
    rule = "|" + "|".join(["---"] * words + ["--:"] * (len(header) - words)) + "|"
    lines = ["| " + " | ".join(map(_cell, cells)) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], rule, *lines[1:]])


def _cell(text: str) -> str:
    """Return a text that ends no cell and holds no mark-up, whatever a file says, for example as an
    architecture.
    """
    return re.sub(r"[|`<>\[\]\\]", lambda found: f"&#{ord(found[0])};", " ".join(text.split()))


def _number(value: float | None, form: str) -> str:
    """Return a number in a format; empty text for None."""
    return "" if value is None else f"{value:{form}}"


def _searches(models: Models) -> list[tuple[str, str, SearchResults]]:
    return [
        (name, search, found) for name, model in models.items() for search, found in model.searches.items()
    ]


def _quality(models: Models) -> str:
    every = _searches(models)
    tested = [metric for metric in TESTED if any(metric in found.scores for *_, found in every)]
    has_comet = any("comet" in found.scores for *_, found in every)
    header = ["model", "decoding", "BLEU (95%)", "p"]
    header += [word for metric in tested for word in (TITLES[metric], "p")]
    header += ["COMET"] * has_comet
    rows = []
    for name, search, found in every:
        row = [name, search, *_bleu(found.scores.get("bleu"))]
        for metric in tested:
            score = found.scores.get(metric)
            row.append(_number(score.score if score else None, ".4f" if metric in ROUGE else ".2f"))
            row.append(_number(score.p if score else None, ".3f"))
        if has_comet:
            comet = found.scores.get("comet")
            row.append(_number(comet.score if comet else None, ".4f"))
        faults = (found.empty, found.truncated, found.repeating)
        rows.append([*row, *(_number(count, "d") for count in faults)])
    return table([*header, "empty", "truncated", "repeating"], rows, 2)


def _bleu(score: QualityScore | None) -> tuple[str, str]:
    """Return BLEU with its interval, and its p."""
    if score is None:
        return "", ""
    return f"{score.score:.2f}{_between(score.low, score.high, '.1f')}", _number(score.p, ".3f")


def _between(low: float | None, high: float | None, form: str) -> str:
    """Return an interval in brackets; empty text if an end is missing."""
    return "" if low is None or high is None else f" ({low:{form}} to {high:{form}})"


def _by_length(models: Models) -> str:
    every = _searches(models)
    groups = next((found.by_length for *_, found in every), [])
    header = ["BLEU by tokens of the source", "decoding"]
    header += [f"{_range(group.first, group.last)} ({group.sentences:,})" for group in groups]
    rows = [
        [name, search, *(f"{group.bleu:.2f}" for group in found.by_length)] for name, search, found in every
    ]
    return table(header, rows, 2)


def _speed(models: Models, baseline: str | None) -> str:
    header = ["model", "decoding", "batch", "sentences/s, median (quartiles)", "tokens/s", "p50 ms", "p95 ms"]
    rows = []
    for name, model in models.items():
        beams = [found.speed for found in model.searches.values() if found.speed]
        for size, speed in [*model.speeds.items(), *((beam.batch_size, beam) for beam in beams)]:
            row = [name, speed.decoding or "", str(size), *_rates(speed)]
            times = speed.times_baseline
            if baseline:
                row.append(f"{times.median:.2f}{_between(times.low, times.high, '.2f')}" if times else "")
            rows.append(row)
    return table([*header, *([f"x {baseline}, median (quartiles)"] if baseline else [])], rows, 2)


def _rates(speed: SpeedResult) -> list[str]:
    rounds = speed.rounds
    low, high = (rounds.low, rounds.high) if rounds else (None, None)
    return [
        f"{speed.rate:.1f}{_between(low, high, '.1f')}",
        _number(speed.tokens_per_second, ",.0f"),
        _number(speed.p50_ms, ".1f"),
        _number(speed.p95_ms, ".1f"),
    ]


def _size(models: Models) -> str:
    header = ["model", "kind", "architecture", "parameters", "MB", "peak memory MB"]
    rows = []
    for name, model in models.items():
        kind = ", ".join(part for part in (model.kind, model.quantization) if part)
        sizes = (model.served_bytes, model.peak_memory_bytes)
        megabytes = ("" if size is None else f"{size / 1e6:.2f}" for size in sizes)
        rows.append([name, kind, model.arch or "", _number(model.parameters, ",d"), *megabytes])
    return table(header, rows, 3)


def _probes(probes: Mapping[str, ProbeResults], teacher: str | None, sentences: int | None) -> str:
    has_nll = any(found.nll_own is not None for found in probes.values())
    header = [
        f"beside {teacher}, {_counted(sentences, 'sentence')}",
        "agreement, gold",
        "agreement, own",
        "KL, gold",
        "KL, own",
        *(("NLL, gold", "NLL, own") if has_nll else ()),
        "BLEU alone",
        f"begun by it, ended by {teacher}",
        f"begun by {teacher}, ended by it",
        f"{teacher} alone",
    ]
    rows = []
    for name, found in probes.items():
        agreements = (found.agreement_gold, found.agreement_own)
        row = [name, *("" if share is None else f"{100 * share:.1f}%" for share in agreements)]
        nats = [found.kl_gold, found.kl_own, *((found.nll_gold, found.nll_own) if has_nll else ())]
        row += [_number(value, ".3f") for value in nats]
        rows.append([*row, *(_number(found.exposure.get(each), ".2f") for each in EXPOSURE)])
    nll = f"NLL: {teacher}'s negative log-likelihood of the text, in nats per token; " if has_nll else ""
    notes = [
        f"agreement: share of tokens for which the model and {teacher} find the same one the most probable; "
        f"KL: KL({teacher}, model) in nats per token; {nll}gold: after the references' prefixes; own: after "
        "the model's own, by greedy decoding",
        f"begun by it, ended by {teacher}: BLEU of translations whose first half is the model's and whose "
        f"second half is {teacher}'s; all on the same sentences",
    ]
    return "\n".join([table(header, rows), "", *(f"- {_cell(note)}" for note in notes)])


def _by_position(probes: Mapping[str, ProbeResults]) -> str:
    """Agreement after own prefixes, and its difference from that after references': drift grows with the
    position.
    """
    every = [group for found in probes.values() for group in found.by_position]
    tokens = {(group.first, group.last): group.gold.tokens for group in every}
    groups = sorted(tokens, key=lambda group: group[0])
    header = ["agreement, own (over gold), by token"]
    header += [f"{_range(*group)} ({_number(tokens[group], ',d')})" for group in groups]
    rows = []
    for name, found in probes.items():
        cells = {group.first: _over_gold(group.own, group.gold) for group in found.by_position}
        rows.append([name, *(cells.get(first, "") for first, _ in groups)])
    note = (
        "by token: position in the target; in brackets above, the number of the references' tokens; in a "
        "cell, agreement after the model's own prefixes, the number of its own tokens, and in brackets the "
        f"difference from agreement, gold, in points; groups of fewer than {LEAST} tokens are left out"
    )
    return "\n".join([table(header, rows), "", f"- {note}"])


def _over_gold(own: TeacherDistance, gold: TeacherDistance) -> str:
    """Return a cell with the number of the model's own tokens: late ones may be few, or of sentences without
    end.
    """
    share, other = 100 * own.agreement, 100 * gold.agreement
    return f"{share:.1f}% of {_number(own.tokens, ',d')} ({share - other:+.1f})"


def _drafts(models: Models, teacher: str | None) -> str:
    header = [f"draft of {teacher}", "decoding", "accepted", "tokens a draft", "tokens a pass"]
    header += ["cost of a token", "speed-up"]
    rows = [
        [
            name,
            decoding,
            f"{100 * found.acceptance:.1f}%",
            str(found.length),
            f"{found.tokens_per_call:.2f}",
            f"{found.cost:.3f}",
            f"{found.speedup:.2f}",
        ]
        for name, model in models.items()
        for decoding, found in model.drafts.items()
    ]
    notes = [
        f"accepted: share of the drafted tokens that {teacher} accepts in speculative decoding, after the "
        f"prefixes of its own output; greedy: both find the same token the most probable; sampling: sum of "
        "min(p, q)",
        f"tokens a pass: tokens that one pass of {teacher} yields, with the drafts' length of the greatest "
        "speed-up; cost of a token: its time divided by the teacher's, from the speeds at the smallest batch "
        "size; speed-up: by the formula of Leviathan et al. (2023), which neglects all other costs",
    ]
    return "\n".join([table(header, rows, 2), "", *(f"- {_cell(note)}" for note in notes)])


def _range(first: int, last: int | None) -> str:
    return f"{first} to {last}" if last else f"{first} or more"


def _notes(results: EvaluationResults) -> str:
    lines = [f"{name}: `{signature}`" for name, signature in results.signatures.items()]
    if results.data.unknown_words:
        unknown = _counted(results.data.unknown_words, "unknown word")
        lines.append(
            f"the references have {unknown}, which match no translation: scores against raw text are other "
            "ones"
        )
    if results.baseline:
        lines.append(f"p: sacreBLEU's paired bootstrap against `{results.baseline}`, one-sided, same search")
    lines += [
        f"speed: the models take turns batch by batch, in an order drawn with seed {SEED}; medians and "
        f"quartiles are of {_rounds(results.models)}; tokens/s: all tokens of the output over the whole time",
        "MB: the weights of a checkpoint, without the optimiser's state, or all files of an exported student",
        "repeating: the same words three times or more in a row; truncated: ended by the length cap",
        "peak memory: what loading it and translating one batch adds to a process that has imported "
        "everything",
    ]
    lines += [*_origin(results), _time(results)]
    return "\n".join(f"- {line}" for line in lines)


def _origin(results: EvaluationResults) -> list[str]:
    machine = results.machine
    cores, threads = _counted(machine.cores, "core"), _counted(machine.threads, "thread")
    versions = ", ".join(f"{name} {number}" for name, number in results.versions.items())
    return [
        f"machine: {machine.processor}, {cores}; {threads}",
        f"commit {results.commit}; {versions}" if results.commit else versions,
    ]


def _time(results: EvaluationResults) -> str:
    seconds = results.seconds
    probes = f", {_number(seconds.probes, ',.0f')} s probes" if results.teacher else ""
    total, decoding = _number(seconds.total, ",.0f"), _number(seconds.decoding, ",.0f")
    return f"{total} s in all: {decoding} s decoding{probes}"


def _rounds(models: Models) -> str:
    speeds = next(iter(models.values())).speeds
    return ", ".join(
        f"{_counted(speed.rounds.count, 'round')} at batch size {size}"
        for size, speed in speeds.items()
        if speed.rounds
    )


def _counted(count: int | None, what: str) -> str:
    return f"{_number(count, ',d')} {what}{'s' * (count != 1)}"

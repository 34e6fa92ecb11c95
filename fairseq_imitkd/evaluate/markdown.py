"""An evaluation as Markdown that goes into a README as it is."""

import re
from collections.abc import Sequence
from typing import Any

from fairseq_imitkd.evaluate.probes import LEAST
from fairseq_imitkd.evaluate.quality import ROUGE
from fairseq_imitkd.evaluate.speed import SEED

TESTED = ("chrf", "ter", *ROUGE)  # what has an interval and a p, as BLEU
TITLES = {"chrf": "chrF", "ter": "TER", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}


def markdown(results: dict[str, Any]) -> str:
    """Tables of quality, speed, size and probes, and what a reader needs to get the same numbers.

    Args:
        results: what ``evaluation.json`` holds.
    """
    data, models = results["data"], results["models"]
    parts = [
        f"{_counted(data['sentences'], 'sentence')} of `{data['split']}`, {data['source_lang']} to {data['target_lang']}.",
        _quality(models),
        _by_length(models),
        _speed(models, results["baseline"]),
        _size(models),
    ]
    if any(model["probes"] for model in models.values()):
        parts.append(_probes(models, results["teacher"], data["probe_sentences"]))
    if _has_positions(models):
        parts.append(_by_position(models))
    parts += [f"`{name}` failed {_cell(why)}" for name, why in results["failed"].items()]
    return "\n\n".join([*parts, _notes(results), f"```\n{results['command']}\n```"])


def table(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table whose first ``words`` columns lie to the left and whose numbers lie to the right."""
    rule = "|" + "|".join(["---"] * words + ["--:"] * (len(header) - words)) + "|"
    lines = ["| " + " | ".join(map(_cell, cells)) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], rule, *lines[1:]])


def _cell(text: str) -> str:
    """What a file says of itself, such as its architecture, ends no cell and is no mark-up."""
    return re.sub(r"[|`<>\[\]\\]", lambda found: f"&#{ord(found[0])};", " ".join(text.split()))


def _quality(models: dict[str, Any]) -> str:
    every = [
        (name, search, found) for name, model in models.items() for search, found in model["decoding"].items()
    ]
    tested = [each for each in TESTED if any(each in found for *_, found in every)]
    comet = any("comet" in found for *_, found in every)
    header = [
        "model",
        "decoding",
        "BLEU (95%)",
        "p",
        *(word for each in tested for word in (TITLES[each], "p")),
    ]
    header += ["COMET"] if comet else []
    rows = []
    for name, search, found in every:
        bleu = found["bleu"]
        row = [name, search, f"{bleu['score']:.2f} ({bleu['low']:.1f} to {bleu['high']:.1f})", _chance(bleu)]
        for metric in tested:
            row += [f"{found[metric]['score']:.{4 if metric in ROUGE else 2}f}", _chance(found[metric])]
        if comet:
            row.append(f"{found['comet']['score']:.4f}" if "comet" in found else "")
        rows.append([*row, *(str(found[fault]) for fault in ("empty", "truncated", "repeating"))])
    return table([*header, "empty", "truncated", "repeating"], rows, 2)


def _chance(score: dict[str, Any]) -> str:
    return "" if score["p"] is None else f"{score['p']:.3f}"


def _by_length(models: dict[str, Any]) -> str:
    groups = next(iter(next(iter(models.values()))["decoding"].values()))["by_length"]
    header = ["BLEU by tokens of the source", "decoding"]
    for group in groups:
        header.append(f"{_range(group['from'], group['to'])} ({group['sentences']:,})")
    rows = [
        [name, search, *(f"{group['bleu']:.2f}" for group in found["by_length"])]
        for name, model in models.items()
        for search, found in model["decoding"].items()
    ]
    return table(header, rows, 2)


def _speed(models: dict[str, Any], baseline: str | None) -> str:
    header = ["model", "decoding", "batch", "sentences/s (quartiles)", "tokens/s", "p50 ms", "p95 ms"]
    rows = []
    for name, model in models.items():
        every = list(model["speed"].items())
        beams = [found["speed"] for found in model["decoding"].values() if "speed" in found]
        for size, speed in [*every, *((str(beam["batch_size"]), beam) for beam in beams)]:
            row = [
                name,
                speed["decoding"],
                size,
                _with_quartiles(speed["sentences_per_second"], speed["rounds"], 1),
            ]
            row.append(f"{speed['tokens_per_second']:,.0f}")
            row += ["" if speed[each] is None else f"{speed[each]:.1f}" for each in ("p50_ms", "p95_ms")]
            if baseline:
                row.append(_with_quartiles(speed["times_baseline"]["median"], speed["times_baseline"], 2))
            rows.append(row)
    return table([*header, *([f"x {baseline} (quartiles)"] if baseline else [])], rows, 2)


def _with_quartiles(value: float, some: dict[str, float], digits: int) -> str:
    return f"{value:.{digits}f} ({some['low']:.{digits}f} to {some['high']:.{digits}f})"


def _size(models: dict[str, Any]) -> str:
    header = ["model", "kind", "architecture", "parameters", "MB on disk", "MB of weights", "peak memory MB"]
    rows = []
    for name, model in models.items():
        kind = model["kind"] + (f", {model['quantization']}" if model["quantization"] else "")
        sizes = [
            "" if model[each] is None else f"{model[each] / 1e6:.2f}"
            for each in ("bytes", "weight_bytes", "peak_memory_bytes")
        ]
        rows.append([name, kind, model["arch"] or "", f"{model['parameters']:,}", *sizes])
    return table(header, rows, 3)


def _probes(models: dict[str, Any], teacher: str, sentences: int) -> str:
    header = [
        f"beside {teacher}, {_counted(sentences, 'sentence')}", "agreement, gold", "agreement, own", "KL, gold", "KL, own",
        "BLEU alone", f"it, then {teacher}", f"{teacher}, then it", f"{teacher} alone",
    ]  # fmt: skip
    rows = []
    for name, model in models.items():
        if model["probes"]:
            probes = model["probes"]
            row = [name, *(f"{100 * probes[each]:.1f}%" for each in ("agreement_gold", "agreement_own"))]
            row += [f"{probes[each]:.3f}" for each in ("kl_gold", "kl_own")]
            exposure = ("student", "student_then_teacher", "teacher_then_student", "teacher")
            rows.append([*row, *(f"{probes['exposure'][each]:.2f}" for each in exposure)])
    return table(header, rows)


def _has_positions(models: dict[str, Any]) -> bool:
    """Evaluations of earlier versions have none."""
    return any(model["probes"] and model["probes"].get("by_position") for model in models.values())


def _by_position(models: dict[str, Any]) -> str:
    """Agreement after own prefixes, and how far it is from that after references': what drifts, drifts more the later."""
    probed = {
        name: model["probes"].get("by_position", []) for name, model in models.items() if model["probes"]
    }
    tokens = {
        (group["from"], group["to"]): group["gold"]["tokens"] for each in probed.values() for group in each
    }
    groups = sorted(tokens, key=lambda group: group[0])
    header = [
        "agreement, own (over gold), by token",
        *(f"{_range(*group)} ({tokens[group]:,})" for group in groups),
    ]
    rows = []
    for name, each in probed.items():
        cells = {group["from"]: _over_gold(group["own"], group["gold"]) for group in each}
        rows.append([name, *(cells.get(first, "") for first, _ in groups)])
    return table(header, rows)


def _over_gold(own: dict[str, Any], gold: dict[str, Any]) -> str:
    """With how many tokens of its own a model has there: late ones may be few, or those of sentences that never end."""
    share, other = (100 * each["agreement"] for each in (own, gold))
    return f"{share:.1f}% of {own['tokens']:,} ({share - other:+.1f})"


def _range(first: int, last: int | None) -> str:
    return f"{first} to {last}" if last else f"{first} or more"


def _notes(results: dict[str, Any]) -> str:
    machine, versions, seconds = results["machine"], results["versions"], results["seconds"]
    lines = [f"{name}: `{signature}`" for name, signature in results["signatures"].items()]
    if results["baseline"]:
        lines.append(f"p: paired bootstrap against `{results['baseline']}`, decoded alike")
    lines += [
        "speed: models interleaved, a batch each in turn, in an order drawn with seed "
        f"{SEED}; quartiles are of {_rounds(results['models'])}; tokens are of the output",
        "repeating: the same words three times or more in a row; truncated: ended by the length cap",
        "peak memory: what loading it and translating one batch adds to a process that has imported everything",
    ]
    if results["teacher"]:
        lines.append(
            "agreement: share of tokens for which teacher and student prefer the same; KL(teacher || student) in nats"
        )
    if _has_positions(results["models"]):
        lines.append(
            "by token: its position; in brackets how many the references have there, in a cell how many the model wrote; "
            f"groups of fewer than {LEAST} are left out"
        )
    lines += [
        f"machine: {machine['processor']}, {_counted(machine['cores'], 'core')}; {_counted(machine['threads'], 'thread')}",
        f"commit {results['commit'] or 'unknown'}; "
        + ", ".join(f"{name} {number}" for name, number in versions.items()),
        f"{seconds['total']:,.0f} s, of which {seconds['decoding']:,.0f} decoding"
        + (f" and {seconds['probes']:,.0f} probes" if results["teacher"] else ""),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _rounds(models: dict[str, Any]) -> str:
    speed = next(iter(models.values()))["speed"]
    return ", ".join(
        f"{_counted(each['rounds']['count'], 'round')} at batch size {size}" for size, each in speed.items()
    )


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"

"""Flags of fairseq's trainer that need others, or exclude them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fairseq.criterions import CRITERION_REGISTRY

from fairseq_imitkd.criterion import DistillationCriterion
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.text.scores import SCORES

# Learning-rate schedulers that take one learning rate.
_ONE_RATE = ("cosine", "inverse_sqrt", "reduce_lr_on_plateau", "tri_stage", "triangular")
# What the validation of these criteria logs. fairseq looks the metric up after the first validation.
_LOGGED = ("loss", "nll_loss", "ppl", "wps", "wpb", "bsz")
_ACCURACY = ("accuracy", "total", "n_correct")
_TASKS = ("translation", "translation_with_teacher")
# fairseq's own criteria that can train a translation. Others look for what its batches do not hold.
_TRANSLATE = (
    "adaptive_loss", "composite_loss", "cross_entropy", "label_smoothed_cross_entropy",
    "label_smoothed_cross_entropy_with_alignment", "label_smoothed_cross_entropy_with_rdrop",
)  # fmt: skip


def check(settings: Mapping[str, Any]) -> None:
    """Refuse a training whose flags miss each other.

    Raises:
        UsageError: naming the flag, its value and the remedy.
    """
    problems = (
        _missing,
        _criterion_problems,
        _learning_rate_problems,
        _optimizer_problems,
        _checkpoint_problems,
        _student_problems,
        _metric_problems,
    )
    for problem in (text for find in problems for text in find(settings)):
        raise UsageError(problem)


def _missing(settings: Mapping[str, Any]) -> Iterator[str]:
    if settings.get("max_tokens") is None and settings.get("batch_size") is None:
        yield (
            "--max-tokens is not given; add the most tokens that a batch may hold, such as --max-tokens 4096"
        )
    if settings.get("optimizer") is None:
        yield "--optimizer is not given; add one, such as --optimizer adam"


def _criterion_problems(settings: Mapping[str, Any]) -> Iterator[str]:
    criterion = settings.get("criterion")
    is_fairseqs = getattr(CRITERION_REGISTRY.get(criterion), "__module__", "").startswith("fairseq.")
    if settings.get("task") in _TASKS and is_fairseqs and criterion not in _TRANSLATE:
        yield f"--criterion {criterion} is not for translation: use a method such as imitkd, or cross_entropy"
    if criterion == "label_smoothed_cross_entropy_with_alignment" and not settings.get("load_alignments"):
        yield f"--criterion {criterion} needs alignments: add --load-alignments"


def _learning_rate_problems(settings: Mapping[str, Any]) -> Iterator[str]:
    scheduler, updates = settings.get("lr_scheduler"), settings.get("max_update") or 0
    rates, given = settings.get("lr"), f"--lr-scheduler {scheduler}"
    if scheduler in _ONE_RATE and isinstance(rates, Sequence) and len(rates) > 1:
        yield f"{given} takes one --lr, but has {len(rates)}: give one, or use --lr-scheduler fixed"
    rate: float = rates[0] if isinstance(rates, Sequence) else rates  # type: ignore[assignment]
    warmup = settings.get("warmup_updates") or 0
    if scheduler == "inverse_sqrt" and warmup < 1:
        yield f"--warmup-updates must be 1 or more under {given}, but is {warmup}: raise it, or use another"
    if scheduler == "polynomial_decay" and settings.get("total_num_update") is None:
        yield f"--total-num-update is not given; {given} needs it: add the number of --max-update"
    period = settings.get("lr_period_updates") or -1
    if scheduler == "cosine" and period <= 0 and updates <= warmup:
        yield (
            f"{given} needs --max-update above --warmup-updates {warmup}, or --lr-period-updates: add one of "
            "them"
        )
    if scheduler == "tri_stage":
        yield from _three_stages(settings, given, updates)
    if scheduler == "triangular" and not settings.get("max_lr", 0) > rate:
        yield f"--max-lr must be above --lr {rate} under {given}, but is {settings.get('max_lr')}: raise it"
    if scheduler == "triangular" and period < 2:
        yield f"--lr-period-updates must be 2 or more under {given}, but is {period}: raise it"
    if scheduler == "step" and not (settings.get("min_lr") or 0) < rate:
        yield f"--min-lr must be below --lr {rate} under {given}, but is {settings.get('min_lr')}: lower it"
    if scheduler == "reduce_lr_on_plateau" and not settings.get("lr_shrink", 0) < 1:
        yield f"--lr-shrink must be below 1 under {given}, but is {settings['lr_shrink']}: lower it"
    if scheduler == "pass_through":
        yield f"{given} needs an --optimizer with a schedule of its own: use another --lr-scheduler"


def _three_stages(settings: Mapping[str, Any], given: str, updates: int) -> Iterator[str]:
    ratio, decay = settings.get("phase_ratio"), settings.get("decay_steps") or 0
    if ratio is None:
        if decay < 1:
            yield (
                f"--decay-steps must be 1 or more under {given}, but is {decay}: raise it, or add "
                "--phase-ratio"
            )
        return
    parts = [part for part in ratio if isinstance(part, int | float) and 0 <= part <= 1]
    if len(parts) != 3 or sum(parts) != 1:
        yield f"--phase-ratio must be three numbers that add up to 1, such as 0.1,0.4,0.5, but is {ratio}"
    elif int(updates * parts[2]) < 1:
        yield f"--phase-ratio {ratio} leaves no update to decay in: add --max-update, or raise the last part"


def _optimizer_problems(settings: Mapping[str, Any]) -> Iterator[str]:
    optimizer = settings.get("optimizer")
    if optimizer == "composite":
        yield "--optimizer composite can only be used with fairseq-hydra-train: use another, such as adam"
    if optimizer == "adafactor" and settings.get("relative_step"):
        yield "--relative-step can't be used with --lr, which fairseq always sets: leave it out"
    if optimizer == "adafactor" and settings.get("warmup_init"):
        yield "--warmup-init needs --relative-step, which can't be used here: leave it out"


def _checkpoint_problems(settings: Mapping[str, Any]) -> Iterator[str]:
    finetuned, restored = settings.get("finetune_from_model"), settings.get("restore_file")
    if finetuned and restored != "checkpoint_last.pt":
        yield f"--finetune-from-model can't be used with --restore-file {restored}: leave one of them out"
    for name in ("optimizer", "lr_scheduler", "meters", "dataloader"):
        if finetuned and settings.get(f"reset_{name}"):
            yield (
                f"--reset-{name.replace('_', '-')} changes nothing with --finetune-from-model, which resets "
                "it: leave it out"
            )


def _student_problems(settings: Mapping[str, Any]) -> Iterator[str]:
    if settings.get("quant_noise_scalar"):  # its forward passes count, those of validation and rollouts too
        yield (
            f"--quant-noise-scalar {settings['quant_noise_scalar']} can't be used, because checkpoints lack "
            "its scales and a stopped run could not go on: leave it out"
        )


def _metric_problems(settings: Mapping[str, Any]) -> Iterator[str]:
    criterion, metric = settings.get("criterion"), settings.get("best_checkpoint_metric")
    distils = issubclass(CRITERION_REGISTRY.get(criterion, object), DistillationCriterion)
    known = distils or criterion in ("cross_entropy", "label_smoothed_cross_entropy")
    if not known or settings.get("disable_validation") or settings.get("task") not in _TASKS:
        return
    logged = (*_LOGGED, *SCORES.values(), *(_ACCURACY if settings.get("report_accuracy") else ()))
    if metric not in (*logged, *SCORES):  # of the scores, the task says how they are computed
        yield (
            f"--best-checkpoint-metric must be one of {', '.join(logged)}, as the log calls them, but is "
            f"'{str(metric)[:60]}'"
        )

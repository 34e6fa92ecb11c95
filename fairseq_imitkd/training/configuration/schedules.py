"""The schedules of a learning rate: what each one needs, and where it begins."""

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fairseq_imitkd.training.configuration.paths import checkpoint_to_start_from

logger = logging.getLogger(__name__)
# Learning-rate schedulers that take one learning rate.
_ONE_RATE = ("cosine", "inverse_sqrt", "reduce_lr_on_plateau", "tri_stage", "triangular")


def problems(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the schedule of a training's learning rate."""
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
    if scheduler in ("cosine", "step") and not (settings.get("min_lr") or 0) < rate:
        yield f"--min-lr must be below --lr {rate} under {given}, but is {settings.get('min_lr')}: lower it"
    if scheduler == "reduce_lr_on_plateau" and not settings.get("lr_shrink", 0) < 1:
        yield f"--lr-shrink must be below 1 under {given}, but is {settings['lr_shrink']}: lower it"
    first, last = _first_rate(settings, rate), settings.get("stop_min_lr", -1)
    if last >= first and not _continues(settings):
        yield (
            f"--stop-min-lr {last} ends the training before its first update, whose learning rate is {first} "
            f"under {given}: lower it, or raise that"
        )
    if scheduler == "pass_through":
        yield f"{given} needs an --optimizer with a schedule of its own: use another --lr-scheduler"


def warn(settings: Mapping[str, Any]) -> None:
    """Warn of a training that ends before its learning rate has risen to ``--lr``."""
    warmup, updates = settings.get("warmup_updates") or 0, settings.get("max_update") or 0
    if 0 < updates <= warmup:
        _warn_once(
            f"--warmup-updates {warmup} is not below --max-update {updates}: the learning rate never reaches "
            "--lr; lower it"
        )


@functools.cache  # the settings are checked twice, as the command line and as the configuration
def _warn_once(line: str) -> None:
    logger.warning("%s", line)


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


def _first_rate(settings: Mapping[str, Any], rate: float) -> float:
    """Return the learning rate of the first update, as fairseq's schedulers compute it.

    Args:
        settings: the settings.
        rate: the first ``--lr``.
    """
    scheduler, warmup = settings.get("lr_scheduler"), settings.get("warmup_updates") or 0
    if scheduler == "tri_stage":
        ratio, updates = settings.get("phase_ratio"), settings.get("max_update") or 0
        steps = settings.get("warmup_steps") or 0 if ratio is None else int(updates * ratio[0])
        return rate * settings.get("init_lr_scale", 1.0) if steps else rate
    if warmup < 1:
        return rate
    if scheduler == "fixed":
        return rate / warmup
    if scheduler == "polynomial_decay":
        return 0.0
    start = settings.get("warmup_init_lr", rate)
    if start >= 0:
        return start
    return settings.get("min_lr") or 0.0


def _continues(settings: Mapping[str, Any]) -> bool:
    """Whether the schedule goes on from a checkpoint."""
    start = checkpoint_to_start_from(settings)
    return (
        start is not None and start[0] != "--finetune-from-model" and not settings.get("reset_lr_scheduler")
    )

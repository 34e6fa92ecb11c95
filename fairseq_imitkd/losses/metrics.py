"""What a training step logs: sums over a batch, and the meters that fairseq makes of them."""

import math
from typing import Any

import torch
from fairseq import utils
from fairseq.logging import metrics
from torch import Tensor

from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.text.repetition import repeated


def batch_sums(
    sample: Batch,
    values: dict[str, Tensor],
    *,
    counted: Tensor,
    tokens: int,
    is_rollout: Tensor,
    distillation: Any,
    by_sentence: bool,
    pad: int,
) -> dict[str, Any]:
    """Return the sums of a batch to log.

    Every batch has the same keys in the same order, because fairseq adds up the values of all processes by
    position.

    Args:
        sample: a batch of ``B`` sentences.
        values: ``(P,)`` tensors for the ``P`` positions that were computed: ``loss`` and ``nll``; with a
            teacher ``compared`` (whether the loss compares with the teacher) and ``agrees``; for classes
            ``correct``; with ``--hidden-match`` its distance, ``hidden_match``; for scores
            ``squared_error`` instead of ``nll``, and ``labelled``.
        counted: ``(P,)`` bool, False at padding.
        tokens: number of counted positions.
        is_rollout: ``(P,)`` bool, the counted positions of rollouts.
        distillation: the batch's :class:`~fairseq_imitkd.criterion.Distillation`; None in validation and in
            filler batches.
        by_sentence: whether the loss is counted by sentences and not by tokens.
        pad: target value of positions that do not count.
    """
    loss, is_data = values["loss"], counted & ~is_rollout
    rollout_tokens = is_rollout.sum()
    zero = torch.zeros_like(rollout_tokens)
    without_teacher = distillation is None or distillation.teacher is None
    return {
        "loss": loss.sum(),
        "nll_loss": values["nll"].masked_fill(~is_data, 0.0).sum() if "nll" in values else zero,
        "loss_data": loss.masked_fill(~is_data, 0.0).sum(),
        "loss_rollout": loss.masked_fill(~is_rollout, 0.0).sum(),
        "ntokens": tokens,
        "nsentences": sample["target"].size(0),
        "sample_size": sample["target"].size(0) if by_sentence else tokens,
        "positions": sample["target"].numel(),
        "tokens_data": tokens - rollout_tokens,
        "tokens_rollout": rollout_tokens,
        "distilled_tokens": 0 if distillation is None else tokens,
        "teacher_tokens": zero if without_teacher else values["compared"].sum(),
        "teacher_agrees": zero if without_teacher else values["agrees"].sum(),
        **_rollout_sums(sample["target"], distillation, pad=pad, zero=zero),
        **{
            name: values[name].sum()
            for name in ("correct", "hidden_match", "squared_error", "labelled")
            if name in values
        },
    }


def _rollout_sums(target: Tensor, distillation: Any, *, pad: int, zero: Tensor) -> dict[str, Tensor]:
    """Return the sums that show whether rollouts are texts. Nothing here waits for the device.

    A rollout is empty if its first token is the EOS.
    """
    sums = dict.fromkeys(("rollouts", "rollouts_truncated", "rollouts_empty", "tokens_repeated"), zero)
    if distillation is None:
        return sums
    is_rollout, truncated = distillation.is_rollout, distillation.truncated
    sums.update(rollouts=is_rollout.sum(), rollouts_truncated=truncated.sum())
    if distillation.now.student_writes:
        counted = target.ne(pad)
        is_empty = is_rollout & ~truncated & counted.sum(dim=-1).eq(1)
        is_repeated = repeated(target) & counted & is_rollout.unsqueeze(-1)
        sums.update(rollouts_empty=is_empty.sum(), tokens_repeated=is_repeated.sum())
    return sums


def log(logging_outputs: list[dict[str, Any]]) -> None:
    """Turn the sums of all processes and micro-batches into fairseq's meters."""
    total = totals(logging_outputs)
    if "squared_error" in total:
        return _log_scores(total)
    _ratio(total, "loss", "loss", of="ntokens", digits=3, unit=1.0 / math.log(2))
    if total["tokens_data"] > 0:
        _ratio(total, "nll_loss", "nll_loss", of="tokens_data", digits=3, unit=1.0 / math.log(2))
        metrics.log_derived("ppl", lambda meters: utils.get_perplexity(meters["nll_loss"].avg))
    if "correct" in total:
        _ratio(total, "accuracy", "correct", of="ntokens", digits=2, unit=100.0)
    if total["distilled_tokens"] > 0:
        _log_distillation(total)


def _log_scores(total: dict[str, float]) -> None:
    """Log the meters of a task whose labels are numbers: squared errors, in the labels' unit squared."""
    _ratio(total, "loss", "loss", of="ntokens", digits=6)
    _ratio(total, "squared_error", "squared_error", of="labelled", digits=6)
    if total["distilled_tokens"] > 0:
        _ratio(total, "labelled", "labelled", of="ntokens", digits=3)
        _ratio(total, "teacher_time", "teacher_seconds", of="step_seconds", digits=3)


def _log_distillation(total: dict[str, float]) -> None:
    """Log the meters of training steps that distil."""
    bits = 1.0 / math.log(2)
    _ratio(total, "loss_data", "loss_data", of="tokens_data", digits=3, unit=bits)
    _ratio(total, "loss_rollout", "loss_rollout", of="tokens_rollout", digits=3, unit=bits)
    _ratio(total, "student_share", "rollouts", of="nsentences", digits=3)
    _ratio(total, "rollout_len", "tokens_rollout", of="rollouts", digits=1)
    _ratio(total, "truncated", "rollouts_truncated", of="rollouts", digits=3)
    _ratio(total, "empty", "rollouts_empty", of="rollouts", digits=3)
    _ratio(total, "repetition", "tokens_repeated", of="tokens_rollout", digits=3)
    _ratio(total, "agreement", "teacher_agrees", of="teacher_tokens", digits=3)
    _ratio(total, "padding", "positions", of="ntokens", digits=3)
    _ratio(total, "rollout_work", "rollout_rows_computed", of="rollout_tokens_written", digits=3)
    if "hidden_match" in total:
        _ratio(total, "hidden_match", "hidden_match", of="distilled_tokens", digits=5)
    if total.get("rollouts_may_be_stale", 0) > 0:
        for name in ("rollout_staleness", "rollouts_replayed"):
            if name in total:
                _ratio(total, name, name, of="rollouts", digits=3)
    if total.get("rewarded", 0) > 0:
        _ratio(total, "reward", "reward", of="rewarded", digits=4)
        variance = total["reward_squared"] / total["rewarded"] - (total["reward"] / total["rewarded"]) ** 2
        metrics.log_scalar("reward_spread", math.sqrt(max(variance, 0.0)), total["rewarded"], round=4)
    for name in ("tokens_data", "tokens_rollout"):
        metrics.log_scalar(name, total[name], 1, round=1)
    if total.get("rollout_out_of_memory", 0) > 0:
        metrics.log_scalar_sum("rollout_out_of_memory", total["rollout_out_of_memory"])
    _ratio(total, "graph_hits", "graph_blocks_replayed", of="graph_blocks", digits=3)
    _ratio(total, "graphs", "graphs", of="graph_reports", digits=1)
    _ratio(total, "graph_memory", "graph_megabytes", of="graph_reports", digits=1)
    _ratio(total, "rollout_time", "rollout_seconds", of="step_seconds", digits=3)
    _ratio(total, "teacher_time", "teacher_seconds", of="step_seconds", digits=3)


def _ratio(total: dict[str, float], name: str, part: str, *, of: str, digits: int, unit: float = 1.0) -> None:
    """Log the meter ``name``: ``part / of`` times a unit, weighted by ``of``. Log nothing if ``of`` is 0."""
    if total.get(of, 0.0) > 0:
        metrics.log_scalar(name, total.get(part, 0.0) / total[of] * unit, total[of], round=digits)


def totals(logging_outputs: list[dict[str, Any]]) -> dict[str, float]:
    """Add up all logs, as numbers. Tensors are fetched from the device together."""
    sums = {key: sum(log.get(key, 0) for log in logging_outputs) for key in logging_outputs[0]}
    tensors = [key for key, value in sums.items() if isinstance(value, Tensor)]
    fetched = torch.stack([sums[key].double() for key in tensors]).tolist() if tensors else []
    return {**sums, **dict(zip(tensors, fetched, strict=True))}


class LogsSums:
    """Mixin: a criterion that logs sums. Inherit it before fairseq's class."""

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Turn the sums of all processes and micro-batches into fairseq's meters."""
        log(logging_outputs)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """True: every logged value is a sum, so fairseq adds them up without pickling."""
        return True

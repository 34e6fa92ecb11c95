"""What a training logs: sums over a batch, and the meters that fairseq makes of them."""

import math
from typing import Any

import torch
from fairseq import utils
from fairseq.logging import metrics
from torch import Tensor

from fairseq_imitkd.data.batch_type import Batch


def of_batch(
    sample: Batch,
    counted: Tensor,
    is_rollout: Tensor,
    found: dict[str, Tensor],
    distillation: Any,
    by_sentence: bool,
) -> dict[str, Any]:
    """Sums to log, as the batch gives them; a key is missing in no batch, since processes add them up by position.

    Args:
        sample: of ``B`` sentences.
        counted, is_rollout: ``(P,)`` bool, of the positions that were computed.
        found: ``(P,)`` each: ``loss``, ``nll``, with a teacher ``asked`` and ``agrees``, of classifiers ``correct``.
        distillation: as the criterion was given it, or None.
        by_sentence: the loss is counted by sentences, not by tokens.
    """
    loss, is_data = found["loss"], counted & ~is_rollout
    tokens, rollout_tokens = int(counted.sum()), is_rollout.sum()
    zero = torch.zeros_like(rollout_tokens)
    nothing = distillation is None or distillation.teacher is None
    return {
        "loss": loss.sum(),
        "nll_loss": found["nll"].masked_fill(~is_data, 0.0).sum(),
        "loss_data": loss.masked_fill(~is_data, 0.0).sum(),
        "loss_rollout": loss.masked_fill(~is_rollout, 0.0).sum(),
        "ntokens": tokens,
        "nsentences": sample["target"].size(0),
        "sample_size": sample["target"].size(0) if by_sentence else tokens,
        "positions": sample["target"].numel(),
        "tokens_data": tokens - rollout_tokens,
        "tokens_rollout": rollout_tokens,
        "distilled_tokens": 0 if distillation is None else tokens,
        "teacher_tokens": zero if nothing else found["asked"].sum(),
        "teacher_agrees": zero if nothing else found["agrees"].sum(),
        "rollouts": zero if distillation is None else distillation.is_rollout.sum(),
        "rollouts_truncated": zero if distillation is None else distillation.truncated.sum(),
        **({"correct": found["correct"].sum()} if "correct" in found else {}),
    }


def log(logging_outputs: list[dict[str, Any]]) -> None:
    """Turn the summed figures of all processes and micro-batches into fairseq's meters."""
    total = totals(logging_outputs)
    bits = 1.0 / math.log(2)

    def ratio(name: str, part: str, whole: str, digits: int, unit: float = 1.0) -> None:
        if total.get(whole, 0.0) > 0:
            metrics.log_scalar(name, total.get(part, 0.0) / total[whole] * unit, total[whole], round=digits)

    ratio("loss", "loss", "ntokens", 3, bits)
    if total["tokens_data"] > 0:
        ratio("nll_loss", "nll_loss", "tokens_data", 3, bits)
        metrics.log_derived("ppl", lambda meters: utils.get_perplexity(meters["nll_loss"].avg))
    if "correct" in total:
        ratio("accuracy", "correct", "ntokens", 2, 100.0)
    if total["distilled_tokens"] == 0:
        return
    ratio("loss_data", "loss_data", "tokens_data", 3, bits)
    ratio("loss_rollout", "loss_rollout", "tokens_rollout", 3, bits)
    ratio("student_share", "rollouts", "nsentences", 3)
    ratio("rollout_len", "tokens_rollout", "rollouts", 1)
    ratio("truncated", "rollouts_truncated", "rollouts", 3)
    ratio("agreement", "teacher_agrees", "teacher_tokens", 3)
    ratio("padding", "positions", "ntokens", 3)
    ratio("rollout_work", "rollout_rows_computed", "tokens_rollout", 3)
    if total.get("rollouts_kept", 0) > 0:
        for name in ("rollout_staleness", "rollouts_replayed"):
            if name in total:
                ratio(name, name, "rollouts", 3)
    if total.get("rewarded", 0) > 0:
        ratio("reward", "reward", "rewarded", 4)
        variance = total["reward_squared"] / total["rewarded"] - (total["reward"] / total["rewarded"]) ** 2
        metrics.log_scalar("reward_spread", math.sqrt(max(variance, 0.0)), total["rewarded"], round=4)
    for name in ("tokens_data", "tokens_rollout"):
        metrics.log_scalar(name, total[name], 1, round=1)
    if total.get("rollout_out_of_memory", 0) > 0:
        metrics.log_scalar_sum("rollout_out_of_memory", total["rollout_out_of_memory"])
    ratio("rollout_time", "rollout_seconds", "step_seconds", 3)
    ratio("teacher_time", "teacher_seconds", "step_seconds", 3)


def totals(logging_outputs: list[dict[str, Any]]) -> dict[str, float]:
    """Sums over all logs as numbers, fetched from the device at once."""
    sums = {key: sum(log.get(key, 0) for log in logging_outputs) for key in logging_outputs[0]}
    tensors = [key for key, value in sums.items() if isinstance(value, Tensor)]
    fetched = torch.stack([sums[key].double() for key in tensors]).tolist() if tensors else []
    return {**sums, **dict(zip(tensors, fetched, strict=True))}

"""The one criterion of every method: a batch with the teacher's logits in, a summed loss and its token count out.

It owns no model and no teacher. fairseq's trainer divides the summed gradient by the summed count, once, over all
processes and micro-batches.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any, Optional

import torch
import torch.nn.functional as F
from fairseq import utils
from fairseq.criterions import FairseqCriterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.logging import metrics
from fairseq.models import BaseFairseqModel
from omegaconf import II
from torch import Tensor

from fairseq_imitkd.batch import Batch
from fairseq_imitkd.divergences import DIVERGENCES, full_precision
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.rollout import RolloutPolicy
from fairseq_imitkd.schedules import parse_schedule
from fairseq_imitkd.vocabulary import most_probable

# Where the task leaves, in a training batch, what the loss needs beside fairseq's own keys.
DISTILLATION = "distillation"

DivergenceName: Any = ChoiceEnum(list(DIVERGENCES))
PolicyName: Any = ChoiceEnum(["greedy", "sampling"])


@dataclass
class DistillationConfig(FairseqDataclass):
    """What every method can be told. A method is this with its paper's defaults."""

    student_share: str = field(
        default="constant:0",
        metadata={
            "help": "share of sentences whose target is the student's own rollout: SHARE, constant:SHARE, "
            "exponential:FINAL_DATA_SHARE, linear:FINAL_DATA_SHARE or reverse-sigmoid, each with an optional ,warmup=FRACTION"
        },
    )
    divergence: DivergenceName = field(
        default="forward-kl",
        metadata={"help": "loss between student and teacher at each prefix: the teacher's argmax or its whole distribution"},
    )
    gold_weight: float = field(
        default=0.0,
        metadata={"help": "weight of the reference's negative log-likelihood on sentences that keep their reference, in 0..1"},
    )
    rollout_policy: PolicyName = field(default="greedy", metadata={"help": "how the student writes its rollouts"})
    rollout_topk: int = field(default=0, metadata={"help": "sample among this many most probable tokens (0: all)"})
    rollout_topp: float = field(
        default=1.0, metadata={"help": "sample among the fewest tokens that hold this much probability (1: all)"}
    )
    rollout_temperature: float = field(default=1.0, metadata={"help": "temperature of sampled rollouts"})
    rollout_max_len_a: float = field(
        default=1.2, metadata={"help": "a rollout has at most A * source length + B tokens before its end: A"}
    )
    rollout_max_len_b: int = field(default=10, metadata={"help": "a rollout has at most A * source length + B tokens: B"})
    rollout_pool: bool = field(
        default=False,
        metadata={
            "help": "decode the rollouts of all micro-batches of an update (--update-freq) at once; as on-policy as without"
        },
    )
    rollout_pool_updates: int = field(
        default=1,
        metadata={
            "help": "decode the rollouts of this many updates at once, by the student as it is before the first of them "
            "(the ImitKD paper's pooling; 1: on-policy)"
        },
    )
    seed: int = II("common.seed")
    max_update: int = II("optimization.max_update")
    ddp_backend: str = II("distributed_training.ddp_backend")


@dataclass(frozen=True)
class Distillation:
    """What the task adds to a training batch of ``B`` sentences and ``T`` target positions.

    Args:
        teacher_logits: ``(B, T, V)``. The criterion overwrites them at padding.
        is_rollout: ``(B,)`` bool: the target is the student's own.
        truncated: ``(B,)`` bool: a rollout that the length cap cut.
    """

    teacher_logits: Tensor
    is_rollout: Tensor
    truncated: Tensor


class DistillationCriterion(FairseqCriterion):
    """Summed distillation loss over the tokens of data rows and rollout rows.

    At each counted position of a rollout row the loss is the divergence; of a data row it is
    ``gold_weight * NLL(reference) + (1 - gold_weight) * divergence`` (Kim & Rush 2016, section 3.1). In validation,
    and in the empty batches of uneven shards, it is the references' negative log-likelihood.

    Args:
        cfg: the method's settings.
        task: a task that holds a teacher, such as ``translation_with_teacher``.

    Raises:
        UsageError: a setting is out of range, or the task has no teacher.
    """

    def __init__(self, cfg: DistillationConfig, task: Any):
        super().__init__(task)
        name = getattr(cfg, "_name", None) or "distillation"
        if not getattr(task, "has_teacher", False):
            raise UsageError(
                f"--criterion {name} needs a task that holds a teacher, but --task is {_task_name(task)}: "
                "use --task translation_with_teacher --teacher-path TEACHER.pt"
            )
        if cfg.ddp_backend == "fully_sharded":
            raise UsageError(
                f"--ddp-backend fully_sharded leaves no whole student to write rollouts, so --criterion {name} can't use it: "
                "use --ddp-backend legacy_ddp or pytorch_ddp"
            )
        if not 0.0 <= cfg.gold_weight <= 1.0:
            raise UsageError(f"--gold-weight must be in 0..1, but is {cfg.gold_weight}")
        self.seed = cfg.seed
        self.gold_weight = cfg.gold_weight
        self.divergence = DIVERGENCES[str(cfg.divergence)]
        self.student_share = parse_schedule(cfg.student_share, cfg.max_update)
        if self.student_share(cfg.max_update) == 0.0:  # every schedule rises
            _refuse_rollout_flags(cfg)
        if cfg.rollout_pool_updates < 1:
            raise UsageError(f"--rollout-pool-updates must be 1 (on-policy) or more, but is {cfg.rollout_pool_updates}")
        self.rollout_pool = cfg.rollout_pool or cfg.rollout_pool_updates > 1
        self.rollout_pool_updates = cfg.rollout_pool_updates
        self.rollout_policy = RolloutPolicy(
            name=str(cfg.rollout_policy),
            topk=cfg.rollout_topk,
            topp=cfg.rollout_topp,
            temperature=cfg.rollout_temperature,
            max_len_a=cfg.rollout_max_len_a,
            max_len_b=cfg.rollout_max_len_b,
        )

    def forward(self, model: BaseFairseqModel, sample: Batch, reduce: bool = True) -> tuple[Tensor, int, dict[str, Any]]:
        """Score one batch.

        Args:
            model: the student, wrapped or not.
            sample: a fairseq batch; in training with a :class:`Distillation` under its own key.
            reduce: False returns the loss of each counted token, ``(N,)``, instead of their sum.

        Returns:
            the loss in nats, ``()`` or ``(N,)``; the count ``N`` of target tokens it was taken over; and figures to
            log, all of them sums, under the same keys and types whatever the batch.
        """
        logits = full_precision(model(**sample["net_input"])[0].flatten(0, 1))
        gold = sample["target"].flatten()
        counted = gold.ne(self.padding_idx)
        distillation: Optional[Distillation] = sample.get(DISTILLATION)
        if distillation is None:
            token_loss = nll = F.cross_entropy(logits, gold, reduction="none")
            is_rollout = torch.zeros_like(counted)
        else:
            is_rollout = distillation.is_rollout.unsqueeze(-1).expand_as(sample["target"]).flatten() & counted
            # Whatever a teacher says at padding (NaN, in half precision) would reach the gradient as 0 * NaN.
            padding = (~counted).nonzero().squeeze(-1)
            teacher_logits = distillation.teacher_logits.flatten(0, 1).index_fill_(0, padding, 0.0)
            token_loss, nll = self._token_loss(logits, teacher_logits, gold, is_rollout)
        # Padding has its loss computed with the rest: to take its logits out would copy all others, forth and back.
        token_loss = token_loss.masked_fill(~counted, 0.0)
        figures = _figures(token_loss, nll, sample, counted, is_rollout)
        if distillation is not None:
            agrees = most_probable(logits.detach()) == most_probable(teacher_logits)
            figures["teacher_tokens"] = figures["ntokens"]
            figures["teacher_agrees"] = (agrees & counted).sum()
            figures["rollouts"] = distillation.is_rollout.sum()
            figures["rollouts_truncated"] = distillation.truncated.sum()
        return token_loss.sum() if reduce else token_loss[counted], figures["sample_size"], figures

    def _token_loss(
        self, student_logits: Tensor, teacher_logits: Tensor, gold: Tensor, is_rollout: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss and the reference's NLL at ``N`` positions, ``(N, V), (N, V), (N,), (N,) -> (N,), (N,)``."""
        divergence = self.divergence(student_logits, teacher_logits)
        if self.gold_weight == 0.0:
            with torch.no_grad():  # only to log: no N x V tensor for it
                nll = student_logits.logsumexp(dim=-1) - student_logits.gather(-1, gold.unsqueeze(-1)).squeeze(-1)
            return divergence, nll
        nll = F.cross_entropy(student_logits, gold, reduction="none")
        gold_weight = torch.full_like(nll, self.gold_weight).masked_fill(is_rollout, 0.0)
        return gold_weight * nll + (1.0 - gold_weight) * divergence, nll.detach()

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Turn the summed figures of all processes and micro-batches into fairseq's meters."""
        total = _totals(logging_outputs)
        bits = 1.0 / math.log(2)

        def ratio(name: str, part: float, whole: float, digits: int) -> None:
            if whole > 0:
                metrics.log_scalar(name, part / whole, whole, round=digits)

        ratio("loss", total["loss"] * bits, total["sample_size"], 3)
        if total["tokens_data"] > 0:
            ratio("nll_loss", total["nll_loss"] * bits, total["tokens_data"], 3)
            metrics.log_derived("ppl", lambda meters: utils.get_perplexity(meters["nll_loss"].avg))
        if total["teacher_tokens"] == 0:
            return
        ratio("loss_data", total["loss_data"] * bits, total["tokens_data"], 3)
        ratio("loss_rollout", total["loss_rollout"] * bits, total["tokens_rollout"], 3)
        ratio("student_share", total["rollouts"], total["nsentences"], 3)
        ratio("rollout_len", total["tokens_rollout"], total["rollouts"], 1)
        ratio("truncated", total["rollouts_truncated"], total["rollouts"], 3)
        ratio("agreement", total["teacher_agrees"], total["teacher_tokens"], 3)
        ratio("padding", total["positions"], total["ntokens"], 3)
        ratio("rollout_work", total.get("rollout_rows_computed", 0.0), total["tokens_rollout"], 3)
        if total.get("rollout_staleness", 0.0) > 0:
            ratio("rollout_staleness", total["rollout_staleness"], total["rollouts"], 3)
        for name in ("tokens_data", "tokens_rollout"):
            metrics.log_scalar(name, total[name], 1, round=1)
        if total.get("rollout_out_of_memory", 0) > 0:
            metrics.log_scalar_sum("rollout_out_of_memory", total["rollout_out_of_memory"])
        ratio("rollout_time", total.get("rollout_seconds", 0.0), total.get("step_seconds", 0.0), 3)
        ratio("teacher_time", total.get("teacher_seconds", 0.0), total.get("step_seconds", 0.0), 3)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """True: every figure is a sum, so fairseq adds them up without pickling."""
        return True


def _refuse_rollout_flags(cfg: DistillationConfig) -> None:
    """Where nothing is rolled out, a flag that says how would be silently ignored."""
    for item in fields(DistillationConfig):
        value = getattr(cfg, item.name)
        if item.name.startswith("rollout_") and str(value) != str(item.default):
            flag = "--" + item.name.replace("_", "-") + ("" if value is True else f" {value}")
            raise UsageError(f"{flag} changes nothing at --student-share {cfg.student_share}: raise the share or leave it out")


def _figures(token_loss: Tensor, nll: Tensor, sample: Batch, counted: Tensor, is_rollout: Tensor) -> dict[str, Any]:
    """Sums to log, as the batch gives them; a key is missing in no batch, since processes add them up by position.

    The tensors are ``(P,)``: all positions, padding included, where the loss is 0.
    """
    token_loss = token_loss.detach()
    is_data = counted & ~is_rollout
    tokens, rollout_tokens = int(counted.sum()), is_rollout.sum()
    return {
        "loss": token_loss.sum(),
        "nll_loss": nll.detach().masked_fill(~is_data, 0.0).sum(),
        "loss_data": token_loss.masked_fill(~is_data, 0.0).sum(),
        "loss_rollout": token_loss.masked_fill(~is_rollout, 0.0).sum(),
        "ntokens": tokens,
        "nsentences": sample["target"].size(0),
        "sample_size": tokens,
        "positions": counted.numel(),
        "tokens_data": tokens - rollout_tokens,
        "tokens_rollout": rollout_tokens,
        "teacher_tokens": 0,
        "teacher_agrees": torch.zeros_like(rollout_tokens),
        "rollouts": torch.zeros_like(rollout_tokens),
        "rollouts_truncated": torch.zeros_like(rollout_tokens),
    }


def _totals(logging_outputs: list[dict[str, Any]]) -> dict[str, float]:
    """Sums over all logs as numbers, fetched from the device at once."""
    sums = {key: sum(log.get(key, 0) for log in logging_outputs) for key in logging_outputs[0]}
    tensors = [key for key, value in sums.items() if isinstance(value, Tensor)]
    fetched = torch.stack([sums[key].double() for key in tensors]).tolist() if tensors else []
    return {**sums, **dict(zip(tensors, fetched, strict=True))}


def _task_name(task: Any) -> str:
    return getattr(getattr(task, "cfg", None), "_name", None) or type(task).__name__

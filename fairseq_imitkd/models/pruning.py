"""Magnitude pruning: weights near zero become zero and stay so (See et al., CoNLL 2016; Kim & Rush, EMNLP 2016, section 5.2).

The weights are the model's matrices; biases, gains and norms are left alone. Being exactly zero is all that tells a pruned
weight, so every checkpoint says which they are, and one that is pruned already goes on pruned.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Optional

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.logging import metrics
from omegaconf import II
from torch import Tensor, nn

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.models.access import unwrapped

logger = logging.getLogger(__name__)

SCOPES = ("global", "layer")
Scope: Any = ChoiceEnum([*SCOPES])
# Wrappers after whose step a weight that was zero may not be so any more, or is nowhere whole.
NOT_WITH = {
    "fully_sharded": "leaves no whole weights to compare",
    "slowmo": "moves the weights after the optimizer has",
}


@dataclass
class PruningConfig(FairseqDataclass):
    """What a task can be told about pruning."""

    prune_sparsity: float = field(
        default=0.0,
        metadata={
            "help": "share of the weights that end up zero, the smallest ones (0: no pruning); weights that are zero already, "
            "such as a pruned checkpoint's, count and stay zero"
        },
    )
    prune_scope: Scope = field(
        default="global",
        metadata={"help": "the smallest of all weights, or the same share of every weight matrix"},
    )
    prune_start: int = field(
        default=0, metadata={"help": "prune after this many updates (0: after the first)"}
    )
    prune_end: Optional[int] = field(
        default=None,
        metadata={
            "help": "prune little by little from --prune-start until this many updates (default: all at --prune-start)"
        },
    )
    prune_every: int = field(
        default=100, metadata={"help": "updates from one pruning to the next, until --prune-end"}
    )
    max_update: int = II("optimization.max_update")
    ddp_backend: str = II("distributed_training.ddp_backend")


def check_pruning(cfg: PruningConfig) -> None:
    """Refuse values out of range, and flags that change nothing or can't be used together.

    Raises:
        UsageError: naming the flag, its value, and the remedy.
    """
    check_sparsity("--prune-sparsity", cfg.prune_sparsity)
    for flag, value, least in (("--prune-start", cfg.prune_start, 0), ("--prune-every", cfg.prune_every, 1)):
        if value < least:
            raise UsageError(f"{flag} must be {least} or more, but is {value}")
    end = cfg.prune_start if cfg.prune_end is None else cfg.prune_end
    if end < cfg.prune_start:
        raise UsageError(
            f"--prune-end {end} is before --prune-start {cfg.prune_start}: raise it, or leave it out to prune all at once"
        )
    useless = []
    if cfg.prune_sparsity == 0.0:
        names = [item.name for item in fields(PruningConfig) if item.name.startswith("prune_")]
        useless = [
            (name, "without --prune-sparsity: say what share of the weights shall be zero") for name in names
        ]
    elif end == cfg.prune_start:
        useless = [
            (
                "prune_every",
                "where all is pruned at once: give a --prune-end after --prune-start, or leave it out",
            )
        ]
    for name, why in useless:
        value = getattr(cfg, name)
        if str(value) != str(getattr(PruningConfig, name)):
            raise UsageError(f"--{name.replace('_', '-')} {value} changes nothing {why}")
    if cfg.prune_sparsity == 0.0:
        return
    if 0 < cfg.max_update < end:
        flag = "--prune-start" if cfg.prune_end is None else "--prune-end"
        raise UsageError(
            f"{flag} {end} is after the end of the training, --max-update {cfg.max_update}: lower it"
        )
    if str(cfg.ddp_backend) in NOT_WITH:
        raise UsageError(
            f"--ddp-backend {cfg.ddp_backend} {NOT_WITH[str(cfg.ddp_backend)]}, so --prune-sparsity {cfg.prune_sparsity} can't "
            "use it: use --ddp-backend legacy_ddp or pytorch_ddp"
        )


def check_sparsity(flag: str, value: float) -> None:
    """Refuse what is no share of weights that could be zero and leave a model."""
    if not 0.0 <= value < 1.0:
        raise UsageError(f"{flag} must be at least 0 and below 1, but is {value}")


@dataclass(frozen=True)
class Weight:
    """A weight that can be pruned.

    Args:
        values: of any shape.
        padding: the row of an embedding that is the padding symbol's, which is no weight, or None.
    """

    values: Tensor
    padding: int | None = None

    @property
    def count(self) -> int:
        """How many values it has, the padding's left out."""
        return self.values.numel() - (0 if self.padding is None else self.values[self.padding].numel())

    def zeros(self) -> Tensor:
        """The mask of what is pruned, in the shape of the values."""
        return self._but_padding(self.values == 0, False)

    def magnitudes(self) -> Tensor:
        """Absolute values; infinite for the padding, which so is never among the smallest."""
        return self._but_padding(self.values.detach().abs(), float("inf"))

    def _but_padding(self, values: Tensor, padding: float) -> Tensor:
        if self.padding is not None:
            values[self.padding] = padding
        return values


def is_prunable(shape: Sequence[int]) -> bool:
    """Whether a parameter of this shape is a matrix; one row or column alone is a gain, as weight normalisation has."""
    return sum(size > 1 for size in shape) >= 2 and 0 not in shape


def weights_of_model(model: nn.Module) -> dict[str, Weight]:
    """The weights of a model by name, in its order; those that several of its layers share, once."""
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    padding = {
        id(module.weight): module.padding_idx for module in embeddings if module.padding_idx is not None
    }
    return {
        name: Weight(parameter, padding.get(id(parameter)))
        for name, parameter in model.named_parameters()
        if is_prunable(parameter.shape)
    }


# A checkpoint tells embeddings by their names alone. fairseq's padding is the symbol number 1 of every dictionary.
_EMBEDDING = re.compile(r"(.*\.)?embed_(tokens|positions)\.weight")
_PADDING = 1


def weights_of_checkpoint(state: Mapping[str, Tensor]) -> tuple[dict[str, Weight], dict[str, str]]:
    """The same of a checkpoint's ``model``, where shared weights are equal tensors; and their other names, with the first."""
    matrices = {
        name: value for name, value in state.items() if value.is_floating_point() and is_prunable(value.shape)
    }
    names: dict[str, list[str]] = {}
    for name, values in matrices.items():
        equal = (first for first in names if values.any() and torch.equal(values, matrices[first]))
        names.setdefault(next(equal, name), []).append(name)
    embeddings = {
        first
        for first, all_names in names.items()
        if any(map(_EMBEDDING.fullmatch, all_names)) and len(matrices[first]) > _PADDING
    }
    weights = {first: Weight(matrices[first], _PADDING if first in embeddings else None) for first in names}
    return weights, {other: first for first, all_names in names.items() for other in all_names[1:]}


def smallest(magnitudes: Sequence[Tensor], count: int) -> list[Tensor]:
    """The masks of the ``count`` smallest values of all tensors together; of equal ones, those that come first."""
    flat = torch.cat([values.flatten() for values in magnitudes])
    threshold = flat.kthvalue(count).values
    mask = flat < threshold
    ties = (flat == threshold).nonzero().squeeze(-1)
    mask[ties[: count - int(mask.sum())]] = True
    parts = mask.split([values.numel() for values in magnitudes])
    return [part.view(values.shape) for part, values in zip(parts, magnitudes, strict=True)]


def prune(weights: Mapping[str, Weight], sparsity: float, scope: str, left: float = 0.0) -> dict[str, Tensor]:
    """The masks of the weights that shall be zero: those that are, and the smallest others.

    Args:
        weights: by name.
        sparsity: their share that shall be zero in the end; ``round(sparsity * count)`` of them will be.
        scope: ``global``, the smallest of all weights; ``layer``, of each.
        left: how much of the way from the share that is zero now to the one in the end is left for later, in 0..1.
    """
    masks = {name: weight.zeros() for name, weight in weights.items()}
    for names in [list(weights)] if scope == "global" else [[name] for name in weights]:
        count = sum(weights[name].count for name in names)
        zeros = sum(int(masks[name].sum()) for name in names)
        wanted = round((sparsity - (sparsity - zeros / count) * left) * count)
        if wanted > zeros:
            masks.update(
                zip(names, smallest([weights[name].magnitudes() for name in names], wanted), strict=True)
            )
    return masks


class Pruner:
    """Keeps pruned weights at zero through a training, and prunes others when it is time.

    Shares of zeros rise as in Zhu & Gupta (2017), equation 1: ``s_f + (s_i - s_f) (1 - (t - t_0) / (n Δt))³``. The share
    ``s_i`` at the start is kept nowhere; it follows from the one that the last pruning has left, so a resumed run prunes on.

    Args:
        cfg: settings that :func:`check_pruning` accepts.
    """

    def __init__(self, cfg: PruningConfig):
        self.sparsity, self.scope = cfg.prune_sparsity, str(cfg.prune_scope)
        self.start, self.every = cfg.prune_start, cfg.prune_every
        self.end = self.start if cfg.prune_end is None else cfg.prune_end
        self._masks: dict[str, Tensor] = {}
        self._share = 0.0
        self._pruned_after = -1  # updates
        # A training that ends sooner, by its epochs or by patience, ends unpruned: nothing else would tell.
        begin, end = max(1, self.start), max(1, self.end)
        logger.info(
            "pruning begins after update %d; %g of the weights are zero from update %d on",
            begin,
            self.sparsity,
            end,
        )

    def left(self, update: int) -> float | None:
        """How much of the way that the last pruning left is left by that after so many updates; None: no pruning is due."""
        if update >= self.end:
            return 0.0
        if update <= self.start or (update - self.start) % self.every:
            return None
        return ((self.end - update) / (self.end - update + self.every)) ** 3

    @contextmanager
    def holding(self, model: nn.Module, optimizer: Any, update: int) -> Iterator[None]:
        """Around an optimizer's step, after which there have been ``update`` updates.

        Momentum and weight decay move pruned weights too. They are put back, in the model and in the 32-bit copies that
        fairseq's optimizers for half precision step in its stead.
        """
        weights, copies = weights_of_model(unwrapped(model)), master_copies(optimizer)
        # A small weight may be zero in half precision alone, so the copies say which ones are, where there are any.
        exact = {
            name: Weight(copies.get(id(item.values), item.values), item.padding)
            for name, item in weights.items()
        }
        if not self._masks:
            self._put({name: weight.zeros() for name, weight in exact.items()}, exact)
        yield
        self._zero(weights, exact)
        left = self.left(update)
        # Once for each update: fairseq makes one that overflowed again. And once at the end.
        if left is not None and self._pruned_after < min(update, self.end):
            self._put(prune(exact, self.sparsity, self.scope, left), exact)
            self._zero(weights, exact)
            self._pruned_after = update
            logger.info("pruned after update %d: %.4f of the weights are zero", update, self._share)
        metrics.log_scalar(
            "sparsity", self._share, weight=0, priority=500, round=4
        )  # after the gradient norm

    def _put(self, masks: dict[str, Tensor], weights: Mapping[str, Weight]) -> None:
        self._masks = masks
        self._share = sum(int(mask.sum()) for mask in masks.values()) / sum(
            weight.count for weight in weights.values()
        )

    @torch.no_grad()
    def _zero(self, *copies: Mapping[str, Weight]) -> None:
        for weights in copies:
            for name, mask in self._masks.items():
                weights[name].values.masked_fill_(mask, 0.0)


def master_copies(optimizer: Any) -> dict[int, Tensor]:
    """The 32-bit copy of each parameter, by the parameter's ``id``; none where an optimizer steps the model itself.

    fairseq's ``FP16Optimizer`` has a list of them, or for each device one flat tensor of all in a row.
    """
    copies = getattr(optimizer, "fp32_params", None)
    if copies is None:
        return {}
    if not isinstance(copies, dict):
        return {id(own): copy.data for own, copy in zip(optimizer.fp16_params, copies, strict=True)}
    found, offsets = {}, dict.fromkeys(copies, 0)
    for own in optimizer.fp16_params:
        device, size = own.device.index, own.numel()
        found[id(own)] = copies[device].data[offsets[device] : offsets[device] + size].view(own.shape)
        offsets[device] += size
    return found

"""Magnitude pruning, which sets the smallest weights to zero and keeps them there.

See et al., CoNLL 2016, and Kim & Rush, EMNLP 2016, section 5.2. Only matrices are pruned, not biases, gains
and norms. A weight counts as pruned if it is exactly zero. So each checkpoint tells which weights are pruned,
and training a pruned checkpoint keeps it pruned.
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

from fairseq_imitkd.errors import UsageError, percent
from fairseq_imitkd.models.access import unwrapped

logger = logging.getLogger(__name__)

SCOPES = ("global", "layer")
Scope: Any = ChoiceEnum([*SCOPES])
# Distributed wrappers that split the weights or change them after the optimizer's step.
UNSUPPORTED_BACKENDS = {
    "fully_sharded": "splits the weights between processes",
    "slowmo": "changes the weights after the optimizer's step",
}


@dataclass
class PruningConfig(FairseqDataclass):
    """The flags for pruning during training."""

    prune_sparsity: float = field(
        default=0.0,
        metadata={
            "help": "final share of weights that are zero, the smallest ones (0: no pruning); weights that "
            "are already zero, such as those of a pruned checkpoint, count and stay zero"
        },
    )
    prune_scope: Scope = field(
        default="global",
        metadata={"help": "global: prune the smallest of all weights; layer: the same share of every matrix"},
    )
    prune_start: int = field(
        default=0, metadata={"help": "first update after which to prune (0: the first of all)"}
    )
    prune_end: Optional[int] = field(
        default=None,
        metadata={
            "help": "prune gradually from --prune-start until this update (default: all at --prune-start)"
        },
    )
    prune_every: int = field(
        default=100, metadata={"help": "number of updates between prunings until --prune-end"}
    )
    max_update: int = II("optimization.max_update")
    ddp_backend: str = II("distributed_training.ddp_backend")


def check_pruning(cfg: PruningConfig) -> None:
    """Refuse values out of range, flags without effect, and combinations that can't work.

    Raises:
        UsageError: a flag is refused; the message names the flag, its value and the remedy.
    """
    end = cfg.prune_start if cfg.prune_end is None else cfg.prune_end
    _check_ranges(cfg, end)
    _check_effect(cfg, end)
    if cfg.prune_sparsity == 0.0:
        return
    if 0 < cfg.max_update < end:
        flag = "--prune-start" if cfg.prune_end is None else "--prune-end"
        raise UsageError(
            f"{flag} {end} is after the end of training, --max-update {cfg.max_update}: lower it"
        )
    backend = str(cfg.ddp_backend)
    if backend in UNSUPPORTED_BACKENDS:
        raise UsageError(
            f"--ddp-backend {backend} {UNSUPPORTED_BACKENDS[backend]}, which --prune-sparsity "
            f"{cfg.prune_sparsity} does not support: use --ddp-backend legacy_ddp or pytorch_ddp"
        )


def _check_ranges(cfg: PruningConfig, end: int) -> None:
    check_sparsity("--prune-sparsity", cfg.prune_sparsity)
    for flag, value, least in (("--prune-start", cfg.prune_start, 0), ("--prune-every", cfg.prune_every, 1)):
        if value < least:
            raise UsageError(f"{flag} must be {least} or more, but is {value}")
    if end < cfg.prune_start:
        raise UsageError(
            f"--prune-end {end} is before --prune-start {cfg.prune_start}: raise it, or leave it out to "
            "prune all at once"
        )


def _check_effect(cfg: PruningConfig, end: int) -> None:
    without_effect = []
    if cfg.prune_sparsity == 0.0:
        names = [item.name for item in fields(PruningConfig) if item.name.startswith("prune_")]
        reason = "without --prune-sparsity: set it to the share of weights to prune"
        without_effect = [(name, reason) for name in names]
    elif end == cfg.prune_start:
        reason = "if all weights are pruned at once: set --prune-end after --prune-start, or leave it out"
        without_effect = [("prune_every", reason)]
    for name, reason in without_effect:
        value = getattr(cfg, name)
        if str(value) != str(getattr(PruningConfig, name)):
            raise UsageError(f"--{name.replace('_', '-')} {value} changes nothing {reason}")


def check_sparsity(flag: str, value: float) -> None:
    """Refuse a sparsity outside ``[0, 1)``.

    Raises:
        UsageError: it is out of range; the message names ``flag``.
    """
    if not 0.0 <= value < 1.0:
        raise UsageError(f"{flag} must be at least 0 and below 1, but is {value}{percent(value)}")


@dataclass(frozen=True)
class Weight:
    """A matrix that can be pruned.

    Args:
        values: its values, of any shape.
        padding: in an embedding, the row of the padding symbol, which is not pruned and not counted; else
            None.
    """

    values: Tensor
    padding: int | None = None

    @property
    def count(self) -> int:
        """The number of values without the padding row."""
        return self.values.numel() - (0 if self.padding is None else self.values[self.padding].numel())

    def zeros(self) -> Tensor:
        """Return the mask of pruned values, in their shape."""
        return self._except_padding(self.values == 0, False)

    def magnitudes(self) -> Tensor:
        """Return the absolute values. The padding row is infinite, so it is never among the smallest."""
        return self._except_padding(self.values.detach().abs(), float("inf"))

    def _except_padding(self, values: Tensor, padding: float) -> Tensor:
        if self.padding is not None:
            values[self.padding] = padding
        return values


def is_prunable(shape: Sequence[int]) -> bool:
    """Return whether a parameter of this shape is a matrix.

    A single row or column is not: weight normalisation has gains of such shapes.
    """
    return sum(size > 1 for size in shape) >= 2 and 0 not in shape


def weights_of_model(model: nn.Module) -> dict[str, Weight]:
    """Return the weights of a model by name, in its order. Weights that layers share occur once."""
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    padding = {
        id(module.weight): module.padding_idx for module in embeddings if module.padding_idx is not None
    }
    return {
        name: Weight(parameter, padding.get(id(parameter)))
        for name, parameter in model.named_parameters()
        if is_prunable(parameter.shape)
    }


# A checkpoint identifies embeddings only by their names. The padding symbol has index 1 in fairseq's
# dictionaries:
# https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/data/dictionary.py#L36-L37
_EMBEDDING = re.compile(r"(.*\.)?embed_(tokens|positions)\.weight")
_PADDING = 1


def weights_of_checkpoint(state: Mapping[str, Tensor]) -> tuple[dict[str, Weight], dict[str, str]]:
    """Return the weights of a checkpoint's ``model``, where shared weights are equal tensors.

    Returns:
        the weights by their first name, and ``{other name: first name}`` of shared weights.
    """
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
    """Return masks of the ``count`` smallest values in all tensors; of equal values, the first are taken."""
    flat = torch.cat([values.flatten() for values in magnitudes])
    threshold = flat.kthvalue(count).values
    mask = flat < threshold
    ties = (flat == threshold).nonzero().squeeze(-1)
    mask[ties[: count - int(mask.sum())]] = True
    parts = mask.split([values.numel() for values in magnitudes])
    return [part.view(values.shape) for part, values in zip(parts, magnitudes, strict=True)]


def prune(
    weights: Mapping[str, Weight], sparsity: float, *, scope: str, remaining: float = 0.0
) -> dict[str, Tensor]:
    """Return the masks of the values to prune: those that are already zero, and the smallest others.

    Args:
        weights: weights by name.
        sparsity: final share of zeros; exactly ``round(sparsity * count)`` values.
        scope: ``global`` prunes the smallest of all values, ``layer`` the smallest of each weight.
        remaining: part of the way from the current to the final share that is left for later, in 0..1.
    """
    masks = {name: weight.zeros() for name, weight in weights.items()}
    for names in [list(weights)] if scope == "global" else [[name] for name in weights]:
        count = sum(weights[name].count for name in names)
        zeros = sum(int(masks[name].sum()) for name in names)
        wanted = round((sparsity - (sparsity - zeros / count) * remaining) * count)
        if wanted > zeros:
            smallest_masks = smallest([weights[name].magnitudes() for name in names], wanted)
            masks.update(zip(names, smallest_masks, strict=True))
    return masks


class Pruner:
    """Keeps pruned weights at zero during training, and prunes more when due.

    The share of zeros rises as in Zhu & Gupta (2017), equation 1: ``s_f + (s_i - s_f) (1 - (t - t_0) / (n
    Δt))³``. The initial share ``s_i`` is not stored: each pruning continues from the current share, so a
    resumed run continues too.

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
        # Training that ends earlier, by --max-epoch or --patience, ends unpruned. Only this line tells.
        begin, end = max(1, self.start), max(1, self.end)
        logger.info(
            "pruning begins after update %d; %g of the weights are zero from update %d on",
            begin,
            self.sparsity,
            end,
        )

    def remaining(self, update: int) -> float | None:
        """Return what part of the way left by the last pruning remains after the one at this update.

        Return None if no pruning is due.
        """
        if update >= self.end:
            return 0.0
        if update <= self.start or (update - self.start) % self.every:
            return None
        return ((self.end - update) / (self.end - update + self.every)) ** 3

    @contextmanager
    def holding(self, model: nn.Module, optimizer: Any, update: int) -> Iterator[None]:
        """Surround an optimizer's step: set pruned weights back to zero after it, and prune more when due.

        Momentum and weight decay move pruned weights too. They are set back in the model, and in the 32-bit
        copies that fairseq's half-precision optimizers update.

        Args:
            model: model that is trained, in its wrappers or without.
            optimizer: fairseq's optimizer.
            update: number of updates after the step.
        """
        weights, copies = weights_of_model(unwrapped(model)), master_copies(optimizer)
        # A small weight can be zero in half precision alone, so the copies decide if there are any.
        exact = {
            name: Weight(copies.get(id(item.values), item.values), item.padding)
            for name, item in weights.items()
        }
        if not self._masks:
            self._set_masks({name: weight.zeros() for name, weight in exact.items()}, exact)
        yield
        self._zero(weights, exact)
        remaining = self.remaining(update)
        # Prune once per update, although fairseq repeats an update that overflowed under --amp:
        # https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/trainer.py#L977-L985
        if remaining is not None and self._pruned_after < min(update, self.end):
            masks = prune(exact, self.sparsity, scope=self.scope, remaining=remaining)
            self._set_masks(masks, exact)
            self._zero(weights, exact)
            self._pruned_after = update
            logger.info("pruned after update %d: %.4f of the weights are zero", update, self._share)
        # The priority puts it after the gradient norm.
        metrics.log_scalar("sparsity", self._share, weight=0, priority=500, round=4)

    def _set_masks(self, masks: dict[str, Tensor], weights: Mapping[str, Weight]) -> None:
        self._masks = masks
        zeros = sum(int(mask.sum()) for mask in masks.values())
        self._share = zeros / sum(weight.count for weight in weights.values())

    @torch.no_grad()
    def _zero(self, *copies: Mapping[str, Weight]) -> None:
        for weights in copies:
            for name, mask in self._masks.items():
                weights[name].values.masked_fill_(mask, 0.0)


def master_copies(optimizer: Any) -> dict[int, Tensor]:
    """Return the optimizer's 32-bit copies of parameters, if it has any, by the parameters' ``id``.

    fairseq's ``FP16Optimizer`` has a list of copies, or one flat tensor of all of them per device:
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/optim/fp16_optimizer.py#L31-L78
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

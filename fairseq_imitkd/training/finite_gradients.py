"""An update whose gradient is not finite is refused. A line names the parameter and the likely cause."""

import sys
from typing import Any

from torch import Tensor

from fairseq_imitkd.errors import RefusedUpdate
from fairseq_imitkd.method.method import Method


def refuse_broken_gradients(trainer: Any, method: Method | None) -> None:
    """Make the trainer refuse an update whose gradient is not finite, before the optimizer's step.

    fairseq finds such a gradient too. It then writes a checkpoint, runs the batch again to print every layer,
    and ends in a traceback. When it has found one, it first calls the method that is replaced here. So an
    update without a fault costs nothing:
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/trainer.py#L987-L992

    Half precision works as before: a gradient that is too large lowers the loss scale, until that is at its
    minimum. On a CPU fairseq would end there, because it makes a tensor on a GPU.

    Args:
        trainer: fairseq's trainer.
        method: the method that it trains with; None for a criterion that does not distil.
    """
    consolidate, clip = trainer.consolidate_optimizer, trainer.clip_grad_norm
    common = trainer.cfg.common
    is_plain = not (common.fp16 or common.bf16 or common.amp or trainer.is_fsdp)

    def refuse_or_consolidate() -> None:
        error = sys.exc_info()[1]
        if isinstance(error, FloatingPointError):
            raise RefusedUpdate(_describe(trainer, method, error)) from None
        consolidate()

    def clip_finite(clip_norm: float) -> Tensor:
        """Clip the gradient, unless its norm is not finite: clipping by it would hide the fault."""
        if not is_plain or clip_norm <= 0.0:
            try:
                return clip(clip_norm)
            except OverflowError:
                if trainer.cuda:
                    raise
                raise RefusedUpdate(_describe_overflow(trainer)) from None
        norms: list[Tensor] = []

        def remember(norm: Tensor) -> Tensor:
            norms.append(norm)
            return norm.nan_to_num(nan=0.0, posinf=0.0)

        clipped = trainer.optimizer.clip_grad_norm(clip_norm, aggregate_norm_fn=remember)
        return norms[0] if norms else clipped

    trainer.consolidate_optimizer, trainer.clip_grad_norm = refuse_or_consolidate, clip_finite


def _describe(trainer: Any, method: Method | None, error: FloatingPointError) -> str:
    update = f"update {trainer.get_num_updates() + 1} is refused"
    norms = trainer._grad_norm_buf
    if norms is not None and bool(norms.isfinite().all()) and "inconsistent" in str(error):
        shown = ", ".join(f"{norm:.6g} on rank {rank}" for rank, norm in enumerate(norms.tolist()))
        return (
            f"{update}: the processes have different gradients, of norm {shown}; use --ddp-backend "
            "legacy_ddp, and the same software and kind of device for all of them"
        )
    parameters = list(trainer.get_model().named_parameters())
    broken = [name for name, weight in parameters if not bool(weight.detach().isfinite().all())]
    if broken:
        return (
            f"{update}: weights of {_named(broken)} are not finite; continue from an earlier checkpoint "
            "(--restore-file), with a smaller --lr or --clip-norm"
        )
    gradients = [(name, weight.grad) for name, weight in parameters if weight.grad is not None]
    broken = [name for name, gradient in gradients if not bool(gradient.isfinite().all())]
    if broken:
        return f"{update}: the gradient of {_named(broken)} is not finite; {_cause(trainer, method, error)}"
    largest = max(((float(gradient.abs().max()), name) for name, gradient in gradients), default=(0.0, "?"))
    return (
        f"{update}: the norm of the gradient is too large for its number format: in {largest[1]} it reaches "
        f"{largest[0]:.3g}; {_cause(trainer, method, error)}"
    )


def _describe_overflow(trainer: Any) -> str:
    return (
        f"update {trainer.get_num_updates() + 1} is refused: its gradient is too large for --fp16, and "
        "fairseq lowers the loss scale on a GPU only: lower --fp16-init-scale, which is "
        f"{trainer.cfg.common.fp16_init_scale}, or use --bf16"
    )


def _named(parameters: list[str]) -> str:
    """Name the parameter nearest to the loss, where a fault begins."""
    others = f" and {len(parameters) - 1} other parameters" if len(parameters) > 1 else ""
    return f"{parameters[-1]}{others}"


def _cause(trainer: Any, method: Method | None, error: FloatingPointError) -> str:
    if "loss scale" in str(error):
        reached = f"--min-loss-scale {trainer.cfg.common.min_loss_scale}"
        return f"the loss scale has reached {reached}: use a smaller --lr, or leave out --fp16 or --amp"
    if method is not None and method.reward:
        return f"use a smaller --lr or --reward-weight: rewards of --reward {method.reward} may be too large"
    if method is not None:
        return f"use a smaller --lr, or another --divergence than {method.cfg.divergence}"
    return "use a smaller --lr"

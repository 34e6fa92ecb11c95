"""Weights of a frozen model in eight bits, for a teacher that does not fit on the device otherwise."""

import re

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_LARGEST = 127
# What computes logits, by fairseq's names.
_OUTPUT = re.compile(r"(^|\.)(output_projection$|fc_out$|adaptive_softmax\.|classification_heads\.)")


class RowwiseInt8(nn.Module):
    """A matrix as eight-bit numbers with a scale for each row.

    The matrix is computed anew each time that it is read. The model computes in the precision ``dtype``.

    Args:
        dtype: precision of the matrix that is read.
    """

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, numbers: Tensor, scales: Tensor) -> Tensor:
        """Return the matrix.

        Args:
            numbers: ``(N, M)`` int8.
            scales: ``(N, 1)``, the bits of float32 numbers as int32: a conversion of the model to half
                precision leaves them as they are.

        Returns:
            ``(N, M)`` in ``dtype``.
        """
        return (numbers * scales.view(torch.float32)).to(self.dtype)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Round a matrix to the nearest eight-bit numbers.

        Args:
            weight: ``(N, M)``.

        Returns:
            the arguments of :meth:`forward`. The largest number of a row is kept but for its rounding.
        """
        weight = weight.float()
        scales = weight.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / _LARGEST
        return (weight / scales).round().to(torch.int8), scales.view(torch.int32)


def quantise(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep the matrices of a model's linear layers in eight bits.

    Embeddings, the matrix of the logits and classification heads stay as they are: the first are only looked
    up, and an error of the others goes into the probabilities at once.

    Args:
        model: frozen model.
        dtype: precision of the matrices that are read.
    """
    shared = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and not _OUTPUT.search(name) and id(module.weight) not in shared:
            # unsafe: it skips the check that the matrix is unchanged, which rounding fails.
            parametrize.register_parametrization(module, "weight", RowwiseInt8(dtype), unsafe=True)


def megabytes(model: nn.Module) -> float:
    """Return the memory of a model's parameters and buffers, in MB; shared ones count once."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / 1e6

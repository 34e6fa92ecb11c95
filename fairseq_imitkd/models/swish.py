"""Makes fairseq's activation ``swish`` work, which Marian's models have."""

import functools
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from fairseq import utils
from fairseq.dataclass import ChoiceEnum
from fairseq.models.transformer import TransformerConfig


def mend_swish() -> None:
    """Make ``swish`` a function, and a choice of ``--activation-fn``.

    fairseq returns a class in place of a function, so a model with ``swish`` can't run:
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/utils.py#L568-L569
    """
    known = utils.get_activation_fn

    @functools.wraps(known)
    def get_activation_fn(activation: str) -> Callable[..., Any]:
        found: Callable[..., Any] = F.silu if activation == "swish" else known(activation)
        return found

    utils.get_activation_fn = get_activation_fn
    field = TransformerConfig.__dataclass_fields__["activation_fn"]
    field.type = ChoiceEnum([*utils.get_available_activation_fns(), "swish"])
    TransformerConfig.__annotations__["activation_fn"] = field.type

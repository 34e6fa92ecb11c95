"""Checks that every weight of a checkpoint is used by the model that it was loaded into."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from fairseq.models import BaseFairseqModel, FairseqDecoder, FairseqEncoder
from torch import Tensor

# The matrices without which a model knows nothing of its input or output. Others may be zero after pruning.
_EMBEDDINGS = ("embed_tokens.weight", "output_projection.weight", "fc_out.weight")


class UnusableWeights(ValueError):
    """The weights of a file are not those of a model that its settings describe."""


def check_all_loads() -> None:
    """Make every model of fairseq check the weights that it loads.

    Students and teachers are loaded by this method, as are the models of ``fairseq-generate``,
    ``-interactive`` and ``-validate``, and the checkpoints that a training starts from. It is the only place
    where both the model and the content of the file are known. A load that is not strict is left alone.
    """
    load = BaseFairseqModel.load_state_dict

    @functools.wraps(load)
    def load_and_check(
        self: BaseFairseqModel,
        state_dict: dict[str, Any],
        strict: bool = True,
        *more: Any,
        **settings: Any,
    ) -> Any:
        if not strict:
            return load(self, state_dict, strict, *more, **settings)
        add_versions(self, state_dict)
        read: dict[str, Any] = {}  # the weights as fairseq has renamed and pruned them
        hook = self.register_load_state_dict_pre_hook(lambda _, state, *__: read.update(state))
        try:
            result = load(self, state_dict, strict, *more, **settings)
        finally:
            hook.remove()
        check_weights(self, read)
        return result

    BaseFairseqModel.load_state_dict = load_and_check


def add_versions(model: BaseFairseqModel, weights: dict[str, Any]) -> None:
    """Add the versions that a file lacks although its weights are in today's form.

    Converters of other libraries leave the buffer ``encoder.version`` out. fairseq then takes the file for
    one of 2017 and drops the last layer norm without a word, or divides convolutions by another norm:
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/models/transformer/transformer_encoder.py#L340-L345
    The layer norm's weights, and the shapes, show which form a file has.

    Args:
        model: the new model.
        weights: the weights of the file by name, to which versions are added.
    """
    own = {name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)}
    for part, module in model.named_modules():
        key = f"{part}.version"
        version = module._buffers.get("version")
        if version is None or key in weights or not isinstance(module, FairseqEncoder | FairseqDecoder):
            continue
        decided = {  # the weights whose presence or shape depends on the version
            name: shape
            for name, shape in own.items()
            if name.startswith(f"{part}.layer_norm.")
            or (name.startswith(f"{part}.") and name.endswith(".weight_g"))
        }
        if all(getattr(weights.get(name), "shape", None) == shape for name, shape in decided.items()):
            weights[key] = version.detach().cpu().clone()


def check_weights(model: BaseFairseqModel, weights: Mapping[str, Any]) -> None:
    """Refuse a file whose weights are not all in use, or are not those of a trained model.

    Args:
        model: the model that has loaded them.
        weights: the weights by name, as the model has read them.

    Raises:
        UnusableWeights: a weight is unused, has another type or value in the model, or is not finite; or an
            embedding holds only zeros.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    known = parameters.keys() | dict(model.named_buffers(remove_duplicate=False)).keys()
    for name, value in weights.items():
        if name not in known and isinstance(value, Tensor):
            _refuse_unused(name, weights)
        if name not in parameters or _is_unset(model, name):
            continue
        if not value.is_floating_point():
            raise UnusableWeights(f"its {name} holds {value.dtype}, but must hold floating-point numbers")
        parameter = parameters[name].detach()
        if not bool(parameter.isfinite().all()):
            raise UnusableWeights(f"its {name} holds numbers that are infinite or not a number; use another")
        if not torch.equal(parameter, value.to(parameter)):
            raise UnusableWeights(
                f"its {name} has two values: the model shares this weight with another one; use the settings "
                "that it was trained with, such as --share-all-embeddings"
            )
        if name.endswith(_EMBEDDINGS) and not bool(parameter.any()):
            raise UnusableWeights(f"its {name} holds only zeros; use a trained model")


def _is_unset(model: BaseFairseqModel, name: str) -> bool:
    """Return whether a parameter is memory that fairseq neither sets nor reads.

    A dynamic convolution without a bias has one:
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/modules/dynamic_convolution.py#L382-L391
    """
    owner, _, own_name = name.rpartition(".")
    return own_name == "conv_bias" and getattr(model.get_submodule(owner), "has_conv_bias", True) is False


def _refuse_unused(name: str, weights: Mapping[str, Any]) -> None:
    part = name.partition(".")[0]
    version = weights.get(f"{part}.version")
    found = f", whose {part}.version is {version.tolist()}," if isinstance(version, Tensor) else ""
    raise UnusableWeights(
        f"its {name} is not used by the model that its settings describe{found} so the model would compute "
        "something else; use the file and the settings of one training"
    )

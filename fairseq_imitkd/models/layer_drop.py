"""Makes fairseq's LayerDrop draw random numbers in training mode alone.

fairseq's list of layers draws a number for each layer whenever it is iterated, and ignores the numbers in
evaluation mode:
https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/modules/layer_drop.py#L40-L44

The trainer seeds torch's generator once per update. So the dropout of an update would depend on what was
decoded and scored before it: on the length of rollouts, and on batches that an encoder cache has kept.
"""

from collections.abc import Iterator
from typing import Any

from fairseq.modules import LayerDropModuleList
from torch import nn


def draw_only_in_training() -> None:
    """Replace the iteration over fairseq's list of layers. In training mode it draws as before.

    The replacement holds for the whole process, so for every model. A second call changes nothing.
    """
    LayerDropModuleList.__iter__ = _iterate


def layers_of(side: Any) -> list[Any]:
    """Return all layers of an encoder or decoder, in training mode too, and without a draw."""
    return list(nn.ModuleList.__iter__(side.layers))


_drawing = LayerDropModuleList.__iter__


def _iterate(layers: LayerDropModuleList) -> Iterator[nn.Module]:
    return _drawing(layers) if layers.training else nn.ModuleList.__iter__(layers)

"""What today's torch needs and fairseq 0.12 lacks. Nothing here patches a class.

``torch.load`` has refused, since torch 2.6, every pickled global that is not on an allow-list. fairseq writes a few
harmless ones into each checkpoint and never lists them, so that its own ``fairseq-generate`` and its own resume fail.
Listing them here mends both and keeps the safe loader on.
"""

import argparse
import collections
import logging
import typing

import numpy
import omegaconf
import torch

try:  # numpy 2 moved its core; checkpoints name either place
    from numpy._core import multiarray
except ImportError:
    from numpy.core import multiarray  # type: ignore[no-redef]


def _numpy_globals() -> list:
    """Types of the counts that ``--eval-bleu`` leaves in a checkpoint's meters."""
    dtype_classes = {type(numpy.dtype(kind)) for kind in ("i4", "i8", "f4", "f8", "bool")}
    renamed = [
        (getattr(multiarray, name), f"{core}.multiarray.{name}")
        for core in ("numpy.core", "numpy._core")
        for name in ("_reconstruct", "scalar")
    ]
    return [numpy.ndarray, numpy.dtype, *dtype_classes, *renamed]


def _distributed_globals() -> list:
    """Types that fairseq broadcasts from rank 0 when several processes resume."""
    from fairseq.distributed.utils import _TensorPlaceholder
    from omegaconf.base import ContainerMetadata, Metadata
    from omegaconf.nodes import AnyNode

    return [
        _TensorPlaceholder,
        omegaconf.DictConfig,
        omegaconf.ListConfig,
        ContainerMetadata,
        Metadata,
        AnyNode,
        typing.Any,
        dict,
        list,
        int,
        collections.defaultdict,
    ]


def silence_advice() -> None:
    """Importing fairseq's tasks advises to install what has nothing to do with any task of ours, on every command."""
    logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.WARNING)


def allow_fairseq_checkpoints() -> None:
    """Add to torch's safe-loading allow-list what fairseq's own checkpoints hold. Idempotent, process-wide."""
    torch.serialization.add_safe_globals([argparse.Namespace, *_numpy_globals(), *_distributed_globals()])

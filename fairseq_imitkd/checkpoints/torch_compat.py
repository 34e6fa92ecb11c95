"""Lets torch 2.6 and later read the checkpoints of fairseq 0.12. Nothing here patches a class.

Since torch 2.6, ``torch.load`` refuses every pickled global that is not on an allow-list. fairseq writes a
few harmless ones into each checkpoint and does not list them, so ``fairseq-generate`` and resumed trainings
fail: https://github.com/facebookresearch/fairseq/issues/5603. To list them here repairs both and keeps the
safe loader on. fairseq's main branch turned the safe loader off instead:
https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/checkpoint_utils.py#L340
"""

import argparse
import collections
import logging
import pickle
import typing
from typing import Any

import numpy
import omegaconf
import torch

try:  # numpy 2 renamed its core; checkpoints hold either name
    from numpy._core import multiarray
except ImportError:
    from numpy.core import multiarray  # type: ignore[no-redef]


def _numpy_globals() -> list:
    """Return the types of the counts that ``--eval-bleu`` leaves in a checkpoint's meters."""
    dtype_classes = {type(numpy.dtype(kind)) for kind in ("i4", "i8", "f4", "f8", "bool")}
    renamed = [
        (function, f"{core}.multiarray.{name}")
        for core in ("numpy.core", "numpy._core")
        for name, function in (("_reconstruct", _empty_array), ("scalar", _scalar))
    ]
    return [numpy.ndarray, numpy.dtype, *dtype_classes, *renamed]


def _empty_array(kind: type, shape: tuple[int, ...], dtype: bytes) -> Any:
    """Return the empty array that pickle then fills. numpy's own function makes one of any size."""
    if kind is not numpy.ndarray or shape != (0,):
        raise pickle.UnpicklingError("an array in a form that numpy does not write")
    return multiarray._reconstruct(kind, shape, dtype)


def _scalar(dtype: numpy.dtype, value: bytes) -> Any:
    """Return a number of numpy. Its own function, without a value, makes one of any size."""
    return multiarray.scalar(dtype, value)


def _distributed_globals() -> list:
    """Return the types that fairseq broadcasts from rank 0 when several processes resume a training."""
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
    """Silence a speech task of fairseq, which advises every command to install tensorboardX:

    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/tasks/text_to_speech.py#L34
    """
    logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.WARNING)


def allow_fairseq_checkpoints() -> None:
    """Add the types in fairseq's own checkpoints to torch's allow-list.

    The list holds for the whole process. A second call changes nothing.
    """
    torch.serialization.add_safe_globals([argparse.Namespace, *_numpy_globals(), *_distributed_globals()])

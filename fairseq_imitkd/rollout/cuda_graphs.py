"""CUDA graphs of decoding, and the memory that they share.

A graph repeats recorded kernels on the same memory without running Python. So all inputs and outputs of a
step have fixed buffers, which all batches of a training share. Sizes are rounded up to a few values with one
graph each, and whatever changes between steps, such as the position, is a number in a buffer. Graphs read the
parameters in place, so they stay valid while an optimizer updates the parameters in place.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.rollout.fixed_transformer import DecoderWeights, matrix_dtype

T = TypeVar("T")

# Maximum number of graphs per decoder. Each takes memory of the driver; the least recently used one is
# dropped.
MOST_GRAPHS = 128
SMALLEST = 32  # sizes are rounded up to powers of two, and to this at least


def rounded(count: int) -> int:
    """Round a size up to one of a few sizes.

    A replayed step costs about the number of its kernels, not the rows in them. A graph costs the time to
    capture it and memory.
    """
    return max(SMALLEST, 1 << (count - 1).bit_length())


@dataclass
class Usage:
    """How often graphs were used since the training began.

    Args:
        blocks: number of blocks of decoding steps.
        replayed: number of those that were replayed.
        captures: number of graphs that were captured.
        held: number of graphs that are there now.
    """

    blocks: int = 0
    replayed: int = 0
    captures: int = 0
    held: int = 0


@dataclass
class GraphStore:
    """The graphs of one or several decoders that decode together, and the buffers that they share.

    Only one decoding at a time can use them.
    """

    weights: list[DecoderWeights] = field(default_factory=list)
    captured: dict[Hashable, torch.cuda.CUDAGraph] = field(default_factory=dict)  # the most recent last
    usage: Usage = field(default_factory=Usage)
    decodings: int = 0
    captured_bytes: int = 0  # memory that captures have taken from the allocator
    # The keys that were met, with the decoding that tried to capture them.
    _tried: dict[Hashable, int | None] = field(default_factory=dict)
    _buffers: dict[tuple[str, torch.dtype], Tensor] = field(default_factory=dict)  # one-dimensional
    _parameters: list[tuple[int, torch.dtype]] = field(default_factory=list)
    _pool: Any = None
    _stream: Any = None

    def begin(self, decoders: Sequence[Any]) -> int:
        """Copy the decoders' current weights, and drop all graphs if parameters have moved in memory.

        Returns:
            the number of this decoding.
        """
        dtypes = [matrix_dtype(decoder) for decoder in decoders]
        parameters = [
            (parameter.data_ptr(), dtype)
            for decoder, dtype in zip(decoders, dtypes, strict=True)
            for parameter in decoder.parameters()
        ]
        if parameters != self._parameters:
            self.release()
            self._parameters = parameters
            self.weights = [DecoderWeights(*pair) for pair in zip(decoders, dtypes, strict=True)]
        else:
            for weights in self.weights:
                weights.refresh()
        self.decodings += 1
        return self.decodings

    def buffer(self, name: str, shape: Sequence[int], dtype: torch.dtype, *, device: torch.device) -> Tensor:
        """Return the buffer of this name as a tensor of this shape. It still holds old values, maybe NaN.

        If the buffer has to grow, all graphs are dropped, because they use the old one.
        """
        size, held = math.prod(shape), self._buffers.get((name, dtype))
        if held is None or held.numel() < size:
            grown = max(size, held.numel() * 3 // 2 if held is not None else 0)
            self._drop_graphs()
            held = self._buffers.pop((name, dtype), None)
            del held  # free the old buffer first: both may not fit at once
            held = self._buffers[name, dtype] = torch.zeros(grown, dtype=dtype, device=device)
        return held[:size].view(torch.Size(shape))

    def run(self, key: Hashable, compute: Callable[[], None]) -> None:
        """Compute a block of steps, with a graph from the second block that has this key.

        The first block lets CUDA load its kernels.

        Args:
            key: sizes and everything else that is fixed in the graph.
            compute: computes the block; it may use only the memory of :meth:`buffer`, and write only there.
        """
        self.usage.blocks += 1
        graph = self.captured.pop(key, None)
        if graph is None and key in self._tried and self._tried[key] != self.decodings:
            graph = self._capture(compute)
            # If there was no memory for the graph, the next decoding tries again.
            self._tried[key] = self.decodings
        self._tried.setdefault(key, None)
        if graph is None:
            compute()
            return
        self.captured[key] = graph
        graph.replay()
        self.usage.replayed += 1

    def release(self) -> bool:
        """Drop all graphs and free all buffers. Return whether there were any."""
        held = bool(self._buffers)
        self._drop_graphs()
        self.weights, self._buffers, self._parameters = [], {}, []
        return held

    def bytes(self) -> int:
        """Return the size of the buffers and of what graphs compute in; the driver's memory is not known."""
        buffers = sum(buffer.numel() * buffer.element_size() for buffer in self._buffers.values())
        return buffers + self.captured_bytes

    def _capture(self, compute: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """Record ``compute`` as a graph. Return None if there is not enough memory.

        ``torch.cuda.graph`` would also empty the allocator's cache, and the training would allocate anew.

        Raises:
            UsageError: the steps can't be captured. After a failed capture, CUDA is in no state to continue.
        """
        while len(self.captured) >= MOST_GRAPHS:
            del self.captured[next(iter(self.captured))]
        if self._pool is None:
            self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        graph, reserved = torch.cuda.CUDAGraph(), torch.cuda.memory_reserved()
        self._stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self._stream):
                # thread_local: other threads, such as data loading and NCCL's watchdog, continue to use CUDA.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    compute()
                finally:
                    graph.capture_end()
            torch.cuda.current_stream().wait_stream(self._stream)
            self.usage.captures += 1
            self.captured_bytes += torch.cuda.memory_reserved() - reserved
            return graph
        except torch.OutOfMemoryError:
            pass  # free memory after the handler: inside it, the traceback keeps tensors alive
        except RuntimeError as error:
            if "out of memory" not in str(error):  # the driver's memory
                reason = str(error).split("\n", maxsplit=1)[0] or type(error).__name__
                raise UsageError(
                    f"--rollout-cuda-graphs can't be used: capturing decoding steps failed ({reason}); "
                    "add --rollout-cuda-graphs off, and training continues from its last checkpoint"
                ) from error
        del graph
        self._drop_graphs()
        torch.cuda.empty_cache()
        return None

    def _drop_graphs(self) -> None:
        self.captured, self._pool, self.captured_bytes = {}, None, 0


# The graphs of each first decoder, by the identities of those that decode with it and by their dtypes.
_STORES: WeakKeyDictionary[nn.Module, dict[Hashable, GraphStore]] = WeakKeyDictionary()


def graphs_of(*decoders: nn.Module) -> GraphStore:
    """Return the graphs of decoders that decode together. They exist as long as the first of them."""
    key = (*map(id, decoders[1:]), *map(matrix_dtype, decoders))
    return _STORES.setdefault(decoders[0], {}).setdefault(key, GraphStore())


def release_graphs() -> bool:
    """Free the memory of all graphs, after running out of it. Return whether there was any.

    Later rollouts allocate buffers and capture graphs again.
    """
    released = [store.release() for stores in _STORES.values() for store in stores.values()]
    return any(released)


def without_graphs_if_needed(compute: Callable[[], T], *, may_repeat: Callable[[], bool] = lambda: True) -> T:
    """Return what ``compute`` returns. If it runs out of memory, try once more without the memory of graphs.

    Args:
        compute: a computation that changes nothing until it succeeds.
        may_repeat: whether that still holds when it has run out of memory. If not, the memory is freed for
            what comes later.

    Raises:
        torch.OutOfMemoryError: the memory is not enough without graphs either, or ``compute`` can't be
            repeated.
    """
    try:
        return compute()
    except torch.OutOfMemoryError as error:
        failed = error.with_traceback(None)  # the traceback would keep tensors alive
    if not release_graphs() or not may_repeat():
        raise failed
    torch.cuda.empty_cache()
    return compute()


def graph_usage(decoder: nn.Module) -> tuple[Usage, int]:
    """Return how often a decoder's graphs were used, and the memory that they hold, in bytes."""
    stores = _STORES.get(decoder, {}).values()
    total = Usage(
        sum(store.usage.blocks for store in stores),
        sum(store.usage.replayed for store in stores),
        sum(store.usage.captures for store in stores),
        sum(len(store.captured) for store in stores),
    )
    return total, sum(store.bytes() for store in stores)

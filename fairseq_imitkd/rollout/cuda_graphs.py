"""The fast path's decoding steps as CUDA graphs: one launch per step instead of about 25 per layer.

A graph repeats recorded kernels on the same memory without running Python. So all inputs and outputs of a
step have fixed buffers, which all batches of a training share. Sizes are rounded up to a few values with one
graph each, and whatever changes between steps, such as the position, is a number in a buffer. Graphs read the
parameters in place, so they stay valid while an optimizer updates the parameters in place.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.models.layer_drop import layers_of
from fairseq_imitkd.rollout.fast_transformer import (
    INITIAL_CAPACITY,
    DecoderLayer,
    Remembered,
    next_logits,
    position_embeddings,
)

# Maximum number of graphs per decoder. Each takes memory of the driver; the least recently used one is
# dropped.
MOST_GRAPHS = 512
SMALLEST = 8  # numbers of rows and positions are rounded up to multiples of at least this


@dataclass(frozen=True)
class Shape:
    """The sizes and precision for which a graph is captured.

    Args:
        rows: number of rows ``R``.
        sources: number of source positions ``S``.
        capacity: number of target positions ``T``.
        dtype: dtype of keys and values.
        autocast: whether autocast is on.
    """

    rows: int
    sources: int
    capacity: int
    dtype: torch.dtype
    autocast: bool


def rounded(count: int) -> int:
    """Round a size up to one of a few sizes, by at most a quarter unless it is small."""
    step = max(SMALLEST, 2 ** (max(count - 1, 1).bit_length() - 3))
    return -(-count // step) * step


class StepGraphs:
    """The graphs of one decoder and the buffers that they share. Only one decoding at a time can use them."""

    def __init__(self) -> None:
        self.layers: list[DecoderLayer] = []
        self.captured: dict[Shape, torch.cuda.CUDAGraph] = {}  # the most recently used last
        self.decodings = 0
        self.replays = 0
        self._first_seen: dict[Shape, int] = {}  # number of the decoding that first had it
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}  # one-dimensional
        self._parameters: list[tuple[int, torch.dtype]] = []
        self._pool: Any = None

    def begin(self, decoder: Any) -> int:
        """Copy the decoder's current weights, and drop all graphs if its parameters have moved in memory.

        Returns:
            the number of this decoding.
        """
        parameters = [(parameter.data_ptr(), parameter.dtype) for parameter in decoder.parameters()]
        if parameters != self._parameters:
            self.release()
            self._parameters = parameters
            self.layers = [DecoderLayer(layer) for layer in layers_of(decoder)]
        else:
            for layer in self.layers:
                layer.refresh()
        self.decodings += 1
        return self.decodings

    def buffer(self, name: str, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
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
        return held[:size].view(shape)

    def run(self, shape: Shape, compute: Callable[[], None]) -> None:
        """Compute a step, with a graph from the second decoding that has this shape.

        The first decoding lets CUDA load its kernels; many shapes occur only once.

        Args:
            shape: sizes of the step.
            compute: computes the step; it may use only the memory of :meth:`buffer`.
        """
        graph = self.captured.pop(shape, None)
        if graph is None and self._first_seen.setdefault(shape, self.decodings) < self.decodings:
            graph = self._capture(compute)
            # If there was no memory for the graph, the next decoding tries again.
            self._first_seen[shape] = self.decodings
        if graph is None:
            compute()
            return
        self.captured[shape] = graph
        graph.replay()
        self.replays += 1

    def release(self) -> bool:
        """Drop all graphs and free all buffers. Return whether there were any."""
        held = bool(self._buffers)
        self._drop_graphs()
        self.layers, self._buffers, self._parameters = [], {}, []
        return held

    def _capture(self, compute: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """Record ``compute`` as a graph. Return None if there is not enough memory.

        Raises:
            UsageError: the step can't be captured. After a failed capture, CUDA is in no state to continue.
        """
        while len(self.captured) >= MOST_GRAPHS:
            del self.captured[next(iter(self.captured))]
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: other threads, such as data loading and NCCL's watchdog, continue to use CUDA.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                compute()
            return graph
        except torch.OutOfMemoryError:
            pass  # free memory after the handler: inside it, the traceback keeps tensors alive
        except RuntimeError as error:
            reason = str(error).split("\n", maxsplit=1)[0] or type(error).__name__
            raise UsageError(
                f"--rollout-cuda-graphs can't be used: capturing a decoding step failed ({reason}); "
                "leave the flag out, and training continues from its last checkpoint"
            ) from error
        del graph
        self._drop_graphs()
        torch.cuda.empty_cache()
        return None

    def _drop_graphs(self) -> None:
        self.captured, self._pool = {}, None


_GRAPHS: WeakKeyDictionary[nn.Module, StepGraphs] = WeakKeyDictionary()


def graphs_of(decoder: nn.Module) -> StepGraphs:
    """Return a decoder's graphs. They exist as long as the decoder."""
    if decoder not in _GRAPHS:
        _GRAPHS[decoder] = StepGraphs()
    return _GRAPHS[decoder]


def release_graphs() -> bool:
    """Free the memory of all decoders' graphs, after running out of it. Return whether there was any.

    Later rollouts allocate buffers and capture graphs again.
    """
    released = [graphs.release() for graphs in _GRAPHS.values()]
    return any(released)


class GraphedSteps:
    """The steps of a stock transformer on a GPU, replayed; see :class:`~fairseq_imitkd.rollout.steps.Steps`.

    Unused source and target positions are masked and also set to 0, because old values may be NaN, which an
    attention weight of 0 would not remove. Padding rows are computed and thrown away.

    Args:
        decoder: decoder that :class:`~fairseq_imitkd.rollout.fast_transformer.TransformerSteps` accepts.
        encoder_out: fairseq's encoder output for ``B`` sentences and ``S`` source positions.
        longest: maximum number of tokens that the decoder will read per row.
    """

    def __init__(self, decoder: Any, encoder_out: dict[str, list[Tensor]], longest: int):
        self.decoder = decoder
        self.longest = longest
        self.graphs = graphs_of(decoder)
        self.decoding = self.graphs.begin(decoder)
        self.filled = 0  # positions that hold a key
        self.rows_computed = 0
        [encoded] = encoder_out["encoder_out"]  # (S, B, D)
        self.device = encoded.device
        sources, count, _ = encoded.shape
        self.rows = torch.arange(count, device=self.device)  # buffer rows of the remaining rows
        self.positions = position_embeddings(decoder, longest)
        for number, layer in enumerate(self.graphs.layers):
            keys, values = layer.cross_keys_and_values(encoded)  # (S, B, D) of the decoder's width
            if number == 0:
                capacity = min(INITIAL_CAPACITY, rounded(longest))
                autocast = torch.is_autocast_enabled("cuda")
                shape = Shape(rounded(count), rounded(sources), capacity, keys.dtype, autocast)
                self._allocate(shape, keys.size(-1))
            self.cross[number, 0, :sources, :count] = keys
            self.cross[number, 1, :sources, :count] = values
        self.cross[:, :, sources:] = 0
        self.own.zero_()
        padding = encoder_out["encoder_padding_mask"]
        self.ignored.fill_(True)
        self.ignored[:count, 0, 0, :sources] = padding[0] if padding else False

    def logits(self, tokens: Tensor) -> Tensor:
        """See :class:`~fairseq_imitkd.rollout.steps.Steps`."""
        self._check()
        if self.filled >= self.shape.capacity:
            capacity = min(2 * self.shape.capacity, rounded(self.longest))
            self._move(replace(self.shape, capacity=capacity))
        self.tokens[self.rows] = tokens[:, -1]
        self.position.fill_(self.filled)
        self.graphs.run(self.shape, self._compute)
        self.filled += 1
        self.rows_computed += self.shape.rows
        return self.out.index_select(0, self.rows)

    def keep(self, rows: Tensor) -> None:
        """See :class:`~fairseq_imitkd.rollout.steps.Steps`. Rows move only to a smaller shape."""
        self._check()
        self.rows = self.rows[rows]
        if rounded(rows.numel()) < self.shape.rows:
            self._move(replace(self.shape, rows=rounded(rows.numel())))

    def _check(self) -> None:
        if self.decoding != self.graphs.decodings:
            raise RuntimeError("another decoding with this model has begun and uses the same buffers")

    def _allocate(self, shape: Shape, width: int) -> None:
        """Set the buffers that the graph of a shape reads and writes."""
        buffer, layers = partial(self.graphs.buffer, device=self.device), len(self.graphs.layers)
        rows, sources, capacity, dtype = shape.rows, shape.sources, shape.capacity, shape.dtype
        self.shape = shape
        # Keys and values of self-attention and of cross-attention, and the source positions to ignore.
        self.own = buffer("own", (layers, 2, capacity, rows, width), dtype=dtype)
        self.cross = buffer("cross", (layers, 2, sources, rows, width), dtype=dtype)
        self.ignored = buffer("ignored", (rows, 1, 1, sources), dtype=torch.bool)
        self.tokens = buffer("tokens", (rows,), dtype=torch.int64)
        self.position = buffer("position", (1,), dtype=torch.int64)
        self.embedded: Tensor | None = None  # position embeddings, (T, D)
        if self.positions is not None:
            size = (capacity, self.positions.size(1))
            self.embedded = buffer("positions", size, dtype=self.positions.dtype)
            self.embedded[: self.positions.size(0)] = self.positions[:capacity]
        self.out = buffer("out", (rows, self.decoder.output_projection.weight.size(0)), dtype=dtype)

    def _move(self, shape: Shape) -> None:
        """Move the remaining rows to the buffers of another shape, without gaps between them."""
        count, width = self.rows.numel(), self.own.size(-1)
        own = self.own[:, :, : self.filled].index_select(3, self.rows)
        cross, ignored = self.cross.index_select(3, self.rows), self.ignored.index_select(0, self.rows)
        del self.own, self.cross, self.ignored  # a buffer that grows may need their memory
        self._allocate(shape, width)
        self.rows = torch.arange(count, device=self.device)
        self.own[:, :, self.filled :] = 0
        self.own[:, :, : self.filled, :count] = own
        self.cross[:, :, :, :count] = cross
        self.ignored[:count] = ignored

    def _compute(self) -> None:
        """Compute one step of all rows of the shape. Graphs record this."""
        times = torch.arange(self.shape.capacity, device=self.device)
        unwritten = (times > self.position)[None, None, None]

        def remember(number: int, key: Tensor, value: Tensor) -> Remembered:
            keys, values = self.own[number]
            keys.index_copy_(0, self.position, key.unsqueeze(0))
            values.index_copy_(0, self.position, value.unsqueeze(0))
            return keys, values, unwritten

        # Autocast's cached half-precision copies of the weights would be those of the update that was
        # captured.
        precision = (
            torch.autocast("cuda", cache_enabled=False) if self.shape.autocast else contextlib.nullcontext()
        )
        with precision:
            logits = next_logits(
                self.decoder,
                self.graphs.layers,
                self.tokens,
                position=None if self.embedded is None else self.embedded.index_select(0, self.position),
                remember=remember,
                cross=[(keys, values) for keys, values in self.cross],
                ignored=self.ignored,
            )
            self.out.copy_(logits)

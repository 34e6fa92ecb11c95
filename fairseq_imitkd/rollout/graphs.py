"""The fast path's steps as CUDA graphs: one launch where a GPU would wait for some 25 small ones in every layer.

A graph is a recording: it repeats the same kernels on the same memory and never asks Python again. So everything that a
step reads or writes has a fixed place, which the batches of a whole training share; sizes are rounded up to a few, one
graph each; and what changes from step to step, the position above all, is a number in that memory. Parameters are read
where they are, so the graphs stay true while an optimizer changes them in place.
"""

import contextlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fairseq_imitkd.rollout.transformer import FIRST_ROOM, DecoderLayer, next_logits, position_embeddings

logger = logging.getLogger(__name__)

# A graph takes some megabytes of the driver's. Those used longest ago make room.
MOST_GRAPHS = 256
SMALLEST = 8  # rows and source positions are rounded up to multiples of it at least


@dataclass(frozen=True)
class Shape:
    """What a graph is made for.

    Args:
        rows: that it computes, ``R``.
        sources: source positions, ``S``.
        room: target positions, ``T``.
        dtype: of keys and values.
        autocast: whether layers choose their precision themselves.
    """

    rows: int
    sources: int
    room: int
    dtype: torch.dtype
    autocast: bool


def rounded(count: int) -> int:
    """A size that a graph is made for, at most a quarter above what is asked, if that is not small."""
    step = max(SMALLEST, 2 ** (max(count - 1, 1).bit_length() - 3))
    return -(-count // step) * step


class StepGraphs:
    """The graphs of one decoder, and the memory that all of them work in.

    Nothing here is for two decodings at a time.
    """

    def __init__(self) -> None:
        self.layers: list[DecoderLayer] = []
        self.captured: dict[Shape, torch.cuda.CUDAGraph] = {}  # the last used at the end
        self.replays = 0
        self._met: set[Shape] = set()
        self._memory: dict[tuple[str, torch.dtype], Tensor] = {}  # flat
        self._addresses: list[int] = []
        self._pool: Any = None
        self._failed = False

    def refresh(self, decoder: Any) -> None:
        """Before a decoding: put weights together anew, and drop all graphs if parameters have moved."""
        addresses = [parameter.data_ptr() for parameter in decoder.parameters()]
        if addresses != self._addresses:
            self._addresses = addresses
            self.layers = [DecoderLayer(layer) for layer in decoder.layers]
            self._forget()
        else:
            for layer in self.layers:
                layer.refresh()

    def memory(self, name: str, dtype: torch.dtype, device: torch.device, *shape: int) -> Tensor:
        """A place of this shape. It holds what was there before, which need not be a number.

        Where it has to grow, all graphs are dropped, for they know only the old place.
        """
        size, held = math.prod(shape), self._memory.get((name, dtype))
        if held is None or held.numel() < size:
            grown = max(size, held.numel() * 3 // 2 if held is not None else 0)
            held = self._memory[name, dtype] = torch.zeros(grown, dtype=dtype, device=device)
            self._forget()
        return held[:size].view(shape)

    def run(self, shape: Shape, compute: Callable[[], None]) -> None:
        """Compute, by a graph from the second time on: the first also makes CUDA load what it needs.

        Args:
            shape: that ``compute`` is for.
            compute: works in :meth:`memory` alone.
        """
        graph = self.captured.pop(shape, None)
        if graph is None and shape in self._met and not self._failed:
            graph = self._captured(shape, compute)
        self._met.add(shape)
        if graph is None:
            compute()
            return
        self.captured[shape] = graph
        graph.replay()
        self.replays += 1

    def _captured(self, shape: Shape, compute: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """A recording of ``compute``; None if it can't be had, which is said once."""
        while len(self.captured) >= MOST_GRAPHS:
            del self.captured[next(iter(self.captured))]
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads (data loading, NCCL's watchdog) go on with what they do.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                compute()
        except torch.OutOfMemoryError:
            self._forget()
            raise
        except RuntimeError as error:
            self._failed = True
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            logger.warning("rollouts go on without CUDA graphs: no step could be captured (%s)", reason)
            return None
        return graph

    def _forget(self) -> None:
        self.captured, self._pool = {}, None


_OF_DECODERS: WeakKeyDictionary[nn.Module, StepGraphs] = WeakKeyDictionary()


def graphs_of(decoder: nn.Module) -> StepGraphs:
    """A decoder's graphs, the same for as long as it lives."""
    if decoder not in _OF_DECODERS:
        _OF_DECODERS[decoder] = StepGraphs()
    return _OF_DECODERS[decoder]


class GraphedSteps:
    """Steps of a stock transformer on a GPU, replayed; see :class:`~fairseq_imitkd.rollout.steps.Steps`.

    Source and target positions beyond those that there are hold zeros and are ignored: what was there before may be no
    number, and a weight of 0 would not keep it out. Rows beyond those that there are compute nobody cares what.

    Args:
        decoder: as :class:`~fairseq_imitkd.rollout.transformer.TransformerSteps` takes it.
        encoder_out: fairseq's, of ``B`` sentences and ``S`` source positions.
        longest: the most tokens that will be fed.
    """

    def __init__(self, decoder: Any, encoder_out: dict[str, list[Tensor]], longest: int):
        self.decoder = decoder
        self.graphs = graphs_of(decoder)
        self.graphs.refresh(decoder)
        self.filled = 0  # positions that hold a key
        self.rows_computed = 0
        [encoded] = encoder_out["encoder_out"]  # (S, B, D)
        self.device = encoded.device
        sources, self.count, _ = encoded.shape
        cross = torch.stack([torch.stack(layer.cross_keys_and_values(encoded)) for layer in self.graphs.layers])
        padding = encoder_out["encoder_padding_mask"]
        ignored = padding[0] if padding else encoded.new_zeros(self.count, sources, dtype=torch.bool)
        autocast = torch.is_autocast_enabled("cuda")
        self.positions = position_embeddings(decoder, longest)
        shape = Shape(rounded(self.count), rounded(sources), min(FIRST_ROOM, rounded(longest)), cross.dtype, autocast)
        self._settle(shape, cross.new_empty(*cross.shape[:2], 0, *cross.shape[3:]), cross, ignored)

    def logits(self, tokens: Tensor) -> Tensor:
        """See :class:`~fairseq_imitkd.rollout.steps.Steps`; good until the next call."""
        if self.filled >= self.shape.room:
            self._move(replace(self.shape, room=2 * self.shape.room), torch.arange(self.count, device=self.device))
        self.tokens[: self.count] = tokens[:, -1]
        self.position.fill_(self.filled)
        self.graphs.run(self.shape, self._compute)
        self.filled += 1
        self.rows_computed += self.shape.rows
        return self.out[: self.count]

    def keep(self, rows: Tensor) -> None:
        """See :class:`~fairseq_imitkd.rollout.steps.Steps`."""
        self.count = rows.numel()
        self._move(replace(self.shape, rows=rounded(self.count)), rows)

    def _move(self, shape: Shape, rows: Tensor) -> None:
        """Go on in another shape, with these rows."""
        own, ignored = self.own[:, :, : self.filled], self.ignored[:, 0, 0]
        self._settle(shape, own.index_select(3, rows), self.cross.index_select(3, rows), ignored.index_select(0, rows))

    def _settle(self, shape: Shape, own: Tensor, cross: Tensor, ignored: Tensor) -> None:
        """Put what the rows know, none of it a view of the memory, where a shape's graph looks for it.

        Args:
            shape: of the steps to come.
            own: ``(layers, 2, t, R, D)``, keys and values of what is written.
            cross: ``(layers, 2, S, R, D)``, those of the source.
            ignored: ``(R, S)``, true at the source's padding.
        """
        layers, two, _, count, width = cross.shape
        self.shape = shape
        self.own = self._place("own", layers, two, shape.room, shape.rows, width).zero_()
        self.own[:, :, : self.filled, :count] = own
        self.cross = self._place("cross", layers, two, shape.sources, shape.rows, width).zero_()
        self.cross[:, :, : cross.size(2), :count] = cross
        self.ignored = self._place("ignored", shape.rows, 1, 1, shape.sources, dtype=torch.bool).fill_(True)
        self.ignored[:count, 0, 0, : ignored.size(1)] = ignored
        self.tokens = self._place("tokens", shape.rows, dtype=torch.int64).zero_()
        self.position = self._place("position", 1, dtype=torch.int64)
        self.embedded: Tensor | None = None  # positions
        if self.positions is not None:
            self.embedded = self._place("positions", shape.room, self.positions.size(1), dtype=self.positions.dtype)
            self.embedded[: self.positions.size(0)] = self.positions[: shape.room]
        self.out = self._place("out", shape.rows, self.decoder.output_projection.weight.size(0))

    def _place(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.graphs.memory(name, dtype or self.shape.dtype, self.device, *shape)

    def _compute(self) -> None:
        """One step, of all rows that the shape has."""
        times = torch.arange(self.shape.room, device=self.device)
        remember = partial(self._remember, (times > self.position)[None, None, None])
        position = None if self.embedded is None else self.embedded.index_select(0, self.position)
        # Copies of weights in half precision, as autocast keeps them, would be those of the update that was captured.
        precision = torch.autocast("cuda", cache_enabled=False) if self.shape.autocast else contextlib.nullcontext()
        with precision:
            cross = [(keys, values) for keys, values in self.cross]
            self.out.copy_(next_logits(self.decoder, self.graphs.layers, self.tokens, position, remember, cross, self.ignored))

    def _remember(self, unwritten: Tensor, number: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Write this position's key and value; one layer's whole memory, and which of it is not written yet."""
        keys, values = self.own[number]
        keys.index_copy_(0, self.position, key.unsqueeze(0))
        values.index_copy_(0, self.position, value.unsqueeze(0))
        return keys, values, unwritten

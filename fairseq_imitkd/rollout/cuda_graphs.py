"""The fast path's steps as CUDA graphs: one launch where a GPU would wait for some 25 small ones in every layer.

A graph is a recording: it repeats the same kernels on the same memory and never asks Python again. So everything that a
step reads or writes has a fixed place, which the batches of a whole training share; sizes are rounded up to a few, one
graph each; and what changes from step to step, the position above all, is a number in that memory. Parameters are read
where they are, so the graphs stay true while an optimizer changes them in place.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.rollout.fast_transformer import (
    FIRST_ROOM,
    DecoderLayer,
    layers_of,
    next_logits,
    position_embeddings,
)

# Of each decoder. A graph takes some of the driver's memory; those used longest ago make room.
MOST_GRAPHS = 512
SMALLEST = 8  # rows and positions are rounded up to multiples of it at least


@dataclass(frozen=True)
class Shape:
    """What a graph is made for.

    Args:
        rows: that it computes, ``R``.
        sources: source positions, ``S``.
        room: target positions, ``T``.
        dtype: of keys and values.
        autocast: whether it is on.
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
    """The graphs of one decoder, and the places that all of them work in, for one decoding at a time."""

    def __init__(self) -> None:
        self.layers: list[DecoderLayer] = []
        self.captured: dict[Shape, torch.cuda.CUDAGraph] = {}  # the last used at the end
        self.decodings = 0
        self.replays = 0
        self._met: dict[Shape, int] = {}  # in which decoding first
        self._places: dict[tuple[str, torch.dtype], Tensor] = {}  # flat
        self._parameters: list[tuple[int, torch.dtype]] = []
        self._pool: Any = None

    def begin(self, decoder: Any) -> int:
        """Put weights together anew, and drop all graphs if parameters have moved; which decoding this is."""
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

    def place(self, name: str, dtype: torch.dtype, device: torch.device, *shape: int) -> Tensor:
        """Memory of this shape. It holds what was there before, which need not be a number.

        Where it has to grow, all graphs are dropped, for they know only the old place.
        """
        size, held = math.prod(shape), self._places.get((name, dtype))
        if held is None or held.numel() < size:
            grown = max(size, held.numel() * 3 // 2 if held is not None else 0)
            self._forget()
            self._places.pop((name, dtype), None)  # before there is another: both may not fit at once
            held = self._places[name, dtype] = torch.zeros(grown, dtype=dtype, device=device)
        return held[:size].view(shape)

    def run(self, shape: Shape, compute: Callable[[], None]) -> None:
        """Compute, by a graph from the second decoding that meets a shape on.

        The first one makes CUDA load what it needs, and many a shape is met once.

        Args:
            shape: that ``compute`` is for.
            compute: works in :meth:`place` alone.
        """
        graph = self.captured.pop(shape, None)
        if graph is None and self._met.setdefault(shape, self.decodings) < self.decodings:
            graph = self._captured(compute)
            self._met[shape] = (
                self.decodings
            )  # if there was no memory for it, there may be some the next time
        if graph is None:
            compute()
            return
        self.captured[shape] = graph
        graph.replay()
        self.replays += 1

    def release(self) -> bool:
        """Drop all graphs, and give all memory back; whether there was any."""
        held = bool(self._places)
        self._forget()
        self.layers, self._places, self._parameters = [], {}, []
        return held

    def _captured(self, compute: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """A recording of ``compute``; None if there is no memory for it.

        Raises:
            UsageError: it can't be captured. CUDA leaves a capture that failed in a state in which nothing should go on.
        """
        while len(self.captured) >= MOST_GRAPHS:
            del self.captured[next(iter(self.captured))]
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads (data loading, NCCL's watchdog) go on with what they do.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                compute()
            return graph
        except torch.OutOfMemoryError:
            pass  # until the handler is left, the traceback keeps what was computed
        except RuntimeError as error:
            reason = str(error).split("\n", maxsplit=1)[0] or type(error).__name__
            raise UsageError(
                f"--rollout-cuda-graphs: a decoding step could not be captured ({reason}): leave the flag out; "
                "the training goes on from its last checkpoint"
            ) from error
        del graph
        self._forget()
        torch.cuda.empty_cache()
        return None

    def _forget(self) -> None:
        self.captured, self._pool = {}, None


_OF_DECODERS: WeakKeyDictionary[nn.Module, StepGraphs] = WeakKeyDictionary()


def graphs_of(decoder: nn.Module) -> StepGraphs:
    """A decoder's graphs, the same for as long as it lives."""
    if decoder not in _OF_DECODERS:
        _OF_DECODERS[decoder] = StepGraphs()
    return _OF_DECODERS[decoder]


def release_graphs() -> bool:
    """Give back the memory of all decoders' graphs, when there is too little of it; whether there was any.

    The next rollouts find places anew, and capture their steps anew.
    """
    released = [graphs.release() for graphs in _OF_DECODERS.values()]
    return any(released)


class GraphedSteps:
    """Steps of a stock transformer on a GPU, replayed; see :class:`~fairseq_imitkd.rollout.steps.Steps`.

    Source and target positions beyond those that there are hold zeros and are ignored: what was there before may be no
    number, and a weight of 0 would not keep it out. Rows beyond those that there are compute nobody cares what.

    Args:
        decoder: as :class:`~fairseq_imitkd.rollout.fast_transformer.TransformerSteps` takes it.
        encoder_out: fairseq's, of ``B`` sentences and ``S`` source positions.
        longest: the most tokens that will be fed.
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
        self.rows = torch.arange(count, device=self.device)  # where the rows that are left lie
        self.positions = position_embeddings(decoder, longest)
        for number, layer in enumerate(self.graphs.layers):
            keys, values = layer.cross_keys_and_values(encoded)  # (S, B, D) of the decoder's width
            if number == 0:
                room, autocast = min(FIRST_ROOM, rounded(longest)), torch.is_autocast_enabled("cuda")
                self._settle(
                    Shape(rounded(count), rounded(sources), room, keys.dtype, autocast), keys.size(-1)
                )
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
        if self.filled >= self.shape.room:
            self._move(replace(self.shape, room=min(2 * self.shape.room, rounded(self.longest))))
        self.tokens[self.rows] = tokens[:, -1]
        self.position.fill_(self.filled)
        self.graphs.run(self.shape, self._compute)
        self.filled += 1
        self.rows_computed += self.shape.rows
        return self.out.index_select(0, self.rows)

    def keep(self, rows: Tensor) -> None:
        """See :class:`~fairseq_imitkd.rollout.steps.Steps`. Rows stay where they lie until a smaller shape will do."""
        self._check()
        self.rows = self.rows[rows]
        if rounded(rows.numel()) < self.shape.rows:
            self._move(replace(self.shape, rows=rounded(rows.numel())))

    def _check(self) -> None:
        if self.decoding != self.graphs.decodings:
            raise RuntimeError("another decoding with this model has begun, in the same memory")

    def _settle(self, shape: Shape, width: int) -> None:
        """Where a shape's graph reads and writes."""
        place, layers = partial(self._place, shape), len(self.graphs.layers)
        self.shape = shape
        self.own = place(
            "own", layers, 2, shape.room, shape.rows, width
        )  # keys and values of what is written
        self.cross = place("cross", layers, 2, shape.sources, shape.rows, width)  # and of the source
        self.ignored = place("ignored", shape.rows, 1, 1, shape.sources, dtype=torch.bool)  # of the latter
        self.tokens = place("tokens", shape.rows, dtype=torch.int64)
        self.position = place("position", 1, dtype=torch.int64)
        self.embedded: Tensor | None = None  # positions
        if self.positions is not None:
            self.embedded = place("positions", shape.room, self.positions.size(1), dtype=self.positions.dtype)
            self.embedded[: self.positions.size(0)] = self.positions[: shape.room]
        self.out = place("out", shape.rows, self.decoder.output_projection.weight.size(0))

    def _move(self, shape: Shape) -> None:
        """Take the rows that are left, one behind the other, to where another shape's graph looks for them."""
        count, width = self.rows.numel(), self.own.size(-1)
        own = self.own[:, :, : self.filled].index_select(3, self.rows)
        cross, ignored = self.cross.index_select(3, self.rows), self.ignored.index_select(0, self.rows)
        del self.own, self.cross, self.ignored  # a place that grows may need their memory
        self._settle(shape, width)
        self.rows = torch.arange(count, device=self.device)
        self.own[:, :, self.filled :] = 0
        self.own[:, :, : self.filled, :count] = own
        self.cross[:, :, :, :count] = cross
        self.ignored[:count] = ignored

    def _place(self, shape: Shape, name: str, *sizes: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.graphs.place(name, dtype or shape.dtype, self.device, *sizes)

    def _compute(self) -> None:
        """One step, of all rows that the shape has."""
        times = torch.arange(self.shape.room, device=self.device)
        remember = partial(self._remember, (times > self.position)[None, None, None])
        position = None if self.embedded is None else self.embedded.index_select(0, self.position)
        # Copies of weights in half precision, as autocast keeps them, would be those of the update that was captured.
        precision = (
            torch.autocast("cuda", cache_enabled=False) if self.shape.autocast else contextlib.nullcontext()
        )
        with precision:
            cross = [(keys, values) for keys, values in self.cross]
            self.out.copy_(
                next_logits(
                    self.decoder, self.graphs.layers, self.tokens, position, remember, cross, self.ignored
                )
            )

    def _remember(
        self, unwritten: Tensor, number: int, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Write this position's key and value; one layer's whole memory, and which of it is not written yet."""
        keys, values = self.own[number]
        keys.index_copy_(0, self.position, key.unsqueeze(0))
        values.index_copy_(0, self.position, value.unsqueeze(0))
        return keys, values, unwritten

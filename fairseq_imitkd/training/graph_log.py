"""What the training log tells about CUDA graphs: their number, their memory, and how often they help."""

from typing import Any

from torch import nn

from fairseq_imitkd.rollout.cuda_graphs import Usage, graph_usage

MEGABYTE = 2**20

# What a step without graphs logs: processes add up the values of all keys.
NO_GRAPHS: dict[str, float] = {
    "graph_blocks": 0,
    "graph_blocks_replayed": 0,
    "graph_reports": 0,
    "graphs": 0,
    "graph_megabytes": 0.0,
}


class GraphLog:
    """Reads the use of the student's graphs once in a step, without waiting for a GPU."""

    def __init__(self) -> None:
        self._before = Usage()

    def read(self, student: Any) -> dict[str, float]:
        """Return sums to log: blocks of decoding steps since the last call, and what graphs hold now.

        Args:
            student: the student; graphs that decode with it belong to its decoder.
        """
        decoder = getattr(student, "decoder", None)
        if not isinstance(decoder, nn.Module):
            return NO_GRAPHS
        usage, size = graph_usage(decoder)
        before, self._before = self._before, usage
        if usage.blocks == before.blocks:
            return NO_GRAPHS
        return {
            "graph_blocks": usage.blocks - before.blocks,
            "graph_blocks_replayed": usage.replayed - before.replayed,
            "graph_reports": 1,
            "graphs": usage.held,
            "graph_megabytes": size / MEGABYTE,
        }

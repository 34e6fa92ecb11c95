"""What a step logs about CUDA graphs."""

import torch

from fairseq_imitkd.rollout.cuda_graphs import graphs_of
from fairseq_imitkd.training.graph_log import NO_GRAPHS, GraphLog
from tests.helpers.fairseq_models import build_student


def test_each_step_logs_its_own_blocks_and_what_graphs_hold_now() -> None:
    student, log = build_student("transformer"), GraphLog()
    assert log.read(student) == NO_GRAPHS
    store = graphs_of(student.decoder)
    buffer = store.buffer("own", (2**18,), torch.float32, device=torch.device("cpu"))  # drops older graphs
    for blocks, replayed in ((4, 0), (10, 5)):
        store.usage.blocks, store.usage.replayed = blocks, replayed
        store.captured = dict.fromkeys(range(replayed))  # type: ignore[arg-type]
        found = log.read(student)
    assert found == {
        "graph_blocks": 6, "graph_blocks_replayed": 5, "graph_reports": 1, "graphs": 5,
        "graph_megabytes": buffer.numel() * 4 / 2**20,
    }  # fmt: skip
    assert found.keys() == NO_GRAPHS.keys()
    assert log.read(student) == NO_GRAPHS, "no rollout since then"
    assert GraphLog().read(torch.nn.Linear(1, 1)) == NO_GRAPHS

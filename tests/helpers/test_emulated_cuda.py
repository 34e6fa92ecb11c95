"""The emulated device fails where a real one would."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from fairseq_imitkd.rollout.cuda_graphs import graphs_of, release_graphs
from tests.helpers.emulated_cuda import DEVICE, DeviceTensor, Graph, emulated_cuda


def test_there_is_a_device_inside_only() -> None:
    before = torch.cuda.is_available()
    with emulated_cuda():
        assert torch.cuda.is_available()
        assert torch.arange(3, device="cuda").device == DEVICE
    assert torch.cuda.is_available() == before


def test_graphs_end_with_the_device() -> None:
    """A later test that simulates running out of memory would otherwise free them, and try again."""
    decoder = nn.Linear(1, 1)
    with emulated_cuda():
        graphs_of(decoder).buffer("tokens", (2,), torch.long, device=DEVICE)
    assert not release_graphs()


def test_tensors_of_host_and_device_do_not_mix() -> None:
    with emulated_cuda():
        there = torch.ones(3, device="cuda")
        for wrong in (lambda: there + torch.ones(3), lambda: torch.where(there > 0, torch.ones(3), there)):
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        assert (there + torch.tensor(1.0)).tolist() == [2, 2, 2]  # a scalar tensor may be on the host
        with pytest.raises(TypeError, match="cuda"):
            there.numpy()


def test_waits_are_noted() -> None:
    with emulated_cuda() as device:
        values = torch.arange(4, device="cuda")
        doubled = values * 2
        assert not device.waits
        for waiting in (
            lambda: int(doubled.sum()),
            lambda: doubled[doubled > 2],
            doubled.nonzero,
            doubled.tolist,
            doubled.cpu,
        ):
            device.waits.clear()
            waiting()
            assert len(device.waits) == 1


def test_gradients_are_the_hosts() -> None:
    torch.manual_seed(1)
    model, inputs = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2)), torch.randn(3, 4)
    model(inputs).logsumexp(dim=-1).sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    with emulated_cuda():
        model.cuda()
        model(inputs.cuda()).logsumexp(dim=-1).sum().backward()
        found = [parameter.grad for parameter in model.parameters()]
        assert all(isinstance(gradient, DeviceTensor) for gradient in found)
        assert all(gradient.cpu().equal(other) for gradient, other in zip(found, expected, strict=True))


def test_autocast_computes_in_half_precision() -> None:
    """It keeps its half-precision copy of a weight until the context ends, so it does not see later
    changes.
    """
    with emulated_cuda():
        layer, inputs = nn.Linear(3, 2).cuda(), torch.ones(4, 3, device="cuda")
        assert not torch.is_autocast_enabled("cuda")
        with torch.autocast("cuda"):
            assert torch.is_autocast_enabled("cuda")
            before = layer(inputs)
            assert before.dtype == torch.get_autocast_dtype("cuda") == torch.float16
            with torch.no_grad():
                layer.weight.add_(1)
            assert layer(inputs).tolist() == before.tolist()
            with torch.autocast("cuda", cache_enabled=False):
                assert layer(inputs).tolist() != before.tolist()
        assert layer(inputs).dtype == torch.float32


@contextmanager
def captured(graph: Graph) -> Iterator[None]:
    graph.capture_begin()
    try:
        yield
    finally:
        graph.capture_end()


def test_a_graph_repeats_what_was_computed() -> None:
    """It uses the current values of its inputs. Python values are those of the capture."""
    with emulated_cuda():
        given, out, number = torch.ones(3, device="cuda"), torch.zeros(3, device="cuda"), 3
        graph = Graph()
        with captured(graph):
            out.copy_((given.cumsum(0) * number)[:2].sum() + torch.zeros(3, device="cuda"))
            out[1:].add_(1)
        assert out.tolist() == [0, 0, 0]  # a capture computes nothing
        graph.replay()
        assert out.tolist() == [9, 10, 10]
        given.fill_(2)
        number = 4
        graph.replay()
        assert out.tolist() == [18, 19, 19]


@pytest.mark.parametrize(
    "illegal",
    [
        lambda values: int(values.sum()),
        lambda values: values[values > 1],
        lambda values: values.nonzero(),
        lambda values: values.cpu(),
        lambda values: torch.tensor([1], device="cuda"),
        lambda values: torch.ones(2).cuda(),
    ],
)
def test_a_capture_cannot_wait_or_copy(illegal) -> None:
    with emulated_cuda():
        values = torch.arange(4, device="cuda")
        with (
            pytest.raises(RuntimeError, match="operation not permitted when stream is capturing"),
            captured(Graph()),
        ):
            illegal(values)
        illegal(values)

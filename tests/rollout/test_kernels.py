"""The fused residual connection and layer norm equals the definition."""

import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fairseq_imitkd.rollout import kernels
from fairseq_imitkd.rollout.kernels import add_layer_norm

DTYPES = [
    (torch.float32, torch.float32),
    (torch.float16, torch.float16),
    (torch.float32, torch.bfloat16),  # autocast: the residual stream stays in float32
]


@pytest.mark.parametrize("post_norm", [False, True], ids=["pre-norm", "post-norm"])
@pytest.mark.parametrize(("stream", "dtype"), DTYPES, ids=str)
@pytest.mark.parametrize("width", [24, 1000])
def test_sum_and_norm(width: int, stream: torch.dtype, dtype: torch.dtype, post_norm: bool) -> None:
    """The reference is computed in float64."""
    generator = torch.Generator().manual_seed(width)
    x, bias, weight, norm_bias = (
        torch.randn(size, generator=generator).to(stream) for size in ((5, width), width, width, width)
    )
    update = torch.randn(5, width, generator=generator).to(dtype)
    residual, normed = add_layer_norm(
        x, update, bias=bias, weight=weight, norm_bias=norm_bias, eps=1e-5, post_norm=post_norm, dtype=dtype
    )
    total = x.double() + update.double() + bias.double()
    expected = F.layer_norm(total, (width,), weight.double(), norm_bias.double(), 1e-5)
    tolerance = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
    assert (residual.dtype, normed.dtype) == (stream, dtype)
    torch.testing.assert_close(
        residual.double(), expected if post_norm else total, rtol=tolerance[stream], atol=tolerance[stream]
    )
    torch.testing.assert_close(normed.double(), expected, rtol=tolerance[dtype], atol=tolerance[dtype])


TRITON = """
import torch
from fairseq_imitkd.rollout import kernels
assert kernels._triton_kernels()
for width in (24, 1000):
    for stream, dtype in ((torch.float32, torch.float32), (torch.float16, torch.float16), (torch.float32, torch.float16)):
        for post_norm in (True, False):
            x, update = torch.randn(5, width).to(stream), torch.randn(5, width).to(dtype)
            vectors = [torch.randn(width).to(stream) for _ in range(3)]
            given = (x, update, *vectors, 1e-5, post_norm, dtype)
            for one, other in zip(kernels._with_torch(*given), kernels._with_triton(*given), strict=True):
                torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)
for width in (5, 300, 5000):
    probs = torch.randn(3, width).mul(3).half().float().softmax(dim=-1)
    for topp in (0.01, 0.5, 0.95, 1.0):
        expected = kernels._nucleus_by_bisection(probs, topp)
        assert kernels._nucleus_with_triton(probs, topp).equal(expected), (width, topp)
"""  # noqa: E501


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_triton_kernel_in_its_interpreter() -> None:
    """Triton interprets the kernel on a CPU. It equals what is computed without Triton."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", TRITON], check=True, env=environment)


@pytest.mark.parametrize("way", ["_nucleus_by_sorting_few", "_nucleus_by_bisection"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)  # half precision has ties
@pytest.mark.parametrize("topp", [1e-6, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_nucleus(topp: float, dtype: torch.dtype, way: str) -> None:
    """The definition, in float64: sort, and take tokens until their probability reaches ``topp``."""
    generator = torch.Generator().manual_seed(1)
    for width, scale in ((6, 1.0), (63, 2.0), (700, 0.1), (700, 5.0)):
        logits = (torch.randn(40, width, generator=generator) * scale).to(dtype).float()
        logits[:, 3] = -torch.inf
        probs = logits.softmax(dim=-1)
        values, order = probs.double().sort(dim=-1, descending=True, stable=True)
        before = values.cumsum(dim=-1).roll(1, dims=-1)
        before[:, 0] = 0.0
        expected = torch.zeros_like(probs, dtype=torch.bool).scatter(-1, order, before < topp - 1e-12)
        found = getattr(kernels, way)(probs, topp)
        assert (found & (probs > 0)).equal(expected & (probs > 0))


def test_a_kernel_that_does_not_compile(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """torch's kernels are used, and a line says so once."""

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            raise RuntimeError("Failed to find C compiler")

    broken = {"nucleus": Kernel()}
    monkeypatch.setattr(kernels, "_triton_kernels", lambda: broken)
    probs = torch.tensor([[0.5, 0.2, 0.3]])
    for _ in range(2):
        assert kernels._nucleus_with_triton(probs, 0.6).tolist() == [[True, False, True]]
    assert caplog.messages == ["Triton's kernel nucleus is not used: Failed to find C compiler"]

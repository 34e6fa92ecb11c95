"""Losses in chunks have the values and gradients of whole logits, and whole logits never exist."""

import math
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY, BaseFairseqModel
from fairseq.models.transformer import TransformerDecoder
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from fairseq_imitkd.criterion import DISTILLATION, Distillation
from fairseq_imitkd.errors import RefusedUpdate
from fairseq_imitkd.losses.chunked import (
    TokenValues,
    chunked_loss,
)
from fairseq_imitkd.losses.divergences import DIVERGENCES, needs
from fairseq_imitkd.losses.token_weights import DifficultyQueue
from fairseq_imitkd.methods import METHODS
from fairseq_imitkd.mixing.batch import with_rollouts
from fairseq_imitkd.models.access import features_for_logits, output_projection, unwrapped
from fairseq_imitkd.models.logits import (
    CHUNK_LOGITS,
    LEAST_CHUNK,
    AveragedLogits,
    ProjectedLogits,
    TokenLogits,
    WholeLogits,
    token_lprobs,
)
from fairseq_imitkd.rollout import Rollout
from tests.helpers.emulated_cuda import emulated_cuda
from tests.helpers.fairseq_models import (
    POSITIONS,
    STUDENTS,
    AtUpdate,
    build_student,
    letters,
    make_batch,
    reversed_pairs,
    tiny_criterion,
    tiny_task,
)

PAD, SYMBOLS = letters().pad(), len(letters())
N, V, D = 11, 23, 5
CPU = torch.device("cpu")

SETTINGS = {
    "jsd_weight": 0.3,
    "skew": 0.2,
    "annealing": 0.6,
    "logit_margin": 2.0,
    "rank_topk": 3,
    "entropy_threshold": 1.0,
}


def randn(*shape: int, seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal random numbers, the same in every call."""
    return (
        scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ).to(dtype)


def projection(
    bias: bool = True, positions: int = N, dtype: torch.dtype = torch.float64
) -> list[Tensor | None]:
    """Features, output matrix and bias of a student, which all require gradients."""
    tensors: list[Tensor | None] = [
        randn(positions, D, seed=1, dtype=dtype),
        randn(V, D, seed=2, dtype=dtype),
        None,
    ]
    if bias:
        tensors[2] = randn(V, seed=3, dtype=dtype)
    return [None if tensor is None else tensor.requires_grad_(True) for tensor in tensors]


def divergence_loss(name: str, positions: int = N, dtype: torch.dtype = torch.float64) -> Callable:
    """A token loss like the criterion's: a divergence, part of the reference's likelihood, and figures."""
    inputs, settings = needs(DIVERGENCES[name])
    generator = torch.Generator().manual_seed(4)
    gold = torch.randint(V, (positions,), generator=generator)
    all_inputs = {
        "target": gold,
        "is_rollout": torch.rand(positions, generator=generator) < 0.5,
        "mixture_weight": torch.rand(positions, generator=generator, dtype=torch.float64),
        "is_hard": torch.rand(positions, generator=generator) < 0.5,
        "token_weight": torch.rand(positions, generator=generator, dtype=torch.float64),
    }
    teacher = ProjectedLogits(randn(positions, 3, seed=5, dtype=dtype), randn(V, 3, seed=6, dtype=dtype))

    def token_loss(logits: Tensor, at: slice) -> tuple[Tensor, TokenValues]:
        logits = logits if logits.dtype == torch.float64 else logits.float()
        given = {key: all_inputs[key][at] for key in inputs}
        divergence = DIVERGENCES[name](
            logits, teacher.logits(at), **{key: SETTINGS[key] for key in settings}, **given
        )
        nll = F.cross_entropy(logits, gold[at], reduction="none")
        return divergence + 0.3 * nll, {
            "nll": nll,
            "best": logits.argmax(-1),
            "divergence": divergence.detach(),
        }

    return token_loss


def whole(
    tensors: list[Tensor | None], token_loss: Callable, upstream: float = 1.0
) -> tuple[Tensor, list, TokenValues]:
    """The summed loss of whole logits, its gradients, and the figures."""
    losses, figures = token_loss(F.linear(*tensors), slice(None))
    wanted = [tensor for tensor in tensors if tensor is not None]
    return losses.sum().detach(), list(torch.autograd.grad(losses.sum() * upstream, wanted)), figures


def in_chunks(
    tensors: list[Tensor | None], token_loss: Callable, chunk: int, upstream: float = 1.0
) -> tuple[Tensor, list, TokenValues]:
    """The same by :func:`chunked_loss`."""
    loss, figures = chunked_loss(ProjectedLogits(*tensors), token_loss, chunk)
    wanted = [tensor for tensor in tensors if tensor is not None]
    return loss.detach(), list(torch.autograd.grad(loss * upstream, wanted)), figures


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("chunk", [1, 3, 7, N, 1000])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_chunked_loss_is_the_dense_loss(name: str, chunk: int, bias: bool) -> None:
    """Value, gradients and figures, also if the last chunk is shorter."""
    tensors, token_loss = projection(bias), divergence_loss(name)
    loss, gradients, figures = in_chunks(tensors, token_loss, chunk)
    expected, expected_gradients, expected_figures = whole(tensors, token_loss)
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)
    assert len(gradients) == len(expected_gradients) == (3 if bias else 2)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-10, atol=1e-10)
    assert all(gradient.abs().max() > 1e-2 for gradient in gradients)
    assert list(figures) == list(expected_figures)
    for key, value in figures.items():
        assert value.shape == (N,)
        assert not value.requires_grad
        torch.testing.assert_close(value, expected_figures[key].detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["forward-kl", "target-decoupled-kl"])
def test_upstream_gradient_scales_all_gradients(name: str) -> None:
    """A loss scale or a mean over processes scales the loss so. The backward pass may run twice."""
    tensors, token_loss = projection(), divergence_loss(name)
    _, gradients, _ = in_chunks(tensors, token_loss, 3, upstream=3.0)
    _, expected, _ = whole(tensors, token_loss, upstream=3.0)
    torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-10)
    loss, _ = chunked_loss(ProjectedLogits(*tensors), token_loss, 3)
    for factor in (3.0, -1.0):
        (factor * loss).backward(retain_graph=True)
    torch.testing.assert_close(
        [tensor.grad for tensor in tensors], [2.0 / 3.0 * g for g in expected], rtol=1e-10, atol=1e-10
    )


def test_gradcheck() -> None:
    """torch's check of the backward pass, for features, matrix and bias."""
    token_loss = divergence_loss("forward-kl")
    assert torch.autograd.gradcheck(
        lambda *tensors: chunked_loss(ProjectedLogits(*tensors), token_loss, 4)[0], projection()
    )


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_gradients_of_some_parameters_alone(wanted: tuple[bool, ...]) -> None:
    """A frozen output matrix, or a frozen decoder below it."""
    tensors, token_loss = projection(), divergence_loss("forward-kl")
    _, expected, _ = whole(tensors, token_loss)
    tensors = [tensor.detach().requires_grad_(asked) for tensor, asked in zip(tensors, wanted, strict=True)]
    chunked_loss(ProjectedLogits(*tensors), token_loss, 3)[0].backward()
    for tensor, asked, gradient in zip(tensors, wanted, expected, strict=True):
        if asked:
            torch.testing.assert_close(tensor.grad, gradient, rtol=1e-10, atol=1e-10)
        else:
            assert tensor.grad is None


def test_loss_of_no_position_is_zero() -> None:
    """A batch of padding has a loss with gradients of 0, and empty figures."""
    tensors, token_loss = projection(positions=0), divergence_loss("forward-kl", positions=0)
    loss, gradients, figures = in_chunks(tensors, token_loss, 4)
    assert float(loss) == 0.0
    assert [gradient.shape for gradient in gradients] == [(0, D), (V, D), (V,)]
    assert all(gradient.eq(0.0).all() for gradient in gradients)
    assert {key: value.shape for key, value in figures.items()} == dict.fromkeys(
        ("nll", "best", "divergence"), (0,)
    )


@pytest.mark.parametrize("frozen", [False, True], ids=["no-grad", "frozen"])
def test_loss_without_gradient(frozen: bool) -> None:
    """In validation, loss and figures are the same."""
    tensors, token_loss = projection(), divergence_loss("jsd")
    expected, _, expected_figures = whole(tensors, token_loss)
    if frozen:
        tensors = [tensor.detach() for tensor in tensors]
    with torch.set_grad_enabled(frozen):
        loss, figures = chunked_loss(ProjectedLogits(*tensors), token_loss, 3)
    assert not loss.requires_grad
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)
    torch.testing.assert_close(figures, {key: value.detach() for key, value in expected_figures.items()})


@pytest.mark.parametrize("frozen", [False, True], ids=["no-grad", "frozen"])
def test_no_gradient_is_computed_if_none_is_needed(frozen: bool) -> None:
    """In validation, it would double the cost of the loss."""
    tensors, token_loss = projection(), divergence_loss("forward-kl")
    asked = []

    def watched(logits: Tensor, at: slice) -> tuple[Tensor, TokenValues]:
        asked.append(logits.requires_grad)
        return token_loss(logits, at)

    if frozen:
        tensors = [tensor.detach() for tensor in tensors]
    with torch.set_grad_enabled(frozen):
        chunked_loss(ProjectedLogits(*tensors), watched, 3)
    assert asked == [False] * 4


def test_every_chunk_is_told_its_positions() -> None:
    """Each position occurs once, in order."""
    seen = []

    def token_loss(logits: Tensor, at: slice) -> tuple[Tensor, TokenValues]:
        seen.append(torch.arange(N)[at])
        return logits.sum(dim=-1), {"position": torch.arange(N)[at]}

    _, figures = chunked_loss(ProjectedLogits(*projection()), token_loss, 4)
    assert [part.numel() for part in seen] == [4, 4, 3]
    assert figures["position"].tolist() == list(range(N))


HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])


def close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether the norm of the difference is at most this share of the other's norm."""
    return float((one.double() - other.double()).norm()) <= tolerance * float(other.double().norm())


@HALF
@pytest.mark.parametrize("name", DIVERGENCES)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    """The loss is float32. Gradients have their parameters' dtype and equal float32's up to rounding."""
    tensors, token_loss = projection(dtype=dtype), divergence_loss(name, dtype=dtype)
    loss, gradients, figures = in_chunks(tensors, token_loss, 3)
    precise = [tensor.detach().float().requires_grad_(True) for tensor in tensors]

    def same_logits(logits: Tensor, at: slice) -> tuple[Tensor, TokenValues]:
        # Half-precision logits are rounded. The test compares what is computed from them.
        return token_loss(logits + (logits.to(dtype).float() - logits).detach(), at)

    expected, expected_gradients, expected_figures = whole(precise, same_logits)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == dtype
        assert close(gradient, wanted, 2e-3 if dtype == torch.float16 else 1e-2)
    assert figures["nll"].dtype == torch.float32
    torch.testing.assert_close(figures["nll"], expected_figures["nll"].detach(), rtol=1e-4, atol=1e-4)


@HALF
def test_tiny_gradients_survive_until_they_are_scaled(dtype: torch.dtype) -> None:
    """Gradients are right that half precision would round to 0 before the loss is scaled by 2**10.

    fairseq scales the loss before the backward pass, and the chunked gradient is computed before that.
    """
    factor, scale = 2.0**-18, 2.0**10
    tensors, token_loss = projection(dtype=dtype), divergence_loss("forward-kl", dtype=dtype)

    def tiny(logits: Tensor, at: slice) -> tuple[Tensor, TokenValues]:
        losses, figures = token_loss(logits, at)
        return losses * factor, figures

    _, gradients, _ = in_chunks(tensors, tiny, 3, upstream=scale)
    _, dense, _ = whole(tensors, tiny, upstream=scale)
    _, expected, _ = whole(
        [tensor.detach().float().requires_grad_(True) for tensor in tensors], tiny, upstream=scale
    )
    for gradient, stock, wanted in zip(gradients, dense, expected, strict=True):
        assert (
            wanted.abs().max() / scale < 2.0**-14
        )  # below float16's normal numbers before, within them after scaling
        assert close(stock, wanted, 2e-2)
        assert close(gradient, wanted, 2e-2)


def test_a_half_precision_gradient_is_summed_in_float32() -> None:
    """3000 equal small gradients: a float16 sum stops growing when an addend is below half its last digit."""
    positions = 3000
    features = torch.ones(positions, 1, dtype=torch.float16)
    weight = torch.zeros(2, 1, dtype=torch.float16, requires_grad=True)
    bias = torch.zeros(2, dtype=torch.float16, requires_grad=True)

    def token_loss(logits: Tensor, at: slice) -> tuple[Tensor, TokenValues]:
        return F.cross_entropy(
            logits.float(), torch.zeros(logits.size(0), dtype=torch.int64), reduction="none"
        ), {}

    loss, _ = chunked_loss(ProjectedLogits(features, weight, bias), token_loss, 1)
    loss.backward()
    assert float(loss) == pytest.approx(positions * math.log(2.0), rel=1e-4)
    assert weight.grad.flatten().tolist() == [-1500.0, 1500.0]
    assert bias.grad.tolist() == [-1500.0, 1500.0]


@pytest.mark.parametrize(
    ("dtype", "amp", "uses_tensor_cores"),
    [(torch.float32, False, False), (torch.float32, True, True), (torch.bfloat16, False, True)],
)
def test_a_gpu_s_tensor_cores_multiply_gradients_of_half_precision(
    dtype: torch.dtype, amp: bool, uses_tensor_cores: bool
) -> None:
    """A float32 student keeps full precision. What other code asked for is restored."""
    asked = []

    def token_loss(logits: Tensor, _: slice) -> tuple[Tensor, TokenValues]:
        return logits.square().sum(dim=-1), {}

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (torch.ops.aten.mm.out, torch.ops.aten.addmm.out):
                asked.append(torch.get_float32_matmul_precision())
            return func(*args, **(kwargs or {}))

    with emulated_cuda():
        features, weight = (
            randn(*shape, seed=seed, dtype=dtype).cuda().requires_grad_()
            for seed, shape in enumerate(((N, D), (V, D)))
        )
        autocast = torch.autocast("cuda", dtype=torch.bfloat16, enabled=amp)
        with autocast, Products():
            chunked_loss(ProjectedLogits(features, weight, None), token_loss, 4)
    assert set(asked) == {"high" if uses_tensor_cores else "highest"}
    assert torch.get_float32_matmul_precision() == "highest"


def test_autocast() -> None:
    """With float32 parameters and bfloat16 logits, gradients are summed in the parameters' precision."""
    features, weight, bias = projection(dtype=torch.float32)
    token_loss = divergence_loss("forward-kl", dtype=torch.float32)
    seen = []

    def watched(logits: Tensor, at: slice) -> tuple[Tensor, TokenValues]:
        seen.append(logits.detach().clone())
        return token_loss(logits, at)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = chunked_loss(ProjectedLogits(features.bfloat16(), weight, bias), watched, 3)
        half = torch.cat(seen)
        dense = F.linear(features.bfloat16(), weight, bias)
    loss.backward()
    assert half.float().equal(dense.float().detach())
    assert loss.dtype == torch.float32
    _, expected, _ = whole([features, weight, bias], token_loss)
    for tensor, wanted in zip((features, weight, bias), expected, strict=True):
        assert tensor.grad.dtype == torch.float32
        assert close(tensor.grad, wanted, 3e-2)


class Watched(TorchDispatchMode):
    """Records the shapes of all tensors that operations return, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.shapes.add(tuple(value.shape))
        return result

    @property
    def largest(self) -> int:
        return max(map(math.prod, self.shapes))


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("chunk", [4, 16])
def test_no_tensor_is_as_large_as_all_logits(name: str, chunk: int) -> None:
    """Nothing exceeds a chunk's logits, the output matrix or the features, unlike without chunks."""
    positions = 300
    tensors, token_loss = projection(positions=positions), divergence_loss(name, positions=positions)
    with Watched() as watched:
        in_chunks(tensors, token_loss, chunk)
    assert watched.largest <= max(chunk * V, V * D, positions * D) < positions * V
    with Watched() as watched:
        whole(tensors, token_loss)
    assert watched.largest >= positions * V


def peak_memory(run: Callable[[], object]) -> int:
    """The greatest number of bytes that torch allocated at the same time during the run."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        kept = run()
    del kept
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return most


@pytest.mark.parametrize("name", ["forward-kl", "sequence-js", "target-decoupled-kl"])
def test_peak_memory_does_not_grow_with_all_logits(name: str) -> None:
    """As the allocator sees it: chunks are freed one after another."""
    positions = 1500
    tensors, token_loss = projection(positions=positions), divergence_loss(name, positions=positions)
    logits = positions * V * 8
    chunked = peak_memory(lambda: in_chunks(tensors, token_loss, 16))
    dense = peak_memory(lambda: whole(tensors, token_loss))
    assert dense > 3 * logits
    assert chunked < 0.75 * logits  # features' gradients, D for every V of the logits, and figures
    frozen = [tensor.detach() for tensor in tensors]
    assert peak_memory(lambda: chunked_loss(ProjectedLogits(*frozen), token_loss, 16)) < 0.4 * logits


SCORES = ["whole", "projected", "averaged", "averaged-by-position"]


def scores(
    kind: str, positions: int, symbols: int, seed: int, dtype: torch.dtype = torch.float64
) -> TokenLogits:
    """A teacher's logits, new in every call."""
    numbers = {
        "whole": lambda: WholeLogits(randn(positions, symbols, seed=seed, scale=2.0, dtype=dtype)),
        "projected": lambda: ProjectedLogits(
            randn(positions, 6, seed=seed, dtype=dtype),
            randn(symbols, 6, seed=seed + 1, dtype=dtype),
            randn(symbols, seed=seed + 2, dtype=dtype),
        ),
    }
    if kind in numbers:
        return numbers[kind]()
    shape = (3,) if kind == "averaged" else (positions, 3)
    weights = randn(*shape, seed=seed + 3, scale=2.0).log_softmax(-1)
    return AveragedLogits(
        [numbers["whole"](), numbers["projected"](), scores("whole", positions, symbols, seed + 4, dtype)],
        weights,
    )


@pytest.mark.parametrize("by_position", [False, True])
def test_averaged_scores_follow_the_definition(by_position: bool) -> None:
    """``log sum_m w_m p_m(v)``, symbol by symbol, with fixed weights or weights of each position."""
    members = [WholeLogits(randn(N, V, seed=seed, scale=2.0)) for seed in (1, 2, 3)]
    weights = randn(*((N, 3) if by_position else (3,)), seed=4, scale=2.0).softmax(-1)
    averaged = AveragedLogits(members, weights.log()).logits(slice(None))
    for n in range(N):
        row = weights[n].tolist() if by_position else weights.tolist()
        rows = [[math.exp(logit) for logit in member.values[n].tolist()] for member in members]
        for v in range(V):
            mean = sum(weight * numbers[v] / sum(numbers) for weight, numbers in zip(row, rows, strict=True))
            assert float(averaged[n, v]) == pytest.approx(math.log(mean), rel=1e-11, abs=1e-11)


def test_averaged_scores_of_half_precision_are_float32() -> None:
    """They equal those of members cast before, bit for bit, whatever the precision of the weights."""
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64).log()
    members = [randn(N, V, seed=seed, scale=2.0, dtype=torch.float16) for seed in (1, 2)]
    one, other = (
        AveragedLogits([WholeLogits(cast(member)) for member in members], weights).logits(slice(2, 5))
        for cast in (lambda member: member, Tensor.float)
    )
    assert one.dtype == torch.float32
    assert one.equal(other)


def test_averaged_member_without_weight_is_ignored() -> None:
    """A log-weight of ``-inf``."""
    members = [WholeLogits(randn(N, V, seed=seed)) for seed in (1, 2)]
    alone = AveragedLogits(members, torch.tensor([-torch.inf, 0.0])).logits(slice(None))
    torch.testing.assert_close(alone, members[1].values.log_softmax(-1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", SCORES)
def test_scores_of_some_positions(kind: str) -> None:
    """A slice, selected positions, and a slice of these are the same rows of all logits."""
    given = scores(kind, N, V, seed=5)
    everything = given.logits(slice(None))
    assert everything.shape == (N, V)
    torch.testing.assert_close(given.logits(slice(3, 8)), everything[3:8], rtol=1e-12, atol=1e-12)
    chosen = torch.tensor([0, 2, 3, 9, 10])
    torch.testing.assert_close(
        given.at(chosen).logits(slice(None)), everything[chosen], rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(
        given.at(chosen).logits(slice(1, 4)), everything[chosen[1:4]], rtol=1e-12, atol=1e-12
    )
    assert given.logits(slice(20, 30)).shape == (0, V)


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("chunk", [0, 1, 4, 1000])
def test_token_lprobs_are_the_log_softmax_of_tokens(kind: str, chunk: int) -> None:
    """For every size of chunk."""
    given, tokens = (
        scores(kind, N, V, seed=6),
        torch.randint(V, (N,), generator=torch.Generator().manual_seed(7)),
    )
    expected = [
        float(row.log_softmax(-1)[token])
        for row, token in zip(given.logits(slice(None)), tokens.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        token_lprobs(given, tokens, chunk),
        torch.tensor(expected, dtype=torch.float64),
        rtol=1e-12,
        atol=1e-12,
    )


def test_token_lprobs_have_no_gradient_and_are_float32_of_half() -> None:
    """Also those of a student."""
    student, tokens = ProjectedLogits(*projection(dtype=torch.float16)), torch.arange(N)
    found = token_lprobs(student, tokens, 4)
    assert not found.requires_grad
    assert found.dtype == torch.float32
    expected = (
        student.logits(slice(None))
        .float()
        .log_softmax(-1)
        .gather(-1, tokens.unsqueeze(-1))
        .squeeze(-1)
        .detach()
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert token_lprobs(WholeLogits(torch.zeros(0, V)), torch.zeros(0, dtype=torch.int64), 4).shape == (0,)


def test_token_lprobs_compute_no_whole_logits() -> None:
    """No tensor is larger than a chunk of logits."""
    given, tokens = (
        ProjectedLogits(randn(300, D, seed=1), randn(V, D, seed=2)),
        torch.zeros(300, dtype=torch.int64),
    )
    with Watched() as watched:
        token_lprobs(given, tokens, 8)
    assert watched.largest <= 300
    with Watched() as watched:
        token_lprobs(given, tokens, 0)
    assert watched.largest == 300 * V


KINDS = ["transformer", "transformer-shared-embeddings", "lstm"]


@cache
def student(kind: str) -> BaseFairseqModel:
    """A float64 student without dropout's noise."""
    return build_student(kind).double().eval()


def training_batch(
    teacher: str, seed: int = 1, update_num: int = 30, advantages: bool = False
) -> dict[str, Any]:
    """Six sentences, with a float64 teacher. The student wrote two of them. Each call makes them anew."""
    sample = make_batch(reversed_pairs(6, seed))
    rows = torch.tensor([1, 3])
    rollout = Rollout(torch.tensor([[9, 8, 2, PAD, PAD], [7, 7, 7, 7, 7]]), torch.tensor([False, True]))
    sample = with_rollouts(sample, rows, rollout, pad=PAD)
    is_rollout = torch.zeros(6, dtype=torch.bool)
    is_rollout[rows] = True
    truncated = torch.zeros(6, dtype=torch.bool)
    truncated[3] = True
    sample[DISTILLATION] = Distillation(
        scores(teacher, sample["target"].numel(), SYMBOLS, seed=50 + seed),
        is_rollout,
        truncated,
        AtUpdate(update_num),
        randn(6, seed=9) if advantages else None,
        difficulties=DifficultyQueue(20),
    )
    return sample


REWARD = {"student_share": "0.5", "rollout_policy": "sampling", "reward": "chrf"}

# name -> (method, settings)
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in METHODS},
    "normalised": ("imitkd_full", {"divergence": "jsd-normalised", "jsd_weight": 0.4}),
    "skew-forward": ("imitkd_full", {"divergence": "skew-forward-kl"}),
    "annealing": (
        "annealing_kd",
        {"divergence": "logit-mse", "annealing_temperature": 7, "logit_margin": 3.0},
    ),
    "student-temperature": ("imitkd_full", {"student_temperature": 2.0}),
    "teacher-temperature": ("gkd", {"teacher_temperature": 0.5}),
    "temperatures": ("word_kd", {"student_temperature": 3.0, "teacher_temperature": 3.0}),
    "argmax-temperature": ("imitkd", {"student_temperature": 1.5}),
    "topk-dropped": ("imitkd_full", {"teacher_topk": 5}),
    "topk-bucket": ("f_distill_rkl", {"teacher_topk": 5, "teacher_tail": "bucket"}),
    "topk-bucket-temperatures": (
        "word_kd",
        {"teacher_topk": 3, "teacher_tail": "bucket", "student_temperature": 2.0, "teacher_temperature": 1.5},
    ),
    "label-smoothing": ("word_kd", {"gold_weight": "0.3", "label_smoothing": 0.1}),
    "references-alone": ("imitkd", {"gold_weight": "1.0", "label_smoothing": 0.2}),
    "hardest-of-the-batch": ("word_kd", {"token_selection": "batch", "selected_share": 0.3}),
    "hardest-of-few": ("imitkd_full", {"token_selection": "queue", "selection_queue": 7}),
    "confidence": ("imitkd_full", {"rollout_confidence": "entropy"}),
    "by-sentence": ("word_kd", {"loss_average": "sentence", "label_smoothing": 0.1}),
    "exact-mixture": ("f_distill", {"js_weights": "exact"}),
    "exact-mixture-by-sentence": (
        "f_distill",
        {"js_weights": "exact", "loss_average": "sentence", "gold_weight": "0.25"},
    ),
    "reward": ("imitkd_full", {**REWARD, "reward_weight": 0.3}),
    "reward-alone": ("gkd", {**REWARD, "reward_weight": 1.0, "gold_weight": "1.0"}),
    "reward-and-gold": (
        "word_kd",
        {**REWARD, "gold_weight": "0.4", "label_smoothing": 0.1, "loss_average": "sentence"},
    ),
}


def step(
    kind: str, loss: str, sample: dict[str, Any], chunk: int
) -> tuple[float, int, dict[str, Any], dict[str, Tensor]]:
    """One loss of the criterion: value, count, logged figures, and each parameter's gradient."""
    name, settings = LOSSES[loss]
    model, criterion = student(kind), tiny_criterion(name, tiny_task(), loss_chunk=chunk, **settings)
    assert criterion.chunk(model, sample["target"]) == max(chunk, 0)
    model.zero_grad()
    value, count, logged = criterion(model, sample)
    value.backward()
    gradients = {
        key: parameter.grad.clone()
        for key, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    model.zero_grad()
    return float(value), count, logged, gradients


def assert_same_step(one: tuple, other: tuple) -> None:
    """Compare loss, count, figures and gradients."""
    assert one[0] == pytest.approx(other[0], rel=1e-12)
    assert one[1] == other[1]
    assert list(one[2]) == list(other[2])
    for key, value in one[2].items():
        assert type(value) is type(other[2][key]), key
        assert getattr(value, "dtype", None) == getattr(other[2][key], "dtype", None), key
        assert float(value) == pytest.approx(float(other[2][key]), rel=1e-12, abs=1e-12), key
    assert one[3].keys() == other[3].keys()
    torch.testing.assert_close(one[3], other[3], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("teacher", SCORES)
@pytest.mark.parametrize("loss", LOSSES)
def test_criterion_in_chunks_equals_the_criterion(loss: str, teacher: str) -> None:
    """Every setting of the loss with every kind of teacher: value, logged figures and gradients."""
    advantages = "reward" in loss
    expected = step("transformer", loss, training_batch(teacher, advantages=advantages), -1)
    assert max(gradient.abs().max() for gradient in expected[3].values()) > 1e-3
    assert float(expected[2]["tokens_rollout"]) == 8
    for chunk in (3, 1000):  # test_chunked_loss_is_the_dense_loss has more sizes
        assert_same_step(
            step("transformer", loss, training_batch(teacher, advantages=advantages), chunk), expected
        )


@pytest.mark.parametrize("kind", [kind for kind in STUDENTS if kind not in ("transformer", "fconv")])
@pytest.mark.parametrize("loss", ["word_kd", "exact-mixture", "atkd", "imitkd"])
def test_every_kind_of_student_in_chunks(kind: str, loss: str) -> None:
    """Also if the output matrix is the embedding, whose gradient has two parts, and if there is a bias."""
    expected = step(kind, loss, training_batch("averaged"), -1)
    for chunk in (1, 7, 1000):
        assert_same_step(step(kind, loss, training_batch("averaged"), chunk), expected)


def test_divergences_end_to_end_are_all_of_them() -> None:
    """A new divergence must be among the losses above."""
    used = {str(getattr(METHODS[name](), "divergence", "")) for name, _ in LOSSES.values()}
    used |= {settings["divergence"] for _, settings in LOSSES.values() if "divergence" in settings}
    assert used >= set(DIVERGENCES)


@pytest.mark.parametrize("loss", ["imitkd_full", "exact-mixture", "by-sentence"])
def test_token_losses_sum_to_the_chunked_loss(loss: str) -> None:
    """``reduce=False`` never chunks."""
    name, settings = LOSSES[loss]
    criterion = tiny_criterion(name, tiny_task(), loss_chunk=3, **settings)
    with torch.no_grad():
        losses, count, _ = criterion(student("transformer"), training_batch("whole"), reduce=False)
        total, same_count, _ = criterion(student("transformer"), training_batch("whole"))
    assert losses.numel() == int(training_batch("whole")["target"].ne(PAD).sum())
    assert count == same_count
    assert float(losses.sum()) == pytest.approx(float(total), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("no_grad", [True, False])
def test_validation_in_chunks(kind: str, no_grad: bool) -> None:
    """The references' negative log-likelihood without teacher, also with a gradient, for dummy batches."""
    sample = make_batch(reversed_pairs(5, seed=3))
    results = []
    for chunk in (-1, 1, 3, 1000):
        criterion = tiny_criterion("imitkd_full", tiny_task(), loss_chunk=chunk)
        with torch.set_grad_enabled(not no_grad):
            loss, count, logged = criterion(student(kind), sample)
        assert loss.requires_grad == (not no_grad)
        gradients = {}
        if not no_grad:
            student(kind).zero_grad()
            loss.backward()
            gradients = {
                key: p.grad.clone() for key, p in student(kind).named_parameters() if p.grad is not None
            }
            student(kind).zero_grad()
        results.append((float(loss), count, logged, gradients))
    for result in results[1:]:
        assert_same_step(result, results[0])
    assert count == int(sample["target"].ne(PAD).sum())


@pytest.mark.parametrize("loss", ["imitkd", "word_kd", "exact-mixture", "atkd"])
def test_teacher_at_padding_is_not_read(loss: str) -> None:
    """Chunks hold only counted positions. NaN elsewhere reaches no loss, gradient or figure."""
    expected = step("transformer", loss, training_batch("whole"), 3)
    sample = training_batch("whole")
    padding = sample["target"].flatten().eq(PAD)
    assert padding.any()
    sample[DISTILLATION].teacher.values[padding] = torch.nan
    for chunk in (3, 1000, -1):
        assert_same_step(step("transformer", loss, sample, chunk), expected)


@pytest.mark.parametrize("chunk", [-1, 1, 3, 1000])
@pytest.mark.parametrize(
    ("kind", "value"), [("teacher", torch.nan), ("teacher", torch.inf), ("student", torch.nan)]
)
def test_broken_models_are_refused_in_chunks_too(chunk: int, kind: str, value: float) -> None:
    """The message names the sentence and the model whose logits are NaN or infinite."""
    sample = training_batch("whole")
    model, criterion = (
        build_student().double().eval(),
        tiny_criterion("imitkd_full", tiny_task(), loss_chunk=chunk),
    )
    width = sample["target"].size(1)
    if kind == "teacher":
        sample[DISTILLATION].teacher.values[3 * width + 2, 5] = value
        where = str(int(sample["id"][3]))
    else:
        model.decoder.output_projection.weight.data[4] = value
        where = ", ".join(str(number) for number in sample["id"].tolist())
    with pytest.raises(RefusedUpdate, match=rf"loss of sentence {where} .*the {kind}'s logits"):
        criterion(model, sample)


@pytest.mark.parametrize("loss", ["imitkd_full", "exact-mixture", "atkd", "label-smoothing", "topk-bucket"])
def test_criterion_computes_no_whole_logits(loss: str) -> None:
    """No tensor over the vocabulary has more rows than a chunk, for student and teacher."""
    name, settings = LOSSES[loss]
    sample = training_batch("averaged-by-position")
    projected = [scores("projected", sample["target"].numel(), SYMBOLS, seed=seed) for seed in (1, 2)]
    weights = randn(sample["target"].numel(), 2, seed=3).log_softmax(-1)
    rows = {}
    for chunk in (4, -1):
        sample[DISTILLATION] = replace(sample[DISTILLATION], teacher=AveragedLogits(projected, weights))
        criterion = tiny_criterion(name, tiny_task(), loss_chunk=chunk, **settings)
        with Watched() as watched:
            criterion(student("transformer"), sample)[0].backward()
        student("transformer").zero_grad()
        matrices = {(32, SYMBOLS), (6, SYMBOLS)}  # the student's and the teacher's, transposed
        rows[chunk] = max(
            math.prod(shape[:-1]) for shape in watched.shapes - matrices if shape and shape[-1] == SYMBOLS
        )
    assert rows[4] == 4
    assert rows[-1] == sample["target"].numel() > 32


def test_half_precision_student_in_chunks() -> None:
    """The loss of a bfloat16 model is float32 and close to the whole one; its gradients are bfloat16."""
    model = build_student().bfloat16().eval()
    results = []
    for chunk in (-1, 3):
        sample = training_batch("whole")
        given = sample[DISTILLATION]
        sample[DISTILLATION] = replace(given, teacher=WholeLogits(given.teacher.values.bfloat16()))
        model.zero_grad()
        loss, _, _ = tiny_criterion("word_kd", tiny_task(), loss_chunk=chunk)(model, sample)
        loss.backward()
        assert loss.dtype == torch.float32
        results.append((float(loss), [parameter.grad.clone() for parameter in model.parameters()]))
    (dense, dense_gradients), (chunked, gradients) = results
    assert chunked == pytest.approx(dense, rel=1e-5)
    assert all(gradient.dtype == torch.bfloat16 for gradient in gradients)
    # All together: some alone, such as that of a key's bias, are 0 up to rounding.
    assert close(
        *(torch.cat([part.flatten() for part in parts]) for parts in (gradients, dense_gradients)), 3e-2
    )


def decoder_of(kind: str, **changes: Any) -> Any:
    """A student's decoder alone."""
    return build_student(kind, **changes).decoder


def adaptive_decoder(kind: str) -> Any:
    """A decoder without logits over all symbols, which the task refuses as a student."""
    architecture, settings = STUDENTS[kind]
    args = Namespace(
        arch=architecture,
        criterion="adaptive_loss",
        adaptive_softmax_cutoff="8,12",
        max_source_positions=POSITIONS,
        max_target_positions=POSITIONS,
        **settings,
    )
    ARCH_CONFIG_REGISTRY[architecture](args)
    return ARCH_MODEL_REGISTRY[architecture].build_model(args, tiny_task()).decoder


def test_output_projection_of_a_transformer() -> None:
    """Its own matrix or the embedding, without bias."""
    decoder = decoder_of("transformer")
    weight, bias = output_projection(decoder)
    assert weight is decoder.output_projection.weight
    assert weight is not decoder.embed_tokens.weight
    assert bias is None
    decoder = decoder_of("transformer-shared-embeddings")
    weight, bias = output_projection(decoder)
    assert weight is decoder.embed_tokens.weight
    assert bias is None


def test_output_projection_of_an_lstm() -> None:
    """A matrix and its bias, or the embedding."""
    decoder = decoder_of("lstm")
    weight, bias = output_projection(decoder)
    assert weight is decoder.fc_out.weight
    assert bias is decoder.fc_out.bias
    assert bias is not None
    decoder = decoder_of("lstm", share_decoder_input_output_embed=True)
    weight, bias = output_projection(decoder)
    assert weight is decoder.embed_tokens.weight
    assert bias is None


@pytest.mark.parametrize("kind", [kind for kind in STUDENTS if kind != "fconv"])
def test_features_and_projection_give_the_logits(kind: str) -> None:
    """For every kind of student, bit for bit. Afterwards, the model returns logits again."""
    model, sample = student(kind), make_batch(reversed_pairs(4, seed=8))
    with torch.no_grad():
        logits = model(**sample["net_input"])[0]
        with features_for_logits(model.decoder):
            features = model(**sample["net_input"])[0]
        weight, bias = output_projection(model.decoder)
        assert features.shape == (*logits.shape[:2], weight.size(1))
        assert F.linear(features, weight, bias).equal(logits)
        assert model(**sample["net_input"])[0].equal(logits)


def test_features_for_logits_restores_the_decoder_after_an_exception() -> None:
    """An update that runs out of memory is repeated with the same model."""
    model, sample = student("lstm"), make_batch(reversed_pairs(4, seed=8))
    logits = model(**sample["net_input"])[0]
    before = set(vars(model.decoder))

    def interrupted() -> None:
        with features_for_logits(model.decoder):
            assert model(**sample["net_input"])[0].shape != logits.shape
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        interrupted()
    assert set(vars(model.decoder)) == before
    assert model(**sample["net_input"])[0].equal(logits)
    assert output_projection(model.decoder) is not None


class OtherForward(TransformerDecoder):
    """A plugin's decoder that scales its logits in its forward pass."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        logits, extra = super().forward(*args, **kwargs)
        return 2.0 * logits, extra


class OtherOutput(TransformerDecoder):
    """A plugin's decoder that scales its logits in its output layer."""

    def output_layer(self, features: Tensor) -> Tensor:
        return 2.0 * super().output_layer(features)


class SameDecoder(TransformerDecoder):
    """A plugin's decoder that changes neither."""


class Scaled(nn.Linear):
    """A projection that does more than multiply by its matrix."""

    def forward(self, features: Tensor) -> Tensor:
        return 2.0 * super().forward(features)


@pytest.mark.parametrize(
    ("kind", "known"), [(OtherForward, False), (OtherOutput, False), (SameDecoder, True)]
)
def test_output_projection_of_a_decoder_of_a_plugin(kind: type, known: bool) -> None:
    """It is unknown if the decoder computes its logits in another way."""
    decoder = decoder_of("transformer")
    decoder.__class__ = kind
    assert (output_projection(decoder) is not None) == known


def test_no_output_projection_of_other_kinds_of_logits() -> None:
    """fconv, adaptive softmax, and a projection with hooks, weight normalisation or another class."""
    assert output_projection(decoder_of("fconv")) is None
    for kind in ("transformer", "lstm"):
        decoder = adaptive_decoder(kind)
        assert decoder.adaptive_softmax is not None
        assert output_projection(decoder) is None
    for change in (
        lambda layer: layer.register_forward_hook(lambda *_: None),
        lambda layer: layer.register_forward_pre_hook(lambda *_: None),
        nn.utils.weight_norm,
        nn.utils.parametrizations.weight_norm,
    ):
        for kind, name in (("transformer", "output_projection"), ("lstm", "fc_out")):
            decoder = decoder_of(kind)
            assert output_projection(decoder) is not None
            change(getattr(decoder, name))
            assert output_projection(decoder) is None
    decoder = decoder_of("transformer")
    decoder.output_projection = Scaled(32, SYMBOLS)
    assert output_projection(decoder) is None
    assert output_projection(nn.Linear(2, 3)) is None


@pytest.mark.parametrize("kind", ["transformer", "lstm"])
def test_no_output_projection_of_a_decoder_whose_output_layer_is_replaced(kind: str) -> None:
    """The class is fairseq's, but the replacement computes the logits."""
    decoder = decoder_of(kind)
    stock = decoder.output_layer
    decoder.output_layer = lambda features: 2.0 * stock(features)
    assert output_projection(decoder) is None


def test_student_without_a_known_projection_is_never_chunked() -> None:
    """Its loss uses whole logits, whatever the flag."""
    model, sample = student("fconv"), training_batch("whole")
    for chunk in (-1, 0, 3):
        criterion = tiny_criterion("imitkd_full", tiny_task(), loss_chunk=chunk)
        assert criterion.chunk(model, sample["target"]) == 0
    expected = step("fconv", "imitkd_full", training_batch("whole"), -1)
    model.zero_grad()
    assert float(criterion(model, sample)[0]) == expected[0]


def test_unused_parameters_rule_out_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would not find the output matrix in the forward pass. Every batch is large enough for chunks."""
    monkeypatch.setitem(CHUNK_LOGITS, "cpu", 1)
    model, target = student("transformer"), training_batch("whole")["target"]
    for unused, expected in ((False, LEAST_CHUNK), (True, 0)):
        criterion = tiny_criterion("imitkd_full", tiny_task(), find_unused_parameters=unused)
        assert criterion.chunk(model, target) == expected


def test_model_wrapped_for_distribution_is_chunked() -> None:
    """The wrapper is called once, and whole logits never exist."""

    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module):
            super().__init__()
            self.module, self.calls = module, 0

        def forward(self, **inputs: Any) -> Any:
            self.calls += 1
            return self.module(**inputs)

    wrapped, criterion = (
        Wrapper(student("transformer")),
        tiny_criterion("imitkd_full", tiny_task(), loss_chunk=3),
    )
    loss, _, _ = criterion(wrapped, training_batch("whole"))
    assert wrapped.calls == 1
    assert float(loss) == pytest.approx(
        step("transformer", "imitkd_full", training_batch("whole"), -1)[0], rel=1e-12
    )
    assert unwrapped(wrapped) is student("transformer")


@pytest.mark.parametrize("own_weights", [False, True])
@pytest.mark.parametrize("average_logits", [False, True])
def test_average_is_weighted(own_weights: bool, average_logits: bool) -> None:
    """Logits or probabilities are averaged, with one weight per member or with weights per position."""
    generator = torch.Generator().manual_seed(1)
    members = [torch.randn(5, 7, generator=generator) for _ in range(3)]
    weights = (
        torch.rand(5, 3, generator=generator).softmax(-1) if own_weights else torch.tensor([0.2, 0.7, 0.1])
    )
    averaged = AveragedLogits(
        [WholeLogits(member) for member in members], weights.log(), average_logits=average_logits
    )
    parts = [member if average_logits else member.softmax(-1) for member in members]
    expected = sum(weights[..., number : number + 1] * part for number, part in enumerate(parts))
    expected = expected if average_logits else expected.log()
    for positions in (slice(None), slice(1, 4)):
        torch.testing.assert_close(averaged.logits(positions), expected[positions])
    torch.testing.assert_close(averaged.at(torch.tensor([0, 3])).logits(slice(None)), expected[[0, 3]])


@pytest.mark.parametrize("ignore_autocast", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_projected_logits_follow_the_definition(with_bias: bool, ignore_autocast: bool) -> None:
    """They are hidden states times the output matrix, plus the bias. ``ignore_autocast`` keeps float32."""
    generator = torch.Generator().manual_seed(2)
    features, weight = torch.randn(5, 4, generator=generator), torch.randn(7, 4, generator=generator)
    bias = torch.randn(7, generator=generator) if with_bias else None
    projected = ProjectedLogits(features, weight, bias, ignore_autocast=ignore_autocast)
    expected = F.linear(features, weight, bias)
    assert projected.logits(slice(1, 4)).equal(F.linear(features[1:4], weight, bias))
    torch.testing.assert_close(projected.at(torch.tensor([0, 3])).logits(slice(None)), expected[[0, 3]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = projected.logits(slice(None)).dtype
    assert found == (torch.float32 if ignore_autocast else torch.bfloat16)

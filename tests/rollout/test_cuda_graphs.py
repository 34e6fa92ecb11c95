"""Rollouts with and without CUDA graphs have the same tokens, on an emulated device and on a GPU if present.

In half precision, kernels may round and break ties differently. Then tokens are compared up to the first
difference.
"""

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from fairseq import utils
from fairseq.models import BaseFairseqModel
from torch import Tensor, nn

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.mixing.batch import encoder_inputs, first_decoder_inputs
from fairseq_imitkd.mixing.mixer import _if_it_fits
from fairseq_imitkd.rollout import (
    Corrector,
    Ensemble,
    Prompt,
    RandomKey,
    Rollout,
    RolloutPolicy,
    SpecialSymbols,
    cuda_graphs,
    decode,
    release_graphs,
    sampling_uniforms,
    steps,
)
from fairseq_imitkd.rollout.cuda_graphs import StepGraphs, graphs_of, rounded
from fairseq_imitkd.rollout.engine import evaluating
from fairseq_imitkd.rollout.fast_transformer import next_logits
from tests.helpers.emulated_cuda import Emulation, emulated_cuda
from tests.helpers.fairseq_models import (
    STUDENTS,
    build_student,
    letters,
    make_batch,
    reversed_pairs,
    trained_student,
)

FAST = [name for name in STUDENTS if name.startswith("transformer") or name == "bart"]
LONG = {"max_len_a": 0.0, "max_len_b": 60}
POLICIES = {
    "greedy": RolloutPolicy(**LONG),
    "sampling": RolloutPolicy("sampling", **LONG),
    "nucleus": RolloutPolicy("sampling", topp=0.9, temperature=1.3, **LONG),
}
REAL = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(params=["emulated", pytest.param("real", marks=REAL)], autouse=True)
def gpu(request: pytest.FixtureRequest) -> Iterator[Emulation | None]:
    for name in {"transformer", request.node.callspec.params.get("name")} & {*STUDENTS}:
        trained_student(name)  # training is slow on an emulated device; the result is cached
    with emulated_cuda() if request.param == "emulated" else nullcontext() as emulation:
        yield emulation


def batch(turn: int) -> dict[str, Any]:
    """A batch whose number and length of sentences grow with ``turn``, so that shapes differ."""
    return utils.move_to_cuda(make_batch(reversed_pairs(5 + 9 * turn, seed=turn, longest=3 + 3 * turn)))


def write(
    writer: BaseFairseqModel | Ensemble,
    sample: dict[str, Any],
    policy: RolloutPolicy,
    cuda_graphs: bool = True,
    **more: Any,
) -> Rollout:
    dictionary = letters()
    net_input = encoder_inputs(
        sample, torch.arange(sample["target"].size(0), device="cuda"), dictionary.pad()
    )
    model = writer.models[0] if isinstance(writer, Ensemble) else writer
    max_lengths = policy.max_lengths(net_input["src_lengths"], model.max_decoder_positions())
    return decode(
        writer,
        Prompt(net_input, first_decoder_inputs(sample), max_lengths),
        replace(policy, cuda_graphs=cuda_graphs),
        symbols=SpecialSymbols.from_dictionary(dictionary),
        uniforms=sampling_uniforms([(RandomKey(seed=1, update=0), sample["id"])]),
        **{"score": True, **more},
    )


def assert_same(
    writer: BaseFairseqModel | Ensemble, sample: dict[str, Any], policy: RolloutPolicy, **more: Any
) -> Tensor:
    """Compare a rollout with and without graphs, and return its tokens."""
    stepped, replayed = (write(writer, sample, policy, cuda_graphs, **more) for cuda_graphs in (False, True))
    tokens = replayed.tokens.cpu()
    assert tokens.tolist() == stepped.tokens.tolist()
    assert replayed.truncated.tolist() == stepped.truncated.tolist()
    assert stepped.lprobs is not None
    assert replayed.lprobs is not None
    torch.testing.assert_close(
        replayed.lprobs.cpu(), stepped.lprobs.cpu(), rtol=1e-4, atol=1e-5, equal_nan=True
    )
    assert replayed.rows_computed >= stepped.rows_computed
    return tokens


def assert_alike(model: BaseFairseqModel, sample: dict[str, Any]) -> None:
    """Compare half-precision scores with and without graphs, as long as the tokens are equal."""
    stepped, replayed = (
        write(model, sample, POLICIES["greedy"], cuda_graphs) for cuda_graphs in (False, True)
    )
    assert stepped.lprobs is not None
    assert replayed.lprobs is not None
    shared = min(stepped.tokens.size(1), replayed.tokens.size(1))
    same = stepped.tokens[:, :shared].eq(replayed.tokens[:, :shared]).long().cumprod(dim=1).bool()
    assert same.float().mean() > 0.8
    parted = (stepped.lprobs[:, :shared] - replayed.lprobs[:, :shared]).masked_fill(~same, 0.0)
    assert parted.abs().max() < 0.05


@torch.no_grad()
def step_weights(model: BaseFairseqModel, factor: float) -> None:
    """Change every parameter in place, as an optimizer's step does."""
    for parameter in model.parameters():
        parameter.mul_(factor)


@pytest.mark.parametrize(
    ("name", "policy"),
    [*((name, "greedy") for name in FAST), ("transformer", "sampling"), ("transformer", "nucleus")],
)
def test_tokens_are_equal_while_the_student_learns(name: str, policy: str) -> None:
    """Batches of several shapes, which drop rows and outgrow the buffers, between updates of the weights."""
    model = trained_student(name).cuda()
    written = []
    for update in range(7):
        written.append(assert_same(model, batch(update % 3), POLICIES[policy]))
        step_weights(model, 0.97)
    made = graphs_of(model.decoder)
    assert made.replays > 20
    assert len(made.captured) > 1
    assert written[0].tolist() != written[3].tolist()  # same batch, other weights


@pytest.mark.parametrize(
    "settings",
    [{"no_token_positional_embeddings": True}, {"decoder_output_dim": 16}, {"encoder_embed_dim": 24}],
)
def test_other_kinds_of_decoders(settings: dict[str, Any]) -> None:
    """Without positions, with an output projection, and with another width than the encoder."""
    model = build_student("transformer", decoder_layers=2, decoder_normalize_before=True, **settings).cuda()
    for turn in (1, 2, 1, 2):
        assert_same(model, batch(turn), RolloutPolicy(max_len_a=0.0, max_len_b=20))
    assert graphs_of(model.decoder).replays


@pytest.mark.parametrize("name", ["transformer", "transformer-learned-positions"])
def test_old_values_in_buffers_are_not_read(name: str) -> None:
    """A broken student leaves NaN in the buffers, and NaN times an attention weight of 0 is NaN."""
    model, policy = trained_student(name).cuda(), POLICIES["greedy"]
    for turn in (3, 2, 1, 0):
        assert_same(model, batch(turn), policy)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    step_weights(model, float("nan"))
    write(model, batch(3), policy)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            value.copy_(state[key])
    for turn in (0, 1, 2, 3):
        assert_same(model, batch(turn), policy)
    assert graphs_of(model.decoder).replays


def test_dropped_rows_leave_no_values_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """After rows are dropped, their NaN keys lie where later positions of other rows will be written."""
    monkeypatch.setattr(cuda_graphs, "SMALLEST", 1)
    model = build_student("transformer", decoder_layers=3).cuda()
    with torch.no_grad():
        model.encoder.embed_tokens.weight[letters().index("a")] = float("nan")
    pairs = [([0], [0])] * 4 + [([1 + (row + place) % 15 for place in range(20)], [1]) for row in range(12)]
    sample = utils.move_to_cuda(make_batch(pairs))
    for _ in range(2):
        tokens = assert_same(model, sample, RolloutPolicy(max_len_a=1.0, max_len_b=1), min_length=15)
        assert tokens[:12].ne(letters().pad()).sum() > 12 * 15
    assert graphs_of(model.decoder).replays


def test_parameters_that_moved_are_found() -> None:
    """A wrapper that flattens parameters moves them. A graph would read the old memory."""
    model, sample, policy = trained_student("transformer").cuda(), batch(1), POLICIES["greedy"]
    for _ in range(2):
        before = assert_same(model, sample, policy)
    assert graphs_of(model.decoder).replays
    old = list(model.parameters())
    for module in model.modules():
        for name, parameter in module._parameters.items():
            module._parameters[name] = None if parameter is None else nn.Parameter(0.6 * parameter.detach())
    assert assert_same(model, sample, policy).tolist() != before.tolist()
    assert len(old) == len(list(model.parameters()))


def test_two_decoders_at_once() -> None:
    """A teacher of two models corrects a student. Each decoder has its own graphs."""
    student, *teachers = (trained_student(name).cuda() for name in FAST[:3])
    writer = Ensemble(teachers, torch.tensor([0.4, 0.6], device="cuda").log())
    sample = batch(2)
    corrector = Corrector(writer, sampling_uniforms([(RandomKey(seed=2, update=0), sample["id"])]))
    for _ in range(2):
        assert_same(
            student, sample, RolloutPolicy("speculative", teacher_topk=2, **LONG), corrector=corrector
        )
        assert_same(writer, sample, POLICIES["sampling"])
    assert all(graphs_of(model.decoder).replays for model in (student, *teachers))


def test_half_precision() -> None:
    """With ``--fp16``, keys and values in half precision have their own buffers."""
    model = trained_student("transformer").cuda()
    for _ in range(2):
        assert_same(model, batch(2), POLICIES["greedy"])
    model.half()
    for turn in (2, 1, 2, 1):
        assert_alike(model, batch(turn))
        step_weights(model, 0.98)
    assert {shape.dtype for shape in graphs_of(model.decoder).captured} == {torch.float16}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    """With ``--amp``, graphs do not use autocast's copies of the weights of the captured update."""
    model = trained_student("transformer").cuda()
    for turn in (1, 3, 1, 3, 1, 3):
        with torch.autocast("cuda", dtype=dtype):
            assert_alike(model, batch(turn))
        step_weights(model, 0.9)
    made = graphs_of(model.decoder)
    assert made.replays
    assert {(shape.dtype, shape.autocast) for shape in made.captured} == {(dtype, True)}


def test_number_of_graphs_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently used graphs are dropped, and captured again when needed."""
    monkeypatch.setattr(cuda_graphs, "MOST_GRAPHS", 2)
    model = trained_student("transformer-pre-norm").cuda()
    made = graphs_of(model.decoder)
    for turn in (0, 1, 2) * 3:
        before = made.replays
        assert_same(model, batch(turn), POLICIES["sampling"])
        assert len(made.captured) <= 2
    assert made.replays > before
    assert len(made.captured) == 2


def test_least_recently_used_graphs_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "MOST_GRAPHS", 2)
    made, place = StepGraphs(), torch.zeros(1, device="cuda")
    shapes = [cuda_graphs.Shape(rows, 8, 8, torch.float32, False) for rows in (8, 16, 24)]
    for made.decodings in (1, 2):
        for shape in (shapes[0], shapes[1], shapes[0], shapes[2]):
            made.run(shape, lambda: place.add_(1))
    assert list(made.captured) == [shapes[0], shapes[2]]


def test_a_step_that_cannot_be_captured(monkeypatch: pytest.MonkeyPatch, gpu: Emulation | None) -> None:
    """One line names the flag to leave out, because CUDA can't continue after a failed capture."""
    if gpu is None:
        pytest.skip("the device could not be used by later tests")

    def waits(*given: Any, **named: Any) -> Tensor:
        logits = next_logits(*given, **named)
        assert logits.sum().item() != 0
        return logits

    monkeypatch.setattr(cuda_graphs, "next_logits", waits)
    model, sample = trained_student("transformer").cuda(), batch(1)
    write(model, sample, POLICIES["greedy"])
    with pytest.raises(UsageError) as refusal:
        write(model, sample, POLICIES["greedy"])
    assert str(refusal.value) == (
        "--rollout-cuda-graphs can't be used: capturing a decoding step failed (_local_scalar_dense waits "
        "for the device: operation not permitted when stream is capturing); leave the flag out, and training "
        "continues from its last checkpoint"
    )


def test_no_memory_for_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rollout continues without graphs and tries once per shape; the next rollout tries again."""
    model, sample = trained_student("transformer").cuda(), batch(1)
    asked = []

    def full(*_: Any, **__: Any) -> Any:
        asked.append(1)
        raise torch.OutOfMemoryError

    made = graphs_of(model.decoder)
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "graph", full)
        for _ in range(2):
            assert_same(model, sample, POLICIES["greedy"])
    assert 1 <= len(asked) <= 3  # once per shape
    assert not made.replays
    assert_same(model, sample, POLICIES["greedy"])
    assert made.replays


def test_memory_of_graphs_is_freed() -> None:
    """A rollout that runs out of memory is tried again without the memory of graphs."""
    model, sample = trained_student("transformer").cuda(), batch(1)
    made = graphs_of(model.decoder)
    for _ in range(2):
        assert_same(model, sample, POLICIES["greedy"])
    tried = []

    def decoding(fits: bool) -> Rollout:
        tried.append(bool(made.captured or made._buffers or made.layers))
        if len(tried) == 1 or not fits:
            raise torch.OutOfMemoryError
        return write(model, sample, POLICIES["greedy"])

    before = made.replays
    assert _if_it_fits(lambda: decoding(fits=True)) is not None
    assert tried == [True, False]
    assert made.replays > before
    release_graphs()
    assert _if_it_fits(lambda: decoding(fits=False)) is None
    assert len(tried) == 3  # without graphs, there was nothing to free


def test_two_simultaneous_decodings_are_refused() -> None:
    """They would use the same buffers."""
    model = trained_student("transformer").cuda()
    tokens = torch.full((14, 1), letters().eos(), device="cuda")
    with torch.no_grad(), evaluating(model):
        one, other = (
            steps.begin_decoding(model, batch(1)["net_input"], longest=9, cuda_graphs=True) for _ in range(2)
        )
        other.logits(tokens)
        for too_late in (lambda: one.logits(tokens), lambda: one.keep(torch.arange(3, device="cuda"))):
            with pytest.raises(RuntimeError, match="another decoding"):
                too_late()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gru", "a GRUModel do not use CUDA graphs: its decoder is a RecurrentDecoder"),
        ("lstm", "a LSTMModel do not use CUDA graphs: its decoder is a LSTMDecoder"),
    ],
)
def test_other_students_do_not_use_graphs(name: str, why: str, caplog: pytest.LogCaptureFixture) -> None:
    steps._warn_once.cache_clear()
    model = trained_student(name).cuda()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert_same(model, batch(1), POLICIES["greedy"])
    said = [record.message for record in caplog.records if "CUDA graphs" in record.message]
    assert said == [f"rollouts of {why}"]


def test_a_step_is_few_launches(gpu: Emulation | None) -> None:
    """One launch for all layers and some to choose and to write a token; without graphs, 25 per layer."""
    if gpu is None:
        pytest.skip("a real device does not count launches")
    model, sample = build_student("transformer", decoder_layers=6).cuda(), batch(2)

    def launches(steps: int, cuda_graphs: bool) -> int:
        before = gpu.launches
        policy = RolloutPolicy(max_len_a=0.0, max_len_b=steps)
        write(model, sample, policy, cuda_graphs, min_length=steps, score=False)
        return gpu.launches - before

    for length in (12, 28) * 2:  # until all graphs are captured
        launches(length, True)
    stepped, replayed = (
        (launches(28, cuda_graphs) - launches(12, cuda_graphs)) / 16 for cuda_graphs in (False, True)
    )
    assert (round(stepped), round(replayed)) == (166, 22)  # see docs/performance.md


def test_graphs_are_freed_with_their_decoder() -> None:
    model = trained_student("transformer").cuda()
    write(model, batch(1), POLICIES["greedy"])
    kept = len(cuda_graphs._GRAPHS)
    del model
    assert len(cuda_graphs._GRAPHS) == kept - 1


def test_sizes_are_rounded_up_to_few_values() -> None:
    sizes = [rounded(count) for count in range(1, 4097)]
    assert sizes == sorted(sizes)
    assert all(
        count <= size < count + max(cuda_graphs.SMALLEST, 0.25 * count + 1)
        for count, size in enumerate(sizes, start=1)
    )
    assert len(set(sizes)) < 45


def test_buffers_that_grow_drop_the_graphs() -> None:
    """The graphs use the old buffers."""
    made, device = StepGraphs(), torch.device("cuda")

    def own(*shape: int) -> Tensor:
        return made.buffer("own", shape, dtype=torch.float32, device=device)

    small = own(2, 3)
    made.captured = {None: None}  # type: ignore[dict-item]
    assert own(3, 2).data_ptr() == small.data_ptr()
    assert made.captured
    assert own(7).data_ptr() != small.data_ptr()
    assert not made.captured

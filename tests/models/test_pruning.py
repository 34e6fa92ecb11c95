"""Which weights are pruned and when, that they stay zero, and what a checkpoint tells about it."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq import optim
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.logging import metrics
from omegaconf import OmegaConf
from torch import Tensor, nn

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.models.pruning import (
    Pruner,
    PruningConfig,
    Weight,
    check_pruning,
    prune,
    smallest,
    weights_of_checkpoint,
    weights_of_model,
)
from fairseq_imitkd.tasks.translation import TranslationWithTeacherTask
from tests.helpers.fairseq_models import (
    STUDENTS,
    build_student,
    make_batch,
    reversed_pairs,
    tiny_task,
    training_config,
)


def config(sparsity: float = 0.5, **settings: Any) -> PruningConfig:
    """Settings of a training of 100 updates."""
    return PruningConfig(
        **{"prune_sparsity": sparsity, "max_update": 100, "ddp_backend": "legacy_ddp", **settings}
    )


def random(*shape: int, seed: int = 1) -> Tensor:
    """Normal random numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def first_smallest(values: np.ndarray, count: int) -> set[int]:
    """The definition in float64: indices of the smallest magnitudes, the first of equal ones."""
    return set(np.argsort(np.abs(values.astype(np.float64)), kind="stable")[:count].tolist())


def zeros(values: Tensor) -> set[int]:
    """The indices of a tensor's zeros."""
    return set((values.flatten() == 0).nonzero().squeeze(-1).tolist())


# --- which weights


@pytest.mark.parametrize("sparsity", [0.001, 0.3333, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("levels", [None, 7], ids=["distinct", "ties"])
def test_global_pruning_is_its_definition(sparsity: float, levels: int | None) -> None:
    """Exactly the ``round(share * count)`` smallest of all weights; of equal ones, the first."""
    tensors = [random(13, 7, seed=1), 0.1 * random(5, 11, seed=2), 3 * random(4, 3, 2, seed=3)]
    if levels:
        tensors = [(values * levels).round() / levels for values in tensors]
    weights = {str(number): Weight(values) for number, values in enumerate(tensors)}
    masks = prune(weights, sparsity, scope="global")
    flat = torch.cat([mask.flatten() for mask in masks.values()])
    whole = torch.cat([values.flatten() for values in tensors]).numpy()
    already = int((whole == 0).sum())
    count = max(round(sparsity * whole.size), already)
    assert int(flat.sum()) == count
    expected = first_smallest(whole, count)
    assert set(flat.nonzero().squeeze(-1).tolist()) == expected
    assert [mask.shape for mask in masks.values()] == [values.shape for values in tensors]


def test_layer_pruning_is_its_definition() -> None:
    """The same share of each weight, however small its values are."""
    weights = {"small": Weight(0.01 * random(9, 5)), "large": Weight(random(6, 7, seed=2))}
    for name, mask in prune(weights, 0.6, scope="layer").items():
        values = weights[name].values
        assert set(mask.flatten().nonzero().squeeze(-1).tolist()) == first_smallest(
            values.flatten().numpy(), round(0.6 * values.numel())
        )
    masks = prune(weights, 0.5, scope="global")
    assert masks["small"].float().mean() > 0.9 > 0.3 > masks["large"].float().mean()


def test_equal_values_are_taken_from_the_front() -> None:
    """Whatever the machine's order of sorting, because processes must agree."""
    [first, second] = smallest([torch.ones(2, 3), torch.ones(3, 2)], 7)
    assert first.all()
    assert second.flatten().tolist() == [True] + [False] * 5


def test_zeros_count_and_stay() -> None:
    """Zeros count as pruned wherever they are, and a smaller share keeps them."""
    values = random(10, 10)
    values[3], values[7, 7] = 0.0, -0.0
    weights = {"w": Weight(values)}
    assert prune(weights, 0.05, scope="global")["w"].equal(values == 0)
    more = prune(weights, 0.4, scope="global")["w"]
    assert int(more.sum()) == 40
    assert more[3].all()
    assert more[7, 7]


def test_padding_is_not_a_weight() -> None:
    """Its row is neither counted nor pruned, whatever its values."""
    for padding in (0.0, 1e-9, math.inf):
        values = random(6, 4)
        values[1] = padding
        weight = Weight(values, padding=1)
        assert weight.count == 20
        mask = prune({"w": weight}, 0.5, scope="global")["w"]
        assert int(mask.sum()) == 10
        assert not mask[1].any()
        assert values[1].eq(padding).all()


def test_matrices_are_pruned_and_nothing_else() -> None:
    """Not biases, norms and the gains of weight normalisation, whose shape has two dimensions."""
    for name in ("transformer-embedding-norm", "lstm", "fconv"):
        model = build_student(name)
        left_out = dict(model.named_parameters()).keys() - weights_of_model(model)
        assert left_out
        assert all(
            "bias" in parameter or "norm" in parameter or "weight_g" in parameter for parameter in left_out
        ), left_out


def test_shared_embeddings_are_one_weight() -> None:
    """The matrix of encoder, decoder and output is counted once, without the padding."""
    model = build_student("transformer-shared-embeddings")
    weights = weights_of_model(model)
    embedding = model.encoder.embed_tokens.weight
    assert [name for name, weight in weights.items() if weight.values is embedding] == [
        "encoder.embed_tokens.weight"
    ]
    assert weights["encoder.embed_tokens.weight"].count == embedding.numel() - embedding.size(1)
    assert not any("output_projection" in name for name in weights)


@pytest.mark.parametrize("copied", [False, True], ids=["storage", "copies"])
@pytest.mark.parametrize("name", STUDENTS)
def test_checkpoint_has_the_weights_of_its_model(name: str, copied: bool) -> None:
    """The same names, counts and padding, also if a GPU's checkpoint holds shared weights twice."""
    model = build_student(name)
    state = {key: value.clone() if copied else value for key, value in model.state_dict().items()}
    own = {key: (weight.count, weight.padding) for key, weight in weights_of_model(model).items()}
    weights, others = weights_of_checkpoint(state)
    assert {key: (weight.count, weight.padding) for key, weight in weights.items()} == own
    for other, first in others.items():
        assert state[other].equal(state[first])
    assert bool(others) == (
        "shared" in name or name.startswith(("gru", "sru"))
    )  # whose output matrix is the embedding


# --- when


def trained(
    pruner: Pruner, model: nn.Module, optimizer: Any, updates: range, resume_at: int = -1
) -> list[dict[str, Tensor]]:
    """The weights after each update with random gradients; at ``resume_at`` a new pruner continues."""
    found = []
    for update in updates:
        if update == resume_at:
            pruner = Pruner(pruner_config(pruner))
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = random(*parameter.shape, seed=1000 * update + number).to(parameter.dtype)
        getattr(optimizer, "before_step", lambda: None)()
        with pruner.holding(model, optimizer, update):
            optimizer.step()
        found.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
    return found


def pruner_config(pruner: Pruner) -> PruningConfig:
    """The settings of a pruner."""
    return config(
        pruner.sparsity,
        prune_scope=pruner.scope,
        prune_start=pruner.start,
        prune_end=pruner.end,
        prune_every=pruner.every,
    )


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer with momentum, and with decay that moves every weight."""
    return torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)


def net() -> nn.Module:
    """A model with two matrices and biases."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 13), nn.Linear(13, 1))


COUNT = 20 * 30 + 30 * 13


def zero_count(weights: dict[str, Tensor]) -> int:
    """The number of zeros in the matrices."""
    return sum(
        int((values == 0).sum())
        for name, values in weights.items()
        if values.dim() == 2 and min(values.shape) > 1
    )


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("before", [0.0, 0.3], ids=["dense", "pruned"])
def test_gradual_pruning_is_cubic(scope: str, before: float) -> None:
    """``s_f + (s_i - s_f) (1 - (t - t_0) / (t_n - t_0))³`` at every pruning, and exact at the end.

    The tolerance is one weight per matrix, because each pruning starts from the last one's rounded share.
    """
    start, end, every, final = 4, 33, 5, 0.8
    model = net()
    weights = weights_of_model(model)
    for name, mask in prune(weights, before, scope=scope).items():
        weights[name].values.data.masked_fill_(mask, 0.0)
    first = zero_count(dict(model.named_parameters()))
    pruner = Pruner(config(final, prune_scope=scope, prune_start=start, prune_end=end, prune_every=every))
    counts = [zero_count(after) for after in trained(pruner, model, adam(model), range(1, 41))]
    now, initial = first, first / COUNT
    for update, count in enumerate(counts, start=1):
        if update >= end:
            now = round(final * COUNT)
        elif update > start and (update - start) % every == 0:
            now = round((final + (initial - final) * (1 - (update - start) / (end - start)) ** 3) * COUNT)
        assert count == pytest.approx(now, abs=2), update
    parts = [COUNT] if scope == "global" else [weight.count for weight in weights.values()]
    assert counts[-1] == sum(round(final * count) for count in parts)
    assert len(set(counts)) == 7  # at first, and after each of six prunings


@pytest.mark.parametrize(("start", "at"), [(0, 1), (1, 1), (6, 6)])
def test_pruning_at_once(start: int, at: int) -> None:
    """After that update, by the weights of that time; 0 is after the first update."""
    model = net()
    pruned = trained(Pruner(config(0.7, prune_start=start)), model, adam(model), range(1, 9))
    counts = [zero_count(after) for after in pruned]
    assert counts == [0] * (at - 1) + [round(0.7 * COUNT)] * (9 - at)
    plain = net()
    optimizer = adam(plain)
    for update in range(1, at + 1):
        for number, parameter in enumerate(plain.parameters()):
            parameter.grad = random(*parameter.shape, seed=1000 * update + number)
        optimizer.step()
    whole = (
        torch.cat([weight.values.flatten() for weight in weights_of_model(plain).values()]).detach().numpy()
    )
    after = torch.cat([pruned[at - 1][name].flatten() for name in weights_of_model(model)])
    assert zeros(after) == first_smallest(whole, round(0.7 * COUNT))


def test_zeros_stay_through_momentum_and_decay() -> None:
    """Masks only grow. Other weights change, and biases and the single row are not pruned."""
    model = net()
    after = trained(
        Pruner(config(0.8, prune_start=3, prune_end=20, prune_every=4)), model, adam(model), range(1, 41)
    )
    for earlier, later in itertools.pairwise(after):
        for name, values in earlier.items():
            assert zeros(values) <= zeros(later[name])
            assert not values.equal(later[name])
    assert not zeros(after[-1]["0.bias"])
    assert not zeros(after[-1]["2.weight"])


@pytest.mark.parametrize("resume_at", [1, 3, 4, 7, 10, 19, 21, 22, 30])
def test_resumed_pruning_is_the_same(resume_at: int) -> None:
    """Bit for bit, wherever it stopped. It needs only the weights and the update number."""
    ends = []
    for resumed in (-1, resume_at):
        model = net()
        pruner = Pruner(config(0.8, prune_start=3, prune_end=21, prune_every=4))
        ends.append(trained(pruner, model, adam(model), range(1, 33), resumed)[-1])
    assert all(ends[0][name].equal(ends[1][name]) for name in ends[0])


def test_resumed_past_the_end_is_pruned_at_once() -> None:
    """A checkpoint of a run without pruning is resumed with pruning."""
    model = net()
    after = trained(Pruner(config(0.6, prune_start=3, prune_end=20)), model, adam(model), range(50, 52))
    assert [zero_count(weights) for weights in after] == [round(0.6 * COUNT)] * 2


def test_sparse_checkpoint_stays_sparse() -> None:
    """At the requested share or above it, the zeros stay and no weights are added."""
    model = net()
    for name, mask in prune(weights_of_model(model), 0.8, scope="global").items():
        dict(model.named_parameters())[name].data.masked_fill_(mask, 0.0)
    before = {name: zeros(parameter) for name, parameter in model.named_parameters()}
    for sparsity in (0.8, 0.1):
        after = trained(Pruner(config(sparsity)), model, adam(model), range(1, 20))[-1]
        assert {name: zeros(values) for name, values in after.items()} == before


def test_repeated_update_is_pruned_once() -> None:
    """Under ``--amp``, fairseq repeats an update whose gradients overflowed, with the same number."""
    model = net()
    pruner = Pruner(config(0.8, prune_start=0, prune_end=20, prune_every=5))
    optimizer = adam(model)
    once = zero_count(trained(pruner, model, optimizer, range(1, 6))[-1])
    assert zero_count(trained(pruner, model, optimizer, range(5, 6))[-1]) == once > 0


# --- half precision


def half_precision(model: nn.Module, flat: bool = False) -> Any:
    """fairseq's ``FP16Optimizer`` over its Adam. Its flat copies, which need a GPU, are built here."""
    settings = training_config(Path("none"), "--optimizer", "adam", "--lr", "0.05", "--weight-decay", "0.1")
    parameters = list(model.parameters())
    copies: Any = optim.FP16Optimizer.build_fp32_params(None, parameters, flatten=False)
    if flat:
        whole = nn.Parameter(torch.cat([values.data.flatten() for values in copies]))
        whole.grad = torch.zeros_like(whole)
        copies = {None: whole}  # by the device's number; the CPU has none
    optimizer = optim.FP16Optimizer(
        settings, parameters, optim.build_optimizer(settings.optimizer, [copies] if flat else copies), copies
    )
    optimizer.before_step = lambda: setattr(optimizer, "_needs_sync", True)  # as its backward does
    return optimizer


def copies_by_name(optimizer: Any, model: nn.Module) -> dict[str, Tensor]:
    """The 32-bit copies by parameter name."""
    copies, parameters = optimizer.fp32_params, dict(model.named_parameters())
    if isinstance(copies, dict):
        copies = copies[None].data.split([parameter.numel() for parameter in parameters.values()])
    return {
        name: own.detach().view(parameters[name].shape) for name, own in zip(parameters, copies, strict=True)
    }


def half_run(flat: bool) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """A half-precision model pruned to 0.6 after update 3 of 12: its weights after each, its last copies."""
    model = net().half()
    optimizer = half_precision(model, flat)
    after = trained(Pruner(config(0.6, prune_start=3)), model, optimizer, range(1, 13))
    return after, copies_by_name(optimizer, model)


@pytest.mark.parametrize("flat", [False, True], ids=["list", "flat"])
def test_copies_in_full_precision_are_pruned_too(flat: bool) -> None:
    """Model and copy have the same zeros. Otherwise the next step would restore weights."""
    after, copies = half_run(flat)
    assert [zero_count(weights) for weights in after[2:]] == [round(0.6 * COUNT)] * 10
    assert zero_count(copies) == round(0.6 * COUNT)
    for name, values in after[-1].items():
        if values.dim() == 2:
            assert zeros(values) == zeros(copies[name])
        assert values.equal(copies[name].half())


def test_flat_and_single_copies_are_pruned_alike() -> None:
    """The offsets are fairseq's."""
    one, other = half_run(False)[0], half_run(True)[0]
    for a, b in zip(one, other, strict=True):
        assert all(a[name].equal(b[name]) for name in a)


def test_weight_that_is_zero_only_in_half_precision_is_not_pruned() -> None:
    """It would be lost forever. The copy is exact, and so is its order of magnitudes."""
    model = net().half()
    optimizer = half_precision(model)
    copies = copies_by_name(optimizer, model)
    with torch.no_grad():
        copies["0.weight"].fill_(1.0)
        copies["1.weight"].fill_(1.0)
        copies["1.weight"][0, 0], copies["1.weight"][0, 1], copies["1.weight"][0, 2] = 3e-9, -2e-9, 1.0 - 1e-5
        optimizer._sync_fp32_params_to_fp16()
    assert model[1].weight[0, 0] == 0
    assert model[1].weight[0, 2] == 1
    for sparsity, expected in ((1 / COUNT, {1}), (2 / COUNT, {0, 1}), (3 / COUNT, {0, 1, 2})):
        with Pruner(config(sparsity, prune_start=1)).holding(model, optimizer, 1):
            pass
        assert zeros(copies["1.weight"]) == expected
        assert not zeros(copies["0.weight"])


def test_memory_efficient_half_precision() -> None:
    """There are no copies: the optimizer updates the model's weights."""
    model = net().half()
    settings = training_config(Path("none"), "--optimizer", "adam", "--lr", "0.05", "--weight-decay", "0.1")
    optimizer = optim.MemoryEfficientFP16Optimizer.build_optimizer(settings, list(model.parameters()))
    after = trained(Pruner(config(0.6, prune_start=3)), model, optimizer, range(1, 13))
    assert [zero_count(weights) for weights in after[2:]] == [round(0.6 * COUNT)] * 10


# --- the task


class Descent:
    """The part of an optimizer that the task uses."""

    def __init__(self, model: nn.Module):
        self.optimizer = adam(model)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients."""
        loss.backward()

    def step(self) -> None:
        """Update the weights."""
        self.optimizer.step()
        self.optimizer.zero_grad()


def task_steps(updates: int, **settings: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A student after some updates of the task with cross-entropy, and the logged figures."""
    task, model = tiny_task(**settings), build_student("transformer-shared-embeddings")
    criterion, optimizer = CrossEntropyCriterion(task, sentence_avg=False), Descent(model)
    with metrics.aggregate(new_root=True) as logged:
        for update in range(updates):
            sample = make_batch(reversed_pairs(6, seed=update))
            task.train_step(sample, model, criterion, optimizer, update)
            task.optimizer_step(optimizer, model, update)
    return model, logged.get_smoothed_values()


def test_task_prunes_and_logs_the_share() -> None:
    """Around the optimizer's step, with any criterion."""
    model, logged = task_steps(3, prune_sparsity=0.75, prune_start=3)
    weights = weights_of_model(model).values()
    count = sum(weight.count for weight in weights)
    assert sum(int(weight.zeros().sum()) for weight in weights) == round(0.75 * count)
    assert logged["sparsity"] == 0.75
    assert zero_count(dict(task_steps(2, prune_sparsity=0.75, prune_start=3)[0].named_parameters())) == 0


def test_task_without_pruning_is_fairseqs() -> None:
    """It logs no sparsity and sets no zeros."""
    model, logged = task_steps(2)
    assert "sparsity" not in logged
    assert not any(weight.zeros().any() for weight in weights_of_model(model).values())


# --- what is refused

REFUSED: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    *(
        (
            {"prune_sparsity": value},
            f"--prune-sparsity must be at least 0 and below 1, but is {value}"
            + ("; did you mean 0.8?" if value == 80.0 else ""),
            {"prune_sparsity": 0.9},
        )
        for value in (-0.1, 1.0, 80.0, math.nan)
    ),
    ({"prune_start": -1}, "--prune-start must be 0 or more, but is -1", {"prune_start": 0}),
    ({"prune_end": 50, "prune_every": 0}, "--prune-every must be 1 or more, but is 0", {"prune_every": 1}),
    (
        {"prune_start": 50, "prune_end": 49},
        "--prune-end 49 is before --prune-start 50: raise it, or leave it out to prune all at once",
        {"prune_end": None},
    ),
    *(
        (
            {"prune_sparsity": 0.0, **flag},
            f"--{next(iter(flag)).replace('_', '-')} {next(iter(flag.values()))} changes nothing without "
            "--prune-sparsity: set it to the share of weights to prune",
            {"prune_sparsity": 0.5, "prune_end": 80},
        )
        for flag in ({"prune_scope": "layer"}, {"prune_start": 5}, {"prune_end": 5}, {"prune_every": 5})
    ),
    *(
        (
            {"prune_every": 5, **flags},
            "--prune-every 5 changes nothing if all weights are pruned at once: set --prune-end after "
            "--prune-start, or leave it out",
            {"prune_end": 60},
        )
        for flags in ({}, {"prune_start": 50, "prune_end": 50})
    ),
    (
        {"prune_start": 50, "prune_end": 101},
        "--prune-end 101 is after the end of training, --max-update 100: lower it",
        {"max_update": 0},
    ),
    (
        {"prune_start": 101},
        "--prune-start 101 is after the end of training, --max-update 100: lower it",
        {"prune_start": 100},
    ),
    (
        {"ddp_backend": "fully_sharded"},
        "--ddp-backend fully_sharded splits the weights between processes, which --prune-sparsity 0.5 does "
        "not support: use --ddp-backend legacy_ddp or pytorch_ddp",
        {"prune_sparsity": 0.0},
    ),
    (
        {"ddp_backend": "slowmo"},
        "--ddp-backend slowmo changes the weights after the optimizer's step, which --prune-sparsity 0.5 "
        "does not support: use --ddp-backend legacy_ddp or pytorch_ddp",
        {"ddp_backend": "pytorch_ddp"},
    ),
]


@pytest.mark.parametrize(("settings", "message", "cure"), REFUSED, ids=[row[1][:40] for row in REFUSED])
def test_settings_that_can_not_work_are_refused(
    settings: dict[str, Any], message: str, cure: dict[str, Any]
) -> None:
    """One line names the flag, its value and a remedy that works."""
    with pytest.raises(UsageError) as refused:
        check_pruning(config(**settings))  # type: ignore[arg-type]
    assert str(refused.value) == message
    check_pruning(config(**{**settings, **cure}))  # type: ignore[arg-type]


def test_refused_before_any_file_is_read(tmp_path: Path) -> None:
    """Before missing dictionaries are noticed, but not for tasks rebuilt from a checkpoint to decode."""
    cfg = OmegaConf.create(vars(tiny_task(prune_sparsity=2.0, data=str(tmp_path)).cfg))
    with pytest.raises(UsageError, match="--prune-sparsity must be"):
        TranslationWithTeacherTask.setup_task(cfg)
    with pytest.raises(UsageError, match=r"has no dict\.src\.txt"):
        TranslationWithTeacherTask.setup_task(cfg, from_checkpoint=True)

"""One of two gloo processes that train together: ``python -m tests.distributed.two_ranks RANK FOLDER``.

It writes its results to ``FOLDER/rank-RANK.pt``. As a separate program it starts once for all cases, and a
rank that hangs can be ended from outside.
"""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed
from fairseq.distributed import ModuleProxyWrapper
from fairseq.models.distributed_fairseq_model import DistributedFairseqModel
from fairseq.trainer import Trainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fairseq_imitkd.criterion import DistillationCriterion
from fairseq_imitkd.rollout import cuda_graphs
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.training import distiller
from tests.helpers import language_models
from tests.helpers.fairseq_models import (
    build_student,
    give_teacher,
    make_batch,
    reversed_pairs,
    tiny_criterion,
    tiny_task,
    training_config,
)

UPDATE = 30
BACKENDS = ("legacy_ddp", "pytorch_ddp")
WEIGHTED = {"token_selection": "queue", "selection_queue": 20, "rollout_confidence": "entropy"}


class Optimizer:
    """The part of fairseq's optimizer that a training step calls."""

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients."""
        loss.backward()


def sentences() -> list[dict[str, Any]]:
    """Return a batch for each rank, with different lengths and numbers of sentences and with
    consecutive ids.
    """
    pairs = reversed_pairs(9, seed=31)
    return [
        make_batch(pairs[:6], ids=range(6)),
        make_batch([(pair[0] * 3, pair[1]) for pair in pairs[6:]], ids=range(6, 9)),
    ]


def student(**settings: Any) -> nn.Module:
    """Return a student with the same weights on all ranks, and without dropout, whose noise would differ."""
    return build_student(seed=1, dropout=0.0, **settings)


def task() -> Any:
    """Return a task whose teacher is in memory."""
    task = tiny_task()
    give_teacher(task, Teacher([build_student(seed=9)]))
    return task


def criterion(**settings: Any) -> Any:
    """Return a criterion that rolls out half of the sentences, with caps that depend on their sources."""
    return tiny_criterion(
        "imitkd_full", task(), student_share="0.5", rollout_max_len_a=1.0, rollout_max_len_b=2, **settings
    )


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients of all parameters by name."""
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def plain(metrics: dict[str, Any]) -> dict[str, float]:
    """Return a log without the times."""
    return {key: float(value) for key, value in metrics.items() if not key.endswith("seconds")}


def wrapped(model: nn.Module, backend: str) -> Any:
    """Wrap a model as fairseq does.

    For ``pytorch_ddp`` fairseq also names a GPU, which torch refuses on the CPU. These are the same classes
    without it.
    """
    if backend == "legacy_ddp":
        args = Namespace(tpu=False, ddp_backend=backend, heartbeat_timeout=-1)
        return DistributedFairseqModel(args, model, torch.distributed.group.WORLD, torch.device("cpu"))
    return ModuleProxyWrapper(DistributedDataParallel(model, broadcast_buffers=False))


def wrapped_step(backend: str, rank: int, ignore_grad: bool, **settings: Any) -> dict[str, Any]:
    """Run one step through the wrapper. Return this rank's averaged gradients, count and log."""
    model = student()
    outer = wrapped(model, backend)
    sample = sentences()[rank]
    _, count, metrics = task().train_step(
        sample, outer, criterion(**settings), Optimizer(), UPDATE, ignore_grad=ignore_grad and rank == 1
    )
    if backend == "legacy_ddp":
        outer.all_reduce_grads()
    return {"gradients": gradients(model), "count": count, "metrics": plain(metrics), "keys": list(metrics)}


def continuations(outer: nn.Module, rank: int) -> int:
    """Run a step of a language model, of whose prompts it continues half. Return its count."""
    own = language_models.tiny_task()
    give_teacher(own, Teacher([language_models.build(seed=9)]))
    method = tiny_criterion(
        "imitkd_full", own, student_share="0.5", rollout_max_len_a=0.0, rollout_max_len_b=6, loss_chunk=3
    )
    sample = language_models.batch(5, seed=3 + rank)
    sample["id"] = sample["id"] + 5 * rank
    return own.train_step(sample, outer, method, Optimizer(), UPDATE)[1]


def continuations_together(rank: int, backend: str) -> dict[str, Any]:
    """Run this step through the wrapper."""
    model = language_models.build(seed=1, dropout=0.0)
    outer = wrapped(model, backend)
    count = continuations(outer, rank)
    if backend == "legacy_ddp":
        outer.all_reduce_grads()
    return {"gradients": gradients(model), "count": count}


def matched(outer: Any, method: Any, rank: int, *, is_filler: bool = False) -> None:
    """Run a step with ``--hidden-match``, in parts, whose projection is a part of the criterion."""
    with mock.patch.object(distiller, "PART_COST", {"cpu": 1}):
        task().train_step(sentences()[rank], outer, method, Optimizer(), UPDATE, ignore_grad=is_filler)


def matching() -> Any:
    """Return a criterion with a projection."""
    method = criterion(hidden_match=0.5, hidden_match_distance="squared-error")
    method.begin_matching(32, 32)
    return method


def matched_together(rank: int, backend: str, *, is_filler: bool) -> dict[str, Tensor]:
    """Run this step through wrappers of the student and of the criterion. Return averaged gradients."""
    model, method = student(), matching()
    outer, of_criterion = wrapped(model, backend), wrapped(method, backend)
    matched(outer, of_criterion, rank, is_filler=is_filler and rank == 1)
    if backend == "legacy_ddp":
        outer.all_reduce_grads()
        of_criterion.all_reduce_grads()
    return {**gradients(model), **gradients(method)}


def step_without_memory(backend: str, rank: int) -> dict[str, Any]:
    """Run one step in which rank 1 runs out of memory once, after the wrapped forward pass."""
    full, token_loss = [True] * rank, DistillationCriterion._token_loss

    def use(self: DistillationCriterion, *arguments: Any) -> Any:
        if full:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return token_loss(self, *arguments)

    def free() -> bool:
        held = bool(full)
        full.clear()
        return held

    with (
        mock.patch.object(DistillationCriterion, "_token_loss", use),
        mock.patch.object(cuda_graphs, "release_graphs", free),
    ):
        return wrapped_step(backend, rank, False)


def trainer_steps(rank: int, folder: Path) -> dict[str, Any]:
    """Run two updates of fairseq's trainer. In the second one, rank 1 has no batch left (uneven shards)."""
    cfg = training_config(
        folder, "--task", "translation_with_teacher", "--criterion", "imitkd_full", "--optimizer", "sgd",
        "--lr", "0.5", "--max-update", "100", "--ddp-backend", "legacy_ddp", "--clip-norm", "0",
    )  # fmt: skip
    cfg.distributed_training.distributed_world_size = 2
    cfg.distributed_training.distributed_rank = rank
    cfg.distributed_training.distributed_init_method = "unused"
    model = student()
    trainer = Trainer(cfg, task(), model, criterion())
    batch = sentences()[rank]
    trainer.reset_dummy_batch(batch)
    logs = [trainer.train_step([batch])]
    after_one = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    logs.append(trainer.train_step([batch if rank == 0 else None]))
    after_two = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return {"after_one": after_one, "after_two": after_two, "logs": [sorted(map(str, log)) for log in logs]}


def policy_over_teachers(rank: int) -> list[float]:
    """Return the policy after three updates with two teachers; in the second update, rank 1 has no batch."""
    own = tiny_task(teacher_selection="reinforced")
    give_teacher(own, Teacher([build_student(seed=9), build_student(seed=8)]))
    model, method = student(), tiny_criterion("word_kd", own)
    outer = wrapped(model, "legacy_ddp")
    for update in range(UPDATE, UPDATE + 3):
        model.zero_grad()
        own.train_step(
            sentences()[rank],
            outer,
            method,
            Optimizer(),
            update,
            ignore_grad=rank == 1 and update == UPDATE + 1,
        )
        outer.all_reduce_grads()
        for parameter in model.parameters():
            parameter.data -= 0.05 * parameter.grad
    return own.distiller_of(method).state.selector.state()


class Adam(Optimizer):
    """Adam with momentum and with weight decay, which changes every weight."""

    def __init__(self, model: nn.Module):
        self.step = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1).step


def pruned(rank: int, backend: str) -> list[dict[str, Tensor]]:
    """Return the weights after each of six updates with gradual pruning, each rank on its own sentences."""
    own = tiny_task(prune_sparsity=0.7, prune_start=1, prune_end=5, prune_every=2)
    give_teacher(own, Teacher([build_student(seed=9)]))
    model, method, found = student(share_all_embeddings=True), tiny_criterion("word_kd", own), []
    outer, optimizer = wrapped(model, backend), Adam(model)
    for update in range(6):
        model.zero_grad()
        own.train_step(sentences()[rank], outer, method, optimizer, update)
        if backend == "legacy_ddp":
            outer.all_reduce_grads()
        own.optimizer_step(optimizer, outer, update)
        found.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
    return found


def main(rank: int, folder: Path) -> None:
    """Run all cases."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results: dict[str, Any] = {}
    for backend in BACKENDS:
        for ignore_grad in (False, True):
            results[f"{backend}-{'filler' if ignore_grad else 'even'}"] = wrapped_step(
                backend, rank, ignore_grad
            )
        results[f"{backend}-chunks"] = wrapped_step(backend, rank, False, loss_chunk=3)
        results[f"{backend}-without-memory"] = step_without_memory(backend, rank)
        results[f"{backend}-weighted"] = wrapped_step(backend, rank, False, **WEIGHTED)
        for is_filler in (False, True):
            name = f"{backend}-matching-{'filler' if is_filler else 'even'}"
            results[name] = matched_together(rank, backend, is_filler=is_filler)
        results[f"{backend}-pruned"] = pruned(rank, backend)
        results[f"{backend}-continuations"] = continuations_together(rank, backend)
    results["policy"] = policy_over_teachers(rank)
    results["trainer"] = trainer_steps(rank, folder)
    torch.save(results, folder / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))

"""A step of the distiller: its stages, their order, and one draw for each batch."""

import ast
import inspect
import textwrap
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fairseq_imitkd.rollout import RandomKey, cuda_graphs
from fairseq_imitkd.rollout.keyed_random import MIXING, REPLAYED, REPLAYING
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.text.rewards import RunningMean
from fairseq_imitkd.training import distiller as distiller_module
from fairseq_imitkd.training.distiller import Distiller, Learner
from tests.helpers.fairseq_models import (
    build_student,
    give_teacher,
    make_batch,
    reversed_pairs,
    tiny_criterion,
    tiny_task,
)

MAX_LINES = 40


class Optimizer:
    """The part of fairseq's optimizer that a training step calls."""

    def backward(self, loss: Tensor) -> None:
        loss.backward()


def distiller_and_learner(name: str, **settings: Any) -> tuple[Distiller, Learner]:
    """Return the distiller of a method whose teacher is in memory, and an untrained student."""
    task = tiny_task()
    give_teacher(task, Teacher([build_student(seed=9)]))
    criterion = tiny_criterion(name, task, rollout_max_len_a=0.0, rollout_max_len_b=6, **settings)
    return task.distiller_of(criterion), Learner(build_student(), criterion, Optimizer(), update_num=0)


def test_validation_on_own_prefixes_follows_no_schedule() -> None:
    """The loss of an unchanged student stays the same, whatever the temperature of the annealing is."""
    distiller, learner = distiller_and_learner("annealing_kd", student_share="0.5")
    student, losses = learner.model.eval(), []
    for update in (0, 30, 60, 99):
        distiller._update_num = update
        sample = make_batch(reversed_pairs(4, seed=2))
        with torch.no_grad():
            part = distiller.on_own_prefixes(sample, student, learner.criterion.eval())
            losses.append(float(learner.criterion(student, part)[0]))
    assert losses == [pytest.approx(losses[0])] * 4
    assert losses[0] > 0.0


def recorded_stages(
    monkeypatch: pytest.MonkeyPatch, distiller: Distiller, learner: Learner
) -> list[tuple[str, Any]]:
    """Record the name and the result of each stage that a step calls."""
    calls: list[tuple[str, Any]] = []

    def record(owner: Any, attribute: str, stage: str) -> None:
        original: Callable[..., Any] = getattr(owner, attribute)

        def recording(*args: Any, **kwargs: Any) -> Any:
            number = len(calls)
            calls.append((stage, None))
            result = original(*args, **kwargs)
            calls[number] = (stage, result)
            return result

        monkeypatch.setattr(owner, attribute, recording)

    record(distiller.mixer, "draw", "draw")
    record(distiller.mixer, "roll_out", "roll out")
    if distiller.rewarder is not None:
        record(distiller.rewarder, "begin", "reward")
    record(distiller.teacher, "encode", "encode")
    record(distiller.teacher, "score", "score")
    record(learner.criterion, "forward", "loss")
    record(learner.optimizer, "backward", "backward")
    return calls


REWARD = {"student_share": "0.5", "reward": "chrf"}


@pytest.mark.parametrize(
    ("method", "settings", "stages"),
    [
        ("imitkd", {"student_share": "0.5"}, ["draw", "roll out"]),
        ("gkd", REWARD, ["draw", "roll out", "reward"]),
    ],
)
@pytest.mark.parametrize("part_cost", [None, 0])
def test_a_step_draws_rolls_out_scores_and_learns(
    method: str,
    settings: dict[str, Any],
    stages: list[str],
    part_cost: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The batch is drawn, rolled out and encoded once. The last three stages follow for each part of it."""
    monkeypatch.setattr(distiller_module, "PART_COST", {} if part_cost is None else {"cpu": part_cost})
    distiller, learner = distiller_and_learner(method, **settings)
    calls = recorded_stages(monkeypatch, distiller, learner)
    distiller.step(make_batch(reversed_pairs(8, seed=1)), learner)
    names = [name for name, _ in calls]
    before, for_parts = names[: len(stages) + 1], names[len(stages) + 1 :]
    assert before == [*stages, "encode"]
    parts = len(for_parts) // 3
    assert for_parts == ["score", "loss", "backward"] * parts
    assert parts == 1 if part_cost is None else parts > 1


def test_the_batch_is_rolled_out_from_the_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mixer gets the draw back, and the student learns the targets that it has built from it."""
    distiller, learner = distiller_and_learner("imitkd", student_share="0.5")
    passed: list[Any] = []
    roll_out = distiller.mixer.roll_out
    monkeypatch.setattr(distiller.mixer, "roll_out", lambda *args: passed.append(args[0]) or roll_out(*args))
    monkeypatch.setattr(distiller_module, "PART_COST", {})
    learned: list[Any] = []
    forward = learner.criterion.forward
    monkeypatch.setattr(
        learner.criterion, "forward", lambda model, sample: learned.append(sample) or forward(model, sample)
    )
    calls = recorded_stages(monkeypatch, distiller, learner)
    distiller.step(make_batch(reversed_pairs(8, seed=1)), learner)
    results = dict(calls)
    assert passed[0] is results["draw"]
    assert learned[0]["target"] is results["roll out"].sample["target"]
    assert results["roll out"].is_rollout.equal(results["draw"].is_fresh)
    assert 0 < int(results["draw"].is_fresh.sum()) < 8


def test_a_skipped_batch_is_only_passed_through_the_student(monkeypatch: pytest.MonkeyPatch) -> None:
    distiller, learner = distiller_and_learner("gkd", **REWARD)
    calls = recorded_stages(monkeypatch, distiller, learner)
    distiller.skip(make_batch(reversed_pairs(8, seed=1)), learner)
    assert [name for name, _ in calls] == ["loss", "backward"]


def test_replay_draws_once_for_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which sentences the student writes, and which of them are replayed, is drawn once in a step."""
    distiller, learner = distiller_and_learner(
        "gkd", student_share="0.5", rollout_replay=100, rollout_replay_share="0.5"
    )
    streams: list[int] = []
    uniforms = RandomKey.uniforms

    def recording(key: RandomKey, sentence_ids: Tensor) -> Tensor:
        streams.append(key.stream)
        return uniforms(key, sentence_ids)

    monkeypatch.setattr(RandomKey, "uniforms", recording)
    replayed = []
    for update in range(4):
        streams.clear()
        sample = make_batch(reversed_pairs(8, seed=1), ids=range(8 * update, 8 * update + 8))
        now = Learner(learner.model, learner.criterion, learner.optimizer, update)
        replayed.append(distiller.step(sample, now)[2]["rollouts_replayed"])
        assert streams.count(MIXING) == 1
        assert streams.count(REPLAYING) == (1 if update > 0 else 0)
        assert streams.count(REPLAYED) == (1 if replayed[-1] else 0)
    assert replayed[0] == 0
    assert sum(replayed) > 0


def test_the_step_is_short() -> None:
    [function] = ast.parse(textwrap.dedent(inspect.getsource(Distiller.step))).body
    assert function.end_lineno - function.lineno + 1 <= MAX_LINES


def test_state_and_rewarder_share_their_parts() -> None:
    """A checkpoint holds the objects that the training uses."""
    rewarded, _ = distiller_and_learner("gkd", **REWARD, reward_baseline="running", reward_remove_bpe="none")
    assert isinstance(rewarded.state.baseline, RunningMean)
    assert rewarded.rewarder.baseline is rewarded.state.baseline
    assert rewarded.rewarder.text.remove_bpe is None
    assert rewarded.state.replay is None
    assert rewarded.state.share is None
    replaying, _ = distiller_and_learner("gkd", rollout_replay=5, rollout_replay_share="0.5")
    assert replaying.state.replay is replaying.mixer.replay
    assert replaying.state.replay.capacity == 5
    other, _ = distiller_and_learner("gkd", **REWARD)
    assert other.state.baseline is None
    adaptive, _ = distiller_and_learner("distillm")
    assert adaptive.state.share is adaptive.method.adaptive_share
    assert adaptive.state.share is not None


def test_schedules_follow_the_epoch_that_the_task_sets() -> None:
    """The student writes nothing in the first of two epochs, and everything after the second."""
    distiller, learner = distiller_and_learner(
        "imitkd", student_share="linear:0", schedule_by="epoch", max_epoch=2
    )
    sample = make_batch(reversed_pairs(4, seed=1))
    assert distiller.epoch == 1
    assert distiller.step(sample, learner)[2]["rollouts"] == 0
    distiller.epoch = 3
    assert distiller.step(sample, learner)[2]["rollouts"] == 4


@pytest.mark.parametrize(("name", "averages_logits"), [("annealing_kd", True), ("word_kd", False)])
def test_several_teachers_are_averaged_as_the_divergence_compares(
    name: str, averages_logits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A divergence between logits needs the average of logits."""
    task = tiny_task()
    give_teacher(task, Teacher([build_student(seed=9)]))
    criterion = tiny_criterion(name, task)
    distiller = task.distiller_of(criterion)
    passed: list[Any] = []
    score = distiller.teacher.score
    monkeypatch.setattr(
        distiller.teacher, "score", lambda *args, **kwargs: passed.append(kwargs) or score(*args, **kwargs)
    )
    distiller.step(
        make_batch(reversed_pairs(4, seed=1)), Learner(build_student(), criterion, Optimizer(), update_num=0)
    )
    assert {kwargs["average_logits"] for kwargs in passed} == {averages_logits}


def test_teachers_are_weighed_by_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights depend on the references, not on the rollouts, and reach the teacher's scores."""
    task = tiny_task(teacher_selection="agreement")
    give_teacher(task, Teacher([build_student(seed=8), build_student(seed=9)]))
    criterion = tiny_criterion("imitkd", task, student_share="1", rollout_max_len_a=0.0, rollout_max_len_b=6)
    distiller = task.distiller_of(criterion)
    monkeypatch.setattr(distiller_module, "PART_COST", {})
    weighed: list[Any] = []
    scored: list[Any] = []
    log_weights, score = distiller.sentence_weights.log_weights, distiller.teacher.score

    def weighing(references: Any, *args: Any, **kwargs: Any) -> Tensor:
        weights = log_weights(references, *args, **kwargs)
        weighed.append((references, kwargs["update_num"], weights))
        return weights

    monkeypatch.setattr(distiller.sentence_weights, "log_weights", weighing)
    monkeypatch.setattr(
        distiller.teacher, "score", lambda *args, **kwargs: scored.append(kwargs) or score(*args, **kwargs)
    )
    sample = make_batch(reversed_pairs(4, seed=1))
    distiller.step(sample, Learner(build_student(), criterion, Optimizer(), update_num=7))
    [(references, update_num, weights)], [arguments] = weighed, scored
    assert references["target"].equal(sample["target"])
    assert update_num == 7
    assert weights.shape == (4, 2)
    assert arguments["log_weights"] is weights


@pytest.mark.parametrize("average", ["token", "sentence"])
@pytest.mark.parametrize("parts", ["whole", "parts"])
def test_gradient_of_a_step_is_that_of_equation_4(
    average: str, parts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``weight * mean over sentences of reward - (1 - weight) * divergence`` in float64, by the loss that is
    written here. The divergence alone is averaged by tokens or by sentences. The batch may be divided.
    """
    monkeypatch.setattr(distiller_module, "PART_COST", {} if parts == "whole" else {"cpu": 0})
    weight, task = 0.3, tiny_task()
    give_teacher(task, Teacher([build_student(seed=9).double()]))
    criterion = tiny_criterion(
        "gkd", task, share_by="sentence", student_share="0.7", divergence="forward-kl", loss_average=average,
        reward="chrf", reward_weight=weight, reward_baseline="running", rollout_max_len_a=0.0,
        rollout_max_len_b=9,
    )  # fmt: skip
    student = build_student(dropout=0.0).double()
    distiller, learner = task.distiller_of(criterion), Learner(student, criterion, Optimizer(), 0)
    calls = dict[str, Any]()
    for owner, name in ((distiller.mixer, "roll_out"), (distiller.rewarder, "begin")):
        original = getattr(owner, name)

        def recording(*args: Any, name: str = name, original: Any = original) -> Any:
            calls[name] = original(*args)
            return calls[name]

        monkeypatch.setattr(owner, name, recording)
    count = distiller.step(make_batch(reversed_pairs(12, seed=1)), learner)[1]
    found = {name: each.grad / count for name, each in student.named_parameters()}

    batch = calls["roll_out"]
    target, advantage = batch.sample["target"], calls["begin"]()[0].double()
    counted, is_rollout = target.ne(1), batch.is_rollout
    lengths = counted.sum(dim=-1)
    assert 2 <= int(is_rollout.sum()) < 12
    assert len(set(lengths.tolist())) > 3
    student.zero_grad(set_to_none=True)
    log_q = student(**batch.sample["net_input"])[0].log_softmax(-1)
    log_p = distiller.teacher.models[0](**batch.sample["net_input"])[0].log_softmax(-1).detach()
    of_sentence = (log_q.gather(-1, target.unsqueeze(-1)).squeeze(-1) * counted).sum(dim=-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(dim=-1) * counted
    per_sentence = divergence.sum(dim=-1) * torch.where(is_rollout, 1.0 - weight, 1.0)
    if average == "token":
        mean_divergence = per_sentence.sum() / counted.sum()
    else:
        mean_divergence = (per_sentence / lengths).mean()
    objective = weight * (advantage * of_sentence * is_rollout).mean() - mean_divergence
    (-objective).backward()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-6, atol=1e-9)
    assert max(float(each.abs().max()) for each in found.values()) > 1e-3


def test_rewards_are_scored_beside_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher scores the batch before the rewards are there, and the loss waits for them."""
    distiller, learner = distiller_and_learner("gkd", **REWARD)
    assert distiller.rewarder is not None
    monkeypatch.setattr(distiller_module, "PART_COST", {})
    is_scored = threading.Event()
    score, teacher_score = distiller.rewarder.score, distiller.teacher.score

    def reward(*pair: str) -> float:
        assert is_scored.wait(20.0), "the teacher waits for the rewards"
        return score(*pair)

    def teachers(*args: Any, **kwargs: Any) -> Any:
        logits = teacher_score(*args, **kwargs)
        is_scored.set()
        return logits

    monkeypatch.setattr(distiller.rewarder, "score", reward)
    monkeypatch.setattr(distiller.teacher, "score", teachers)
    _, _, logs = distiller.step(make_batch(reversed_pairs(8, seed=1)), learner)
    assert logs["rewarded"] > 0


class NoMemory:
    """Memory that runs out once, unless nothing else is freed.

    Attributes:
        freed: how often the memory of graphs was asked for.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.freed = 0
        self._full = True
        monkeypatch.setattr(cuda_graphs, "release_graphs", self._free)

    def use(self) -> None:
        if self._full:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def needed_by(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that needs memory."""
        return lambda *arguments: self.use() or function(*arguments)

    def _free(self) -> bool:
        was_full, self._full = self._full, False
        self.freed += 1
        return was_full


def test_a_forward_pass_without_memory_is_repeated_without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient is that of one pass."""
    monkeypatch.setattr(distiller_module, "PART_COST", {})
    found, memory = [], NoMemory(monkeypatch)
    for runs_out in (False, True):
        distiller, learner = distiller_and_learner("imitkd", student_share="0.5")
        loss = learner.criterion._token_loss
        learner.model.eval()
        monkeypatch.setattr(learner.model, "train", lambda *_: None)  # dropout would draw other numbers
        if runs_out:
            monkeypatch.setattr(learner.criterion, "_token_loss", memory.needed_by(loss))
        distiller.step(make_batch(reversed_pairs(8, seed=1)), learner)
        found.append([parameter.grad for parameter in learner.model.parameters()])
    assert memory.freed == 1
    torch.testing.assert_close(*found)


def test_a_backward_pass_without_memory_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the gradient may be there. fairseq leaves out the batch; the next ones have more memory."""
    distiller, learner = distiller_and_learner("imitkd", student_share="0.5")
    memory = NoMemory(monkeypatch)
    monkeypatch.setattr(learner.optimizer, "backward", lambda _: memory.use())
    with pytest.raises(torch.OutOfMemoryError):
        distiller.step(make_batch(reversed_pairs(8, seed=1)), learner)
    assert memory.freed == 1

"""The training step: the student learns from the teacher, on prefixes of the data and on its own."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any, cast

import torch
from fairseq.models import BaseFairseqModel
from fairseq.optim.amp_optimizer import AMPOptimizer
from torch import Tensor

from fairseq_imitkd.criterion import DISTILLATION, Distillation, DistillationCriterion
from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.losses.token_weights import DifficultyQueue
from fairseq_imitkd.method.method import Method, Moment
from fairseq_imitkd.mixing import MixedBatch, Mixer, Writers
from fairseq_imitkd.mixing.batch import split_by_length, take
from fairseq_imitkd.mixing.mixer import NO_WORK
from fairseq_imitkd.models.access import placement, unwrapped
from fairseq_imitkd.rollout import without_graphs_if_needed
from fairseq_imitkd.teacher.sentence_weights import SentenceWeights
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.text.marks import subword_mark
from fairseq_imitkd.text.rewards import NO_REWARDS, Rewarder, RunningMean
from fairseq_imitkd.training.adapter import AnyTeacher, TaskAdapter
from fairseq_imitkd.training.graph_log import NO_GRAPHS, GraphLog
from fairseq_imitkd.training.rollout_log import RolloutLog
from fairseq_imitkd.training.rollout_watch import RolloutWatch
from fairseq_imitkd.training.stage_timer import StageTimer
from fairseq_imitkd.training.state import TrainingState

# A batch can be divided into parts, each with its own forward and backward pass. This is the fixed cost of a
# part, in target positions (see benchmarks/NOTES.md). On a GPU a batch stays whole, because the small kernels
# of the parts cost more than padding.
PART_COST = {"cpu": 32}

Reward = Callable[[], tuple[Tensor | None, dict[str, float]]]
StepResult = tuple[Tensor, int, dict[str, Any]]  # the summed loss, its count, sums to log


@dataclass(frozen=True)
class Learner:
    """What fairseq's trainer passes to a training step.

    Args:
        model: the student, wrapped or not.
        criterion: the method's criterion; in distributed wrappers if it has weights.
        optimizer: fairseq's optimizer.
        update_num: number of the update (0 = first).
    """

    model: torch.nn.Module
    criterion: DistillationCriterion
    optimizer: Any
    update_num: int

    @property
    def student(self) -> BaseFairseqModel:
        """The student without its distributed wrappers."""
        return unwrapped(self.model)


class Distiller:
    """Runs the training steps. It holds the teacher, the mixer, the rewards, the state and the timer.

    Args:
        method: the distillation method.
        task: the task that is trained.
        teacher: the teacher, or a cache of its answers.
        sentence_weights: weights of several teachers that differ between sentences; None weighs the teachers
            alike for all sentences.
        dictionary: the target dictionary, by which rewards turn tokens into text.
        warm_up: number of first updates that have small learning rates.
        rollout_log: shows rollouts; None shows none.
    """

    def __init__(
        self,
        method: Method,
        task: TaskAdapter,
        teacher: AnyTeacher,
        *,
        sentence_weights: SentenceWeights | None,
        dictionary: Any,
        warm_up: int = 0,
        rollout_log: RolloutLog | None = None,
    ):
        self.method, self.task, self.teacher = method, task, teacher
        self.sentence_weights = sentence_weights
        self.rollout_log = rollout_log
        self.mixer = Mixer.from_method(method, task.layout)
        baseline = RunningMean() if method.reward and method.reward_baseline == "running" else None
        self.rewarder = None
        if method.reward:
            mark = subword_mark(dictionary, method.reward_remove_bpe, "--reward-remove-bpe")
            self.rewarder = Rewarder(method.reward, dictionary, remove_bpe=mark, baseline=baseline)
        self.state = TrainingState(
            method.adaptive_share,
            baseline,
            self.mixer.replay,
            pool=self.mixer.pool if method.pool_updates > 1 else None,
            difficulties=DifficultyQueue(method.selection_queue) if method.selection_queue else None,
            selector=sentence_weights.selector if sentence_weights else None,
            watch=RolloutWatch(warm_up, samples=method.rollout_policy.samples) if method.rolls_out else None,
        )
        self.timer, self.graph_log = StageTimer(), GraphLog()
        self.epoch = 1  # the task sets it when an epoch begins
        self._update_num = -1  # of the last batch; -1 before the first

    def step(self, sample: Batch, learner: Learner) -> StepResult:
        """Train on one micro-batch.

        The student writes the targets that are drawn for it. The teacher scores every prefix. fairseq's own
        training step then runs the forward pass, the loss and the backward pass.

        Args:
            sample: a batch of the data; it is not changed.
            learner: the student and what trains it.

        Returns:
            the summed loss, its count, and sums to log. The backward pass has run.
        """
        device = sample["target"].device
        with self.timer.stage("step_seconds", device):
            self._begin_update(learner)
            now = self.method.at(learner.update_num, self.epoch)
            with self._rollout_stage(now, device), autocast(learner.optimizer):
                self.teacher.place(*placement(learner.student))
                draw = self.mixer.draw(sample, now)
                batch = self.mixer.roll_out(draw, self._writers(learner.student))
            reward = self._begin_reward(sample, batch)
            encoded = self._encode(sample, batch, now, learner=learner, reward=reward)
            loss, count, logs = self._learn(encoded, learner)
            if self.rollout_log is not None:
                self.rollout_log.show(learner.update_num)
        graphs, rewards = self.graph_log.read(learner.student), reward()[1]
        return loss, count, {**logs, **batch.work, **rewards, **graphs, **self._seconds()}

    def skip(self, sample: Batch, learner: Learner) -> StepResult:
        """Handle a filler batch, which fairseq gives to a process that has run out of batches.

        It gets no rollout and no teacher. The values to log have the same keys as those of :meth:`step`.
        """
        with self.timer.stage("step_seconds", sample["target"].device):
            self._begin_update(learner)
            loss, count, logs = self._train_on(sample, learner, ignore_grad=True)
        return loss, count, {**logs, **NO_WORK, **NO_REWARDS, **NO_GRAPHS, **self._seconds()}

    def on_own_prefixes(
        self, sample: Batch, model: torch.nn.Module, criterion: DistillationCriterion
    ) -> Batch:
        """Return a validation batch with the student's greedy translations as its targets, and a
        :class:`Distillation`, so that the criterion compares student and teacher there.

        Args:
            sample: a batch of sentences without references.
            model: the student, wrapped or not.
            criterion: the method's criterion.
        """
        learner = Learner(model, criterion, None, max(self._update_num, 0))
        now = self.method.at(learner.update_num, self.epoch)
        # The teacher's whole logits: a validation must not follow the schedule of --annealing-temperature.
        now = replace(now, student_share=1.0, replay_share=0.0, annealing=1.0)
        greedy = replace(self.method.rollout_policy, name="greedy", topk=0, topp=1.0, temperature=1.0)
        mixer = Mixer(self.method, self.task.layout, policy=greedy)
        self.teacher.place(*placement(learner.student))
        batch = mixer.roll_out(mixer.draw(sample, now), self._writers(learner.student))
        # The cache of encoder outputs is of the training data, by their ids.
        encoder_outs = self.teacher.encode(batch.sample, cacheable=False)
        vectors = self._sentence_vectors(encoder_outs)
        encoded = _EncodedBatch(batch, now, lambda: (None, NO_REWARDS), encoder_outs, None, None, vectors)
        part = self._score_part(encoded, None, learner)
        self._seconds()  # those of a validation are not the next update's
        return part

    def prepare_checkpoint(self, student: BaseFairseqModel) -> None:
        """Collect the state of all processes for a checkpoint; all of them must call this together."""
        if self.sentence_weights is not None:
            # A checkpoint does not hold choices that wait for a reward.
            self.sentence_weights.learn(self.task.writer(student))
        self.state.gather()

    # The stages of a step

    def _begin_update(self, learner: Learner) -> None:
        """Let the state learn from the last update and the last validation.

        All processes do this for every batch.
        """
        if self.sentence_weights is not None and learner.update_num != self._update_num:
            self.sentence_weights.learn(self.task.writer(learner.student))
        self._update_num = learner.update_num
        self.state.update_begins()

    def _rollout_stage(self, now: Moment, device: torch.device) -> contextlib.AbstractContextManager:
        """Return a context that times the decoding, if any target is written at this update."""
        if now.student_writes or self.method.teacher_samples:
            return self.timer.stage("rollout_seconds", device)
        return contextlib.nullcontext()

    def _writers(self, student: BaseFairseqModel) -> Writers:
        longest, writer = self.teacher.max_positions[1], self.task.writer(student)
        if self.task.decodes:
            longest = min(writer.max_decoder_positions(), longest)
        return Writers(writer, self.teacher.writer, longest)

    def _begin_reward(self, references: Batch, batch: MixedBatch) -> "Reward":
        """Begin to score the rollouts, beside the teacher.

        Under ``--loss-average token`` the trainer divides by the number of tokens, but the reward is averaged
        over the sentences of the batch (Agarwal et al. 2023, equation 4). So it is multiplied by the batch's
        tokens per sentence.

        Returns:
            a function that waits for the scores. It returns each rollout's reward minus the baseline,
            ``(B,)``, or None without rewards; and sums to log.
        """
        if self.rewarder is None:
            return lambda: (None, NO_REWARDS)
        target = batch.sample["target"]
        finish = self.rewarder.begin(references["target"], target, batch.is_rollout)

        @functools.cache
        def reward() -> tuple[Tensor, dict[str, float]]:
            advantages, sums = finish()
            if str(self.method.cfg.loss_average) == "token":
                advantages = advantages * (target.ne(self.task.uncounted).sum() / target.size(0))
            return advantages, sums

        return reward

    def _encode(
        self,
        references: Batch,
        batch: MixedBatch,
        now: Moment,
        *,
        learner: Learner,
        reward: "Reward",
    ) -> "_EncodedBatch":
        """Run the teacher's encoder on the batch, and weigh several teachers for each sentence.

        The teacher's decoder runs later, on each part of the batch (see :meth:`_score_part`).
        """
        encoder_outs, log_weights, vectors = None, None, None
        if now.needs_teacher or self.method.matches_hidden:
            with self._teacher_stage(batch.sample, learner):
                encoder_outs = without_graphs_if_needed(
                    lambda: self.teacher.encode(batch.sample, cacheable=batch.has_own_sources)
                )
                vectors = self._sentence_vectors(encoder_outs)
                if self.sentence_weights is not None:
                    chunk = learner.criterion.chunk(learner.model, references["target"])
                    log_weights = self.sentence_weights.log_weights(
                        references,
                        encoder_outs,
                        self.task.writer(learner.student),
                        update_num=now.update_num,
                        chunk=chunk,
                    )
        log = self.rollout_log
        shown = None if log is None else log.choose(batch, now.update_num)
        return _EncodedBatch(batch, now, reward, encoder_outs, log_weights, shown, vectors)

    def _sentence_vectors(self, encoder_outs: Any) -> Tensor | None:
        """Return the teacher's sentence vectors, ``(B, D)``, for ``--hidden-match``; None without it."""
        if not self.method.matches_hidden:
            return None
        return cast(Teacher, self.teacher).sentence_vectors(encoder_outs)

    def _learn(self, encoded: "_EncodedBatch", learner: Learner) -> StepResult:
        """Compute the teacher's logits, the loss and its gradient, for the whole batch or part by part.

        All results are sums, so those of the parts add up to those of the batch. Only dropout draws other
        numbers than for the whole batch.
        """
        *others, last = self._rows_of_parts(encoded.batch.sample["target"])
        results: list[StepResult] = []
        for rows in others:
            with _gradients_stay_local(learner.model), _gradients_stay_local(learner.criterion):
                results.append(self._train_on(self._score_part(encoded, rows, learner), learner))
        results.append(self._train_on(self._score_part(encoded, last, learner), learner))
        return reduce(_add_results, results)

    def _rows_of_parts(self, target: Tensor) -> Sequence[Tensor | None]:
        """Return the rows of each part of a batch, 1 or more; None means all rows."""
        cost = PART_COST.get(target.device.type)
        is_whole = self.method.needs_whole_batches or self.task.layout.source_pad is None
        if cost is None or not self.task.decodes or is_whole:
            return [None]
        parts = split_by_length(target, self.task.uncounted, cost)
        return parts if len(parts) > 1 else [None]

    def _score_part(self, encoded: "_EncodedBatch", rows: Tensor | None, learner: Learner) -> Batch:
        """Return some rows of a batch (None: all) with a :class:`Distillation`, which has the teacher's
        logits.
        """

        def select(values: Tensor | None) -> Any:
            return values if rows is None or values is None else values[rows]

        sample, batch = encoded.batch.sample, encoded.batch
        part = sample if rows is None else take(sample, rows, layout=self.task.layout)
        logits = None
        if encoded.now.needs_teacher:
            with self._teacher_stage(part, learner):
                score = partial(
                    self.teacher.score,
                    part,
                    encoded.encoder_outs,
                    rows=rows,
                    materialise=learner.criterion.chunk(learner.model, part["target"]) == 0,
                    log_weights=select(encoded.log_weights),
                    average_logits=self.method.compares_logits,
                )
                logits = without_graphs_if_needed(score)
        distillation = Distillation(
            logits,
            select(batch.is_rollout),
            select(batch.truncated),
            encoded.now,
            select(encoded.reward()[0]),
            self._observer(part, select(encoded.shown), select(batch.truncated)),
            self.state.difficulties,
            sentence_vectors=select(encoded.vectors),
            can_skip=part["target"].is_cuda and getattr(learner.optimizer, "scaler", None) is not None,
        )
        return {**part, DISTILLATION: distillation}

    def _observer(self, sample: Batch, shown: Tensor | None, truncated: Tensor) -> Any:
        """Return what gets the teacher's tokens for the log of rollouts; None if it wants none of this
        update.
        """
        if self.rollout_log is None or shown is None:
            return None
        return lambda teacher: self.rollout_log.collect(sample, shown, truncated, teacher=teacher)

    def _train_on(self, sample: Batch, learner: Learner, ignore_grad: bool = False) -> StepResult:
        """Run fairseq's own training step.

        If the forward pass runs out of memory, it is repeated without the memory of graphs. After it, a part
        of the gradient may be there, so fairseq leaves out the batch.
        """
        is_after_forward: list[bool] = []
        hook = learner.criterion.register_forward_hook(lambda *_: is_after_forward.append(True))
        train_on = partial(
            self.task.train_on,
            sample,
            learner.model,
            criterion=learner.criterion,
            optimizer=learner.optimizer,
            update_num=learner.update_num,
            ignore_grad=ignore_grad,
        )
        try:
            return without_graphs_if_needed(train_on, may_repeat=lambda: not is_after_forward)
        finally:
            hook.remove()

    @contextlib.contextmanager
    def _teacher_stage(self, sample: Batch, learner: Learner) -> Iterator[None]:
        with self.timer.stage("teacher_seconds", sample["target"].device), autocast(learner.optimizer):
            yield

    def _seconds(self) -> dict[str, float]:
        return self.timer.read("rollout_seconds", "teacher_seconds", "step_seconds")


@dataclass(frozen=True)
class _EncodedBatch:
    """A batch with the teacher's encoder outputs, and what else the loss of its parts needs.

    Args:
        batch: the mixed batch of ``B`` sentences.
        now: the method's schedules.
        reward: returns each rollout's advantage (see ``Distillation``), and sums to log.
        encoder_outs: the encoder output of each teacher; None if the update needs no teacher.
        log_weights: ``(B, M)``, logarithms of the teachers' weights for each sentence; None if all have the
            same.
        shown: ``(B,)`` bool, the sentences that the log of rollouts shows; None if it shows none.
        vectors: ``(B, D)``, the teacher's sentence vectors under ``--hidden-match``.
    """

    batch: MixedBatch
    now: Moment
    reward: "Reward"
    encoder_outs: list[Any] | None
    log_weights: Tensor | None
    shown: Tensor | None
    vectors: Tensor | None = None


def autocast(optimizer: Any) -> contextlib.AbstractContextManager:
    """Return a context with the precision of fairseq's own forward pass under ``--amp``.

    Autocast reuses its casts until its context ends, including casts that were made without gradients. So
    each stage has a context of its own.
    """
    if isinstance(optimizer, AMPOptimizer) and torch.cuda.is_available():
        return torch.autocast("cuda")
    return contextlib.nullcontext()


def _gradients_stay_local(model: torch.nn.Module) -> contextlib.AbstractContextManager:
    """Return a context in which a backward pass does not exchange gradients with other processes."""
    return cast(Any, model).no_sync() if hasattr(model, "no_sync") else contextlib.nullcontext()


def _add_results(one: StepResult, other: StepResult) -> StepResult:
    """Add the sums of two parts of a batch."""
    logs = {name: value + other[2][name] for name, value in one[2].items()}
    return one[0] + other[0], one[1] + other[1], logs

"""Whose prefixes a batch has: references, the student's rollouts, earlier rollouts, or the teacher's samples.

Each sentence keeps its reference, or the student writes its target (Lin et al. 2020, algorithm 1). A random
number decides, which depends on the seed, the update and the sentence's id alone. The student decodes only
the drawn sentences: those of one batch, or those of several batches that a pool decodes together. Rollouts of
earlier updates can replace some of these sentences. The teacher can write the targets of the others.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from fairseq import utils
from fairseq.models import BaseFairseqModel
from torch import Tensor

from fairseq_imitkd.data.batch_type import TEACHER_INPUT, Batch
from fairseq_imitkd.data.source_only import without_references
from fairseq_imitkd.method.method import Method, Moment
from fairseq_imitkd.mixing.batch import (
    BatchLayout,
    encoder_inputs,
    first_decoder_inputs,
    join_encoder_inputs,
    sentences_of,
    teacher_inputs,
    with_past_rollouts,
    with_rollouts,
)
from fairseq_imitkd.mixing.pool import BatchRollout, RolloutPool
from fairseq_imitkd.mixing.replay import PastRollout, ReplayBuffer, choose
from fairseq_imitkd.rollout import (
    Corrector,
    Ensemble,
    Prompt,
    RandomKey,
    Rollout,
    RolloutPolicy,
    decode,
    sampling_uniforms,
    without_graphs_if_needed,
)
from fairseq_imitkd.rollout.keyed_random import REPLAYED, REPLAYING, TEACHER_SAMPLING

T = TypeVar("T")


@dataclass(frozen=True)
class Writers:
    """The models that write targets.

    Args:
        student: the student, without its distributed wrappers.
        teacher: the teacher; it corrects speculative rollouts and writes teacher samples.
        max_target: length of the longest target that both can represent, including its EOS.
    """

    student: BaseFairseqModel
    teacher: Ensemble
    max_target: int


@dataclass(frozen=True)
class Draw:
    """What was drawn for a batch of ``B`` sentences at one update.

    Args:
        sample: the batch with its references.
        now: the method's schedules at the update.
        is_fresh: ``(B,)`` bool: the student writes a new rollout.
        fresh_rows: ``(R,)`` int64, the indices of these sentences, rising.
        past_rows: ``(P,)`` int64, the indices of the sentences that earlier rollouts replace, rising.
        past: the ``P`` earlier rollouts.
        pooled: the rollout of the batch, if the pool has decoded it already.
    """

    sample: Batch
    now: Moment
    is_fresh: Tensor
    fresh_rows: Tensor
    past_rows: Tensor
    past: Sequence[PastRollout] = ()
    pooled: BatchRollout | None = None

    @property
    def fresh_ids(self) -> Tensor:
        """The ids of the sentences that the student writes, ``(R,)``."""
        return self.sample["id"][self.fresh_rows]


# The work of a batch without rollouts, to log.
NO_WORK: dict[str, float] = {
    "rollout_rows_computed": 0,
    "rollout_tokens_written": 0,  # in this update: those that are replayed do not count
    "rollout_staleness": 0,
    "rollout_out_of_memory": 0,
    "rollouts_replayed": 0,
    "rollouts_may_be_stale": 0,  # 1 if rollouts can be older than the update that trains on them
}


@dataclass(frozen=True)
class MixedBatch:
    """A batch of ``B`` sentences to train on.

    Args:
        sample: the batch with its new targets.
        is_rollout: ``(B,)`` bool: the student wrote the target.
        truncated: ``(B,)`` bool: the target is a rollout that the maximum length cut.
        work: sums to log.
    """

    sample: Batch
    is_rollout: Tensor
    truncated: Tensor
    work: dict[str, float] = field(default_factory=lambda: dict(NO_WORK))

    @property
    def has_own_sources(self) -> bool:
        """Whether the sources are those of the data's batch, and not of replayed rollouts."""
        return self.work["rollouts_replayed"] == 0

    def with_work(self, **work: float) -> "MixedBatch":
        """Return the same batch with other values to log."""
        return replace(self, work={**self.work, **work})


class Mixer:
    """Draws whose targets a batch has, and builds the batch.

    Args:
        method: the method: seed, rollout policy, pooling, replay.
        layout: how the task's batches are padded.
        pool: which batches are decoded together; None decodes each batch on its own.
        replay: the rollouts of earlier updates; None keeps none.
        policy: how the student decodes; None is the method's way.
    """

    def __init__(
        self,
        method: Method,
        layout: BatchLayout,
        pool: RolloutPool | None = None,
        *,
        replay: ReplayBuffer | None = None,
        policy: RolloutPolicy | None = None,
    ):
        self.method, self.layout, self.pool, self.replay = method, layout, pool, replay
        self.policy = policy or method.rollout_policy

    @classmethod
    def from_method(cls, method: Method, layout: BatchLayout) -> "Mixer":
        """Return a mixer with the pool and the replay buffer that a method needs."""
        pool = RolloutPool(method.pool_updates) if method.pools else None
        replay = ReplayBuffer(method.replay_capacity) if method.replay_capacity else None
        return cls(method, layout, pool, replay=replay)

    # Drawing

    def draw(self, sample: Batch, now: Moment) -> Draw:
        """Draw which targets the student writes, and which of them are earlier rollouts.

        Args:
            sample: a batch; it is not changed.
            now: the method's schedules at this update.
        """
        if not now.student_writes:
            if self.pool is not None:
                self.pool.forget()
            none_fresh = torch.zeros_like(sample["id"], dtype=torch.bool)
            no_rows = sample["id"].new_empty(0)
            return Draw(sample, now, none_fresh, no_rows, no_rows)
        waiting = self.pool.waiting(sample) if self.pool is not None else None
        if waiting is not None:
            rows = waiting.is_fresh.nonzero().squeeze(-1)
            return Draw(sample, now, waiting.is_fresh, rows, rows.new_empty(0), pooled=waiting)
        return self._draw_sentences(sample, now)

    def _draw_sentences(self, sample: Batch, now: Moment) -> Draw:
        """Draw for each sentence by its own random number."""
        key = RandomKey(self.method.seed, now.update_num)
        # With --share-by batch all sentences of an update share one draw, in every process.
        ids = torch.zeros_like(sample["id"]) if self.method.share_by_batch else sample["id"]
        is_students = key.uniforms(ids) < now.student_share
        if now.fills_in:
            is_students = is_students | without_references(sample["target"], self.layout.target.pad)
        past = self._fitting(sample, now)
        if not past:
            rows = _rows_of(is_students, all_true=now.student_share >= 1.0)
            return Draw(sample, now, is_students, rows, rows.new_empty(0))
        uniforms = RandomKey(self.method.seed, now.update_num, REPLAYING).uniforms(sample["id"])
        is_past = is_students & (uniforms < now.replay_share)
        # Each earlier rollout is used at most once in a batch. If there are too few, the student writes the
        # other targets anew.
        lowest = uniforms.masked_fill(~is_past, 2.0).argsort(stable=True)[: len(past)]
        is_past = is_past & torch.zeros_like(is_past).index_fill_(0, lowest, True)
        is_fresh, past_rows = is_students & ~is_past, is_past.nonzero().squeeze(-1)
        chosen: Sequence[PastRollout] = ()
        if past_rows.numel() > 0:
            key = RandomKey(self.method.seed, now.update_num, REPLAYED)
            chosen = choose(past, key.uniforms(sample["id"][past_rows]))
        return Draw(sample, now, is_fresh, is_fresh.nonzero().squeeze(-1), past_rows, chosen)

    def _fitting(self, sample: Batch, now: Moment) -> list[PastRollout]:
        """Return the earlier rollouts that are short enough for a batch."""
        if self.replay is None:
            return []
        width = max(sample["net_input"]["src_tokens"].size(1), sample["target"].size(1))
        return self.replay.fitting(now.update_num, width)

    # Building the batch

    def roll_out(self, draw: Draw, writers: Writers) -> MixedBatch:
        """Let the student, and with ``--teacher-samples`` the teacher, write targets; put them into a new
        batch.

        Args:
            draw: the result of :meth:`draw`.
            writers: the models that write.
        """
        batch = self._with_students_targets(draw, writers)
        if self.method.teacher_samples:
            batch = self._with_teacher_samples(batch, draw.now, writers)
        may_be_stale = self.replay is not None or self.method.pool_updates > 1
        return batch.with_work(rollouts_may_be_stale=int(may_be_stale))

    def _with_students_targets(self, draw: Draw, writers: Writers) -> MixedBatch:
        """Return the batch with new and earlier rollouts, or with its references if decoding needs too much
        memory. Sentences without a reference then do not count.
        """
        if not draw.now.student_writes:  # is_fresh is False for all sentences
            return MixedBatch(draw.sample, draw.is_fresh, draw.is_fresh)
        none = torch.zeros_like(draw.is_fresh)
        references = MixedBatch(draw.sample, none, none)
        written = draw.pooled or self._write(draw, writers)
        if written is None:
            return references.with_work(rollout_out_of_memory=1)
        batch = references
        if written.rollout is not None:
            rollout, rows = written.rollout, draw.fresh_rows
            batch = MixedBatch(
                with_rollouts(draw.sample, rows, rollout, pad=self.layout.target.pad),
                draw.is_fresh,
                none.index_copy(0, rows, rollout.truncated),
            ).with_work(
                rollout_rows_computed=rollout.rows_computed,
                rollout_tokens_written=rollout.tokens_written(self.layout.target.pad),
                rollout_staleness=(draw.now.update_num - written.update_num) * rows.numel(),
            )
        if self.replay is not None:
            self._keep(self.replay, batch, draw.now.update_num)
        return self._with_past_rollouts(batch, draw) if draw.past else batch

    def _with_past_rollouts(self, batch: MixedBatch, draw: Draw) -> MixedBatch:
        """The batch with earlier rollouts in their rows."""
        update_num = draw.now.update_num
        sample, order = with_past_rollouts(batch.sample, draw.past_rows, draw.past, layout=self.layout)
        is_rollout, truncated = batch.is_rollout.clone(), batch.truncated.clone()
        is_rollout[draw.past_rows] = True
        truncated[draw.past_rows] = torch.tensor(
            [past.truncated for past in draw.past], device=truncated.device
        )
        staleness = sum(update_num - past.update_num for past in draw.past)
        return replace(
            batch, sample=sample, is_rollout=is_rollout[order], truncated=truncated[order]
        ).with_work(
            rollout_staleness=batch.work["rollout_staleness"] + staleness,
            rollouts_replayed=len(draw.past),
        )

    def _keep(self, replay: ReplayBuffer, batch: MixedBatch, update_num: int) -> None:
        """Add a batch's new rollouts to the replay buffer."""
        rows = batch.is_rollout.cpu().nonzero().squeeze(-1)
        ids, truncated = batch.sample["id"].tolist(), batch.truncated.tolist()
        parts = sentences_of(batch.sample, rows, layout=self.layout)
        for row, source, inputs, target in zip(rows.tolist(), *parts, strict=True):
            replay.add(PastRollout(ids[row], update_num, truncated[row], source, inputs, target))

    def _with_teacher_samples(self, batch: MixedBatch, now: Moment, writers: Writers) -> MixedBatch:
        """Return the batch with samples from the teacher in place of the references that are left."""
        rows = (~batch.is_rollout).nonzero().squeeze(-1)
        if rows.numel() == 0:
            return batch
        sample, policy = batch.sample, self.policy
        net_input = teacher_inputs(sample, rows, self.layout.source_pad)
        sentences = [(RandomKey(self.method.seed, now.update_num), sample["id"][rows])]
        prompt = self._prompt(net_input, first_decoder_inputs(sample)[rows], writers)
        rollout = _if_it_fits(
            lambda: decode(
                writers.teacher,
                prompt,
                RolloutPolicy("sampling", cuda_graphs=policy.cuda_graphs),
                symbols=self.layout.target,
                uniforms=sampling_uniforms(sentences, stream=TEACHER_SAMPLING),
            )
        )
        if rollout is None:
            return batch.with_work(rollout_out_of_memory=1)
        return replace(batch, sample=with_rollouts(sample, rows, rollout, pad=self.layout.target.pad))

    # Decoding

    def _write(self, draw: Draw, writers: Writers) -> BatchRollout | None:
        """Return the student's rollout for a batch; None if decoding needs too much memory.

        With a pool, the rollouts of the window's other batches are decoded too, and the pool keeps them. If
        that needs too much memory, the batch is decoded alone.
        """
        if self.pool is not None:
            window = self.pool.window(draw.sample)
            others = (
                self._draw_ahead(batch, later, draw.now, writers=writers) for later, batch in window[1:]
            )
            draws = [draw, *others]
            together = self._write_together(draws, writers, draw.now)
            for (_, batch), written in zip(window, together, strict=True):
                if written is not None:
                    self.pool.keep(batch, written)
            if together[0] is not None or len(draws) == 1:
                return together[0]
        return self._write_together([draw], writers, draw.now)[0]

    def _draw_ahead(self, batch: Batch, later: int, now: Moment, *, writers: Writers) -> Draw:
        """Draw for a batch of the window as at its own update, which is ``later`` updates from now."""
        first = next(writers.student.parameters())

        def prepared(values: Tensor) -> Tensor:  # the pool holds batches as the data set gave them
            dtype = first.dtype if values.is_floating_point() else values.dtype
            return values.to(first.device, dtype, non_blocking=True)

        batch = utils.apply_to_sample(prepared, batch)
        return self._draw_sentences(batch, self.method.at(now.update_num + later, now.epoch))

    def _write_together(
        self, draws: Sequence[Draw], writers: Writers, now: Moment
    ) -> list[BatchRollout | None]:
        """Decode the rollouts of several batches at once; None for each of them if this needs too much
        memory.

        A batch without drawn sentences always gets its empty :class:`BatchRollout`.
        """
        not_empty = [draw for draw in draws if draw.fresh_rows.numel() > 0]
        rollouts = _if_it_fits(lambda: self._decode_together(not_empty, writers)) if not_empty else []
        remaining = iter(rollouts or [])
        written: list[BatchRollout | None] = []
        for draw in draws:
            if draw.fresh_rows.numel() == 0:
                written.append(BatchRollout(draw.is_fresh, None, now.update_num))
            elif rollouts is None:
                written.append(None)
            else:
                written.append(BatchRollout(draw.is_fresh, next(remaining), now.update_num))
        return written

    def _decode_together(self, draws: Sequence[Draw], writers: Writers) -> list[Rollout]:
        """Decode the drawn sentences of several batches at once. Return a rollout for each batch, in its own
        order.
        """
        inputs = [encoder_inputs(draw.sample, draw.fresh_rows, self.layout.source_pad) for draw in draws]
        first_tokens = torch.cat([first_decoder_inputs(draw.sample)[draw.fresh_rows] for draw in draws])
        net_input, order = inputs[0], None
        if len(draws) > 1:
            can_join = (
                net_input.keys() == {"src_tokens", "src_lengths"} and self.layout.source_pad is not None
            )
            if not can_join:
                return [self._decode_together([draw], writers)[0] for draw in draws]
            net_input, order = join_encoder_inputs(inputs, layout=self.layout)
            first_tokens = first_tokens[order]
        rollout = self._decode(draws, writers, net_input=net_input, first_tokens=first_tokens, order=order)
        if order is None:
            return [rollout]
        rows_of_batches = order.argsort().split([draw.fresh_rows.numel() for draw in draws])
        # The work is logged once: each batch gets a share of it in proportion to its sentences.
        bounds = torch.tensor([0, *map(len, rows_of_batches)]).cumsum(0)
        ends = [int(end) * rollout.rows_computed // order.numel() for end in bounds]
        work = [end - start for start, end in itertools.pairwise(ends)]
        pad = self.layout.target.pad
        return [
            rollout.part(rows, pad, computed) for rows, computed in zip(rows_of_batches, work, strict=True)
        ]

    def _decode(
        self,
        draws: Sequence[Draw],
        writers: Writers,
        *,
        net_input: Batch,
        first_tokens: Tensor,
        order: Tensor | None,
    ) -> Rollout:
        """Decode with the method's policy. Each sentence uses the random numbers of its own update."""
        policy = self.policy
        sentences = [(RandomKey(self.method.seed, draw.now.update_num), draw.fresh_ids) for draw in draws]
        corrector = None
        if policy.speculates:
            read = None
            if TEACHER_INPUT in draws[0].sample:  # such batches are decoded one by one
                read = teacher_inputs(draws[0].sample, draws[0].fresh_rows, None)
            corrector = Corrector(
                writers.teacher, sampling_uniforms(sentences, order, TEACHER_SAMPLING), read
            )
        return decode(
            writers.student,
            self._prompt(net_input, first_tokens, writers),
            policy,
            symbols=self.layout.target,
            uniforms=sampling_uniforms(sentences, order) if policy.samples else None,
            corrector=corrector,
        )

    def _prompt(self, net_input: Batch, first_tokens: Tensor, writers: Writers) -> Prompt:
        policy, most = self.policy, writers.max_target
        shares_positions = self.layout.shares_positions
        lengths = policy.max_lengths(net_input["src_lengths"], most, shares_positions=shares_positions)
        longest = policy.longest(net_input["src_tokens"].size(1), most)
        return Prompt(net_input, first_tokens, lengths, longest=longest)


def _rows_of(mask: Tensor, *, all_true: bool) -> Tensor:
    """Return the indices where ``(B,)`` is true. On a GPU, the host waits unless it knows that all are."""
    return torch.arange(mask.numel(), device=mask.device) if all_true else mask.nonzero().squeeze(-1)


def _if_it_fits(decoding: Callable[[], T]) -> T | None:
    """Return what ``decoding`` returns, or None if it needs too much memory.

    fairseq's own recovery would skip this process's backward pass, and the other processes would wait for it:
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/trainer.py#L861-L886
    """
    try:
        return without_graphs_if_needed(decoding)
    except torch.OutOfMemoryError:
        pass  # the traceback keeps the caches alive until the handler is left
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None

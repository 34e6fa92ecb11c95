"""Whose prefixes: which sentences of a batch the student writes itself, and what it writes there.

Each sentence keeps its reference or gives it up for a rollout of the student (Lin et al. 2020, algorithm 1), by a draw
keyed by (seed, update, sentence id). Only the drawn ones are decoded: those of one batch, or of all the batches that the
pool decodes together. Some of them may be old rollouts instead, and the sentences that are left may be the teacher's.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from fairseq import utils
from fairseq.models import BaseFairseqModel
from fairseq.tasks.translation import TranslationTask
from torch import Tensor

from fairseq_imitkd.criterion import DistillationCriterion
from fairseq_imitkd.mixing.batch import (
    Batch,
    encoder_inputs,
    first_decoder_inputs,
    joined_encoder_inputs,
    with_past_rollouts,
    with_rollouts,
)
from fairseq_imitkd.mixing.pool import PooledRollout, RolloutPool
from fairseq_imitkd.mixing.replay import PastRollout, ReplayBuffer, chosen
from fairseq_imitkd.rollout import (
    Corrector,
    Ensemble,
    RandomKey,
    Rollout,
    RolloutPolicy,
    decode,
    release_graphs,
    sampling_uniforms,
)
from fairseq_imitkd.rollout.keyed_random import REPLAYED, REPLAYING, TEACHER_SAMPLING

T = TypeVar("T")


@dataclass(frozen=True)
class Authors:
    """Who writes.

    Args:
        student: unwrapped.
        teacher: who corrects a speculative student, or writes the sentences that the student does not.
        max_target: the longest target, EOS included, that both can represent.
    """

    student: BaseFairseqModel
    teacher: Ensemble
    max_target: int


@dataclass(frozen=True)
class Mixed:
    """A batch of ``B`` sentences to train on.

    Args:
        sample: the batch, some of its targets written by the student.
        is_rollout: ``(B,)`` bool, which.
        truncated: ``(B,)`` bool, which of those the length cap cut.
        work: figures for the log, sums like the criterion's.
    """

    sample: Batch
    is_rollout: Tensor
    truncated: Tensor
    work: dict[str, float]


NO_WORK: dict[str, float] = {
    "rollout_rows_computed": 0,
    "rollout_staleness": 0,
    "rollout_out_of_memory": 0,
    "rollouts_replayed": 0,
    "rollouts_kept": 0,  # whether rollouts are ever older than the update that learns from them
}


@dataclass(frozen=True)
class _Request:
    """A batch of which the student is to write the ``rows`` that were ``drawn``, with the randomness of ``key``."""

    batch: Batch
    drawn: Tensor
    rows: Tensor
    key: RandomKey


class Mixer:
    """Mixes references and rollouts for a task.

    Args:
        task: whose dictionaries and padding the batches have.
        pool: which batches are decoded together; None decodes each by itself.
        replay: where rollouts are kept to be learnt from again; None keeps none.
    """

    def __init__(
        self, task: TranslationTask, pool: RolloutPool | None = None, replay: ReplayBuffer | None = None
    ):
        self.source_pad = task.source_dictionary.pad()
        self.pad, self.eos = task.target_dictionary.pad(), task.target_dictionary.eos()
        self.left_pad_source = task.cfg.left_pad_source
        self.pool, self.replay = pool, replay

    def mix(
        self,
        sample: Batch,
        authors: Authors,
        criterion: DistillationCriterion,
        update_num: int,
    ) -> Mixed:
        """Let the student write its share of a batch.

        Args:
            sample: of ``B`` sentences; it is left as it is.
            authors: who writes.
            criterion: the method: schedule, policy, seed.
            update_num: 0 = first.
        """
        mixed = self._with_students(sample, authors, criterion, update_num)
        if criterion.teacher_samples:
            mixed = self._with_teachers(mixed, authors, criterion, update_num)
        kept = int(self.replay is not None or criterion.rollout_pool_updates > 1)
        return replace(mixed, work={**mixed.work, "rollouts_kept": kept})

    def _with_students(
        self,
        sample: Batch,
        authors: Authors,
        criterion: DistillationCriterion,
        update_num: int,
    ) -> Mixed:
        """The batch with the student's share of it, new and old."""
        nothing = torch.zeros_like(sample["id"], dtype=torch.bool)
        if criterion.student_share(update_num) == 0.0:
            if self.pool is not None:
                self.pool.forget()
            return Mixed(sample, nothing, nothing, NO_WORK)
        written = self._written(sample, authors, criterion, update_num)
        if written is None:
            return Mixed(sample, nothing, nothing, {**NO_WORK, "rollout_out_of_memory": 1})
        rollout, rows = written.rollout, written.drawn.nonzero().squeeze(-1)
        mixed = Mixed(sample, nothing, nothing, NO_WORK)
        if rollout is not None:
            work = {
                **NO_WORK,
                "rollout_rows_computed": rollout.rows_computed,
                "rollout_staleness": (update_num - written.update_num) * rows.numel(),
            }
            truncated = nothing.index_copy(0, rows, rollout.truncated)
            mixed = Mixed(with_rollouts(sample, rows, rollout, self.pad), written.drawn, truncated, work)
        return self._with_replayed(sample, mixed, criterion, update_num) if self.replay is not None else mixed

    def _replayed(
        self, sample: Batch, drawn: Tensor, criterion: DistillationCriterion, update_num: int
    ) -> Tensor:
        """Which of the sentences drawn for the student, ``(B,)`` bool, old rollouts take the places of."""
        there = len(self._replayable(sample, update_num))
        if there == 0:
            return torch.zeros_like(drawn)
        uniforms = RandomKey(criterion.seed, update_num, REPLAYING).uniforms(sample["id"])
        replayed = drawn & (uniforms < criterion.replay_share(update_num))
        # Each old one once: the student writes the others anew.
        first = uniforms.masked_fill(~replayed, 2.0).argsort(stable=True)[:there]
        return replayed & torch.zeros_like(drawn).index_fill_(0, first, True)

    def _replayable(self, sample: Batch, update_num: int) -> list[PastRollout]:
        """The old rollouts that a batch has room for."""
        if self.replay is None:
            return []
        return self.replay.fitting(
            update_num, max(sample["net_input"]["src_tokens"].size(1), sample["target"].size(1))
        )

    def _with_replayed(
        self, given: Batch, mixed: Mixed, criterion: DistillationCriterion, update_num: int
    ) -> Mixed:
        """The batch with old rollouts in it; its new ones are kept for later. ``given``: as it was without rollouts."""
        sample, written = mixed.sample, mixed.is_rollout
        drawn = self._drawn(given, criterion, update_num)
        replayed = self._replayed(given, drawn, criterion, update_num) & ~written
        rows, past = replayed.nonzero().squeeze(-1), []
        if rows.numel() > 0:
            key = RandomKey(criterion.seed, update_num, REPLAYED)
            past = chosen(self._replayable(given, update_num), key.uniforms(given["id"][rows]))
        self._keep(mixed, update_num)
        if not past:
            return mixed
        new, order = with_past_rollouts(sample, rows, past, self.source_pad, self.pad, self.left_pad_source)
        truncated = mixed.truncated.clone()
        truncated[rows] = torch.tensor([old.truncated for old in past], device=truncated.device)
        staleness = sum(update_num - old.update_num for old in past)
        work = {
            **mixed.work,
            "rollout_staleness": mixed.work["rollout_staleness"] + staleness,
            "rollouts_replayed": len(past),
        }
        return Mixed(new, (written | replayed)[order], truncated[order], work)

    def _keep(self, mixed: Mixed, update_num: int) -> None:
        """Remember what the student has written in a batch."""
        assert self.replay is not None
        net_input = mixed.sample["net_input"]
        tensors = (net_input["src_tokens"], net_input["prev_output_tokens"], mixed.sample["target"])
        sources, inputs, targets = (tensor.cpu() for tensor in tensors)
        numbers, truncated = mixed.sample["id"].tolist(), mixed.truncated.tolist()
        for row in mixed.is_rollout.nonzero().squeeze(-1).tolist():
            target, source = targets[row], sources[row]
            target, source = target[target.ne(self.pad)].clone(), source[source.ne(self.source_pad)].clone()
            read = inputs[row, : target.numel()].clone()
            self.replay.add(PastRollout(numbers[row], update_num, truncated[row], source, read, target))

    def _with_teachers(
        self, mixed: Mixed, authors: Authors, criterion: DistillationCriterion, update_num: int
    ) -> Mixed:
        """The batch with the teacher's samples in place of the references that are left."""
        rows = (~mixed.is_rollout).nonzero().squeeze(-1)
        if rows.numel() == 0:
            return mixed
        sample, policy = mixed.sample, criterion.rollout_policy
        net_input = encoder_inputs(sample, rows, self.source_pad)
        uniforms = sampling_uniforms(
            [(RandomKey(criterion.seed, update_num), sample["id"][rows])], stream=TEACHER_SAMPLING
        )
        caps = policy.max_lengths(net_input["src_lengths"], authors.max_target)
        rollout = _if_it_fits(
            lambda: decode(
                authors.teacher, net_input, first_decoder_inputs(sample)[rows], caps, RolloutPolicy("sampling"),
                pad=self.pad, eos=self.eos, uniforms=uniforms, cuda_graphs=criterion.rollout_cuda_graphs,
            )
        )  # fmt: skip
        if rollout is None:
            return replace(mixed, work={**mixed.work, "rollout_out_of_memory": 1})
        return replace(mixed, sample=with_rollouts(sample, rows, rollout, self.pad))

    def _drawn(self, batch: Batch, criterion: DistillationCriterion, update_num: int) -> Tensor:
        """Which sentences of a batch are the student's at an update, ``(B,)`` bool."""
        key = RandomKey(criterion.seed, update_num)
        # One draw for all sentences of the update, wherever they are: the same in every process.
        ids = torch.zeros_like(batch["id"]) if criterion.share_by_batch else batch["id"]
        return key.uniforms(ids) < criterion.student_share(update_num)

    def _written(
        self,
        sample: Batch,
        authors: Authors,
        criterion: DistillationCriterion,
        update_num: int,
    ) -> PooledRollout | None:
        """What the student wrote for a batch, now or together with others before; None if it does not fit in memory."""
        if self.pool is not None:
            waiting = self.pool.waiting(sample)
            if waiting is not None:
                return waiting
            batches = [(batch, update_num + later) for later, batch in self.pool.window(sample)]
            together = self._decoded(batches, authors, criterion, update_num)
            for (batch, _), written in zip(batches, together, strict=True):
                if written is not None:
                    self.pool.keep(batch, written)
            if together[0] is not None or len(batches) == 1:
                return together[0]
        return self._decoded([(sample, update_num)], authors, criterion, update_num)[0]

    def _decoded(
        self,
        batches: Sequence[tuple[Batch, int]],
        authors: Authors,
        criterion: DistillationCriterion,
        update_num: int,
    ) -> list[PooledRollout | None]:
        """Draw each batch's sentences for the update of its turn, and let the student write all of them at once."""
        device = next(authors.student.parameters()).device
        requests = []
        for batch, turn in batches:
            if device.type == "cuda":  # the pool holds batches as the data set gave them
                batch = utils.move_to_cuda(batch, device)
            key = RandomKey(criterion.seed, turn)
            drawn = self._drawn(batch, criterion, turn)
            drawn = drawn & ~self._replayed(batch, drawn, criterion, turn)
            requests.append(_Request(batch, drawn, drawn.nonzero().squeeze(-1), key))
        asked = [request for request in requests if request.rows.numel() > 0]
        rollouts = iter(self._rollouts(asked, authors, criterion) if asked else [])
        found: list[PooledRollout | None] = []
        for request in requests:
            if request.rows.numel() == 0:
                found.append(PooledRollout(request.drawn, None, update_num))
            else:
                rollout = next(rollouts)
                found.append(
                    PooledRollout(request.drawn, rollout, update_num) if rollout is not None else None
                )
        return found

    def _rollouts(
        self,
        requests: Sequence[_Request],
        authors: Authors,
        criterion: DistillationCriterion,
    ) -> Sequence[Rollout | None]:
        """The student's translations, or Nones when they do not fit in memory: the batches keep their references."""
        found = _if_it_fits(lambda: self._rollouts_together(requests, authors, criterion))
        return [None] * len(requests) if found is None else found

    def _rollouts_together(
        self,
        requests: Sequence[_Request],
        authors: Authors,
        criterion: DistillationCriterion,
    ) -> list[Rollout]:
        """One decoding for all requests; each gets its own rows back, in its own order."""
        inputs = [encoder_inputs(request.batch, request.rows, self.source_pad) for request in requests]
        first_tokens = torch.cat([first_decoder_inputs(request.batch)[request.rows] for request in requests])
        net_input, order = inputs[0], None
        if len(requests) > 1:
            if net_input.keys() != {
                "src_tokens",
                "src_lengths",
            }:  # nobody knows how to join what else there is
                return [self._rollouts_together([request], authors, criterion)[0] for request in requests]
            net_input, order = joined_encoder_inputs(inputs, self.source_pad, self.left_pad_source)
            first_tokens = first_tokens[order]
        sentences = [(request.key, request.batch["id"][request.rows]) for request in requests]
        policy = criterion.rollout_policy
        corrector = (
            Corrector(authors.teacher, sampling_uniforms(sentences, order, TEACHER_SAMPLING))
            if policy.speculates
            else None
        )
        rollout = decode(
            authors.student,
            net_input,
            first_tokens,
            policy.max_lengths(net_input["src_lengths"], authors.max_target),
            policy,
            pad=self.pad,
            eos=self.eos,
            uniforms=sampling_uniforms(sentences, order) if policy.samples else None,
            corrector=corrector,
            cuda_graphs=criterion.rollout_cuda_graphs,
        )
        if order is None:
            return [rollout]
        places = order.argsort().split([request.rows.numel() for request in requests])
        ends = [
            int(end) * rollout.rows_computed // order.numel()
            for end in torch.tensor([0, *map(len, places)]).cumsum(0)
        ]
        work = [end - start for start, end in itertools.pairwise(ends)]  # each its share, by sentences
        return [rollout.part(rows, self.pad, computed) for rows, computed in zip(places, work, strict=True)]


def _if_it_fits(decoding: Callable[[], T]) -> T | None:
    """What a decoding gives; None when it does not fit in memory, also without what graphs of former ones held.

    fairseq's own recovery would skip this process's backward and leave the others waiting, so it is handled here.
    """
    for _ in range(2):
        try:
            return decoding()
        except torch.OutOfMemoryError:
            pass  # until the handler is left, the traceback keeps the caches alive
        released = release_graphs()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not released:
            break
    return None

"""Whose prefixes: which sentences of a batch the student writes itself, and what it writes there.

Each sentence keeps its reference or gives it up for a rollout of the student (Lin et al. 2020, algorithm 1), by a draw
keyed by (seed, update, sentence id). Only the drawn ones are decoded: those of one batch, or of all the batches that the
pool decodes together.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from fairseq import utils
from fairseq.models import BaseFairseqModel
from fairseq.tasks.translation import TranslationTask
from torch import Tensor

from fairseq_imitkd.batch import Batch, encoder_inputs, first_decoder_inputs, joined_encoder_inputs, with_rollouts
from fairseq_imitkd.criterion import DistillationCriterion
from fairseq_imitkd.pool import PooledRollout, RolloutPool
from fairseq_imitkd.rollout import RandomKey, Rollout, decode, sampling_uniforms


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
    work: dict[str, int]


NO_WORK = {"rollout_rows_computed": 0, "rollout_staleness": 0, "rollout_out_of_memory": 0}


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
    """

    def __init__(self, task: TranslationTask, pool: RolloutPool | None = None):
        self.source_pad = task.source_dictionary.pad()
        self.pad, self.eos = task.target_dictionary.pad(), task.target_dictionary.eos()
        self.left_pad_source = task.cfg.left_pad_source
        self.pool = pool

    def mix(
        self, sample: Batch, student: BaseFairseqModel, criterion: DistillationCriterion, update_num: int, max_target: int
    ) -> Mixed:
        """Let the student write its share of a batch.

        Args:
            sample: of ``B`` sentences; it is left as it is.
            student: unwrapped.
            criterion: the method: schedule, policy, seed.
            update_num: 0 = first.
            max_target: the longest target, EOS included, that student and teacher can represent.
        """
        nothing = torch.zeros_like(sample["id"], dtype=torch.bool)
        if criterion.student_share(update_num) == 0.0:
            if self.pool is not None:
                self.pool.forget()
            return Mixed(sample, nothing, nothing, NO_WORK)
        written = self._written(sample, student, criterion, update_num, max_target)
        if written is None:
            return Mixed(sample, nothing, nothing, {**NO_WORK, "rollout_out_of_memory": 1})
        rollout, rows = written.rollout, written.drawn.nonzero().squeeze(-1)
        if rollout is None:
            return Mixed(sample, nothing, nothing, NO_WORK)
        work = {
            "rollout_rows_computed": rollout.rows_computed,
            "rollout_staleness": (update_num - written.update_num) * rows.numel(),
            "rollout_out_of_memory": 0,
        }
        truncated = nothing.index_copy(0, rows, rollout.truncated)
        return Mixed(with_rollouts(sample, rows, rollout, self.pad), written.drawn, truncated, work)

    def _written(
        self, sample: Batch, student: BaseFairseqModel, criterion: DistillationCriterion, update_num: int, max_target: int
    ) -> PooledRollout | None:
        """What the student wrote for a batch, now or together with others before; None if it does not fit in memory."""
        if self.pool is not None:
            waiting = self.pool.waiting(sample)
            if waiting is not None:
                return waiting
            batches = [(batch, update_num + later) for later, batch in self.pool.window(sample)]
            together = self._decoded(batches, student, criterion, update_num, max_target)
            for (batch, _), written in zip(batches, together, strict=True):
                if written is not None:
                    self.pool.keep(batch, written)
            if together[0] is not None or len(batches) == 1:
                return together[0]
        return self._decoded([(sample, update_num)], student, criterion, update_num, max_target)[0]

    def _decoded(
        self,
        batches: Sequence[tuple[Batch, int]],
        student: BaseFairseqModel,
        criterion: DistillationCriterion,
        update_num: int,
        max_target: int,
    ) -> list[PooledRollout | None]:
        """Draw each batch's sentences for the update of its turn, and let the student write all of them at once."""
        device = next(student.parameters()).device
        requests = []
        for batch, turn in batches:
            if device.type == "cuda":  # the pool holds batches as the data set gave them
                batch = utils.move_to_cuda(batch, device)
            key = RandomKey(criterion.seed, turn)
            drawn = key.uniforms(batch["id"]) < criterion.student_share(turn)
            requests.append(_Request(batch, drawn, drawn.nonzero().squeeze(-1), key))
        asked = [request for request in requests if request.rows.numel() > 0]
        rollouts = iter(self._rollouts(asked, student, criterion, max_target) if asked else [])
        found: list[PooledRollout | None] = []
        for request in requests:
            if request.rows.numel() == 0:
                found.append(PooledRollout(request.drawn, None, update_num))
            else:
                rollout = next(rollouts)
                found.append(PooledRollout(request.drawn, rollout, update_num) if rollout is not None else None)
        return found

    def _rollouts(
        self, requests: Sequence[_Request], student: BaseFairseqModel, criterion: DistillationCriterion, max_target: int
    ) -> Sequence[Rollout | None]:
        """The student's translations, or Nones when they do not fit in memory.

        fairseq's own recovery would skip this process's backward and leave the others waiting, so running out of
        memory is handled here: the batch keeps its references.
        """
        try:
            return self._rollouts_together(requests, student, criterion, max_target)
        except torch.OutOfMemoryError:
            pass  # until the handler is left, the traceback keeps the caches alive
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return [None] * len(requests)

    def _rollouts_together(
        self, requests: Sequence[_Request], student: BaseFairseqModel, criterion: DistillationCriterion, max_target: int
    ) -> list[Rollout]:
        """One decoding for all requests; each gets its own rows back, in its own order."""
        inputs = [encoder_inputs(request.batch, request.rows, self.source_pad) for request in requests]
        first_tokens = torch.cat([first_decoder_inputs(request.batch)[request.rows] for request in requests])
        net_input, order = inputs[0], None
        if len(requests) > 1:
            if net_input.keys() != {"src_tokens", "src_lengths"}:  # nobody knows how to join what else there is
                return [self._rollouts_together([request], student, criterion, max_target)[0] for request in requests]
            net_input, order = joined_encoder_inputs(inputs, self.source_pad, self.left_pad_source)
            first_tokens = first_tokens[order]
        sentences = [(request.key, request.batch["id"][request.rows]) for request in requests]
        rollout = decode(
            student,
            net_input,
            first_tokens,
            criterion.rollout_policy.max_lengths(net_input["src_lengths"], max_target),
            criterion.rollout_policy,
            pad=self.pad,
            eos=self.eos,
            uniforms=sampling_uniforms(sentences, order) if criterion.rollout_policy.samples else None,
        )
        if order is None:
            return [rollout]
        places = order.argsort().split([request.rows.numel() for request in requests])
        ends = [int(end) * rollout.rows_computed // order.numel() for end in torch.tensor([0, *map(len, places)]).cumsum(0)]
        work = [end - start for start, end in itertools.pairwise(ends)]  # each its share, by sentences
        return [rollout.part(rows, self.pad, computed) for rows, computed in zip(places, work, strict=True)]

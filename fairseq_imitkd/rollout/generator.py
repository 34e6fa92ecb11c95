"""The rollout engine behind ``fairseq-generate``, ``fairseq-interactive`` and ``--eval-bleu``."""

from typing import Any

import torch
from fairseq import search
from fairseq.models import FairseqIncrementalDecoder
from fairseq.ngram_repeat_block import NGramRepeatBlock
from fairseq.sequence_generator import EnsembleModel, SequenceGenerator
from torch import Tensor

from fairseq_imitkd.rollout.beam import BeamModels, beam_models, softmax_of_its_logits
from fairseq_imitkd.rollout.engine import Rollout, decode
from fairseq_imitkd.rollout.keyed_random import RandomKey, Uniforms, sampling_uniforms
from fairseq_imitkd.rollout.policy import RolloutPolicy

Hypothesis = dict[str, Tensor]


class NoRepeats(NGramRepeatBlock):
    """fairseq's own, which without its CUDA extension takes the padding behind a prefix for its end, and so blocks nothing."""

    def forward(self, tokens: Tensor, lprobs: Tensor, bsz: int, beam_size: int, step: int) -> Tensor:
        """See the base class; ``step`` tokens follow the first one."""
        written = tokens if self.use_extension else tokens[:, : step + 1]
        return super().forward(written, lprobs, bsz, beam_size, step)


class RolloutGenerator(SequenceGenerator):
    """fairseq's generator, which lets the rollout engine decode where the engine computes the same thing.

    The engine's steps are under every search (:class:`~fairseq_imitkd.rollout.beam.BeamModels`). The whole decoding is the
    engine's for one model with an incremental decoder, greedy or sampled, without what changes the scores on the way: a
    prefix, constraints, an n-gram block, a language model, a penalty on unknown words, a minimum length above 1, a
    temperature on greedy decoding, probabilities of the model's own making. Everything else is the base class's, but that
    ``--no-repeat-ngram-size`` works without its CUDA extension. Greedy tokens are the same and scores agree to rounding;
    samples follow the same distribution from other random numbers, which still follow ``--seed``. Attention weights, which
    fairseq's commands do not read, are left empty.
    """

    def __init__(self, models: Any, *args: Any, **kwargs: Any):
        super().__init__(
            models if isinstance(models, EnsembleModel) else beam_models(models), *args, **kwargs
        )
        blocker: NGramRepeatBlock | None = self.repeat_ngram_blocker  # type: ignore[has-type]
        if blocker is not None:
            self.repeat_ngram_blocker = NoRepeats(blocker.no_repeat_ngram_size)

    @property
    def rollout_policy(self) -> RolloutPolicy | None:
        """How the engine would choose; None where it can't stand in for the base class."""
        model = self.model.single_model
        plain = (
            self.model.models_size == 1
            and isinstance(getattr(model, "decoder", None), FairseqIncrementalDecoder)
            and getattr(model.decoder, "adaptive_softmax", None) is None
            and softmax_of_its_logits(model)
            and self.repeat_ngram_blocker is None
            and self.lm_model is None
            and self.unk_penalty == 0.0
            and self.token_indices_to_suppress is None
            and not self.match_source_len
            # A minimum of 1, fairseq's default, only forbids an empty translation.
            and self.min_len <= 1
        )
        if not plain:
            return None
        if type(self.search) is search.BeamSearch and self.beam_size == 1 and self.temperature == 1.0:
            return RolloutPolicy("greedy")
        if type(self.search) is search.Sampling:
            topk, topp = self.search.sampling_topk, self.search.sampling_topp
            if topp <= 0.0:  # fairseq's "off" is any number below 0
                return RolloutPolicy("sampling", topk=max(0, topk), temperature=self.temperature)
            if self.min_len == 0:  # else fairseq counts the EOS that it forbids among the most probable
                return RolloutPolicy("sampling", topp=min(1.0, topp), temperature=self.temperature)
        return None

    @torch.no_grad()
    def generate(self, models: list[Any], sample: dict[str, Any], **kwargs: Any) -> list[list[Hypothesis]]:
        """Translate a batch of ``B`` sentences.

        Args:
            models: the model given before, as fairseq passes it again.
            sample: a fairseq batch.
            kwargs: fairseq's own; a prefix or constraints are the base class's business.

        Returns:
            for each sentence its hypotheses, best first, in fairseq's form: ``tokens`` ``(T,)`` with an EOS, ``score``
            ``()``, ``positional_scores`` ``(T,)`` in nats, and empty ``attention`` and ``alignment``.
        """
        bos_token = kwargs.get("bos_token")
        others = [value for name, value in kwargs.items() if name != "bos_token" and value is not None]
        net_input = {
            name: value for name, value in sample["net_input"].items() if name != "prev_output_tokens"
        }
        cap = self._cap(net_input["src_tokens"].size(1)) if "src_tokens" in net_input else 0
        policy = self.rollout_policy
        if policy is None or others or cap < 1:
            try:
                return super().generate(models, sample, **kwargs)
            finally:
                # A training keeps its generator from one validation to the next, and needs the memory in between.
                if isinstance(self.model, BeamModels):
                    self.model.forget()
        # Every sentence beam_size times, one after another.
        count = net_input["src_tokens"].size(0) * self.beam_size
        rows = torch.arange(count, device=net_input["src_tokens"].device)
        rollout = decode(
            self.model.single_model,
            net_input,
            torch.full_like(rows, self.eos if bos_token is None else bos_token),
            torch.full_like(rows, cap),
            policy,
            pad=self.pad,
            eos=self.eos,
            uniforms=_fresh_uniforms(rows) if policy.samples else None,
            samples=self.beam_size,
            min_length=self.min_len,
            score=True,
        )
        return self._hypotheses(rollout)

    def _cap(self, source_width: int) -> int:
        """The most tokens before the EOS: one cap for the whole batch, as the base class has it."""
        return min(int(self.max_len_a * source_width + self.max_len_b), self.max_len - 1)

    def _hypotheses(self, rollout: Rollout) -> list[list[Hypothesis]]:
        """fairseq's form of ``B * beam_size`` rows. It forces an EOS where the cap cuts, and scores it."""
        assert rollout.lprobs is not None
        lengths = rollout.tokens.ne(self.pad).sum(dim=-1)
        tokens = torch.nn.functional.pad(rollout.tokens, (0, 1), value=self.pad)
        tokens[rollout.truncated, lengths[rollout.truncated]] = self.eos
        lengths = lengths + rollout.truncated
        scores = rollout.lprobs.sum(dim=-1)
        if self.normalize_scores:
            scores = scores / lengths.float() ** self.len_penalty
        nothing = torch.empty(0)
        hypotheses = [
            {
                "tokens": tokens[row, :length],
                "score": scores[row],
                "attention": nothing,
                "alignment": nothing,
                "positional_scores": rollout.lprobs[row, :length],
            }
            for row, length in enumerate(lengths.tolist())
        ]
        best_first = scores.view(-1, self.beam_size).argsort(dim=-1, descending=True, stable=True).tolist()
        return [
            [hypotheses[sentence * self.beam_size + place] for place in order]
            for sentence, order in enumerate(best_first)
        ]


def _fresh_uniforms(rows: Tensor) -> Uniforms:
    """fairseq seeds torch's generator with ``--seed``; each batch draws a key of its own from it."""
    return sampling_uniforms([(RandomKey(seed=int(torch.randint(2**62, ())), update=0), rows)])

"""The rollout engine in ``fairseq-generate``, ``fairseq-interactive`` and ``--eval-bleu``."""

from typing import Any

import torch
from fairseq import search
from fairseq.models import FairseqIncrementalDecoder
from fairseq.ngram_repeat_block import NGramRepeatBlock
from fairseq.sequence_generator import EnsembleModel, SequenceGenerator
from torch import Tensor

from fairseq_imitkd.models.prompted import PromptedModel
from fairseq_imitkd.models.tagged import TaggedModel, tags_of, untagged
from fairseq_imitkd.rollout.beam import BeamModels, beam_models, has_softmax_output
from fairseq_imitkd.rollout.draft import Prompt, Rollout, SpecialSymbols
from fairseq_imitkd.rollout.engine import decode
from fairseq_imitkd.rollout.keyed_random import RandomKey, Uniforms, sampling_uniforms
from fairseq_imitkd.rollout.policy import RolloutPolicy, max_lengths

Hypothesis = dict[str, Tensor]


class NoRepeats(NGramRepeatBlock):
    """fairseq's n-gram block, corrected for use without its CUDA extension.

    fairseq's own then compares the padding after a prefix with the n-grams, and so blocks nothing
    (https://github.com/facebookresearch/fairseq/issues/5206).
    """

    def forward(self, tokens: Tensor, lprobs: Tensor, bsz: int, beam_size: int, step: int) -> Tensor:
        """See the base class. A prefix is the first decoder input and ``step`` tokens."""
        written = tokens if self.use_extension else tokens[:, : step + 1]
        return super().forward(written, lprobs, bsz, beam_size, step)


class RolloutGenerator(SequenceGenerator):
    """fairseq's generator, with the rollout engine wherever the engine computes the same result.

    Every search uses the engine's decoding steps (:class:`~fairseq_imitkd.rollout.beam.BeamModels`). The
    engine decodes alone if there is one model with an incremental decoder, the search is greedy or sampling,
    and nothing else changes the scores: no prefix, constraints, n-gram block, language model, unknown-word
    penalty or minimum length above 1, no temperature with greedy search, and no custom probabilities.
    Otherwise the base class decodes, except that ``--no-repeat-ngram-size`` also works without fairseq's CUDA
    extension.

    Greedy tokens are equal to fairseq's, and scores agree to rounding. Samples have the same distribution but
    use other random numbers, which ``--seed`` determines. Attention weights, which fairseq's commands do not
    read, are empty.

    The length limit of a sentence depends on its own source. fairseq's depends on the longest source of the
    batch, so a translation that it cuts depends on the batch size:
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/sequence_generator.py#L271-L274

    Models with language tags must all have the same. The base class searches as fairseq's multilingual tasks
    do: the tags are a prefix, which counts in a hypothesis's length and score. They are then left out.
    """

    def __init__(self, models: Any, *args: Any, **kwargs: Any):
        is_wrapped = isinstance(models, EnsembleModel)
        super().__init__(
            models if is_wrapped else beam_models([untagged(model) for model in models]), *args, **kwargs
        )
        self.tags = None if is_wrapped else tags_of(models[0])
        self._forced = self.tags.added[1] if self.tags else 0
        blocker: NGramRepeatBlock | None = self.repeat_ngram_blocker  # type: ignore[has-type]
        if blocker is not None:
            self.repeat_ngram_blocker = NoRepeats(blocker.no_repeat_ngram_size)
        self._limits: Tensor | None = None  # (B,) of the batch that the base class decodes
        self._unlimited = 0  # steps at which no limit holds, because of a minimum length or a prefix
        self._search_step = self.search.step
        self.search.step = self._limited_step

    @property
    def rollout_policy(self) -> RolloutPolicy | None:
        """The engine's policy, or None if the base class has to decode."""
        model = self.model.single_model
        plain = (
            self.model.models_size == 1
            and isinstance(getattr(model, "decoder", None), FairseqIncrementalDecoder)
            and getattr(model.decoder, "adaptive_softmax", None) is None
            and has_softmax_output(model)
            and self.repeat_ngram_blocker is None
            and self.lm_model is None
            and self.unk_penalty == 0.0
            and self.token_indices_to_suppress is None
            and not self.match_source_len
            # fairseq's default minimum of 1 only forbids empty translations.
            and self.min_len <= 1
        )
        if not plain:
            return None
        if type(self.search) is search.BeamSearch and self.beam_size == 1 and self.temperature == 1.0:
            return RolloutPolicy("greedy")
        if type(self.search) is search.Sampling:
            topk, topp = self.search.sampling_topk, self.search.sampling_topp
            if topp <= 0.0:  # fairseq turns top-p off by a negative number
                return RolloutPolicy("sampling", topk=max(0, topk), temperature=self.temperature)
            if self.min_len == 0:  # otherwise fairseq's top-p also counts the forbidden EOS
                return RolloutPolicy("sampling", topp=min(1.0, topp), temperature=self.temperature)
        return None

    @torch.no_grad()
    def generate(self, models: list[Any], sample: dict[str, Any], **kwargs: Any) -> list[list[Hypothesis]]:
        """Translate a batch of ``B`` sentences.

        Args:
            models: the models given to the constructor, which fairseq passes again.
            sample: fairseq batch.
            kwargs: fairseq's other arguments. The base class handles all except ``bos_token``, which may also
                be ``(B,)``, one first decoder input for each sentence.

        Returns:
            the hypotheses of each sentence, best first, in fairseq's form: ``tokens`` ``(T,)`` with an EOS,
            ``score`` ``()``, ``positional_scores`` ``(T,)`` in nats, and empty ``attention`` and
            ``alignment``.
        """
        bos_token = kwargs.get("bos_token")
        others = [value for name, value in kwargs.items() if name != "bos_token" and value is not None]
        net_input = {
            name: value for name, value in sample["net_input"].items() if name != "prev_output_tokens"
        }
        limits = self._max_lengths(net_input)
        policy = self.rollout_policy
        if policy is None or others or limits is None:
            if self.tags is not None:
                return self._with_tags(models, net_input, limits=limits, settings=kwargs)
            return self._base_generate(models, sample, limits=limits, settings=kwargs)
        limits = (limits - self._forced).clamp(min=0)
        # Each sentence has beam_size adjacent rows.
        count = net_input["src_tokens"].size(0) * self.beam_size
        rows = torch.arange(count, device=net_input["src_tokens"].device)
        first_tokens = self._first_tokens(rows, bos_token)
        rollout = decode(
            TaggedModel(self.model.single_model, self.tags) if self.tags else self.model.single_model,
            Prompt(net_input, first_tokens, limits.repeat_interleave(self.beam_size), samples=self.beam_size),
            policy,
            symbols=SpecialSymbols(self.pad, self.eos),
            uniforms=_fresh_uniforms(rows) if policy.samples else None,
            min_length=max(0, self.min_len - self._forced),
            score=True,
        )
        return self._hypotheses(rollout)

    def _first_tokens(self, rows: Tensor, bos_token: Any) -> Tensor:
        """Return the first decoder input of each row, ``(B * beam_size,)``."""
        if isinstance(bos_token, Tensor):
            return bos_token.repeat_interleave(self.beam_size)
        return torch.full_like(rows, self.eos if bos_token is None else bos_token)

    def _max_lengths(self, net_input: dict[str, Any]) -> Tensor | None:
        """Return the maximum number of tokens of each sentence before its EOS, tags included, ``(B,)``.

        None leaves the limit to the base class: the inputs are not tokens, or the limit is 0.
        """
        if "src_tokens" not in net_input or self.match_source_len:
            return None
        longest = self.max_len - 1
        shares_positions = isinstance(self.model.single_model, PromptedModel)
        if min(int(self.max_len_a + self.max_len_b), longest) < 1:  # of a source that is an EOS alone
            return None
        lengths = net_input.get("src_lengths")
        if lengths is None:
            lengths = net_input["src_tokens"].ne(self.pad).sum(dim=1)
        lengths = lengths + (self.tags.added[0] if self.tags else 0)
        return max_lengths(
            lengths, self.max_len_a, self.max_len_b, longest=longest, shares_positions=shares_positions
        )

    def _with_tags(
        self,
        models: list[Any],
        net_input: dict[str, Any],
        *,
        limits: Tensor | None,
        settings: dict[str, Any],
    ) -> list[list[Hypothesis]]:
        """Let the base class decode after the tags, and leave them out of the hypotheses."""
        assert self.tags is not None
        tagged = self.tags.sources(net_input, self.pad)
        first, *forced = self.tags.target_start
        settings = {**settings, "bos_token": first}
        given = settings.get("prefix_tokens")
        if forced:
            tags = tagged["src_tokens"].new_tensor(forced).expand(tagged["src_tokens"].size(0), -1)
            settings["prefix_tokens"] = tags if given is None else torch.cat([tags, given], dim=1)
        found = self._base_generate(models, {"net_input": tagged}, limits=limits, settings=settings)
        cut = ("tokens", "positional_scores")
        return [
            [{**each, **{name: each[name][self._forced :] for name in cut}} for each in beam]
            for beam in found
        ]

    def _base_generate(
        self, models: list[Any], sample: dict[str, Any], *, limits: Tensor | None, settings: dict[str, Any]
    ) -> list[list[Hypothesis]]:
        """Let the base class decode; each sentence ends at its own limit."""
        prefix = settings.get("prefix_tokens")
        self._unlimited = max(self.min_len, 0 if prefix is None else prefix.size(1))
        # The search of constraints stops at one limit for all.
        self._limits = limits if settings.get("constraints") is None else None
        if isinstance(settings.get("bos_token"), Tensor):
            settings = {**settings, "bos_token": settings["bos_token"].repeat_interleave(self.beam_size)}
        if self._limits is not None:  # without numbers of the data set, the search gets those in the batch
            sample = {name: value for name, value in sample.items() if name != "id"}
        try:
            return super().generate(models, sample, **settings)
        finally:
            self._limits = None
            # Training keeps the generator between validations but needs the memory.
            if isinstance(self.model, BeamModels):
                self.model.forget()

    def _limited_step(self, step: int, lprobs: Tensor, *others: Any) -> Any:
        """See :class:`fairseq.search.Search`. At its limit a sentence can only go on with EOS.

        Args:
            step: number of tokens so far.
            lprobs: ``(B, beam_size, V)``.
            others: the scores of the steps before, the tokens so far, and the sentences' numbers in the
                batch, ``(B,)``.
        """
        if self._limits is not None and step >= self._unlimited:
            at_limit = self._limits[others[-1].to(self._limits.device)] <= step
            words = torch.arange(lprobs.size(-1), device=lprobs.device) != self.eos
            lprobs.masked_fill_(at_limit.to(lprobs.device)[:, None, None] & words, float("-inf"))
        return self._search_step(step, lprobs, *others)

    def _hypotheses(self, rollout: Rollout) -> list[list[Hypothesis]]:
        """Return ``B * beam_size`` rows in fairseq's form, which ends a truncated row in a scored EOS."""
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
    """Return the random numbers of a new key from torch's generator, which fairseq seeds with ``--seed``."""
    return sampling_uniforms([(RandomKey(seed=int(torch.randint(2**62, ())), update=0), rows)])

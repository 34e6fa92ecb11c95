"""The fairseq engine: beam search, greedy decoding and sampling over the package's own decoding steps."""

import warnings
from collections.abc import Sequence
from typing import Any, Self

import torch
from fairseq import search
from fairseq.data import data_utils
from fairseq.models import BaseFairseqModel
from torch import Tensor

from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.engines.base import Hypothesis, SearchSettings
from fairseq_imitkd.models.tagged import tags_of
from fairseq_imitkd.rollout import (
    Ensemble,
    Prompt,
    RandomKey,
    RolloutGenerator,
    RolloutPolicy,
    SpecialSymbols,
    decode,
    sampling_uniforms,
)
from fairseq_imitkd.rollout.keyed_random import TEACHER_SAMPLING


class FairseqEngine:
    """An ensemble that translates by fairseq's beam search or by the rollout engine's sampling.

    Args:
        writer: models that translate, on one device.
        languages: the language pair with its dictionaries.
        settings: how to search.
        longest_target: maximum number of target tokens that the models can represent, EOS included.
    """

    def __init__(
        self, writer: Ensemble, languages: LanguagePair, settings: SearchSettings, *, longest_target: int
    ):
        self.writer, self.languages, self.settings = writer, languages, settings
        self.longest_target = longest_target
        self.device = writer.log_weights.device
        self.pad, self.eos = languages.target_dictionary.pad(), languages.target_dictionary.eos()
        self._generator = None if settings.draws else self._new_generator()

    @classmethod
    def of_model(cls, model: BaseFairseqModel, languages: LanguagePair, settings: SearchSettings) -> Self:
        """Return an engine of one model that is on the CPU and in evaluation mode."""
        writer = Ensemble([model], torch.zeros(1))
        return cls(writer, languages, settings, longest_target=model.max_positions()[1])

    def _new_generator(self) -> RolloutGenerator:
        return RolloutGenerator(
            self.writer.models,
            self.languages.target_dictionary,
            search_strategy=self._diverse_search(),
            beam_size=self.settings.beam,
            max_len_a=self.settings.max_len_a,
            max_len_b=self.settings.max_len_b,
            min_len=self.settings.min_len,
            len_penalty=self.settings.lenpen,
            unk_penalty=self.settings.unkpen,
            no_repeat_ngram_size=self.settings.no_repeat_ngram_size,
        )

    def _diverse_search(self) -> Any:
        """Return fairseq's search of ``--diverse-beam-groups``; None is an ordinary beam."""
        groups, strength = self.settings.diverse_beam_groups, self.settings.diverse_beam_strength
        dictionary = self.languages.target_dictionary
        return search.DiverseBeamSearch(dictionary, groups, strength) if groups else None

    def with_settings(self, settings: SearchSettings) -> Self:
        """See :class:`~fairseq_imitkd.engines.base.Engine`."""
        return type(self)(self.writer, self.languages, settings, longest_target=self.longest_target)

    def translate(self, ids: Sequence[int], sources: Sequence[Tensor], nbest: int) -> list[list[Hypothesis]]:
        """See :class:`~fairseq_imitkd.engines.base.Engine`."""
        net_input = self._net_input(sources)
        limits = [self._max_length(source.numel()) for source in sources]
        if self._generator is None:
            return self._samples(torch.tensor(ids, device=self.device), net_input, limits)
        found = self._generator.generate(list(self.writer.models), {"net_input": net_input})
        return [
            [
                # fairseq forces an EOS at the limit:
                # https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/sequence_generator.py#L380-L383
                Hypothesis(each["tokens"].cpu(), float(each["score"]), cut=each["tokens"].numel() > limit)
                for each in beam[:nbest]
            ]
            for beam, limit in zip(found, limits, strict=True)
        ]

    def _net_input(self, sources: Sequence[Tensor]) -> dict[str, Any]:
        dictionary = self.languages.source_dictionary
        tokens = data_utils.collate_tokens(sources, dictionary.pad(), dictionary.eos(), left_pad=True)
        lengths = torch.tensor([source.numel() for source in sources], device=self.device)
        return {"src_tokens": tokens.to(self.device), "src_lengths": lengths}

    def _max_length(self, source_length: int) -> int:
        """Return the maximum number of tokens of a translation; as in fairseq, tags count as tokens."""
        tags = tags_of(self.writer.models[0])
        source, forced = tags.added if tags else (0, 0)
        length = self.settings.max_length(source_length + source, self.longest_target + forced)
        return max(0, length - forced)

    def _samples(self, ids: Tensor, net_input: dict[str, Any], limits: list[int]) -> list[list[Hypothesis]]:
        """Sample every sentence. Random numbers depend on the seed, the sentence and the sample's index."""
        samples = self.settings.samples
        # There is one random stream per sample index, but rows are grouped by sentence.
        keys = [(RandomKey(self.settings.seed, index), ids) for index in range(samples)]
        order = torch.arange(samples * ids.numel(), device=ids.device).view(samples, -1).t().flatten()
        policy = RolloutPolicy(
            "sampling",
            topk=self.settings.sampling_topk,
            topp=self.settings.sampling_topp,
            temperature=self.settings.temperature,
        )
        prompt = Prompt(
            net_input,
            torch.full_like(order, self.eos),
            torch.tensor(limits, device=ids.device).repeat_interleave(samples),
            samples=samples,
            longest=max(limits),
        )
        rollout = decode(
            self.writer,
            prompt,
            policy,
            symbols=SpecialSymbols(self.pad, self.eos),
            uniforms=sampling_uniforms(keys, order, TEACHER_SAMPLING),
            min_length=self.settings.min_len,
            score=True,
        )
        assert rollout.lprobs is not None
        lengths = rollout.tokens.ne(self.pad).sum(dim=-1)
        scores = (rollout.lprobs.sum(dim=-1) / (lengths + rollout.truncated).clamp(min=1)).tolist()
        hypotheses = []
        for row, length, score, cut in zip(
            rollout.tokens.cpu(), lengths.tolist(), scores, rollout.truncated.tolist(), strict=True
        ):
            tokens = row[:length]
            if cut:
                tokens = torch.cat([tokens, tokens.new_tensor([self.eos])])
            hypotheses.append(Hypothesis(tokens, score, cut))
        return [hypotheses[start : start + samples] for start in range(0, len(hypotheses), samples)]

    @torch.no_grad()
    def score(self, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
        """See :class:`~fairseq_imitkd.engines.base.Engine`."""
        net_input = self._net_input(sources)
        expected = data_utils.collate_tokens(targets, self.pad, self.eos).to(self.device)
        previous = data_utils.collate_tokens(targets, self.pad, self.eos, move_eos_to_beginning=True)
        lprobs = []
        for model in self.writer.models:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns about the masks that fairseq builds
                net_output = model(**net_input, prev_output_tokens=previous.to(self.device))
            normalised = model.get_normalized_probs(net_output, log_probs=True)
            lprobs.append(normalised.gather(-1, expected.unsqueeze(-1)).squeeze(-1))
        averaged = (torch.stack(lprobs, dim=-1) + self.writer.log_weights).logsumexp(dim=-1).cpu()
        return [row[: target.numel()].clone() for row, target in zip(averaged, targets, strict=True)]

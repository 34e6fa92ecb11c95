"""Asks a teacher how far a student is from it, on references and on the student's own prefixes: the exposure
bias.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from fairseq import search
from fairseq.data import data_utils
from fairseq.models import BaseFairseqModel
from torch import Tensor

from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.engines.base import SearchSettings
from fairseq_imitkd.evaluate import drafts
from fairseq_imitkd.evaluate.schema import PositionGroup, ProbeResults, TeacherDistance
from fairseq_imitkd.rollout import RolloutGenerator

# Groups of target tokens by their position, from 1.
POSITIONS = ((1, 5), (6, 10), (11, 20), (21, 30), (31, None))
LEAST = 50  # a group of fewer tokens is left out, for it says nothing
SEED = 1  # of the teacher's samples
LOGITS = 2**24  # of a model at once; both models and what is computed of them take about 40 bytes for each


class Accepted(NamedTuple):
    """How a teacher accepts a student's drafts.

    Args:
        acceptance: ``(N,)``, its probability at each position of all outputs.
        outputs: ``(T,)`` each, the same at each output's positions, given the output's tokens.
    """

    acceptance: Tensor
    outputs: list[Tensor]


class Prober:
    """Asks a teacher about students, on the same sentences.

    Args:
        teacher: model in evaluation mode.
        languages: the dictionaries.
        decoding: greedy search.
        sources, references: ``(S,)`` and ``(T,)`` int64 tokens each, with an EOS; the longest source first.
        size: sentences of a batch.
    """

    def __init__(
        self,
        teacher: BaseFairseqModel,
        languages: Languages,
        *,
        decoding: SearchSettings,
        sources: Sequence[Tensor],
        references: Sequence[Tensor],
        size: int,
    ):
        self.teacher, self.languages, self.decoding = teacher, languages, decoding
        self.sources, self.references, self.size = sources, references, size

    @torch.no_grad()
    def distance(self, student: BaseFairseqModel, targets: Sequence[Tensor]) -> Tensor:
        """Compare student and teacher at every prefix of some targets. The longest prefix lacks only the EOS.

        Args:
            student: model in evaluation mode.
            targets: ``(T,)`` tokens each, one for each source.

        Returns:
            ``(len(POSITIONS), 4)`` float64 by the position of the next token: number of prefixes, number of
            those after which both agree, sum of divergences, and of the teacher's negative log-likelihoods
            of the next token.

        Raises:
            ValueError: a probability is NaN.
        """
        sums = torch.zeros(len(POSITIONS), 4, dtype=torch.float64)
        last = torch.tensor([end for _, end in POSITIONS if end is not None])
        for part in self._parts(targets):
            own, theirs = self._both(student, targets, part)
            same = own.argmax(dim=-1).eq(theirs.argmax(dim=-1)).double()
            divergence = (theirs.exp() * (theirs - own)).sum(dim=-1).double()
            nll = -theirs.gather(1, torch.cat([*targets[part]]).unsqueeze(1)).squeeze(1).double()
            position = torch.cat([torch.arange(1, target.numel() + 1) for target in targets[part]])
            values = torch.stack([torch.ones_like(same), same, divergence, nll], dim=1)
            sums.index_add_(0, torch.bucketize(position, last), values)
        if sums.isnan().any():
            raise ValueError("a probability is not a number")
        return sums

    @torch.no_grad()
    def accepted(self, student: BaseFairseqModel, teachers: Sequence[Tensor]) -> dict[str, Accepted]:
        """Return how the teacher accepts the student's drafts in speculative decoding.

        Args:
            student: model in evaluation mode.
            teachers: greedy translations by the teacher, ``(T,)`` tokens each with an EOS.

        Returns:
            by :data:`~fairseq_imitkd.evaluate.schema.DRAFTS`: the acceptance at each position of the
            teacher's outputs, and what :func:`~fairseq_imitkd.evaluate.drafts.results` reads of each output.
            Speculative decoding writes these outputs, so their prefixes are those of its drafts.
        """
        found = {}
        for name, outputs in (("greedy", teachers), ("sampling", self._samples)):
            accepted, by_output = [], []
            for part in self._parts(outputs):
                own, theirs = self._both(student, outputs, part)
                if name == "greedy":
                    each = given = drafts.greedy_acceptance(own, theirs)
                else:
                    each = drafts.sampling_acceptance(own, theirs)
                    given = drafts.acceptance_of_outputs(own, theirs, torch.cat([*outputs[part]]))
                accepted.append(each)
                by_output += given.split([output.numel() for output in outputs[part]])
            found[name] = Accepted(torch.cat(accepted), by_output)
        return found

    def _parts(self, targets: Sequence[Tensor]) -> Iterator[slice]:
        """Divide the sentences into batches with at most :data:`LOGITS` each, padding included.

        A sentence that has more is a batch of its own.
        """
        start, longest, symbols = 0, 0, len(self.languages.target_dictionary)
        for end, target in enumerate(targets):
            longest = max(longest, target.numel())
            count = end - start
            if count and (count == self.size or (count + 1) * longest * symbols > LOGITS):
                yield slice(start, end)
                start, longest = end, target.numel()
        yield slice(start, len(targets))

    def _both(
        self, student: BaseFairseqModel, targets: Sequence[Tensor], part: slice
    ) -> tuple[Tensor, Tensor]:
        """Return the student's and the teacher's ``(N, V)`` after each prefix of some targets."""
        own = self._lprobs(student, self.sources[part], targets[part])
        return own, self._lprobs(self.teacher, self.sources[part], targets[part])

    def _lprobs(
        self, model: BaseFairseqModel, sources: Sequence[Tensor], targets: Sequence[Tensor]
    ) -> Tensor:
        """Return ``(N, V)`` log-probabilities after each prefix of the targets, without padding."""
        dictionary = self.languages.target_dictionary
        previous = data_utils.collate_tokens(
            targets, dictionary.pad(), dictionary.eos(), move_eos_to_beginning=True
        )
        counted = data_utils.collate_tokens(targets, dictionary.pad()).ne(dictionary.pad())
        net_input = self._net_input(sources)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of the masks that fairseq makes
            net_output = model(**net_input, prev_output_tokens=previous)
        return model.get_normalized_probs(net_output, log_probs=True)[counted]

    def _net_input(self, sources: Sequence[Tensor]) -> dict[str, Tensor]:
        dictionary = self.languages.source_dictionary
        tokens = data_utils.collate_tokens(sources, dictionary.pad(), dictionary.eos(), left_pad=True)
        return {"src_tokens": tokens, "src_lengths": torch.tensor([source.numel() for source in sources])}

    def completed(self, writer: BaseFairseqModel, begun: Sequence[Tensor]) -> list[Tensor]:
        """Let a model complete, greedily, the first halves of another one's translations.

        Args:
            writer: model in evaluation mode that completes them.
            begun: ``(T,)`` tokens each with an EOS, one for each source. Of ``n`` tokens before the EOS, the
                first ``n / 2``, rounded up, are kept.

        Returns:
            ``(T,)`` tokens each with an EOS, the first half included.
        """
        dictionary, decoding = self.languages.target_dictionary, self.decoding
        generator = self._generator(
            writer, min_len=decoding.min_len, no_repeat_ngram_size=decoding.no_repeat_ngram_size
        )
        found: list[Tensor] = []
        for start in range(0, len(self.sources), self.size):
            part = slice(start, start + self.size)
            halves = [tokens[: tokens.numel() // 2] for tokens in begun[part]]  # the EOS rounds up
            prefixes = data_utils.collate_tokens(halves, dictionary.pad())
            sample = {"net_input": self._net_input(self.sources[part])}
            outputs = generator.generate([writer], sample, prefix_tokens=prefixes)
            found += [hypotheses[0]["tokens"] for hypotheses in outputs]
        return found

    @cached_property
    def _samples(self) -> list[Tensor]:
        """A sample of the teacher for each source: ``(T,)`` tokens with an EOS."""
        sampling = search.Sampling(self.languages.target_dictionary)
        generator = self._generator(self.teacher, min_len=0, search_strategy=sampling)
        found: list[Tensor] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            for start in range(0, len(self.sources), self.size):
                net_input = self._net_input(self.sources[start : start + self.size])
                outputs = generator.generate([self.teacher], {"net_input": net_input})
                found += [hypotheses[0]["tokens"] for hypotheses in outputs]
        return found

    def _generator(self, writer: BaseFairseqModel, **settings: Any) -> RolloutGenerator:
        return RolloutGenerator(
            [writer],
            self.languages.target_dictionary,
            beam_size=1,
            max_len_a=self.decoding.max_len_a,
            max_len_b=self.decoding.max_len_b,
            **settings,
        )

    def probe(
        self,
        student: BaseFairseqModel,
        *,
        own: Sequence[Tensor],
        teachers: Sequence[Tensor],
        bleu: Callable[[Sequence[Tensor]], float],
    ) -> ProbeResults:
        """Return everything about one student.

        Args:
            student: model in evaluation mode.
            own, teachers: greedy translations by student and teacher, ``(T,)`` tokens each with an EOS.
            bleu: BLEU of such translations.
        """
        on_gold, on_own = self.distance(student, self.references), self.distance(student, own)
        gold, after_own = mean_distance(on_gold.sum(dim=0)), mean_distance(on_own.sum(dim=0))
        exposure: Mapping[str, Sequence[Tensor]] = {
            "student": own,
            "student_then_teacher": self.completed(self.teacher, own),
            "teacher_then_student": self.completed(student, teachers),
            "teacher": teachers,
        }
        return ProbeResults(
            agreement_gold=gold.agreement,
            agreement_own=after_own.agreement,
            kl_gold=gold.kl,
            kl_own=after_own.kl,
            nll_gold=gold.nll,
            nll_own=after_own.nll,
            by_position=[
                PositionGroup(first, last, mean_distance(on_gold[group]), mean_distance(on_own[group]))
                for group, (first, last) in enumerate(POSITIONS)
                if min(on_gold[group, 0], on_own[group, 0]) >= LEAST
            ],
            exposure={name: bleu(tokens) for name, tokens in exposure.items()},
        )


def mean_distance(sums: Tensor) -> TeacherDistance:
    """Return the means of one ``(4,)`` row of :meth:`Prober.distance`, or of a sum of rows."""
    tokens, same, divergence, nll = sums.tolist()
    return TeacherDistance(
        tokens=int(tokens), agreement=same / tokens, kl=divergence / tokens, nll=nll / tokens
    )

"""Asks a teacher how far a student is from it, on references and on the student's own prefixes: the exposure
bias.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from fairseq.data import data_utils
from fairseq.models import BaseFairseqModel
from torch import Tensor

from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.engines.base import SearchSettings
from fairseq_imitkd.evaluate.schema import PositionGroup, ProbeResults, TeacherDistance
from fairseq_imitkd.rollout import RolloutGenerator

# Groups of target tokens by their position, from 1.
POSITIONS = ((1, 5), (6, 10), (11, 20), (21, 30), (31, None))
LEAST = 50  # a group of fewer tokens is left out, for it says nothing


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
            ``(len(POSITIONS), 3)`` float64 by the position of the next token: number of prefixes, number of
            those after which both agree, sum of divergences.

        Raises:
            ValueError: a probability is NaN.
        """
        sums = torch.zeros(len(POSITIONS), 3, dtype=torch.float64)
        last = torch.tensor([end for _, end in POSITIONS if end is not None])
        for start in range(0, len(self.sources), self.size):
            part = slice(start, start + self.size)
            own, theirs = (
                self._lprobs(model, self.sources[part], targets[part]) for model in (student, self.teacher)
            )
            same = own.argmax(dim=-1).eq(theirs.argmax(dim=-1)).double()
            divergence = (theirs.exp() * (theirs - own)).sum(dim=-1).double()
            position = torch.cat([torch.arange(1, target.numel() + 1) for target in targets[part]])
            values = torch.stack([torch.ones_like(same), same, divergence], dim=1)
            sums.index_add_(0, torch.bucketize(position, last), values)
        if sums.isnan().any():
            raise ValueError("a probability is not a number")
        return sums

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
        generator = RolloutGenerator(
            [writer],
            dictionary,
            beam_size=1,
            max_len_a=decoding.max_len_a,
            max_len_b=decoding.max_len_b,
            min_len=decoding.min_len,
            no_repeat_ngram_size=decoding.no_repeat_ngram_size,
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
            by_position=[
                PositionGroup(first, last, mean_distance(on_gold[group]), mean_distance(on_own[group]))
                for group, (first, last) in enumerate(POSITIONS)
                if min(on_gold[group, 0], on_own[group, 0]) >= LEAST
            ],
            exposure={name: bleu(tokens) for name, tokens in exposure.items()},
        )


def mean_distance(sums: Tensor) -> TeacherDistance:
    """Return the means of one ``(3,)`` row of :meth:`Prober.distance`, or of a sum of rows."""
    tokens, same, divergence = sums.tolist()
    return TeacherDistance(tokens=int(tokens), agreement=same / tokens, kl=divergence / tokens)

"""How far a student is from its teacher, on gold prefixes and on its own, and what that costs: the exposure bias."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from fairseq.data import data_utils
from fairseq.models import BaseFairseqModel
from torch import Tensor

from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.engines.base import Decoding
from fairseq_imitkd.rollout import RolloutGenerator

POSITIONS = (
    (1, 5),
    (6, 10),
    (11, 20),
    (21, 30),
    (31, None),
)  # of target tokens, from the first: what figures are given by
LEAST = 50  # tokens of a group of them; fewer say nothing


class Distance(NamedTuple):
    """How two models differ after some prefixes.

    Attributes:
        tokens: how many prefixes.
        agreement: the share of them after which both find the same symbol the most probable.
        kl: the mean of KL(teacher || student), in nats.
    """

    tokens: int
    agreement: float
    kl: float

    @classmethod
    def of(cls, sums: Tensor) -> "Distance":
        """Of ``(3,)``: the number of prefixes, how often both agree, the sum of divergences."""
        tokens, same, divergence = sums.tolist()
        return cls(int(tokens), same / tokens, divergence / tokens)


class Prober:
    """Asks a teacher about students, on the same sentences.

    Args:
        teacher: in evaluation mode.
        languages: the dictionaries.
        decoding: greedy.
        sources, references: ``(S,)`` and ``(T,)`` int64 each, with an EOS, by falling length of the sources.
        size: sentences at a time.
    """

    def __init__(
        self,
        teacher: BaseFairseqModel,
        languages: Languages,
        decoding: Decoding,
        sources: Sequence[Tensor],
        references: Sequence[Tensor],
        size: int,
    ):
        self.teacher, self.languages, self.decoding = teacher, languages, decoding
        self.sources, self.references, self.size = sources, references, size

    @torch.no_grad()
    def distance(self, student: BaseFairseqModel, targets: Sequence[Tensor]) -> Tensor:
        """How student and teacher differ at every prefix of some targets, the one before the EOS among them.

        Args:
            student: in evaluation mode.
            targets: ``(T,)`` each, one for each source.

        Returns:
            ``(len(POSITIONS), 3)`` in float64, what :meth:`Distance.of` takes, by the position of the token that comes next.

        Raises:
            ValueError: a probability is no number.
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
            figures = torch.stack([torch.ones_like(same), same, divergence], dim=1)
            sums.index_add_(0, torch.bucketize(position, last), figures)
        if sums.isnan().any():
            raise ValueError("a probability is no number")
        return sums

    def _lprobs(
        self, model: BaseFairseqModel, sources: Sequence[Tensor], targets: Sequence[Tensor]
    ) -> Tensor:
        """``(N, V)`` log-probabilities after each prefix of the targets, without the padding."""
        dictionary = self.languages.target_dictionary
        previous = data_utils.collate_tokens(
            targets, dictionary.pad(), dictionary.eos(), move_eos_to_beginning=True
        )
        counted = data_utils.collate_tokens(targets, dictionary.pad()).ne(dictionary.pad())
        net_input = self._net_input(sources)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of how fairseq makes its masks
            net_output = model(**net_input, prev_output_tokens=previous)
        return model.get_normalized_probs(net_output, log_probs=True)[counted]

    def _net_input(self, sources: Sequence[Tensor]) -> dict[str, Tensor]:
        dictionary = self.languages.source_dictionary
        tokens = data_utils.collate_tokens(sources, dictionary.pad(), dictionary.eos(), left_pad=True)
        return {"src_tokens": tokens, "src_lengths": torch.tensor([source.numel() for source in sources])}

    def completed(self, author: BaseFairseqModel, begun: Sequence[Tensor]) -> list[Tensor]:
        """What somebody makes, greedily, of the first halves of another's translations.

        Args:
            author: in evaluation mode, who completes them.
            begun: ``(T,)`` each with an EOS, one for each source; of ``n`` tokens before the EOS the first ``n / 2``, rounded
                up, are kept.

        Returns:
            ``(T,)`` each with an EOS, the first half included.
        """
        dictionary, decoding = self.languages.target_dictionary, self.decoding
        generator = RolloutGenerator(
            [author],
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
            found += [
                every[0]["tokens"] for every in generator.generate([author], sample, prefix_tokens=prefixes)
            ]
        return found

    def probe(
        self, student: BaseFairseqModel, own: Sequence[Tensor], teachers: Sequence[Tensor], bleu: Any
    ) -> dict[str, Any]:
        """Everything about one student.

        Args:
            student: in evaluation mode.
            own, teachers: greedy translations by the two, ``(T,)`` each with an EOS.
            bleu: of such translations, a number.
        """
        sums = {"gold": self.distance(student, self.references), "own": self.distance(student, own)}
        gold, after_own = (Distance.of(each.sum(dim=0)) for each in sums.values())
        exposure: Mapping[str, Sequence[Tensor]] = {
            "student": own,
            "student_then_teacher": self.completed(self.teacher, own),
            "teacher_then_student": self.completed(student, teachers),
            "teacher": teachers,
        }
        return {
            "agreement_gold": gold.agreement,
            "agreement_own": after_own.agreement,
            "kl_gold": gold.kl,
            "kl_own": after_own.kl,
            "by_position": [
                {
                    "from": first,
                    "to": last,
                    **{name: Distance.of(each[group])._asdict() for name, each in sums.items()},
                }
                for group, (first, last) in enumerate(POSITIONS)
                if all(each[group, 0] >= LEAST for each in sums.values())
            ],
            "exposure": {name: bleu(tokens) for name, tokens in exposure.items()},
        }

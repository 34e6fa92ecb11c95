"""The interface of every inference engine, the settings of its search, and the hypotheses that it returns."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fairseq_imitkd.checkpoints.comet import COMET
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.text.marks import is_known
from fairseq_imitkd.text.rewards import REWARDS

SELECTIONS = ("first", "best", "mbr", "sample")
METRICS = (*REWARDS, COMET)


@dataclass(frozen=True)
class SearchSettings:
    """How a sentence is translated, and which of its hypotheses is kept.

    Args:
        select: which hypotheses to keep. ``first``: the most probable ones of the beam (sequence-level KD,
            Kim & Rush 2016). ``best``: those of the n best that are most similar to the reference
            (sequence-level interpolation). ``mbr``: those of the samples, or of the n best, that are most
            similar to all of them (minimum Bayes risk). ``sample``: samples from the model's distribution.
        beam: beam size, as in fairseq-generate.
        nbest: number of hypotheses of the beam that ``best`` and ``mbr`` choose from; with 1, ``mbr`` chooses
            from samples.
        metric: similarity that ``best`` and ``mbr`` maximise, one of
            :data:`METRICS`.
        samples: number of samples per sentence, for ``sample`` and ``mbr``.
        keep: number of hypotheses to keep; fewer if there are not so many different ones.
        diverse_beam_groups, diverse_beam_strength: number of groups of the beam that avoid each other's
            tokens, and how much, as in fairseq-generate; 0 groups is an ordinary beam.
        lenpen: length penalty, as in fairseq-generate.
        unkpen: penalty on unknown words, as in fairseq-generate.
        min_len: minimum number of tokens before the EOS.
        no_repeat_ngram_size: size of the n-grams that may not repeat; 0 switches this off.
        sampling_topk: number of most probable tokens to sample from; 0 is all.
        sampling_topp: probability mass of the most probable tokens to sample from; 1 is all.
        temperature: divisor of the logits when sampling.
        max_len_a, max_len_b: a translation has at most ``a * source length + b`` tokens before its EOS.
        remove_bpe: subword mark to remove from text, by fairseq's name; None keeps the subwords.
        seed: seed of the samples.

    Raises:
        UsageError: a value is out of range, or has no effect under this ``select``.
    """

    select: str = "first"
    beam: int = 5
    nbest: int = 1
    metric: str | None = None
    samples: int = 1
    keep: int = 1
    diverse_beam_groups: int = 0
    diverse_beam_strength: float = 0.5
    lenpen: float = 1.0
    unkpen: float = 0.0
    min_len: int = 1
    no_repeat_ngram_size: int = 0
    sampling_topk: int = 0
    sampling_topp: float = 1.0
    temperature: float = 1.0
    max_len_a: float = 0.0
    max_len_b: int = 200
    remove_bpe: str | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        for name, valid, requirement in (*self._selection_checks(), *self._search_checks()):
            if not valid:
                raise UsageError(f"{_flag(name)} must be {requirement}, but is {getattr(self, name)}")
        self._refuse_unused()

    def _selection_checks(self) -> Iterator[tuple[str, bool, str]]:
        """Yield the name of a field, whether its value is valid, and what it must be."""
        yield "select", self.select in SELECTIONS, f"one of {', '.join(SELECTIONS)}"
        yield "beam", self.beam >= 1, "1 or more"
        yield "nbest", 1 <= self.nbest <= self.beam, f"in 1..{self.beam}, the --beam"
        groups = self.diverse_beam_groups
        yield (
            "diverse_beam_groups",
            groups == 0 or (groups >= 2 and self.beam % groups == 0),
            f"0 (off) or 2 or more, and divide --beam {self.beam}",
        )
        yield "diverse_beam_strength", 0.0 <= self.diverse_beam_strength < math.inf, "0 or more"
        yield "metric", self.metric in (None, *METRICS), f"one of {', '.join(METRICS)}"
        least = 2 if self.select == "mbr" and self.draws else 1
        yield "samples", self.samples >= least, f"{least} or more"
        most = self.samples if self.draws else max(self.nbest, self.beam if self.select == "first" else 1)
        yield "keep", 1 <= self.keep <= most, f"in 1..{most}, the number of hypotheses to choose from"
        yield "sampling_topk", self.sampling_topk >= 0, "0 (all tokens) or more"
        yield "sampling_topp", 0.0 < self.sampling_topp <= 1.0, "above 0 and at most 1 (all tokens)"
        yield "temperature", 0.0 < self.temperature < math.inf, "above 0"

    def _search_checks(self) -> Iterator[tuple[str, bool, str]]:
        """Yield the same as :meth:`_selection_checks`."""
        ngram = self.no_repeat_ngram_size
        yield "lenpen", math.isfinite(self.lenpen), "a number"
        yield "unkpen", math.isfinite(self.unkpen), "a number"
        yield "no_repeat_ngram_size", ngram == 0 or ngram >= 2, "0 (off) or 2 or more"
        yield "max_len_a", 0.0 <= self.max_len_a < math.inf, "0 or more"
        yield "max_len_b", self.max_len_b >= 1, "1 or more"
        yield "min_len", 0 <= self.min_len <= self.max_len_b, f"in 0..{self.max_len_b}, the --max-len-b"
        yield "remove_bpe", is_known(self.remove_bpe), "a subword mark that fairseq knows, like '@@ '"

    def _refuse_unused(self) -> None:
        users = (
            (("best", "mbr"), ("nbest", "metric")),
            (("sample", "mbr"), ("samples", "sampling_topk", "sampling_topp", "temperature")),
            (("first", "best", "mbr"), ("keep",)),
        )
        for selections, names in users:
            for name in names:
                if self.select not in selections and self._is_set(name):
                    raise UsageError(
                        f"{_flag(name)} changes nothing with --select {self.select}; add --select "
                        f"{selections[0]}"
                    )
        how = f"--select {self.select}" + (f" --nbest {self.nbest}" if self.nbest > 1 else "")
        of_search = ("beam", "lenpen", "unkpen", "no_repeat_ngram_size", "diverse_beam_groups")
        for name in of_search if self.draws else ("samples", "sampling_topk", "sampling_topp", "temperature"):
            if self._is_set(name):
                raise UsageError(f"{_flag(name)} changes nothing with {how}; leave it out")
        if self._is_set("diverse_beam_strength") and not self.diverse_beam_groups:
            raise UsageError("--diverse-beam-strength changes nothing without --diverse-beam-groups; add it")
        if self.select in ("best", "mbr") and self.metric is None:
            raise UsageError(f"--select {self.select} needs a --metric: one of {', '.join(METRICS)}")

    def _is_set(self, name: str) -> bool:
        """Return whether a field differs from its default."""
        return getattr(self, name) != type(self).__dataclass_fields__[name].default

    @property
    def draws(self) -> bool:
        """Whether the hypotheses are samples, and not the best of a beam."""
        return self.select == "sample" or (self.select == "mbr" and self.nbest == 1)

    @property
    def kept(self) -> int:
        """Number of translations that are kept per sentence, at most."""
        return self.samples if self.select == "sample" else self.keep

    def max_length(self, source_length: int, longest_target: int) -> int:
        """Return the maximum number of tokens before the EOS.

        Args:
            source_length: number of tokens of the source, EOS included.
            longest_target: maximum number of target tokens that the model can represent, EOS included.
        """
        return int(min(self.max_len_a * source_length + self.max_len_b, longest_target - 1))


def _flag(name: str) -> str:
    """Return the command-line flag of a field."""
    return "--n" if name == "samples" else "--" + name.replace("_", "-")


@dataclass(frozen=True)
class Hypothesis:
    """One translation of a sentence.

    Args:
        tokens: ``(T,)`` int64 on the CPU, EOS included.
        score: mean log-probability per token in nats, or that sum divided as the length penalty says.
        cut: whether the length limit ended the translation.
    """

    tokens: Tensor
    score: float
    cut: bool


class Engine(Protocol):
    """A model that translates batches and scores given translations.

    Attributes:
        settings: how the engine searches.
    """

    settings: SearchSettings

    def translate(self, ids: Sequence[int], sources: Sequence[Tensor], nbest: int) -> list[list[Hypothesis]]:
        """Translate a batch of ``B`` sentences.

        Args:
            ids: numbers of the sentences; each sample's random numbers depend on them.
            sources: ``B`` tensors ``(S,)`` int64 with an EOS, longest first.
            nbest: number of hypotheses per sentence; with ``select="sample"``, all samples are returned
                instead.

        Returns:
            ``B`` lists of hypotheses, best first.
        """

    def score(self, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
        """Compute the log-probabilities of given translations by teacher forcing.

        Args:
            sources: ``B`` tensors ``(S,)`` int64 with an EOS, longest first.
            targets: ``B`` tensors ``(T,)`` int64 with an EOS.

        Returns:
            ``B`` tensors ``(T,)``: each token's log-probability in nats, on the CPU.
        """

    def with_settings(self, settings: SearchSettings) -> "Engine":
        """Return an engine over the same weights that searches by other settings."""

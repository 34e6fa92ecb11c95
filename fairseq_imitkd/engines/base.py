"""The teacher's translations of one batch after another."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from fairseq.data import data_utils
from torch import Tensor

from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.rollout import (
    Ensemble,
    RandomKey,
    RolloutGenerator,
    RolloutPolicy,
    decode,
    sampling_uniforms,
)
from fairseq_imitkd.rollout.keyed_random import TEACHER_SAMPLING
from fairseq_imitkd.text.rewards import REWARDS
from fairseq_imitkd.text.scores import UNKNOWN_IN_HYPOTHESIS, UNKNOWN_IN_REFERENCE

_SIZES = struct.Struct("<QQQ")
SELECTIONS = ("first", "best", "sample")
NO_NUMBERS = (
    "the teacher's scores are no numbers: its --teacher-path is damaged, or needs --teacher-dtype fp32"
)


@dataclass(frozen=True)
class Decoding:
    """How a sentence is translated, and which of its translations is kept.

    Args:
        select: ``first``, the most probable of the beam (SeqKD); ``best``, of the n best the most like the reference
            (Seq-Inter); ``sample``, drawn from the teacher's distribution.
        beam, lenpen, unkpen, min_len, no_repeat_ngram_size: of beam search, as fairseq-generate has them.
        nbest: how many ``best`` chooses from.
        metric: of ``best``: one of :data:`~fairseq_imitkd.text.rewards.REWARDS`.
        samples: how many ``sample`` draws of each sentence.
        sampling_topk, sampling_topp, temperature: as of a :class:`~fairseq_imitkd.rollout.RolloutPolicy`.
        max_len_a, max_len_b: a translation has at most ``a * source length + b`` tokens before its EOS.
        remove_bpe: subword marks to undo in text, as fairseq names them; None leaves them.
        seed: of the samples.

    Raises:
        UsageError: a value is out of range, or would change nothing.
    """

    select: str = "first"
    beam: int = 5
    nbest: int = 1
    metric: str | None = None
    samples: int = 1
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
        for flag, value, valid, must in (
            ("--select", self.select, self.select in SELECTIONS, f"one of {', '.join(SELECTIONS)}"),
            ("--beam", self.beam, self.beam >= 1, "1 or more"),
            ("--nbest", self.nbest, 1 <= self.nbest <= self.beam, f"in 1..{self.beam}, the --beam"),
            ("--metric", self.metric, self.metric in (None, *REWARDS), f"one of {', '.join(REWARDS)}"),
            ("--n", self.samples, self.samples >= 1, "1 or more"),
            ("--lenpen", self.lenpen, math.isfinite(self.lenpen), "a number"),
            ("--unkpen", self.unkpen, math.isfinite(self.unkpen), "a number"),
            (
                "--no-repeat-ngram-size",
                self.no_repeat_ngram_size,
                self.no_repeat_ngram_size == 0 or self.no_repeat_ngram_size >= 2,
                "0 (off) or 2 or more",
            ),
            ("--sampling-topk", self.sampling_topk, self.sampling_topk >= 0, "0 (all tokens) or more"),
            (
                "--sampling-topp",
                self.sampling_topp,
                0.0 < self.sampling_topp <= 1.0,
                "above 0 and at most 1 (all tokens)",
            ),
            ("--temperature", self.temperature, 0.0 < self.temperature < math.inf, "above 0"),
            ("--max-len-a", self.max_len_a, 0.0 <= self.max_len_a < math.inf, "0 or more"),
            ("--max-len-b", self.max_len_b, self.max_len_b >= 1, "1 or more"),
            (
                "--min-len",
                self.min_len,
                0 <= self.min_len <= self.max_len_b,
                f"in 0..{self.max_len_b}, the --max-len-b",
            ),
            (
                "--remove-bpe",
                self.remove_bpe,
                _is_mark(self.remove_bpe),
                "a mark of subwords that fairseq knows, like '@@ '",
            ),
        ):
            if not valid:
                raise UsageError(f"{flag} must be {must}, but is {value}")
        self._refuse_unused()

    def _refuse_unused(self) -> None:
        default = type(self).__dataclass_fields__
        users = {
            "best": ("nbest", "metric"),
            "sample": ("samples", "sampling_topk", "sampling_topp", "temperature"),
        }
        for selection, names in users.items():
            for name in names:
                if self.select != selection and getattr(self, name) != default[name].default:
                    flag = "n" if name == "samples" else name.replace("_", "-")
                    raise UsageError(
                        f"--{flag} changes nothing under --select {self.select}: add --select {selection}"
                    )
        if self.select == "sample":
            for name in ("beam", "lenpen", "unkpen", "no_repeat_ngram_size"):
                if getattr(self, name) != default[name].default:
                    flag = name.replace("_", "-")
                    raise UsageError(f"--{flag} changes nothing under --select sample: leave it out")
        if self.select == "best" and self.metric is None:
            raise UsageError(f"--select best needs a --metric: one of {', '.join(REWARDS)}")

    @property
    def kept(self) -> int:
        """Translations of each sentence in the end."""
        return self.samples if self.select == "sample" else 1


@dataclass(frozen=True)
class Translated:
    """The hypotheses of a batch of ``B`` sentences, ``H`` in all, of ``T`` tokens in all.

    Args:
        ids: ``(B,)`` int64, the sentences' numbers.
        counts: ``(B,)`` int32, hypotheses of each, best first.
        lengths: ``(H,)`` int32, tokens of each, the EOS included.
        scores: ``(H,)`` float32, the mean log-probability of a token as fairseq reports it, in nats.
        cut: ``(H,)`` uint8, 1 where the length cap ended it.
        tokens: ``(T,)`` int32.
    """

    ids: np.ndarray
    counts: np.ndarray
    lengths: np.ndarray
    scores: np.ndarray
    cut: np.ndarray
    tokens: np.ndarray

    _TYPES: ClassVar = {
        "ids": "<i8",
        "counts": "<i4",
        "lengths": "<i4",
        "scores": "<f4",
        "cut": "u1",
        "tokens": "<i4",
    }

    def to_bytes(self) -> bytes:
        """For a record."""
        sizes = _SIZES.pack(self.ids.size, self.lengths.size, self.tokens.size)
        return sizes + b"".join(
            getattr(self, name).astype(kind).tobytes() for name, kind in self._TYPES.items()
        )

    @classmethod
    def from_bytes(cls, data: memoryview) -> "Translated":
        """Views of a record's bytes."""
        sentences, hypotheses, tokens = _SIZES.unpack_from(data)
        sizes = {"ids": sentences, "counts": sentences, "tokens": tokens}
        parts, start = {}, _SIZES.size
        for name, kind in cls._TYPES.items():
            parts[name] = np.frombuffer(data, kind, sizes.get(name, hypotheses), start)
            start += parts[name].nbytes
        return cls(**parts)


@dataclass(frozen=True)
class Hypothesis:
    """One translation.

    Args:
        tokens: ``(T,)`` int64 on the CPU, the EOS included.
        score: mean log-probability of its tokens, or what the length penalty makes of it, in nats.
        cut: whether the length cap ended it.
    """

    tokens: Tensor
    score: float
    cut: bool


class Backend(Protocol):
    """What translates."""

    def translate(self, ids: Sequence[int], sources: Sequence[Tensor], nbest: int) -> list[list[Hypothesis]]:
        """The ``nbest`` best, or all samples, of each sentence, best first.

        Args:
            ids: of the sentences.
            sources: ``(S,)`` int64 each, with an EOS, by falling length.
        """


class FairseqBackend:
    """fairseq's beam search over the rollout engine's steps, and the engine's own greedy decoding and sampling.

    Args:
        author: what translates.
        languages: the dictionaries.
        decoding: how.
        longest: the most tokens of a target, its EOS included, that the author can represent.
    """

    def __init__(self, author: Ensemble, languages: Languages, decoding: Decoding, longest: int):
        self.author, self.decoding, self.longest = author, decoding, longest
        self.pad, self.eos = languages.target_dictionary.pad(), languages.target_dictionary.eos()
        self.source_pad, self.source_eos = (
            languages.source_dictionary.pad(),
            languages.source_dictionary.eos(),
        )
        self.generator: Any = None
        self.policy: RolloutPolicy | None = None
        if decoding.select == "sample":
            self.policy = RolloutPolicy(
                "sampling",
                topk=decoding.sampling_topk,
                topp=decoding.sampling_topp,
                temperature=decoding.temperature,
            )
        else:
            self.generator = RolloutGenerator(
                author.models,
                languages.target_dictionary,
                beam_size=decoding.beam,
                max_len_a=decoding.max_len_a,
                max_len_b=decoding.max_len_b,
                min_len=decoding.min_len,
                len_penalty=decoding.lenpen,
                unk_penalty=decoding.unkpen,
                no_repeat_ngram_size=decoding.no_repeat_ngram_size,
            )

    def translate(self, ids: Sequence[int], sources: Sequence[Tensor], nbest: int) -> list[list[Hypothesis]]:
        """See :class:`Backend`."""
        device = self.author.log_weights.device
        tokens = data_utils.collate_tokens(sources, self.source_pad, self.source_eos, left_pad=True).to(
            device
        )
        lengths = torch.tensor([source.numel() for source in sources], device=device)
        net_input = {"src_tokens": tokens, "src_lengths": lengths}
        if self.policy is not None:
            caps = torch.tensor([self._cap(source.numel()) for source in sources], device=device)
            return self._samples(torch.tensor(ids, device=device), net_input, caps)
        cap = self._cap(tokens.size(1))  # fairseq's: one for the batch, by its longest source
        found = self.generator.generate(self.author.models, {"net_input": net_input})
        return [
            [self._hypothesis(each["tokens"], float(each["score"]), cap) for each in every[:nbest]]
            for every in found
        ]

    def _samples(self, ids: Tensor, net_input: dict[str, Any], caps: Tensor) -> list[list[Hypothesis]]:
        """Each sample has random numbers of its own: of the seed, the sentence's number and its place."""
        assert self.policy is not None
        samples = self.decoding.samples
        # One stream of numbers for each place; rows lie sentence by sentence.
        keys = [(RandomKey(self.decoding.seed, place), ids) for place in range(samples)]
        order = torch.arange(samples * ids.numel(), device=ids.device).view(samples, -1).t().flatten()
        rollout = decode(
            self.author,
            net_input,
            torch.full_like(order, self.eos),
            caps.repeat_interleave(samples),
            self.policy,
            pad=self.pad,
            eos=self.eos,
            uniforms=sampling_uniforms(keys, order, TEACHER_SAMPLING),
            samples=samples,
            min_length=self.decoding.min_len,
            score=True,
        )
        assert rollout.lprobs is not None
        lengths = rollout.tokens.ne(self.pad).sum(dim=-1)
        scores = (rollout.lprobs.sum(dim=-1) / (lengths + rollout.truncated).clamp(min=1)).tolist()
        written, hypotheses = rollout.tokens.cpu(), []
        for row, (length, cut) in enumerate(zip(lengths.tolist(), rollout.truncated.tolist(), strict=True)):
            tokens = written[row, :length]
            hypotheses.append(
                Hypothesis(
                    torch.cat([tokens, tokens.new_tensor([self.eos])]) if cut else tokens, scores[row], cut
                )
            )
        return [hypotheses[start : start + samples] for start in range(0, len(hypotheses), samples)]

    def _cap(self, source_length: int) -> int:
        """The most tokens before the EOS."""
        return min(int(self.decoding.max_len_a * source_length + self.decoding.max_len_b), self.longest - 1)

    def _hypothesis(self, tokens: Tensor, score: float, cap: int) -> Hypothesis:
        """fairseq forces an EOS where the cap cuts."""
        return Hypothesis(tokens.cpu(), score, tokens.numel() > cap)


class Translator:
    """Translates batches, and keeps of each sentence's hypotheses those that were asked for.

    Args:
        backend: what translates.
        decoding: which hypotheses are kept.
        languages: whose target dictionary makes text of tokens.
    """

    def __init__(self, backend: Backend, decoding: Decoding, languages: Languages):
        self.backend, self.decoding, self.dictionary = backend, decoding, languages.target_dictionary

    def translate(
        self, ids: Sequence[int], sources: Sequence[Tensor], references: Sequence[Tensor] | None
    ) -> Translated:
        """A batch of ``B`` sentences.

        Args:
            ids, sources: as of a :class:`Backend`.
            references: of ``select="best"``, one a sentence.
        """
        try:
            hypotheses = self.backend.translate(ids, sources, self.decoding.nbest)
        except AssertionError as error:  # fairseq's search ends in one when no score is a number
            raise UsageError(NO_NUMBERS) from error
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            raise UsageError(
                f"a batch of {len(ids)} sentences is too large for the memory: lower --max-tokens, --batch-size or --beam, and "
                "give another --out"
            ) from error
        if not all(math.isfinite(hypothesis.score) for some in hypotheses for hypothesis in some) or not all(
            hypotheses
        ):
            raise UsageError(NO_NUMBERS)
        if self.decoding.select == "best":
            assert references is not None
            hypotheses = [
                [self._best(some, reference)] for some, reference in zip(hypotheses, references, strict=True)
            ]
        every = [hypothesis for some in hypotheses for hypothesis in some]
        return Translated(
            ids=np.asarray(ids, dtype=np.int64),
            counts=np.asarray([len(some) for some in hypotheses], dtype=np.int32),
            lengths=np.asarray([hypothesis.tokens.numel() for hypothesis in every], dtype=np.int32),
            scores=np.asarray([hypothesis.score for hypothesis in every], dtype=np.float32),
            cut=np.asarray([hypothesis.cut for hypothesis in every], dtype=np.uint8),
            tokens=torch.cat([hypothesis.tokens for hypothesis in every]).numpy().astype(np.int32),
        )

    def _best(self, hypotheses: Sequence[Hypothesis], reference: Tensor) -> Hypothesis:
        """The one most like the reference (Kim & Rush 2016, section 3.3); of equals the more probable."""
        score, marks = REWARDS[self.decoding.metric or ""], self.decoding.remove_bpe
        # An unknown word must not match another one.
        text = self.dictionary.string(reference, marks, unk_string=UNKNOWN_IN_REFERENCE)
        texts = [
            self.dictionary.string(hypothesis.tokens, marks, unk_string=UNKNOWN_IN_HYPOTHESIS)
            for hypothesis in hypotheses
        ]
        return max(
            zip((score(each, text) for each in texts), hypotheses, strict=True), key=lambda pair: pair[0]
        )[1]


def _is_mark(mark: str | None) -> bool:
    """Whether fairseq can undo it."""
    try:
        data_utils.post_process("", mark)
    except NotImplementedError:
        return False
    return True


def _is_out_of_memory(error: RuntimeError) -> bool:
    known = ("not enough memory", "can't allocate memory", "out of memory", "failed to allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in known)

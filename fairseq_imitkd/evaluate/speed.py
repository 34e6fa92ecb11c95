"""Decodes by all models in turn and times each: the translations are scored, and the times are the speed."""

import logging
import math
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from fairseq_imitkd.data.bars import Bar
from fairseq_imitkd.engines.base import Engine, Hypothesis
from fairseq_imitkd.errors import in_one_line
from fairseq_imitkd.evaluate.schema import Quartiles, Rounds, SpeedResult
from fairseq_imitkd.evaluate.sentences import Sentences

logger = logging.getLogger(__name__)
NOT_FINITE = "its scores are not finite numbers: its weights are damaged"
SEED = 1  # of the order in which models take their turns

Run = tuple[str, str]  # name of a model, and name of a search: GREEDY, or such as "beam 5"
Timings = dict[Run, list["Timing"]]


@dataclass(frozen=True)
class Timing:
    """One batch by one model.

    Args:
        sentences: number of sentences of the batch.
        tokens: number of tokens of their translations, EOS included.
        seconds: decoding time.
    """

    sentences: int
    tokens: int
    seconds: float


@dataclass
class Failures:
    """Models that failed, and why; the others go on."""

    reasons: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, doing: str, error: Exception) -> None:
        """Note that a model failed, and warn of it."""
        self.reasons[name] = f"{doing}: {in_one_line(error)}"
        logger.warning("%s failed %s", name, self.reasons[name])

    def __contains__(self, name: str) -> bool:
        return name in self.reasons


def interleave(
    engines: Mapping[Run, Engine],
    sentences: Sentences,
    batches: Sequence[list[int]],
    *,
    failures: Failures,
    bar: Bar,
) -> tuple[Timings, dict[Run, dict[int, Hypothesis]]]:
    """Decode batches by all engines, each batch by one after the other.

    Batches and engines take turns in a random order, so a slow moment of the machine falls on all alike. The
    first batch, of the shortest sentences, is decoded once more beforehand and not timed.

    Args:
        engines: engine of each run.
        sentences: the test set.
        batches: numbers of the sentences of each batch.
        failures: models that failed so far; they are skipped, and new ones are added.
        bar: progress bar, advanced by each sentence.

    Returns:
        for each run its timings, one a batch in the same order, and its translations by the sentence's
        number. A model that fails is in neither.
    """
    timings: Timings = {run: [] for run in engines}
    found: dict[Run, dict[int, Hypothesis]] = {run: {} for run in engines}
    order = random.Random(SEED)
    for turn, batch in enumerate([batches[-1], *order.sample(batches, len(batches))]):
        for run in order.sample(list(engines), len(engines)):
            if run[0] in failures:
                continue
            try:
                hypotheses, seconds = _translate(engines[run], sentences, batch)
            except Exception as error:  # whatever it is, it does not concern the other models
                failures.note(run[0], f"translating ({run[1]})", error)
                continue
            if turn > 0:
                tokens = sum(hypothesis.tokens.numel() for hypothesis in hypotheses)
                timings[run].append(Timing(len(batch), tokens, seconds))
                found[run].update(zip(batch, hypotheses, strict=True))
                bar.update(len(batch))
    done = [run for run in engines if run[0] not in failures]
    return {run: timings[run] for run in done}, {run: found[run] for run in done}


def _translate(engine: Engine, sentences: Sentences, batch: list[int]) -> tuple[list[Hypothesis], float]:
    sources = [sentences.sources[number] for number in batch]
    begun = time.perf_counter()
    try:
        found = [every[0] for every in engine.translate(batch, sources, 1)]
    except AssertionError as error:  # fairseq's search asserts that it finds enough finite scores
        raise ValueError(NOT_FINITE) from error
    seconds = time.perf_counter() - begun
    if not all(math.isfinite(hypothesis.score) for hypothesis in found):
        raise ValueError(NOT_FINITE)
    return found, seconds


def empty_hypothesis(eos: int) -> Hypothesis:
    """Return the translation of a sentence without words."""
    return Hypothesis(torch.tensor([eos]), 0.0, False)


def speed_result(timings: Sequence[Timing], base: Sequence[Timing] | None, decoding: str) -> SpeedResult:
    """Return the speed of one model at one batch size.

    Args:
        timings: the model's timings.
        base: the baseline's timings of the same batches, or None.
        decoding: name of the search of both.
    """
    seconds = sum(timing.seconds for timing in timings)
    single = max(timing.sentences for timing in timings) == 1
    latencies = [1000.0 * timing.seconds for timing in timings]
    rates = quartiles([timing.sentences / timing.seconds for timing in timings])
    times = base and quartiles([b.seconds / own.seconds for own, b in zip(timings, base, strict=True)])
    return SpeedResult(
        decoding=decoding,
        sentences_per_second=sum(timing.sentences for timing in timings) / seconds,
        tokens_per_second=sum(timing.tokens for timing in timings) / seconds,
        rounds=Rounds(len(timings), **vars(rates)),
        times_baseline=times or None,
        p50_ms=float(np.percentile(latencies, 50)) if single else None,
        p95_ms=float(np.percentile(latencies, 95)) if single else None,
    )


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return the median and the quartiles."""
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Quartiles(median, low, high)

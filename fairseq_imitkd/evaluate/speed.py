"""Translating, by all models in turn, and how long each took: decoded once, for its scores and for its times."""

import logging
import math
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from fairseq_imitkd.engines.base import Hypothesis
from fairseq_imitkd.engines.exported import Engine
from fairseq_imitkd.evaluate.sentences import Sentences

logger = logging.getLogger(__name__)
GREEDY = "greedy"
NO_NUMBERS = "its scores are no numbers: its weights are damaged"
SEED = 1  # of the order in which models take their turns

Run = tuple[str, str]  # the name of a model, and how it decodes: GREEDY, or "beam 5"
Timings = dict[Run, list["Timing"]]


@dataclass(frozen=True)
class Timing:
    """One batch by one model.

    Args:
        sentences: of the batch.
        tokens: of their translations, the EOS included.
        seconds: it took.
    """

    sentences: int
    tokens: int
    seconds: float


@dataclass
class Failures:
    """Models that gave up on the way, and why; all others go on."""

    reasons: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, doing: str, error: Exception) -> None:
        """One more."""
        self.reasons[name] = f"{doing}: {' '.join(str(error).split())[:300] or type(error).__name__}"
        logger.warning("%s failed %s", name, self.reasons[name])

    def __contains__(self, name: str) -> bool:
        return name in self.reasons


def interleave(
    engines: Mapping[Run, Engine],
    sentences: Sentences,
    batches: Sequence[list[int]],
    failures: Failures,
    bar: tqdm,
) -> tuple[Timings, dict[Run, dict[int, Hypothesis]]]:
    """Let every model translate each batch once, in an order drawn anew for each.

    What slows the machine for a while then slows all of them, and figures of the same round can be compared. A first batch,
    the one of the shortest sentences, is not measured.

    Args:
        engines: what translates.
        sentences: the test set.
        batches: numbers of its sentences.
        failures: who takes no part any more.
        bar: told of each sentence.

    Returns:
        for each run its timings, one a batch in the same order, and its translations by the sentence's number. A model that
        fails is in neither.
    """
    timings: Timings = {run: [] for run in engines}
    found: dict[Run, dict[int, Hypothesis]] = {run: {} for run in engines}
    drawn = random.Random(SEED)
    for turn, batch in enumerate([batches[-1], *drawn.sample(batches, len(batches))]):
        for run in drawn.sample(list(engines), len(engines)):
            if run[0] in failures:
                continue
            try:
                hypotheses, seconds = _translate(engines[run], sentences, batch)
            except Exception as error:  # whatever it is, the other models have nothing to do with it
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
    except AssertionError as error:  # fairseq's search ends in one when no score is a number
        raise ValueError(NO_NUMBERS) from error
    seconds = time.perf_counter() - begun
    if not all(math.isfinite(hypothesis.score) for hypothesis in found):
        raise ValueError(NO_NUMBERS)
    return found, seconds


def nothing(eos: int) -> Hypothesis:
    """The translation of a sentence without a word."""
    return Hypothesis(torch.tensor([eos]), 0.0, False)


def figures(timings: Sequence[Timing], base: Sequence[Timing] | None, decoding: str) -> dict[str, Any]:
    """What a batch size costs one model.

    Args:
        timings: of the model.
        base: the baseline's, of the same batches; None where there is none.
        decoding: how both decode.
    """
    seconds = sum(timing.seconds for timing in timings)
    single = max(timing.sentences for timing in timings) == 1
    latencies = [1000.0 * timing.seconds for timing in timings]
    return {
        "decoding": decoding,
        "sentences_per_second": sum(timing.sentences for timing in timings) / seconds,
        "tokens_per_second": sum(timing.tokens for timing in timings) / seconds,
        "rounds": {
            "count": len(timings),
            **quartiles([timing.sentences / timing.seconds for timing in timings]),
        },
        "times_baseline": None
        if base is None
        else quartiles([other.seconds / own.seconds for own, other in zip(timings, base, strict=True)]),
        "p50_ms": float(np.percentile(latencies, 50)) if single else None,
        "p95_ms": float(np.percentile(latencies, 95)) if single else None,
    }


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """The median of some rounds, and between what the middle half of them lies."""
    if len(values) == 1:
        return dict.fromkeys(("median", "low", "high"), values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}

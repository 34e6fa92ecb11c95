"""What validation decodes for: BLEU, chrF, TER and ROUGE of the student's translations, by which checkpoints can be chosen.

A batch is decoded once for all of them, under fairseq's flags of ``--eval-bleu``. Each process logs the same sums, and the
scores are made of their totals.
"""

import logging
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Optional

import numpy as np
from fairseq import utils
from fairseq.data import Dictionary
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from omegaconf import II
from torch import Tensor

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.text.scores import (
    LESS_IS_BETTER,
    SCORES,
    UNKNOWN_IN_HYPOTHESIS,
    UNKNOWN_IN_REFERENCE,
    CorpusScores,
    check_installed,
    flat,
)

logger = logging.getLogger(__name__)

# Of what every criterion logs, that which is better the less it is.
LOSSES = ("loss", "nll_loss", "ppl")


@dataclass
class ValidationConfig(FairseqDataclass):
    """What a task that translates can be told about its validation beside ``--eval-bleu`` and its settings."""

    eval_metrics: Optional[str] = field(
        default=None,
        metadata={
            "help": "scores of the validation set's translations, joined by commas: " + ", ".join(SCORES) + "; logged as "
            + ", ".join(SCORES.values()) + ". The flags --eval-bleu-args, -detok, -detok-args, -remove-bpe and -print-samples "
            "say how to decode, and each batch is decoded once for all"
        },
    )  # fmt: skip
    best_checkpoint_metric: str = II("checkpoint.best_checkpoint_metric")
    maximize_best_checkpoint_metric: bool = II("checkpoint.maximize_best_checkpoint_metric")
    disable_validation: bool = II("dataset.disable_validation")


def score_names(eval_metrics: str | None, eval_bleu: bool) -> list[str]:
    """Which of :data:`~fairseq_imitkd.text.scores.SCORES` are asked for, each once.

    Args:
        eval_metrics, eval_bleu: the two flags.

    Raises:
        UsageError: one is none of them.
    """
    given = [] if eval_metrics is None else eval_metrics.split(",")
    if any(name not in SCORES for name in given):
        raise UsageError(
            f"--eval-metrics must be some of {', '.join(SCORES)}, joined by commas, but is '{eval_metrics}'"
        )
    return list(dict.fromkeys([*(["bleu"] if eval_bleu else []), *given]))


def check_validation(cfg: Any) -> None:
    """Refuse scores that don't exist or can't be computed, and a best checkpoint by what is not scored or is worst.

    Args:
        cfg: of the task: a :class:`ValidationConfig` with fairseq's ``eval_bleu``.

    Raises:
        UsageError: naming the flag, its value, and the remedy.
    """
    names = score_names(cfg.eval_metrics, cfg.eval_bleu)
    if cfg.eval_metrics is not None and cfg.disable_validation:
        raise UsageError(
            f"--eval-metrics {cfg.eval_metrics} changes nothing with --disable-validation: leave one of them out"
        )
    check_installed(f"--eval-metrics {cfg.eval_metrics}", names)
    metric, maximize = cfg.best_checkpoint_metric, cfg.maximize_best_checkpoint_metric
    # fairseq would find out when the first validation is over, after hours.
    for name, logged in SCORES.items():
        if _plain(metric) == _plain(name):
            if name not in names:
                flag = f"--eval-metrics {name}" + (" or --eval-bleu" if name == "bleu" else "")
                raise UsageError(f"--best-checkpoint-metric {metric} is not computed: add {flag}")
            if metric != logged:
                raise UsageError(
                    f"--best-checkpoint-metric must be {logged}, as the log calls it, but is {metric}"
                )
    check_direction(metric, maximize)


def check_direction(metric: str, maximize: bool) -> None:
    """Refuse to keep the worst checkpoint.

    Args:
        metric, maximize: ``--best-checkpoint-metric`` and ``--maximize-best-checkpoint-metric``.

    Raises:
        UsageError: more of the metric is better, and least is asked for, or the other way round.
    """
    if metric in (*SCORES.values(), "accuracy") and metric not in LESS_IS_BETTER and not maximize:
        raise UsageError(
            f"--best-checkpoint-metric {metric} would keep the worst checkpoint: add --maximize-best-checkpoint-metric"
        )
    if metric in (*LESS_IS_BETTER, *LOSSES) and maximize:
        raise UsageError(
            f"--maximize-best-checkpoint-metric would keep the worst checkpoint by --best-checkpoint-metric {metric}: leave it "
            "out or name a metric of which more is better"
        )


def _plain(name: str) -> str:
    """``rouge-l``, ``rouge_l``, ``ROUGE-L`` and ``rougeL`` are one."""
    return name.lower().replace("-", "").replace("_", "")


class ValidationScores:
    """The scores of a validation set.

    Args:
        names: of :data:`~fairseq_imitkd.text.scores.SCORES`, one or more.
        dictionary: of the target language.
        remove_bpe: subword marks to undo, as fairseq names them; None leaves the text as it is.
        tokenized_bleu: BLEU takes words as they are.
        print_samples: log one translation of each batch.
    """

    def __init__(
        self,
        names: Sequence[str],
        dictionary: Dictionary,
        remove_bpe: str | None,
        tokenized_bleu: bool,
        print_samples: bool,
    ):
        self.names, self.dictionary, self.remove_bpe = names, dictionary, remove_bpe
        self.tokenized_bleu, self.print_samples = tokenized_bleu, print_samples
        self._signed = False

    @cached_property
    def corpus(self) -> CorpusScores:
        """The scores themselves."""
        return CorpusScores(self.names, self.tokenized_bleu)

    def of_batch(self, written: Sequence[Tensor], references: Tensor, detokenizer: Any) -> dict[str, float]:
        """What a batch adds to the sums.

        Args:
            written: the best translation of each of ``B`` sentences, ``(T,)`` token ids.
            references: ``(B, T)`` token ids, padded.
            detokenizer: fairseq's tokeniser, whose ``decode`` is called on each line; None leaves lines as they are.
        """

        def lines(rows: Sequence[Tensor], unknown: str) -> list[str]:
            texts = [
                self.dictionary.string(row.int().cpu(), self.remove_bpe, unk_string=unknown) for row in rows
            ]
            return [detokenizer.decode(text) for text in texts] if detokenizer else texts

        hypotheses = lines(written, UNKNOWN_IN_HYPOTHESIS)
        texts = lines(
            [utils.strip_pad(row, self.dictionary.pad()) for row in references], UNKNOWN_IN_REFERENCE
        )
        if self.print_samples:
            logger.info("example hypothesis: %s", hypotheses[0])
            logger.info("example reference: %s", texts[0])
        return flat(self.corpus.statistics(hypotheses, texts))

    def log(self, logging_outputs: Sequence[Mapping[str, Any]]) -> None:
        """Turn the sums of all processes and batches into the scores; a training step has none."""
        for name in self.corpus.names:
            sums: list[float] = []
            while any(f"_{name}_{len(sums)}" in log for log in logging_outputs):
                sums.append(float(sum(log.get(f"_{name}_{len(sums)}", 0.0) for log in logging_outputs)))
            if sums:
                metrics.log_scalar(
                    f"_{name}", np.array(sums)
                )  # a meter adds arrays up; what begins with _ is not shown
                metrics.log_derived(name, _scored(self.corpus, name))
                self._sign()

    def _sign(self) -> None:
        """Have the signatures logged once, when the training or validation is over.

        fairseq calls nothing then, and whether a validation is the last one is decided after it (``--patience``,
        ``--stop-time-hours``, the end of an epoch): it is when the task goes, at the latest at the process's end.
        """
        if not self._signed:
            self._signed = True
            weakref.finalize(self, _log_signatures, self.corpus.signatures(), os.getpid())


def _scored(corpus: CorpusScores, name: str) -> Any:
    # Not a method of what is to go when the task does: fairseq keeps some meters for ever.
    return lambda meters: corpus.score(name, meters[f"_{name}"].sum.tolist())


def _log_signatures(signatures: Mapping[str, str], process: int) -> None:
    if os.getpid() == process:  # a data loader's process has a copy of everything
        for name, signature in signatures.items():
            logger.info("signature of %s: %s", name, signature)

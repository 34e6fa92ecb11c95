"""BLEU, chrF, TER and ROUGE of the student's translations in validation. They can choose the best checkpoint.

A batch is decoded once for all scores, under fairseq's flags of ``--eval-bleu``. Every process logs the same
sums, and the scores are computed from their totals.
"""

import json
import logging
import os
import weakref
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Optional

import numpy as np
import torch
from fairseq.data import Dictionary, encoders
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from fairseq.models import BaseFairseqModel
from fairseq.tasks import FairseqTask
from fairseq.tasks.translation import TranslationConfig
from omegaconf import II
from torch import Tensor

from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.rollout.policy import length_limit
from fairseq_imitkd.text.marks import name_of, subword_mark
from fairseq_imitkd.text.scored import ScoredText
from fairseq_imitkd.text.scores import LESS_IS_BETTER, SCORES, CorpusScores, check_installed, named_values
from fairseq_imitkd.training.regression import PEARSON, SPEARMAN

logger = logging.getLogger(__name__)

_signatures: list[Any] = []  # what will log them; each does it once

# Values that every criterion logs and that are better when they are lower.
LOSSES = ("loss", "nll_loss", "ppl")


@dataclass
class ValidationConfig(FairseqDataclass):
    """The flags of a translation task's validation, beside ``--eval-bleu`` and its settings."""

    eval_metrics: Optional[str] = field(
        default=None,
        metadata={
            "help": f"scores of the validation set's translations, joined by commas: {', '.join(SCORES)} "
            f"(logged as {', '.join(SCORES.values())}); --eval-bleu-args, -detok, -detok-args, -remove-bpe "
            "and -print-samples set the decoding, which is done once for all scores"
        },
    )
    best_checkpoint_metric: str = II("checkpoint.best_checkpoint_metric")
    maximize_best_checkpoint_metric: bool = II("checkpoint.maximize_best_checkpoint_metric")
    disable_validation: bool = II("dataset.disable_validation")


def _as_in_translation(name: str) -> Any:
    """Return a field like that of fairseq's ``TranslationConfig``."""
    own = TranslationConfig.__dataclass_fields__[name]
    return field(default=own.default, metadata=dict(own.metadata))


@dataclass
class WriterValidationConfig(ValidationConfig):
    """The same flags and those of ``--eval-bleu``, for another task than translation that writes."""

    eval_bleu: bool = _as_in_translation("eval_bleu")
    eval_bleu_args: Optional[str] = _as_in_translation("eval_bleu_args")
    eval_bleu_detok: str = _as_in_translation("eval_bleu_detok")
    eval_bleu_detok_args: Optional[str] = _as_in_translation("eval_bleu_detok_args")
    eval_tokenized_bleu: bool = _as_in_translation("eval_tokenized_bleu")
    eval_bleu_remove_bpe: Optional[str] = _as_in_translation("eval_bleu_remove_bpe")
    eval_bleu_print_samples: bool = _as_in_translation("eval_bleu_print_samples")


def score_names(eval_metrics: str | None, eval_bleu: bool) -> list[str]:
    """Return the scores of :data:`~fairseq_imitkd.text.scores.SCORES` that are asked for, without repetition.

    Args:
        eval_metrics, eval_bleu: the two flags.

    Raises:
        UsageError: a name is not one of them.
    """
    given = [] if eval_metrics is None else eval_metrics.split(",")
    if any(name not in SCORES for name in given):
        raise UsageError(
            f"--eval-metrics must be some of {', '.join(SCORES)}, joined by commas, but is '{eval_metrics}'"
        )
    return list(dict.fromkeys([*(["bleu"] if eval_bleu else []), *given]))


def check_validation(cfg: Any) -> None:
    """Refuse scores that can't be computed, and flags that would not keep the best checkpoint.

    Args:
        cfg: the task's settings: a :class:`ValidationConfig` with fairseq's ``eval_bleu``.

    Raises:
        UsageError: naming the flag, its value, and the remedy.
    """
    names = score_names(cfg.eval_metrics, cfg.eval_bleu)
    if cfg.eval_metrics is not None and cfg.disable_validation:
        raise UsageError(
            f"--eval-metrics {cfg.eval_metrics} changes nothing with --disable-validation: leave one of "
            "them out"
        )
    check_installed(f"--eval-metrics {cfg.eval_metrics}", names)
    metric, maximize = cfg.best_checkpoint_metric, cfg.maximize_best_checkpoint_metric
    # fairseq would find out after the first validation, hours later.
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
    """Refuse flags that would keep the worst checkpoint as the best.

    Args:
        metric, maximize: ``--best-checkpoint-metric`` and ``--maximize-best-checkpoint-metric``.

    Raises:
        UsageError: the direction is the wrong one for this metric.
    """
    if (
        metric in (*SCORES.values(), "accuracy", PEARSON, SPEARMAN)
        and metric not in LESS_IS_BETTER
        and not maximize
    ):
        raise UsageError(
            f"--best-checkpoint-metric {metric} would keep the worst checkpoint: add "
            "--maximize-best-checkpoint-metric"
        )
    if metric in (*LESS_IS_BETTER, *LOSSES) and maximize:
        raise UsageError(
            "--maximize-best-checkpoint-metric would keep the worst checkpoint by --best-checkpoint-metric "
            f"{metric}: leave it out, or name a metric that is better when it is higher"
        )


def _plain(name: str) -> str:
    """Normalise ``rouge-l``, ``rouge_l``, ``ROUGE-L`` and ``rougeL`` to one name."""
    return name.lower().replace("-", "").replace("_", "")


class ValidationScores:
    """The scores of a validation set.

    Args:
        names: one or more of :data:`~fairseq_imitkd.text.scores.SCORES`.
        dictionary: the target dictionary.
        remove_bpe: subword marks to remove, as fairseq names them; None leaves the text unchanged.
        tokenized_bleu: compute BLEU of the tokens as they are.
        print_samples: log one translation of each batch.
    """

    def __init__(
        self,
        names: Sequence[str],
        dictionary: Dictionary,
        *,
        remove_bpe: str | None,
        tokenized_bleu: bool,
        print_samples: bool,
    ):
        self.names, self.dictionary, self.remove_bpe = names, dictionary, remove_bpe
        self.tokenized_bleu, self.print_samples = tokenized_bleu, print_samples
        self._will_log_signatures, self._told_of_unknown, self._told_of_subwords = False, False, False

    @classmethod
    def from_flags(cls, cfg: Any, dictionary: Dictionary) -> "ValidationScores | None":
        """The scores that a task's flags ask for; None if they ask for none."""
        names = score_names(cfg.eval_metrics, cfg.eval_bleu)
        if not names:
            return None
        return cls(
            names,
            dictionary,
            remove_bpe=subword_mark(dictionary, cfg.eval_bleu_remove_bpe, "--eval-bleu-remove-bpe"),
            tokenized_bleu=cfg.eval_tokenized_bleu,
            print_samples=cfg.eval_bleu_print_samples,
        )

    @cached_property
    def corpus(self) -> CorpusScores:
        """The scores themselves."""
        return CorpusScores(self.names, self.tokenized_bleu)

    def batch_sums(
        self, hypotheses: Sequence[Tensor], references: Tensor, detokenizer: Any
    ) -> dict[str, float]:
        """Return what a batch adds to the sums.

        Args:
            hypotheses: the best translation of each of ``B`` sentences, ``(T,)`` token ids.
            references: ``(B, T)`` token ids, padded.
            detokenizer: fairseq's tokeniser, whose ``decode`` is applied to each line; None leaves lines
                unchanged.
        """
        text = ScoredText(self.dictionary, self.remove_bpe, detokenizer.decode if detokenizer else None)
        translations, texts = text.hypotheses(hypotheses), text.references(references)
        if not self._told_of_subwords and self.remove_bpe is not None:
            self._told_of_subwords = True  # not before, since a line of an error may come instead
            logger.info(
                "subwords: %s; they are joined before scores are computed (--eval-bleu-remove-bpe none keeps "
                "them)",
                name_of(self.remove_bpe),
            )
        if not self._told_of_unknown and text.unknown(references):
            self._told_of_unknown = True
            logger.info(
                "the references have unknown words, which match no translation: scores against the "
                "raw text are different ones"
            )
        if self.print_samples:
            logger.info("example hypothesis: %s", translations[0])
            logger.info("example reference: %s", texts[0])
        return named_values(self.corpus.statistics(translations, texts))

    def log(self, logging_outputs: Sequence[Mapping[str, Any]]) -> None:
        """Turn the sums of all processes and batches into scores; a training step has none."""
        for name in self.corpus.names:
            sums: list[float] = []
            while any(f"_{name}_{len(sums)}" in log for log in logging_outputs):
                sums.append(float(sum(log.get(f"_{name}_{len(sums)}", 0.0) for log in logging_outputs)))
            if sums:
                # fairseq adds arrays up, and does not show names that begin with _.
                metrics.log_scalar(f"_{name}", np.array(sums))
                metrics.log_derived(name, _scored(self.corpus, name))
                self._log_signatures_at_the_end()

    def _log_signatures_at_the_end(self) -> None:
        """Log the signatures once, when the training or validation is over.

        fairseq has no hook for that. Whether a validation is the last one is decided after it
        (``--patience``, ``--stop-time-hours``, the end of an epoch). So the signatures are logged when the
        task is deleted, at the latest at the end of the process.
        """
        if not self._will_log_signatures:
            self._will_log_signatures = True
            _signatures.append(weakref.finalize(self, _log_signatures, self.corpus.signatures(), os.getpid()))


def log_signatures() -> None:
    """Log the signatures that are still to come, at the end of a training."""
    while _signatures:
        _signatures.pop(0)()


def _scored(corpus: CorpusScores, name: str) -> Any:
    # A function without a reference to ValidationScores: fairseq keeps some meters until the process ends.
    return lambda meters: corpus.score(name, meters[f"_{name}"].sum.tolist())


def _log_signatures(signatures: Mapping[str, str], process: int) -> None:
    if os.getpid() == process:  # a data loader's process has a copy of everything
        for name, signature in signatures.items():
            logger.info("signature of %s: %s", name, signature)


if TYPE_CHECKING:
    from fairseq.tasks import FairseqTask as _Task
else:
    _Task = object  # a mixin: the fairseq task class comes after it


class WithScores(_Task):
    """Mixin: a fairseq translation task whose validation computes the scores of ``--eval-metrics`` and
    ``--eval-bleu``.

    Inherit it before the fairseq task class. A batch is decoded once for all scores.
    """

    cfg: Any
    tokenizer: Any
    sequence_generator: Any

    def __init__(self, cfg: Any, *others: Any, **more: Any):
        super().__init__(cfg, *others, **more)
        self._scores = ValidationScores.from_flags(cfg, self.target_dictionary)

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> BaseFairseqModel:
        """Build the model, and the detokeniser and generator of ``--eval-bleu``, for the other scores too.

        Without ``max_len_a`` and ``max_len_b`` in ``--eval-bleu-args``, the search has the length limit of
        the plugin's commands.
        The detokeniser is of the data's languages, as in imitkd-evaluate, unless ``--eval-bleu-detok-args``
        says otherwise. fairseq's is of English.
        """
        model = super().build_model(cfg, from_checkpoint)
        if self._scores is not None:
            languages = {name: getattr(self.cfg, name, None) for name in ("source_lang", "target_lang")}
            flags = {**languages, **json.loads(self.cfg.eval_bleu_detok_args or "{}")}
            self.tokenizer = encoders.build_tokenizer(Namespace(tokenizer=self.cfg.eval_bleu_detok, **flags))
            search = json.loads(self.cfg.eval_bleu_args or "{}")
            limit = length_limit(search.get("max_len_a"), search.get("max_len_b"))
            search = {**search, "max_len_a": limit[0], "max_len_b": limit[1]}
            self.sequence_generator = self.build_generator([model], Namespace(**search))
        return model

    def valid_step(
        self, sample: Batch, model: torch.nn.Module, criterion: Any
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """fairseq's own validation step, with the sums of the scores."""
        if self._scores is None:
            return super().valid_step(sample, model, criterion)
        # Not TranslationTask.valid_step, which decodes for BLEU alone.
        loss, sample_size, logs = FairseqTask.valid_step(self, sample, model, criterion)
        found = self.inference_step(self.sequence_generator, [model], sample)
        hypotheses = [best[0]["tokens"] for best in found]
        references = sample["target"][:, getattr(self, "tags_written", 0) :]
        sums = self._scores.batch_sums(hypotheses, references, self.tokenizer)
        return loss, sample_size, {**logs, **sums}

    def inference_step(self, generator: Any, models: Any, sample: Batch, *more: Any, **settings: Any) -> Any:
        """Decode a batch. A source without words has an empty translation, as in imitkd-evaluate.

        An empty prompt of a language model has a continuation.
        """
        found = super().inference_step(generator, models, sample, *more, **settings)
        if self.layout.shares_positions:
            return found
        lengths = sample["net_input"].get("src_lengths")
        if lengths is None or any(value is not None for value in (*more, *settings.values())):
            return found  # a prefix or constraints are words of the translation
        without_words = 1 + getattr(self, "tags_read", 0)  # the EOS
        for hypotheses, length in zip(found, lengths.tolist(), strict=True):
            for hypothesis in hypotheses if length <= without_words else ():
                hypothesis["tokens"] = hypothesis["tokens"][-1:]  # the EOS
                hypothesis["positional_scores"] = hypothesis["positional_scores"][-1:]
        return found

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Log the values of all processes, and the scores."""
        super().reduce_metrics(logging_outputs, criterion)
        if self._scores is not None:
            self._scores.log(logging_outputs)

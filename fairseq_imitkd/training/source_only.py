"""Training and validation on sentences without references.

The student, or with ``--teacher-samples`` the teacher, writes the target of every such sentence. They come
from a split whose target side is missing, or from ``--mono-source-data`` beside parallel sentences.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from fairseq.data import AppendTokenDataset, StripTokenDataset, TruncateDataset
from fairseq.dataclass import FairseqDataclass
from omegaconf import II

from fairseq_imitkd.criterion import DistillationCriterion, unwrapped_criterion
from fairseq_imitkd.data.corpus import Languages, read_split
from fairseq_imitkd.data.directory import folders_of
from fairseq_imitkd.data.files import kind_of, sha256
from fairseq_imitkd.data.source_only import (
    SourceMix,
    fill_in,
    has_sources,
    lacks_references,
    without_references,
)
from fairseq_imitkd.errors import UsageError, percent
from fairseq_imitkd.method.method import Method
from fairseq_imitkd.training.run_files import whole_config

if TYPE_CHECKING:
    from fairseq.tasks import FairseqTask as _Task
else:
    _Task = object  # a mixin: the fairseq task class comes after it

logger = logging.getLogger(__name__)

SHARE = 0.5  # the default of --mono-source-share
MOSTLY = 0.5  # above this share of sentences without references, a student with random weights is warned of


@dataclass
class SourceOnlyConfig(FairseqDataclass):
    """The flags of sentences without references."""

    mono_source_data: Optional[str] = field(
        default=None,
        metadata={
            "help": "data directory with more source sentences, split and binarised as those of DATA; it "
            "needs no target side, and one that is there is not read; the student writes their targets, or "
            "with --teacher-samples also the teacher"
        },
    )
    mono_source_share: Optional[float] = field(
        default=None,
        metadata={
            "help": "share of the sentences of --mono-source-data in each batch, above 0 and below 1 "
            f"(default: {SHARE}); an epoch has the sentences of DATA once"
        },
    )
    source_seed: int = II("common.seed")


class WithSourceOnlyData(_Task):
    """Mixin: a translation task that also trains and validates on sentences without references.

    Inherit it before the fairseq task class. A batch of a validation set without references is validated by
    the method's loss on the student's own greedy translations.
    """

    cfg: Any
    datasets: Any
    for_training: bool
    distiller_of: Any

    def check_sources(self, method: Method) -> None:
        """Tell a method whether some sentences lack references, and refuse what can't do without.

        This is called before any data is read.

        Raises:
            UsageError: naming the flag or the directory.
        """
        cfg = self.cfg
        _check_share(cfg)
        if cfg.mono_source_data is not None:
            _check_mono_source_data(cfg)
        lacking = self._lacking(cfg.train_subset)
        if not any(lacking) and cfg.mono_source_data is None:
            return
        what = "--mono-source-data" if cfg.mono_source_data is not None else f"'{cfg.train_subset}' of DATA"
        problem = next(_needs_references(cfg, method, alone=all(lacking)), None)
        if problem is not None:
            raise UsageError(f"{what} has no references, which {problem}")
        method.some_lack_references = True
        share = 1.0 if all(lacking) else SHARE if cfg.mono_source_share is None else cfg.mono_source_share
        if share > MOSTLY and not method.teacher_samples and _starts_from_random_weights(cfg):
            logger.warning(
                "the student starts from random weights and writes most targets from the first update on, so "
                "it may learn nothing: add --finetune-from-model with a trained student"
            )

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the criterion.

        Raises:
            UsageError: it needs references that are not there.
        """
        criterion = super().build_criterion(cfg, from_checkpoint)
        if from_checkpoint or not self.for_training or whole_config(self.cfg) is None:
            return criterion
        if not isinstance(criterion, DistillationCriterion):
            name = str(getattr(cfg, "_name", None) or type(criterion).__name__)
            if self.cfg.mono_source_data is not None:
                raise UsageError(
                    f"--mono-source-data changes nothing with --criterion {name}, which needs references: "
                    "use a method such as imitkd or gkd, or leave it out"
                )
            if any(self._lacking(self.cfg.train_subset)):
                raise UsageError(
                    f"'{self.cfg.train_subset}' of DATA has no target side, which --criterion {name} needs: "
                    "use a method such as imitkd with --student-share 1, or binarise the targets too"
                )
        self._check_validation_sets(isinstance(criterion, DistillationCriterion))
        return criterion

    def _check_validation_sets(self, distils: bool) -> None:
        config = whole_config(self.cfg)
        if config is None or config.dataset.disable_validation:
            return
        for split in config.dataset.valid_subset.split(","):
            if not any(self._lacking(split)):
                continue
            if not distils:
                raise UsageError(
                    f"--valid-subset '{split}' has no target side, which this --criterion needs: binarise "
                    "the targets too, or add --disable-validation"
                )
            if self.cfg.teacher_cache:
                raise UsageError(
                    "--teacher-cache has no answers about the student's own translations, on which "
                    f"--valid-subset '{split}' without a target side is validated: use --teacher-path, or "
                    "add --disable-validation"
                )
            metric = config.checkpoint.best_checkpoint_metric
            if metric in ("nll_loss", "ppl"):
                raise UsageError(
                    f"--best-checkpoint-metric {metric} needs references, but --valid-subset '{split}' has "
                    "no target side: use loss"
                )
            if self.cfg.eval_bleu or self.cfg.eval_metrics is not None:
                flag = "--eval-bleu" if self.cfg.eval_bleu else f"--eval-metrics {self.cfg.eval_metrics}"
                raise UsageError(
                    f"{flag} needs references, but --valid-subset '{split}' has no target side: leave it "
                    "out; the loss on the student's own translations chooses the best checkpoint"
                )

    def _lacking(self, split: str) -> list[bool]:
        """Return for each directory of DATA that has a split whether its target side is missing.

        Only the training data is read from each directory.
        """
        if "://" in (self.cfg.data or "://"):
            return [False]
        folders = (
            folders_of(self.cfg.data) if split == self.cfg.train_subset else folders_of(self.cfg.data)[:1]
        )
        languages = (self.cfg.source_lang, self.cfg.target_lang)
        return [lacks_references(folder, split, languages) for folder in folders]

    def load_dataset(self, split: str, *args: Any, **kwargs: Any) -> None:
        """Read a data set, and mix the sentences of ``--mono-source-data`` into the training data.

        Raises:
            UsageError: its files can't be read.
        """
        super().load_dataset(split, *args, **kwargs)
        dataset = self.datasets[split]
        if dataset.tgt is None and self.for_training and self._trains:
            fill_in(dataset)
        if self.cfg.mono_source_data is None or split != self.cfg.train_subset or not self._trains:
            return
        share = SHARE if self.cfg.mono_source_share is None else self.cfg.mono_source_share
        mixed = SourceMix(dataset, self._more_sources(), share=share, seed=self.cfg.source_seed)
        logger.info(
            "%d sentences, and in each epoch %d of the %d sources of --mono-source-data",
            len(dataset), mixed.others, len(mixed) - len(dataset),
        )  # fmt: skip
        self.datasets[split] = mixed

    @property
    def _trains(self) -> bool:
        config = whole_config(self.cfg)
        return config is None or config.common_eval.path is None

    def _more_sources(self) -> Any:
        """Return the sources of ``--mono-source-data``, prepared as fairseq prepares those of DATA."""
        languages = Languages(
            self.cfg.source_lang,
            self.cfg.target_lang,
            self.source_dictionary,
            self.target_dictionary,
            Path(self.cfg.mono_source_data),
        )
        sources = read_split(languages, self.cfg.train_subset).sources
        if self.cfg.truncate_source:
            eos, longest = self.source_dictionary.eos(), self.cfg.max_source_positions
            sources = AppendTokenDataset(TruncateDataset(StripTokenDataset(sources, eos), longest - 1), eos)
        return sources

    def valid_step(self, sample: Any, model: Any, criterion: Any) -> Any:
        """Validate on a batch; on the student's own translations if it has no references."""
        own = unwrapped_criterion(criterion)
        distils = isinstance(own, DistillationCriterion) and self.for_training
        if distils and bool(without_references(sample["target"], self.target_dictionary.pad()).all()):
            sample = self.distiller_of(own).on_own_prefixes(sample, model, own)
        return super().valid_step(sample, model, criterion)


def _starts_from_random_weights(cfg: Any) -> bool:
    """Whether a training starts from no checkpoint and no teacher's weights, as far as its settings tell."""
    config = whole_config(cfg)
    if config is None or config.checkpoint.finetune_from_model is not None or cfg.init_from_teacher:
        return False
    last = Path(config.checkpoint.save_dir, config.checkpoint.restore_file)
    return not last.exists()


def _check_share(cfg: Any) -> None:
    share = cfg.mono_source_share
    if share is None:
        return
    if cfg.mono_source_data is None:
        raise UsageError("--mono-source-share changes nothing without --mono-source-data: leave it out")
    if not 0.0 < share < 1.0:
        raise UsageError(f"--mono-source-share must be above 0 and below 1, but is {share}{percent(share)}")


def _check_mono_source_data(cfg: Any) -> None:
    """Refuse a directory that has no training split, or another dictionary.

    Raises:
        UsageError: naming it.
    """
    folder, name = cfg.mono_source_data, f"dict.{cfg.source_lang}.txt"
    if kind_of(folder, "--mono-source-data") != "folder":
        raise UsageError(
            f"--mono-source-data '{folder}' is not a directory; use one that fairseq-preprocess has made"
        )
    languages = (cfg.source_lang, cfg.target_lang)
    if not has_sources(folder, cfg.train_subset, languages):
        raise UsageError(
            f"--mono-source-data '{folder}' has no '{cfg.train_subset}' of {'-'.join(languages)}; make it "
            f"with fairseq-preprocess --only-source -s {languages[0]} -t {languages[1]} --srcdict"
        )
    own, theirs = Path(folders_of(cfg.data)[0], name), Path(folder, name)
    if kind_of(theirs, "--mono-source-data") != "file" or sha256(theirs) != sha256(own):
        raise UsageError(
            f"'{theirs}' is not '{own}', with which DATA was binarised; make --mono-source-data with "
            "fairseq-preprocess --srcdict"
        )


def _needs_references(cfg: Any, method: Method, *, alone: bool) -> Iterator[str]:
    """Yield who needs references, and the remedy.

    Args:
        cfg: the task's settings.
        method: the method.
        alone: whether no training sentence has a reference.
    """
    if cfg.teacher_cache:
        yield "--teacher-cache holds answers for: use --teacher-path"
    if not method.writes:
        yield (
            f"--criterion {method.name} trains on at --student-share {method.cfg.student_share}: use imitkd "
            "or gkd, add --teacher-samples, or translate the sources with imitkd-seqkd"
        )
    if alone and not method.teacher_samples and not method.always_rolls_out:
        yield (
            f"--student-share {method.cfg.student_share} asks for: add --student-share 1, with which the "
            "student writes every target"
        )
    if method.reward:
        yield f"--reward {method.reward} compares rollouts with: leave it out"
    if str(cfg.teacher_selection) != "fixed":
        yield f"--teacher-selection {cfg.teacher_selection} compares teachers by: leave it out"
    if cfg.load_alignments:
        yield "--load-alignments aligns: leave it out"
    if cfg.num_batch_buckets:
        yield "--num-batch-buckets sorts by: leave it out"

"""Training in the order of a file of scores: ``--curriculum-scores``."""

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Optional

from fairseq.dataclass import FairseqDataclass

from fairseq_imitkd.data.curriculum import HighestFirst, read_scores
from fairseq_imitkd.data.directory import folders_of
from fairseq_imitkd.data.files import kind_of
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.training.run_files import whole_config

if TYPE_CHECKING:
    from fairseq.tasks import FairseqTask as _Task
else:
    _Task = object  # a mixin: the fairseq task class comes after it

logger = logging.getLogger(__name__)


@dataclass
class CurriculumConfig(FairseqDataclass):
    """The flag of a curriculum."""

    curriculum_scores: Optional[str] = field(
        default=None,
        metadata={
            "help": "file with a number for each training sentence; in the first epochs, as many as "
            "--curriculum says, the tenth of the sentences with the highest numbers comes first, then the "
            "next tenth"
        },
    )


class WithCurriculum(_Task):
    """Mixin: a task whose training sentences can come in the order of their scores.

    Inherit it before the mixins that change the training data, and before the fairseq task class.
    """

    cfg: Any
    datasets: Any

    def load_dataset(self, split: str, *args: Any, **kwargs: Any) -> None:
        """Read a data set; give the training data the order of ``--curriculum-scores``.

        Raises:
            UsageError: the file can't be read, or has scores of other sentences.
        """
        super().load_dataset(split, *args, **kwargs)
        path = self.cfg.curriculum_scores
        config = whole_config(self.cfg)
        if path is None or split != self.cfg.train_subset or config is None:
            return
        if config.common_eval.path is not None:
            return  # the data are decoded, not trained on
        dataset, scores = self.datasets[split], read_scores(path)
        if len(scores) != len(dataset):
            raise UsageError(
                f"--curriculum-scores '{path}' has {len(scores)} lines, but '{split}' of DATA has "
                f"{len(dataset)} sentences; write a number for each, in the order of the text"
            )
        epochs = config.dataset.curriculum
        logger.info("--curriculum %d: until then, epochs have the order of --curriculum-scores", epochs)
        self.datasets[split] = HighestFirst(dataset, scores)


def check_curriculum(cfg: Any) -> None:
    """Refuse ``--curriculum-scores`` where it can't be used, before any data is read.

    Raises:
        UsageError: naming the flag.
    """
    path, config = cfg.curriculum_scores, whole_config(cfg)
    if path is None or config is None:
        return
    if config.dataset.curriculum < 1:
        raise UsageError(
            "--curriculum-scores changes nothing without --curriculum N, the number of epochs in its order"
        )
    if kind_of(path, "--curriculum-scores") != "file":
        raise UsageError(f"--curriculum-scores '{path}' is not a file; name one with a number in each line")
    if len(folders_of(cfg.data)) > 1:
        raise UsageError(
            f"--curriculum-scores needs one DATA directory, but DATA '{cfg.data}' names several; binarise "
            "the text together"
        )
    if cfg.mono_source_data is not None:
        raise UsageError(
            "--curriculum-scores can't be used with --mono-source-data, whose sentences have no scores: "
            "leave one out"
        )

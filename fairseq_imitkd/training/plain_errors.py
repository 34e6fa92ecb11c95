"""What fairseq's own tasks meet with an exception: it works, or it ends the run in one line."""

from typing import TYPE_CHECKING, Any

from fairseq.models import BaseFairseqModel

from fairseq_imitkd.errors import UsageError, as_usage_error
from fairseq_imitkd.text.unknown import remedy_of_text, warn_of_other_subwords
from fairseq_imitkd.training.batch_limits import Split, fitting
from fairseq_imitkd.training.configuration import check_configuration, data, flat
from fairseq_imitkd.training.continued import check_continued
from fairseq_imitkd.training.run_files import whole_config

if TYPE_CHECKING:
    from fairseq.tasks import FairseqTask as _Task
else:
    _Task = object  # a mixin: the fairseq task class comes after it


def check_run(task_config: Any) -> None:
    """Check the configuration of the whole run before the task is built.

    So ``fairseq-train --user-dir`` checks what ``imitkd-train`` checks. A task that is built by hand is of no
    run.

    Raises:
        UsageError: naming the flag, its value and the remedy.
    """
    config = whole_config(task_config)
    if config is None:
        return
    settings, trains = flat(config), config.common_eval.path is None
    check_configuration(settings, "train" if trains else "decode")
    if trains and config.task._name in (*data.TASKS, data.PAIRS) and "://" not in config.task.data:
        data.check_validation_sets(settings)
        config.dataset[data.IGNORE] = True  # fairseq's own check refuses sets that are named, too


class WithPlainErrors(_Task):
    """Mixin for a fairseq task: its errors while it builds and reads are one line.

    Inherit it before the fairseq task class, and after the other mixins.
    """

    cfg: Any
    datasets: Any
    dataset_to_epoch_iter: Any
    student: BaseFairseqModel
    _lines_typed = 0
    _looked_at: frozenset[str] = frozenset()

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> BaseFairseqModel:
        """Build the model.

        Raises:
            UsageError: the architecture can't be built with its flags.
        """
        if from_checkpoint:  # its reader names the file
            return super().build_model(cfg, from_checkpoint)
        if getattr(cfg, "share_all_embeddings", False) and self.source_dictionary != self.target_dictionary:
            raise UsageError(
                "--share-all-embeddings needs one dictionary of both languages, but DATA has two: use "
                "--share-decoder-input-output-embed, or train a teacher on data of --joined-dictionary"
            )
        name = getattr(cfg, "_name", None) or getattr(cfg, "arch", None)
        with as_usage_error(
            f"--arch {name} can't be built with these flags", "change the flags of the student"
        ):
            return super().build_model(cfg, from_checkpoint)

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the criterion. In a training, check that the student fits the checkpoint before it."""
        criterion = super().build_criterion(cfg, from_checkpoint)
        config, student = whole_config(self.cfg), getattr(self, "student", None)
        trains = config is not None and not from_checkpoint and config.common_eval.path is None
        if trains and student is not None:
            check_continued(config, student, criterion)
        return criterion

    def load_dataset(self, split: str, *args: Any, **kwargs: Any) -> None:
        """Read a data set.

        Raises:
            UsageError: its files can't be read.
        """
        with as_usage_error(f"'{split}' of DATA '{self.cfg.data}' can't be read", "binarise it again"):
            super().load_dataset(split, *args, **kwargs)
        self._warn_of_other_subwords(split)

    def get_batch_iterator(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Return fairseq's iterator over the batches of a data set, without the sentences that do not fit.

        Raises:
            UsageError: no sentence fits, or ``--max-tokens`` is below one of them.
        """
        if not args and dataset not in self.dataset_to_epoch_iter:  # fairseq names its arguments
            split = self._split_of(dataset)
            kwargs = fitting(dataset, split, kwargs)
            if not split.flag:
                self._warn_of_typed(dataset)
                self._lines_typed += len(dataset)
        return super().get_batch_iterator(dataset, *args, **kwargs)

    def _warn_of_other_subwords(self, split: str) -> None:
        """Warn once of a split whose symbols are unknown; of a training's, on both sides."""
        dataset = self.datasets.get(split)
        if split in self._looked_at or dataset is None:
            return
        self._looked_at |= {split}
        flag, trains = self._split_of(dataset).flag, not self._decodes()
        for name, language in (("src", "source_lang"), ("tgt", "target_lang"))[: 2 if trains else 1]:
            side, dictionary = getattr(dataset, name, None), getattr(dataset, f"{name}_dict", None)
            if side is not None and dictionary is not None:
                sentences = (side[number] for number in range(len(side)))
                what = f"{flag} '{split}'"
                warn_of_other_subwords(
                    sentences, dictionary, what=what, language=getattr(self.cfg, language, None)
                )

    def _warn_of_typed(self, dataset: Any) -> None:
        """Warn of the first lines that are typed if their symbols are unknown."""
        dictionary = getattr(dataset, "src_dict", None)
        if self._lines_typed or dictionary is None:
            return
        config = whole_config(self.cfg)
        remedy = remedy_of_text(dictionary, is_encoded=config is not None and config.bpe is not None)
        language = getattr(self.cfg, "source_lang", None)
        warn_of_other_subwords(
            dataset.src,
            dictionary,
            what="the input",
            language=language,
            remedy=remedy,
            split_remedy="give text that is not split, with --bpe and the file of the model's data",
        )

    def _decodes(self) -> bool:
        config = whole_config(self.cfg)
        return config is not None and config.common_eval.path is not None

    def _split_of(self, dataset: Any) -> Split:
        trained = self.cfg.train_subset
        config, decodes = whole_config(self.cfg), self._decodes()
        for name, each in self.datasets.items():
            if each is dataset:
                is_training = name == trained and not decodes
                flag = "--train-subset" if is_training else "--gen-subset" if decodes else "--valid-subset"
                differs = (
                    flag == "--valid-subset" and config is not None and _limits_validation(config.dataset)
                )
                return Split(flag, name, is_training, "--max-tokens-valid" if differs else "--max-tokens")
        return Split("", "", False, lines_before=self._lines_typed)


def _limits_validation(dataset: Any) -> bool:
    return dataset.max_tokens_valid != dataset.max_tokens

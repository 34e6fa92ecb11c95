"""Training on several language pairs: its flags, its data and its validation of each pair."""

from argparse import Namespace
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Optional, cast

import torch
from fairseq.data.multilingual.multilingual_data_manager import MultilingualDatasetManager
from fairseq.data.multilingual.multilingual_utils import LangTokStyle
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.tasks import FairseqTask
from omegaconf import II

from fairseq_imitkd.criterion import DistillationCriterion
from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.data.language_pairs import PairDataManager, first_epoch
from fairseq_imitkd.data.pair_flags import PAIR, languages_of_flags, pairs_of_flags, weights_of_flags
from fairseq_imitkd.rollout import RolloutGenerator

Sampling: Any = ChoiceEnum(["uniform", "temperature", "concat", "RoundRobin"])
Sides: Any = ChoiceEnum(["src", "tgt"])
Style: Any = ChoiceEnum([each.value for each in LangTokStyle])


@dataclass
class LanguagePairsConfig(FairseqDataclass):
    """The flags of fairseq's ``translation_multi_simple_epoch``, without those of its other kinds of data."""

    data: Optional[str] = field(
        default=None,
        metadata={
            "help": "data directory with the files of all pairs, or several joined by ':', which are read in "
            "turn"
        },
    )
    source_lang: Optional[str] = field(
        default=None,
        metadata={"help": "source language, to decode one pair", "argparse_alias": "-s"},
    )
    target_lang: Optional[str] = field(
        default=None,
        metadata={"help": "target language, to decode one pair", "argparse_alias": "-t"},
    )
    lang_pairs: Optional[str] = field(
        default=None, metadata={"help": "language pairs to train, such as de-en,en-de; or a file with them"}
    )
    langs: Optional[str] = field(
        default=None,
        metadata={
            "help": "languages joined by commas, in the order of their tags (default: those of --lang-pairs)"
        },
    )
    lang_dict: Optional[str] = field(
        default=None, metadata={"help": "file with one language a line, instead of --langs"}
    )
    source_dict: Optional[str] = field(
        default=None, metadata={"help": "dictionary of all sources (default: dict.LANGUAGE.txt of DATA)"}
    )
    target_dict: Optional[str] = field(
        default=None, metadata={"help": "dictionary of all targets (default: dict.LANGUAGE.txt of DATA)"}
    )
    fixed_dictionary: Optional[str] = field(
        default=None, metadata={"help": "dictionary of all sources and targets"}
    )
    lang_tok_style: Style = field(
        default=LangTokStyle.multilingual.value,
        metadata={"help": "form of a language's tag: multilingual is __de__, mbart is [de]"},
    )
    encoder_langtok: Optional[Sides] = field(
        default=None,
        metadata={"help": "put the tag of the source (src) or target language (tgt) before each source"},
    )
    decoder_langtok: bool = field(
        default=False, metadata={"help": "let the decoder read the tag of the target language first"}
    )
    lang_tok_replacing_bos_eos: bool = field(
        default=False,
        metadata={
            "help": "tags replace the source's EOS and the decoder's first input instead of being added"
        },
    )
    keep_inference_langtok: bool = field(
        default=False, metadata={"help": "keep the tags in translations that are printed"}
    )
    sampling_method: Sampling = field(
        default="concat",
        metadata={
            "help": "how often each pair's sentences are drawn in an epoch: all once (concat), all pairs "
            "equally (uniform), or in proportion to a power of their sizes (temperature)"
        },
    )
    sampling_temperature: float = field(
        default=1.5,
        metadata={"help": "temperature T of --sampling-method temperature: shares are sizes ** (1 / T)"},
    )
    sampling_weights: Optional[str] = field(
        default=None,
        metadata={"help": 'share of each pair, as JSON: {"main:de-en": 0.7, "main:en-de": 0.3}'},
    )
    sampling_weights_from_file: Optional[str] = field(
        default=None, metadata={"help": "file with the JSON of --sampling-weights"}
    )
    virtual_epoch_size: Optional[int] = field(
        default=None, metadata={"help": "number of sentences of an epoch, a part of the data"}
    )
    virtual_data_size: Optional[int] = field(
        default=None,
        metadata={"help": "number of sentences that are drawn of all pairs before they are drawn anew"},
    )
    upsample_primary: int = field(
        default=1, metadata={"help": "times that train counts beside train1, train2, …"}
    )
    enable_reservsed_directions_shared_datasets: bool = field(
        default=False, metadata={"help": "keep the text of two opposite directions once"}
    )
    left_pad_source: bool = field(default=True, metadata={"help": "pad sources on the left"})
    truncate_source: bool = field(
        default=False, metadata={"help": "truncate sources to --max-source-positions"}
    )
    max_source_positions: int = field(default=1024, metadata={"help": "most tokens of a source"})
    max_target_positions: int = field(default=1024, metadata={"help": "most tokens of a target"})
    dataset_impl: Optional[str] = II("dataset.dataset_impl")
    seed: int = II("common.seed")


# Settings of fairseq's task that have no flag here, and their values.
_FIXED = {
    "load_alignments": False,
    "left_pad_target": False,
    "enable_lang_ids": False,
    "extra_data": None,
    "extra_lang_pairs": None,
    "langtoks_specs": ["main"],
}


def settings_of(cfg: Any) -> Namespace:
    """Return a configuration as the arguments of fairseq's task, which are its argparse flags.

    Args:
        cfg: a :class:`LanguagePairsConfig`.

    Raises:
        UsageError: the pairs, the languages or the weights can't be read.
    """
    names = [each.name for each in fields(LanguagePairsConfig) if not each.name.startswith("_")]
    settings = {name: getattr(cfg, name) for name in names}
    choices = ("sampling_method", "encoder_langtok", "lang_tok_style", "dataset_impl")
    plain = {name: str(settings[name]) for name in choices if settings[name] is not None}
    return Namespace(
        **{
            **settings,
            **plain,
            **_FIXED,
            "train_subset": cfg.train_subset,
            "lang_pairs": pairs_of_flags(cfg),
            "langtoks": {"main": (plain.get("encoder_langtok"), "tgt" if cfg.decoder_langtok else None)},
            "langs": None if cfg.lang_dict else languages_of_flags(cfg),
            "sampling_weights": weights_of_flags(cfg),
            "sampling_weights_from_file": None,
        }
    )


if TYPE_CHECKING:
    from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask as _Task
else:
    _Task = object  # a mixin: the fairseq task class comes after it


class WithLanguagePairs(_Task):
    """Mixin: fairseq's ``translation_multi_simple_epoch``, whose batches a criterion that distils can use.

    Inherit it before the fairseq task class, and after the other mixins. Any other criterion gets fairseq's
    own batches. A validation set ``valid:de-en`` is the part of ``valid`` of one pair.
    """

    cfg: Any
    data_manager: Any
    for_training: bool

    def __init__(self, cfg: Any, *others: Any):
        super().__init__(settings_of(cfg), *others)
        self.cfg = cfg  # fairseq's class keeps args alone
        self.data_manager = PairDataManager(
            self.args, self.lang_pairs, self.langs, self.dicts, self.sampling_method
        )

    @classmethod
    def add_args(cls, parser: Any) -> None:
        """Add the flags of the task's dataclass, and not those of fairseq's class, which has none."""
        cast(Any, FairseqTask.add_args).__func__(cls, parser)

    @classmethod
    def setup_task(cls, cfg: Any, **kwargs: Any) -> Any:
        """Load the dictionaries, and add the tags to them."""
        return cls(cfg, *MultilingualDatasetManager.prepare(cls.load_dictionary, settings_of(cfg)))

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the criterion, and note whether it distils."""
        criterion = FairseqTask.build_criterion(self, cfg, from_checkpoint)
        self.data_manager.distils = isinstance(criterion, DistillationCriterion)
        return criterion

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any) -> None:
        """Read a split, or one pair of it."""
        name, colon, pair = split.partition(PAIR)
        if colon:
            self.datasets[split] = self.data_manager.load_pairs(
                name, pair, training=self.training, epoch=epoch, combine=combine
            )
            return
        is_new = split not in self.datasets
        super().load_dataset(split, epoch=epoch, combine=combine, **kwargs)
        begins = first_epoch(self.datasets[split], epoch)
        if is_new and begins != epoch:
            del self.datasets[split]
            super().load_dataset(split, epoch=begins, combine=combine, **kwargs)

    @property
    def tag_settings(self) -> Namespace:
        """The settings that tell a pair's tags, as checkpoints hold them."""
        return Namespace(**{**vars(self.args), "task": self.cfg._name})

    @property
    def tags_read(self) -> int:
        """The number of tags that a batch's sources have beside the EOS."""
        return int(self.args.encoder_langtok is not None and not self.args.lang_tok_replacing_bos_eos)

    @property
    def tags_written(self) -> int:
        """The number of tags that a batch's targets begin with: fairseq's own have one, with
        ``--decoder-langtok``.
        """
        return int(self.data_manager.tag_is_written and not self.data_manager.distils)

    def first_inputs(self, sample: Batch) -> torch.Tensor:
        """Return the tag that the decoder reads for each of ``B`` sentences, ``(B,)``; EOS without tags."""
        return sample["net_input"]["prev_output_tokens"][:, self.tags_written]

    def inference_step(self, generator: Any, models: Any, sample: Batch, *more: Any, **settings: Any) -> Any:
        """Decode a batch. In a training each sentence has the tag of its own pair, which is then left out."""
        if not self.training:
            return super().inference_step(generator, models, sample, *more, **settings)
        tags = self.first_inputs(sample)
        if not self.data_manager.tag_is_written:
            return generator.generate(models, sample, bos_token=tags)
        found = generator.generate(models, sample, prefix_tokens=tags.unsqueeze(-1))
        for hypotheses in found:
            for each in hypotheses:
                each["tokens"], each["positional_scores"] = each["tokens"][1:], each["positional_scores"][1:]
        return found

    def build_generator(
        self, models: Any, args: Any, seq_gen_cls: Any = None, extra_gen_cls_kwargs: Any = None
    ) -> Any:
        """Build fairseq's generator, on top of the rollout engine's steps. It leaves out a forced tag."""
        extra = dict(extra_gen_cls_kwargs or {})
        spec = self.args.langtoks["main"][1]
        if not self.training and spec and not getattr(args, "keep_inference_langtok", False):
            tag = self.data_manager.get_decoder_langtok(self.args.target_lang, spec)
            extra["symbols_to_strip_from_output"] = {tag}
        return FairseqTask.build_generator(
            self, models, args, seq_gen_cls or RolloutGenerator, extra_gen_cls_kwargs=extra
        )

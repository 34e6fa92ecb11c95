"""Training on several language pairs: its flags, its data and its validation of each pair."""

import ast
import json
import os
from argparse import Namespace
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, cast

import torch
from fairseq.data import Dictionary, indexed_dataset
from fairseq.data.multilingual.multilingual_data_manager import MultilingualDatasetManager
from fairseq.data.multilingual.multilingual_utils import LangTokStyle
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.tasks import FairseqTask
from omegaconf import II

from fairseq_imitkd.criterion import DistillationCriterion
from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.data.dictionaries import first_difference
from fairseq_imitkd.data.directory import check_dictionaries, check_folder, folders_of
from fairseq_imitkd.data.language_pairs import PairDataManager, first_epoch
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.rollout import RolloutGenerator

Sampling: Any = ChoiceEnum(["uniform", "temperature", "concat", "RoundRobin"])
Sides: Any = ChoiceEnum(["src", "tgt"])
Style: Any = ChoiceEnum([each.value for each in LangTokStyle])
PAIR = ":"  # between the name of a validation set and one of its pairs


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
            "langs": None if cfg.lang_dict else _languages(cfg, pairs_of_flags(cfg)),
            "sampling_weights": _weights(cfg),
            "sampling_weights_from_file": None,
        }
    )


def pairs_of_flags(cfg: Any) -> list[str]:
    """Return the language pairs of ``--lang-pairs``, or the one that is decoded.

    Raises:
        UsageError: there is none, one is not a pair, or one is there twice.
    """
    given = cfg.lang_pairs
    if not given and cfg.source_lang and cfg.target_lang:
        return [f"{cfg.source_lang}-{cfg.target_lang}"]
    if given and os.path.isfile(given):
        given = Path(given).read_text(encoding="utf-8").strip()
    pairs = (given or "").split(",")
    for pair in pairs:
        source, _, target = pair.partition("-")
        if not source or not target or "-" in target or source == target:
            raise UsageError(
                f"--lang-pairs must be language pairs such as de-en,en-de, but has '{pair[:40]}'"
            )
    if len(set(pairs)) < len(pairs):
        raise UsageError(f"--lang-pairs {','.join(pairs)[:100]} names a pair twice: leave it out once")
    return pairs


def _weights(cfg: Any) -> dict[str, float] | None:
    """Return the sampling weights of the pairs."""
    text, flag = cfg.sampling_weights, "--sampling-weights"
    if cfg.sampling_weights_from_file:
        flag = f"--sampling-weights-from-file '{cfg.sampling_weights_from_file}'"
        try:
            text = Path(cfg.sampling_weights_from_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{flag} can't be read; use a file with JSON") from error
    if text is None:
        return None
    keys = [f"main:{pair}" for pair in pairs_of_flags(cfg)]
    try:
        weights = ast.literal_eval(text)  # JSON, or Python's form as in fairseq's own command lines
        found = {key: float(weights[key]) for key in keys}
        if set(weights) != set(keys) or not all(0 < weight < float("inf") for weight in found.values()):
            raise ValueError("not these")
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        example = json.dumps(dict.fromkeys(keys[:2], 0.5))
        raise UsageError(f"{flag} must give each pair a weight above 0, such as {example[:80]}") from error
    return found


def check_pairs(cfg: Any) -> None:
    """Refuse pairs whose languages, dictionaries or tags are not there.

    Args:
        cfg: a :class:`LanguagePairsConfig`.

    Raises:
        UsageError: naming the flag or the file.
    """
    if not cfg.data:
        raise UsageError("DATA is not given; use a directory that fairseq-preprocess has made")
    one_pair = [cfg.source_lang, cfg.target_lang]
    if any(one_pair) and not all(one_pair):
        raise UsageError("--source-lang and --target-lang must both be given, to decode a pair, or neither")
    if cfg.langs and cfg.lang_dict:
        raise UsageError("--langs and --lang-dict can't be used together: leave one of them out")
    if not cfg.sampling_temperature > 0:
        raise UsageError(f"--sampling-temperature must be above 0, but is {cfg.sampling_temperature}")
    for folder in folders_of(cfg.data):
        check_folder(folder)
    pairs = ["-".join(one_pair)] if all(one_pair) else pairs_of_flags(cfg)
    sources, targets = ([pair.split("-")[side] for pair in pairs] for side in (0, 1))
    languages = _languages(cfg, pairs_of_flags(cfg))
    for language in (*sources, *targets):
        if language not in languages:
            flag = "--lang-dict" if cfg.lang_dict else "--langs" if cfg.langs else "--lang-pairs"
            raise UsageError(f"language {language} is not one of {flag}: {','.join(languages)[:80]}")
    _check_dictionaries(cfg, sources, targets)
    tells = cfg.decoder_langtok or str(cfg.encoder_langtok) == "tgt"
    if len(set(targets)) > 1 and not tells:
        raise UsageError(
            f"no tag tells the model which language of {','.join(sorted(set(targets)))[:60]} to write: add "
            "--encoder-langtok tgt or --decoder-langtok"
        )


def _languages(cfg: Any, pairs: list[str]) -> list[str]:
    if cfg.langs:
        return [str(language) for language in cfg.langs.split(",")]
    if not cfg.lang_dict:
        return sorted({language for pair in pairs for language in pair.split("-")})
    try:
        lines = Path(cfg.lang_dict).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--lang-dict '{cfg.lang_dict}' can't be read; use a file with one language a line"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _check_dictionaries(cfg: Any, sources: list[str], targets: list[str]) -> None:
    """Refuse dictionaries that are missing, and sides with several."""
    folder = Path(folders_of(cfg.data)[0])
    for flag in ("fixed_dictionary", "source_dict", "target_dict"):
        path = getattr(cfg, flag)
        if path and not os.path.isfile(path):
            raise UsageError(f"--{flag.replace('_', '-')} '{path}' is not a file; use a dict.txt")
    if cfg.fixed_dictionary:
        return
    for given, languages in ((cfg.source_dict, sources), (cfg.target_dict, targets)):
        if given:
            continue
        first, *others = [folder / f"dict.{language}.txt" for language in dict.fromkeys(languages)]
        check_dictionaries(folder, (languages[0], languages[-1]))
        for other in others:
            check_dictionaries(folder, (other.name.split(".")[1],) * 2)
            found = first_difference(Dictionary.load(str(first)).symbols, Dictionary.load(str(other)).symbols)
            if found is not None:
                raise UsageError(
                    f"'{other}' is not '{first}', but all languages of a side must share one dictionary "
                    f"(index {found[0]}); binarise with fairseq-preprocess --srcdict --tgtdict"
                )


def check_splits(cfg: Any, splits: list[tuple[str, str]]) -> None:
    """Refuse splits that are not there for each of their pairs.

    Args:
        cfg: a :class:`LanguagePairsConfig`.
        splits: flags, and the split that each names.

    Raises:
        UsageError: naming the split and the pair.
    """
    pairs = pairs_of_flags(cfg)
    for flag, name in splits:
        split, colon, only = name.partition(PAIR)
        if colon and only not in pairs:
            raise UsageError(f"{flag} '{name}' must end in a pair of --lang-pairs: {','.join(pairs)[:80]}")
        folders = folders_of(cfg.data) if flag == "--train-subset" else folders_of(cfg.data)[:1]
        for pair in [only] if colon else pairs:
            source, target = pair.split("-")
            there = [
                os.path.join(folder, f"{split}.{files}.{source}")
                for folder in folders
                for files in (pair, f"{target}-{source}")
            ]
            if not any(indexed_dataset.dataset_exists(path, None) for path in there):
                raise UsageError(
                    f"DATA '{cfg.data}' has no '{split}' of {pair}, a pair of --lang-pairs: binarise it with "
                    "fairseq-preprocess, or leave the pair out"
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

    def first_inputs(self, sample: Batch) -> torch.Tensor:
        """Return the tag that the decoder reads for each of ``B`` sentences, ``(B,)``; EOS without tags."""
        tags_are_written = self.data_manager.tag_is_written and not self.data_manager.distils
        return sample["net_input"]["prev_output_tokens"][:, int(tags_are_written)]

    def references(self, sample: Batch) -> torch.Tensor:
        """Return the references of a batch without their tags, ``(B, T)``."""
        target: torch.Tensor = sample["target"]
        tags_are_written = self.data_manager.tag_is_written and not self.data_manager.distils
        return target[:, 1:] if tags_are_written else target

    def inference_step(
        self, generator: Any, models: Any, sample: Batch, prefix_tokens: Any = None, constraints: Any = None
    ) -> Any:
        """Decode a batch. In a training each sentence has the tag of its own pair, which is then left out."""
        if not self.training:
            return super().inference_step(generator, models, sample, prefix_tokens, constraints)
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

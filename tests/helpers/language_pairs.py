"""A task of several language pairs on letters, its batches and its models, in the test's own process."""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY
from torch import Tensor

from fairseq_imitkd.tasks.translation_multi import (
    TranslationMultiWithTeacherConfig,
    TranslationMultiWithTeacherTask,
)
from tests.helpers.fairseq_models import LETTERS, LSTM, WIDTHS, letters
from tests.helpers.language_models import Sentences, sentences

PAIRS = "xx-yy,xx-zz,yy-zz"
TASK = "translation_multi_simple_epoch_with_teacher"
TAGS = ("__xx__", "__yy__", "__zz__")
# Where the tags stand: in the source alone, also written by the decoder, or in place of other symbols.
STYLES: dict[str, dict[str, Any]] = {
    "source": {"encoder_langtok": "tgt"},
    "written": {"encoder_langtok": "src", "decoder_langtok": True},
    "replacing": {
        "encoder_langtok": "tgt",
        "decoder_langtok": True,
        "lang_tok_replacing_bos_eos": True,
    },
}


def dictionary() -> Dictionary:
    """Return the letters, with the tags at their end."""
    return letters([*LETTERS, *TAGS])


def tiny_task(style: str, *, distils: bool = True, **settings: Any) -> TranslationMultiWithTeacherTask:
    """Return a task without data and teacher."""
    given: dict[str, Any] = {
        "lang_pairs": PAIRS,
        "train_subset": "train",
        "dataset_impl": None,
        "seed": 1,
        "data": ".",
        "teacher_path": "none.pt",
        "teacher_allow_poor": True,
    }
    cfg = TranslationMultiWithTeacherConfig(**{**given, **STYLES[style], **settings})
    cfg._name = TASK
    languages = sorted({language for pair in PAIRS.split(",") for language in pair.split("-")})
    one = cfg.source_lang is None
    known = languages if one else [cfg.source_lang, cfg.target_lang]
    made = TranslationMultiWithTeacherTask(
        cfg, languages, {language: dictionary() for language in known}, one
    )
    made.data_manager.distils = distils
    made.data_manager.load_lang_dataset = _pair_of_letters
    return made


def _pair_of_letters(path: str, split: str, src: str, *_: Any, **__: Any) -> Any:
    """Return random sentences instead of those of a file: as many of each pair as of the others."""
    seed = sum(map(ord, src + split))
    return Sentences(sentences(4, seed, 6)), Sentences(sentences(4, seed + 1, 6)), None


def batch(task: TranslationMultiWithTeacherTask, split: str = "train") -> dict[str, Any]:
    """Return all sentences of all pairs in one batch."""
    task.data_manager._num_shards_dict[split] = dict.fromkeys((f"main:{p}" for p in PAIRS.split(",")), 1)
    task.load_dataset(split)
    dataset = task.datasets[split]
    return dataset.collater([dataset[number] for number in range(len(dataset))])


def build(seed: int = 1, arch: str = "transformer", **changes: Any) -> Any:
    """Return an untrained model over the letters and the tags."""
    settings = {
        **(WIDTHS if arch == "transformer" else LSTM),
        "dropout": 0.1,
        "max_source_positions": 64,
        "max_target_positions": 64,
        **changes,
    }
    args = Namespace(arch=arch, criterion="imitkd", share_all_embeddings=True, **settings)
    ARCH_CONFIG_REGISTRY[arch](args)
    torch.manual_seed(seed)
    return tiny_task("source").build_model(args)


def alone(
    task: TranslationMultiWithTeacherTask, sample: dict[str, Any]
) -> Sequence[tuple[Tensor, Tensor, Tensor]]:
    """Return of each sentence the source, what fairseq's decoder reads before the words, and the reference.

    Without padding, and with the tags where fairseq puts them.
    """
    pad, eos, found = dictionary().pad(), dictionary().eos(), []
    inputs = sample["net_input"]
    for source, first, target in zip(
        inputs["src_tokens"], inputs["prev_output_tokens"][:, :1], sample["target"], strict=True
    ):
        before = torch.cat([torch.tensor([eos]), first]) if task.data_manager.tag_is_written else first
        found.append((source[source.ne(pad)], before, target[target.ne(pad)]))
    return found

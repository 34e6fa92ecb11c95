"""Speech with transcripts: fairseq's manifests, and what a text teacher reads of them."""

import csv
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import (
    BaseWrapperDataset,
    ConcatDataset,
    Dictionary,
    ResamplingDataset,
    data_utils,
    encoders,
)
from fairseq.data.audio.data_cfg import S2TDataConfig
from fairseq.data.audio.speech_to_text_joint_dataset import S2TJointDataConfig
from torch import Tensor

from fairseq_imitkd.data.batch_type import TEACHER_INPUT, Batch
from fairseq_imitkd.errors import UsageError, in_one_line

COLUMNS = ("id", "audio", "n_frames", "tgt_text")
TRANSCRIPT = "src_text"  # the column that a text teacher reads


def read_config(data: str | None, name: str) -> S2TJointDataConfig:
    """Return the configuration of a folder of manifests, ``--config-yaml``.

    Raises:
        UsageError: the file is missing, can't be read, or asks for targets that begin with a language tag.
    """
    path = Path(data or "") / name
    try:
        config = S2TJointDataConfig(path)
        tags = config.prepend_tgt_lang_tag or config.prepend_bos_and_append_tgt_lang_tag
    except Exception as error:  # fairseq raises Exception itself
        raise UsageError(
            f"--config-yaml '{path}' can't be read ({in_one_line(error)}); use the configuration beside the "
            "manifests in DATA"
        ) from error
    if tags:
        raise UsageError(
            f"--config-yaml '{path}' adds language tags to the targets, which rollouts would lack: leave "
            "prepend_tgt_lang_tag and prepend_bos_and_append_tgt_lang_tag out"
        )
    return config


def check_manifests(data: str, name: str, splits: Iterable[tuple[str, str]]) -> Path:
    """Check that the manifests of a command's splits are there, and have fairseq's columns.

    Args:
        data: ``DATA``, the folder of the manifests.
        name: ``--config-yaml``.
        splits: flags that name splits, and these splits, which may be joined by commas.

    Returns:
        the target dictionary.

    Raises:
        UsageError: a file or a column is missing.
    """
    config = read_config(data, name)
    dictionary = Path(data) / config.vocab_filename
    if not dictionary.is_file():
        raise UsageError(
            f"DATA '{data}' lacks the dictionary {config.vocab_filename}: add it, or name it in {name} "
            "(vocab_filename)"
        )
    for flag, names in splits:
        for split in names.split(","):
            if flag == "--train-subset" and not split.startswith("train"):
                raise UsageError(
                    f"--train-subset must begin with train, but is '{split}': rename {split}.tsv"
                )
            _check_columns(Path(data) / f"{split}.tsv", f"{flag} '{split}'")
    return dictionary


def check_transcripts(data: str, splits: str) -> None:
    """Check that the manifests that a text teacher reads have transcripts.

    Raises:
        UsageError: one has no column ``src_text``.
    """
    for split in splits.split(","):
        path = Path(data) / f"{split}.tsv"
        if TRANSCRIPT not in _columns(path):
            raise UsageError(
                f"'{path}' has no column {TRANSCRIPT}, which the text teacher of --teacher-path reads: add "
                "the transcripts, or use a teacher of --task speech_to_text"
            )


def _check_columns(path: Path, what: str) -> None:
    if not path.is_file():
        raise UsageError(f"{what} is not in DATA: '{path}' is not a file; name a manifest that is there")
    missing = [name for name in COLUMNS if name not in _columns(path)]
    if missing:
        raise UsageError(
            f"'{path}' lacks the columns {', '.join(missing)}: its first line must name fairseq's columns, "
            "with tabs between them"
        )


def _columns(path: Path) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return next(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), [])
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"'{path}' can't be read ({in_one_line(error)}); use a manifest as text") from error


class TranscriptEncoder:
    """Turns transcripts into what a text teacher reads.

    ``src_pre_tokenizer`` and ``src_bpe_tokenizer`` of ``--config-yaml`` split them, as in fairseq's
    ``speech_text_joint_to_text``. Without them, a transcript is already split.

    Args:
        config: the configuration of the data.
        dictionary: the teacher's source dictionary.
        longest: the longest source that the teacher reads, in tokens.
    """

    def __init__(self, config: S2TDataConfig, dictionary: Dictionary, longest: int):
        self.dictionary, self.longest = dictionary, longest
        parts = {
            name: config._auto_convert_to_abs_path(getattr(S2TJointDataConfig, name).fget(config))
            for name in ("src_pre_tokenizer", "src_bpe_tokenizer")
        }
        self.tokenizer = encoders.build_tokenizer(Namespace(**parts["src_pre_tokenizer"]))
        self.bpe = encoders.build_bpe(Namespace(**parts["src_bpe_tokenizer"]))

    def __call__(self, text: str) -> Tensor:
        """Return the tokens of a transcript with an EOS, ``(S,)`` int64."""
        for part in filter(None, (self.tokenizer, self.bpe)):
            text = part.encode(text)
        tokens: Tensor = self.dictionary.encode_line(text, add_if_not_exist=False, append_eos=True)
        return tokens.long()


class SpokenSentences(BaseWrapperDataset):
    """A data set of ``speech_to_text`` whose batches also hold what a text teacher reads.

    A sentence has the same number in all epochs, also where ``sampling_alpha`` draws the sentences of each:
    random numbers of rollouts and a cache of the teacher's encoder outputs depend on it.

    Args:
        dataset: fairseq's data set, or several joined.
        encode: turns transcripts into tokens; None for a teacher that reads the speech.

    Raises:
        UsageError: a sentence has no transcript.
    """

    def __init__(self, dataset: Any, encode: TranscriptEncoder | None):
        super().__init__(dataset)
        self.encode = encode
        self._first: dict[str, int] = {}  # number of the first sentence of each manifest
        self._transcripts: list[Tensor] = []
        count = 0
        for owner in _manifests(dataset):
            self._first[owner.split] = count
            count += len(owner)
            if encode is not None:
                self._transcripts += _read_transcripts(owner, encode)

    @property
    def src_dict(self) -> Dictionary | None:
        """The dictionary of the transcripts, if they are read."""
        return None if self.encode is None else self.encode.dictionary

    @property
    def tgt_dict(self) -> Dictionary:
        """The target dictionary."""
        found: Dictionary = _owner(self.dataset, 0)[0].tgt_dict
        return found

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = self._number(index)
        item = replace(self.dataset[index], index=number)
        source = self._transcripts[number] if self.encode is not None else item.source
        return {"id": number, "source": source, "target": item.target, "item": item}

    def _number(self, index: int) -> int:
        """Return the number of the sentence that is at a place of this epoch."""
        owner, place = _owner(self.dataset, int(index))
        return self._first[owner.split] + place

    def collater(self, samples: Sequence[dict[str, Any]]) -> Batch:
        """Return fairseq's batch, and the transcripts in the order of its rows."""
        batch: Batch = self.dataset.collater([sample["item"] for sample in samples])
        if not batch or self.encode is None:
            return batch
        read = [self._transcripts[number] for number in batch["id"].tolist()]
        dictionary = self.encode.dictionary
        tokens = data_utils.collate_tokens(read, dictionary.pad(), dictionary.eos(), left_pad=True)
        lengths = torch.tensor([len(each) for each in read])
        return {**batch, TEACHER_INPUT: {"src_tokens": tokens, "src_lengths": lengths}}

    def filter_indices_by_size(self, indices: np.ndarray, max_sizes: Any) -> tuple[np.ndarray, list[int]]:
        """Also leave out the sentences whose transcripts are too long for the text teacher."""
        kept, left_out = self.dataset.filter_indices_by_size(indices, max_sizes)
        if self.encode is None:
            return kept, left_out
        lengths = [len(self._transcripts[self._number(index)]) for index in kept]
        fits = np.array(lengths, int) <= self.encode.longest
        return kept[fits], [*left_out, *kept[~fits].tolist()]


def _manifests(dataset: Any) -> Iterator[Any]:
    """Yield the data set of each manifest."""
    if isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from _manifests(part)
    elif isinstance(dataset, ResamplingDataset):
        yield from _manifests(dataset.dataset)
    else:
        yield dataset


def _read_transcripts(owner: Any, encode: TranscriptEncoder) -> Iterator[Tensor]:
    """Yield the transcripts of a manifest's sentences."""
    if owner.dataset_transforms.transforms:
        raise UsageError(
            "dataset_transforms of --config-yaml mix recordings, but a text teacher reads the transcript of "
            "one: leave them out"
        )
    for name, text in zip(owner.ids, owner.src_texts, strict=True):
        if not text.strip():
            raise UsageError(
                f"sentence '{name}' of '{owner.split}' has no {TRANSCRIPT}, which the text teacher of "
                "--teacher-path reads: add its transcript, or leave the sentence out"
            )
        yield encode(text)


def _owner(dataset: Any, number: int) -> tuple[Any, int]:
    """Return the data set of one manifest that holds a sentence, and the sentence's number in it."""
    while isinstance(dataset, ConcatDataset | ResamplingDataset):
        if isinstance(dataset, ConcatDataset):
            which, number = dataset._get_dataset_and_sample_index(number)
            dataset = dataset.datasets[which]
        else:
            dataset, number = dataset.dataset, int(dataset._cur_indices.array[number])
    return dataset, number

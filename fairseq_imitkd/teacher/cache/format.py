"""The files of a teacher cache, and how one cache is told from another.

    cache.json     what the cache holds. Written last: a cache without it is not complete
    progress.json  in its place while the cache is being written: the same, and the number of batches done
    offsets.npy    (sentences + 1,) int64: tokens offsets[i] to offsets[i + 1] belong to sentence i; a
                   sentence that is too long for the teacher has no tokens
    symbols.npy    topk: (tokens, K), the most probable symbols, the best first
    lprobs.npy     topk: (tokens, K), their log-probabilities
    tail.npy       topk: (tokens,), the logarithm of the probability that all other symbols have together
    features.npy   hidden: (tokens, D), the decoder's hidden states
    weight.npy     hidden: (V, D) float32, the output projection that makes logits of them
    bias.npy       hidden: (V,) float32, the bias of the output projection, if it has one

Tokens are target tokens, EOS included, in the order of the data set. Of several directories,
``DATA1:DATA2``, the sentences follow each other; ``cache.json`` has their numbers as ``shards``.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import utils
from fairseq.tasks.translation import TranslationTask
from torch import Tensor

from fairseq_imitkd.data import output_folder
from fairseq_imitkd.data.dictionaries import symbols_sha256
from fairseq_imitkd.data.files import sha256
from fairseq_imitkd.data.output_folder import shown
from fairseq_imitkd.errors import UsageError, in_one_line

FORMAT = 1
MANIFEST, PROGRESS = "cache.json", "progress.json"
REMEDY = "delete the folder and run imitkd-cache again"
DTYPES = {"fp16": np.float16, "fp32": np.float32}

ArrayType = tuple[tuple[int, ...], Any]  # shape and NumPy type
Shapes = dict[str, ArrayType]


def token_arrays(topk: int, dtype: str, tokens: int, *, symbols: int, width: int) -> Shapes:
    """Return shape and type of each array that has one row per token.

    Args:
        topk: ``K``, or 0 for hidden states.
        dtype: precision of the numbers, ``fp16`` or ``fp32``.
        tokens: number of tokens in all sentences of the cache.
        symbols: ``V``, the size of the target dictionary.
        width: ``D``, the size of a hidden state; ignored if ``topk`` is positive.
    """
    number = DTYPES[dtype]
    if topk == 0:
        return {"features": ((tokens, width), number)}
    symbol = np.uint16 if symbols <= 2**16 else np.int32
    return {
        "symbols": ((tokens, topk), symbol),
        "lprobs": ((tokens, topk), number),
        "tail": ((tokens,), number),
    }


def bytes_a_token(shapes: Shapes) -> int:
    """Return the bytes that one token takes in the arrays of :func:`token_arrays`."""
    return sum(int(np.prod(shape[1:])) * np.dtype(kind).itemsize for shape, kind in shapes.values())


def data_identity(task: TranslationTask, split: str) -> dict[str, Any]:
    """Return everything that decides which tokens a teacher reads.

    Args:
        task: the translation task of the data.
        split: the split.

    Raises:
        UsageError: the split is missing, or a directory has it in several parts.
    """
    cfg = task.cfg
    languages = (cfg.source_lang, cfg.target_lang)
    files: list[Path] = []
    for folder in utils.split_paths(cfg.data):
        found = _split_files(Path(folder), split, languages)
        if not found:
            raise UsageError(f"DATA '{folder}' has no split '{split}' of {cfg.source_lang}-{cfg.target_lang}")
        if _split_files(Path(folder), f"{split}1", languages):
            raise UsageError(
                f"DATA '{folder}' has the split '{split}' in parts ('{split}1', …), which fairseq joins "
                "and may upsample; a teacher cache needs one part, so binarise them together"
            )
        files += found
    return {
        "split": split,
        "data_sha256": hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest(),
        "source_lang": cfg.source_lang,
        "target_lang": cfg.target_lang,
        "source_dictionary_sha256": symbols_sha256(task.source_dictionary.symbols),
        "target_dictionary_sha256": symbols_sha256(task.target_dictionary.symbols),
        "truncate_source": cfg.max_source_positions if cfg.truncate_source else 0,
        "left_pad_source": cfg.left_pad_source,
    }


def difference(theirs: dict[str, Any], own: dict[str, Any]) -> str | None:
    """Return the first setting of ``own`` that differs in ``theirs``, in words; None if there is none."""
    found = output_folder.difference(theirs, own)
    return None if found is None else f"{found[0]} is {found[1]} there, but {found[2]} here"


def places(offsets: np.ndarray, ids: Tensor, counted: Tensor) -> np.ndarray:
    """Return the rows of a batch's tokens in the arrays.

    Args:
        offsets: ``(sentences + 1,)``, the first token of each sentence.
        ids: ``(B,)``, the sentences' numbers in the data set.
        counted: ``(B, T)`` bool, the target's tokens that are not padding; padding is on the right.

    Returns:
        ``(n,)`` int64, one row for each counted token, sentence by sentence.
    """
    rows, columns = counted.nonzero(as_tuple=True)
    return offsets[ids.numpy()][rows.numpy()] + columns.numpy()


def read_json(path: Path) -> dict[str, Any] | None:
    """Return what ``cache.json`` or ``progress.json`` holds; None if the file is missing.

    Raises:
        UsageError: the file can't be read, or another version of the plugin wrote it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:  # it may be another program's, so the message does not advise to delete it
        raise UsageError(
            f"'{path}' can't be read ({error.strerror}); make it readable or use another folder"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"'{path}' can't be read ({in_one_line(error)}): {REMEDY}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UsageError(f"another version of fairseq-imitkd wrote '{path}': {REMEDY}")
    return content


def check_manifest(manifest: dict[str, Any], path: Path) -> None:
    """Refuse a manifest that no release wrote: a cache may come from an unknown source.

    Args:
        manifest: the content of ``cache.json``.
        path: the file, for the message.

    Raises:
        UsageError: an entry is missing or has an impossible value.
    """

    def count(name: str, least: int) -> bool:
        return type(manifest.get(name)) is int and manifest[name] >= least

    topk, longest, dtype, projection = (
        manifest.get(name) for name in ("topk", "max_positions", "dtype", "projection")
    )
    sound = {
        "kind": manifest.get("kind") == ("topk" if topk else "hidden"),
        "topk": count("topk", 0),
        "dtype": isinstance(dtype, str) and dtype in DTYPES,
        "symbols": count("symbols", 2) and (not count("topk", 1) or topk < manifest["symbols"]),
        "width": count("width", 0 if topk else 1),
        "projection": projection in ([[]] if topk else [["weight"], ["weight", "bias"]]),
        "sentences": count("sentences", 1),
        "absent": count("absent", 0),
        "tokens": count("tokens", 1),
        "bytes_a_token": count("bytes_a_token", 1),
        "max_positions": isinstance(longest, list)
        and len(longest) == 2
        and all(type(each) is int for each in longest),
        "shards": _are_shards(manifest.get("shards"), manifest.get("sentences")),
    }
    for name, is_sound in sound.items():
        if not is_sound:
            raise UsageError(f"'{path}' is damaged, its {name} is {shown(manifest.get(name))}: {REMEDY}")


def _are_shards(shards: Any, sentences: Any) -> bool:
    """Whether the numbers of sentences in each directory of ``DATA`` are sound; one directory needs none."""
    if shards is None:
        return True
    return isinstance(shards, list) and all(type(each) is int for each in shards) and sum(shards) == sentences


def open_array(folder: Path, name: str, expected: ArrayType, *, mode: Any = "r") -> np.ndarray:
    """Open one of the arrays, memory-mapped.

    Args:
        folder: the folder of the cache.
        name: name of the array, without ``.npy``.
        expected: the shape and type that it must have.
        mode: ``r`` to read, ``r+`` to write.

    Raises:
        UsageError: the array is missing or damaged.
    """
    path = folder / f"{name}.npy"
    try:
        array = np.load(path, mmap_mode=mode, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"'{path}' can't be read ({in_one_line(error)}): {REMEDY}") from error
    if not isinstance(array, np.ndarray):
        raise UsageError(f"'{path}' is not an array: {REMEDY}")
    if (array.shape, array.dtype) != expected:
        raise UsageError(
            f"'{path}' holds {array.dtype} {array.shape}, which is not what its cache says: {REMEDY}"
        )
    return array


def open_offsets(folder: Path, manifest: dict[str, Any]) -> np.ndarray:
    """Read ``offsets.npy`` into memory.

    Args:
        folder: the folder of the cache.
        manifest: the content of ``cache.json``.

    Raises:
        UsageError: the file is missing or damaged.
    """
    offsets = np.array(open_array(folder, "offsets", ((manifest["sentences"] + 1,), np.int64)))
    if offsets[0] != 0 or offsets[-1] != manifest["tokens"] or (np.diff(offsets) < 0).any():
        raise UsageError(f"'{folder / 'offsets.npy'}' is damaged: {REMEDY}")
    return offsets


def as_tensor(array: np.ndarray) -> Tensor:
    """Copy rows of a cache into a tensor; symbols become int64."""
    return torch.from_numpy(
        np.ascontiguousarray(array if array.dtype in DTYPES.values() else array.astype(np.int64))
    )


def _split_files(folder: Path, split: str, languages: tuple[str, str]) -> list[Path]:
    """Return the files of a split's token ids and sizes. fairseq accepts names by either direction:
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/tasks/translation.py#L73-L77
    """
    for pair in ("-".join(languages), "-".join(languages[::-1])):
        names = [f"{split}.{pair}.{language}{end}" for language in languages for end in ("", ".idx", ".bin")]
        found = [folder / name for name in names if (folder / name).is_file()]
        if found:
            return found
    return []

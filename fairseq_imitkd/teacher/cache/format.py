"""The files of a teacher cache, and what tells one cache from another.

    cache.json     what the cache is of. Written last: without it a cache is not complete
    progress.json  while it is being written, in its place: the same, and how many batches are done
    offsets.npy    (sentences + 1,) int64: sentence i has the tokens offsets[i] to offsets[i + 1]; none if it is absent
    symbols.npy    topk: (tokens, K), the most probable symbols, best first
    lprobs.npy     topk: (tokens, K), their log-probabilities
    tail.npy       topk: (tokens,), the logarithm of the probability that all other symbols have together
    features.npy   hidden: (tokens, D), the decoder's hidden states
    weight.npy     hidden: (V, D) float32, the output projection that makes logits of them
    bias.npy       hidden: (V,) float32, where it has one

Tokens are target tokens, EOS included, in the order of the data set: a sentence's lie side by side.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import utils
from fairseq.data import Dictionary
from fairseq.tasks.translation import TranslationTask
from torch import Tensor

from fairseq_imitkd.data.files import sha256
from fairseq_imitkd.errors import UsageError

FORMAT = 1
MANIFEST, PROGRESS = "cache.json", "progress.json"
REMEDY = "delete the folder and run imitkd-cache again"
DTYPES = {"fp16": np.float16, "fp32": np.float32}

Shapes = dict[str, tuple[tuple[int, ...], Any]]


def token_arrays(topk: int, dtype: str, tokens: int, symbols: int, width: int) -> Shapes:
    """Shape and type of each array that has a row a token.

    Args:
        topk: ``K``, or 0 for hidden states.
        dtype: ``fp16`` or ``fp32``.
        tokens: of all sentences that are there.
        symbols: ``V``.
        width: ``D``; not read where ``topk`` is positive.
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
    """What a token takes in the arrays of :func:`token_arrays`."""
    return sum(int(np.prod(shape[1:])) * np.dtype(kind).itemsize for shape, kind in shapes.values())


def data_identity(task: TranslationTask, split: str) -> dict[str, Any]:
    """All that decides what a teacher reads of a split: two runs that agree in it agree in every token.

    Raises:
        UsageError: the split is not there, or is more than one data set, whose sentences' numbers would not be the cache's.
    """
    cfg = task.cfg
    folders = utils.split_paths(cfg.data)
    if len(folders) > 1:
        raise UsageError(
            f"a teacher cache is of one data folder, but '{cfg.data}' names {len(folders)}: give one"
        )
    files = _split_files(Path(folders[0]), split, cfg.source_lang, cfg.target_lang)
    if not files:
        raise UsageError(f"'{cfg.data}' has no split '{split}' of {cfg.source_lang}-{cfg.target_lang}")
    if _split_files(Path(folders[0]), f"{split}1", cfg.source_lang, cfg.target_lang):
        raise UsageError(
            f"'{cfg.data}' has the split '{split}' in several parts ('{split}1', …), which fairseq joins and may upsample: a "
            "teacher cache is of one, so binarise them as one"
        )
    return {
        "split": split,
        "data_sha256": hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest(),
        "source_lang": cfg.source_lang,
        "target_lang": cfg.target_lang,
        "source_dictionary_sha256": _dictionary_sha256(task.source_dictionary),
        "target_dictionary_sha256": _dictionary_sha256(task.target_dictionary),
        "truncate_source": cfg.max_source_positions if cfg.truncate_source else 0,
        "left_pad_source": cfg.left_pad_source,
    }


def difference(theirs: dict[str, Any], own: dict[str, Any]) -> str | None:
    """In which setting two descriptions differ, in words; None where all of one's own are the same there."""
    for name, value in own.items():
        if theirs.get(name) != value:
            return f"{name} is {_shown(theirs.get(name))} there, but {_shown(value)} here"
    return None


def places(offsets: np.ndarray, ids: Tensor, counted: Tensor) -> np.ndarray:
    """Where the tokens of a batch are in the arrays.

    Args:
        offsets: of the cache.
        ids: ``(B,)``, the sentences' numbers in the data set.
        counted: ``(B, T)`` bool, the target's tokens, padded on the right.

    Returns:
        ``(n,)`` int64, for all counted tokens, row by row.
    """
    rows, columns = counted.nonzero(as_tuple=True)
    return offsets[ids.numpy()][rows.numpy()] + columns.numpy()


def read_json(path: Path) -> dict[str, Any] | None:
    """What :func:`~fairseq_imitkd.data.files.write_json` wrote; None where there is no such file, or no folder for it.

    Raises:
        UsageError: it is no file of this version of the plugin.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:  # it may be another's: nothing is to be deleted
        raise UsageError(
            f"'{path}' can't be read ({error.strerror}): see that it can, or name another folder"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"'{path}' can't be read ({' '.join(str(error).split())}): {REMEDY}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UsageError(f"'{path}' is of another version of fairseq-imitkd: {REMEDY}")
    return content


def check_manifest(manifest: dict[str, Any], path: Path) -> None:
    """Refuse a manifest that no release wrote: a cache may come from anywhere.

    Raises:
        UsageError: an entry is missing, or of another kind.
    """

    def count(name: str, least: int) -> bool:
        return type(manifest.get(name)) is int and manifest[name] >= least

    topk, longest, projection = (manifest.get(name) for name in ("topk", "max_positions", "projection"))
    sound = {
        "kind": manifest.get("kind") == ("topk" if topk else "hidden"),
        "topk": count("topk", 0),
        "dtype": manifest.get("dtype") in DTYPES,
        "symbols": count("symbols", 2) and (not topk or topk < manifest["symbols"]),
        "width": count("width", 0 if topk else 1),
        "projection": projection in ([[]] if topk else [["weight"], ["weight", "bias"]]),
        "sentences": count("sentences", 1),
        "absent": count("absent", 0),
        "tokens": count("tokens", 1),
        "bytes_a_token": count("bytes_a_token", 1),
        "max_positions": isinstance(longest, list)
        and len(longest) == 2
        and all(type(each) is int for each in longest),
    }
    for name, is_sound in sound.items():
        if not is_sound:
            raise UsageError(f"'{path}' is damaged, its {name} is {_shown(manifest.get(name))}: {REMEDY}")


def open_array(folder: Path, name: str, shape: tuple[int, ...], dtype: Any, mode: Any = "r") -> np.ndarray:
    """One of the arrays, memory-mapped.

    Args:
        folder: of the cache.
        name: without ``.npy``.
        shape, dtype: that it must have.
        mode: ``r``, or ``r+`` to write.

    Raises:
        UsageError: it is missing or damaged.
    """
    path = folder / f"{name}.npy"
    try:
        array = np.load(path, mmap_mode=mode, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"'{path}' can't be read ({' '.join(str(error).split())}): {REMEDY}") from error
    if not isinstance(array, np.ndarray):
        raise UsageError(f"'{path}' is no array: {REMEDY}")
    if array.dtype != dtype or array.shape != shape:
        raise UsageError(
            f"'{path}' holds {array.dtype} {array.shape}, which is not what its cache says: {REMEDY}"
        )
    return array


def open_offsets(folder: Path, manifest: dict[str, Any]) -> np.ndarray:
    """``offsets.npy``, in memory.

    Raises:
        UsageError: it is missing or damaged.
    """
    offsets = np.array(open_array(folder, "offsets", (manifest["sentences"] + 1,), np.int64))
    if offsets[0] != 0 or offsets[-1] != manifest["tokens"] or (np.diff(offsets) < 0).any():
        raise UsageError(f"'{folder / 'offsets.npy'}' is damaged: {REMEDY}")
    return offsets


def as_tensor(array: np.ndarray) -> Tensor:
    """Numbers of a cache as torch computes with them; symbols as int64."""
    return torch.from_numpy(
        np.ascontiguousarray(array if array.dtype in DTYPES.values() else array.astype(np.int64))
    )


def _split_files(folder: Path, split: str, source_lang: str, target_lang: str) -> list[Path]:
    """The files that hold both sides' token ids and sizes, whichever direction they are named by."""
    for pair in (f"{source_lang}-{target_lang}", f"{target_lang}-{source_lang}"):
        names = [
            f"{split}.{pair}.{language}{end}"
            for language in (source_lang, target_lang)
            for end in ("", ".idx", ".bin")
        ]
        found = [folder / name for name in names if (folder / name).is_file()]
        if found:
            return found
    return []


def _dictionary_sha256(dictionary: Dictionary) -> str:
    """Of its symbols in their order; how often each was counted changes nothing."""
    return hashlib.sha256("\n".join(dictionary.symbols).encode()).hexdigest()


def _shown(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text

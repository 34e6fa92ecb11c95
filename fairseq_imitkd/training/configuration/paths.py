"""Files that flags name, and folders that a command will write."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq.quantization_utils import Quantizer
from fairseq.utils import load_align_dict

from fairseq_imitkd.data.files import is_compressed, kind_of
from fairseq_imitkd.errors import UsageError, as_usage_error
from fairseq_imitkd.training.configuration.ranges import flag

LAST = "checkpoint_last.pt"  # fairseq's default of --restore-file, which it looks for in --save-dir
# Flags that name a file to read, and what the file is.
_FILES = {
    "continue_once": "a checkpoint of fairseq (.pt)",
    "ema_seed_model": "a checkpoint of fairseq (.pt)",
    "quantization_config_path": "a file of settings (.yaml)",
    "encoder_embed_path": "a text file of embeddings, one symbol a line",
    "decoder_embed_path": "a text file of embeddings, one symbol a line",
    "sentencepiece_model": "the model that the data was split with",
    "sentencepiece_model_path": "the model that the data was split with",
    "bpe_codes": "the merges that the data was split with",
    "bpe_merges": "the merges that the data was split with",
    "bpe_vocab": "the symbols that the data was split with",
    "bpe_vocab_file": "the symbols that the data was split with",
    "gpt2_encoder_json": "the symbols that the data was split with",
    "gpt2_vocab_bpe": "the merges that the data was split with",
    "replace_unk": "a dictionary of translations, two words a line",
    "input": "a text file, or - for standard input",
}
_MISSING = "???"  # how fairseq marks a value that must be given
_NOT_FILES = {"input": ("-",)}
_TRAINING = (
    "continue_once",
    "ema_seed_model",
    "quantization_config_path",
    "encoder_embed_path",
    "decoder_embed_path",
)
_FOLDERS = ("save_dir", "tensorboard_logdir", "results_path", "aim_repo")


def check(settings: Mapping[str, Any], command: str) -> None:
    """Refuse files that are not there, and folders that can't be made.

    Args:
        settings: the settings.
        command: the command, as in :func:`~fairseq_imitkd.training.configuration.check_configuration`.

    Raises:
        UsageError: naming the flag and the path.
    """
    decodes = command != "train"
    for name, what in _FILES.items():
        path = settings.get(name)
        if path == _MISSING:
            raise UsageError(f"{flag(name)} is not given; add {what}")
        elif (
            path is not None and path not in _NOT_FILES.get(name, ()) and not (decodes and name in _TRAINING)
        ):
            check_file(str(path), flag(name), what)
            if name == "input" and not _is_remote(path) and not os.path.getsize(path):
                raise UsageError(f"--input '{path}' is empty; use {what}")
            if name == "input" and not _is_remote(path):
                with open(path, "rb") as file:
                    if is_compressed(file.read(8)):
                        raise UsageError(f"--input '{path}' is compressed; unpack it")
    if settings.get("log_file") is not None:
        _check_writable_file(Path(settings["log_file"]), "--log-file")
    for name in _FOLDERS:
        path = settings.get(name)
        if path is not None and not _is_remote(path) and not (decodes and name == "save_dir"):
            check_folder_to_write(Path(path), flag(name), path)
    suffix = settings.get("checkpoint_suffix") or ""
    if os.sep in suffix:
        raise UsageError(f"--checkpoint-suffix must be a part of a file's name, but is '{suffix[:60]}'")
    words = settings.get("replace_unk")
    if words is not None:
        with as_usage_error(f"--replace-unk '{words}' can't be read", "give it two words a line"):
            load_align_dict(words)
    if not decodes:
        _check_quantization(settings)
        _check_start(settings)


def check_file(path: str, name: str, what: str) -> None:
    """Refuse a path that is not a readable file.

    Args:
        path: the path; one of another machine (``s3://...``) passes.
        name: the flag that names it, for the message.
        what: what the file should be, for the message.

    Raises:
        UsageError: there is no file, or it may not be read.
    """
    if _is_remote(path):
        return
    if kind_of(path, name) != "file":
        raise UsageError(f"{name} '{path}' is not a file; use {what}")
    if not os.access(path, os.R_OK):
        raise UsageError(f"{name} '{path}' can't be read; check the file's permissions")


def check_folder_to_write(path: Path, name: str, shown: Any) -> None:
    """Refuse a folder that is not there and can't be made, or that can't be written.

    Args:
        path: the folder.
        name: the flag that names it, for the message.
        shown: its value, for the message.

    Raises:
        UsageError: naming the flag and the reason.
    """
    if not str(shown):
        raise UsageError(f"{name} is empty; name a folder")
    there = path
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if kind_of(there, name) != "folder":
        raise UsageError(f"{name} '{shown}' can't be made: '{there}' is not a folder; use another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(
            f"{name} '{shown}' can't be written: check the permissions of '{there}', or use another"
        )
    try:  # root may write everywhere, but not in /proc or on a full disk
        os.rmdir(tempfile.mkdtemp(dir=there))
    except OSError as error:
        raise UsageError(f"{name} '{shown}' can't be written ({error.strerror}): use another") from error
    if len(os.fsencode(path.name)) > os.pathconf(there, "PC_NAME_MAX"):
        raise UsageError(
            f"{name} '{str(shown)[:60]}…' can't be made: its name is too long; use a shorter one"
        )


def checkpoint_to_start_from(settings: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the flag and the file that fairseq will load, or None if the training starts with nothing.

    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/checkpoint_utils.py#L223-L261

    Args:
        settings: the settings of a training.
    """
    restored, suffix = settings.get("restore_file", LAST), settings.get("checkpoint_suffix") or ""
    if restored != LAST:
        return "--restore-file", restored.replace(".pt", f"{suffix}.pt")
    last = os.path.join(settings.get("save_dir") or "checkpoints", LAST.replace(".pt", f"{suffix}.pt"))
    if os.path.isfile(last):
        return "--save-dir", last
    for name in ("continue_once", "finetune_from_model"):
        if settings.get(name) is not None:
            return flag(name), str(settings[name])
    return None


def _check_quantization(settings: Mapping[str, Any]) -> None:
    """Refuse settings of quantization that fairseq can't read, or that don't divide the training."""
    path = settings.get("quantization_config_path")
    if path is not None:
        limits = {name: settings.get(name) or 0 for name in ("max_epoch", "max_update")}
        with as_usage_error(f"--quantization-config-path '{path}' can't be used", "mend it, or leave it out"):
            Quantizer(path, **limits)


def _check_start(settings: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that is not there; fairseq would start with nothing."""
    if settings.get("restore_file") == "":  # a shell's variable that is not set
        raise UsageError("--restore-file is empty; name a checkpoint (.pt), or leave it out")
    start = checkpoint_to_start_from(settings)
    if start is None or start[0] == "--save-dir":
        return
    name, path = start
    if not _is_remote(path) and kind_of(path, name) != "file":
        beside = os.path.join(settings.get("save_dir") or "checkpoints", path)
        hint = (
            f"use {beside}"
            if os.path.isfile(beside)
            else "use the path of a checkpoint (.pt), or leave it out"
        )
        raise UsageError(f"{name} '{path}' is not a file; {hint}")
    check_file(path, name, "a checkpoint of fairseq (.pt)")


def _check_writable_file(path: Path, name: str) -> None:
    kind = kind_of(path, name)
    if kind == "folder" or not path.name:
        raise UsageError(f"{name} '{path}' is a folder; name a file")
    if kind is None and kind_of(path.parent, name) != "folder":
        raise UsageError(f"{name} '{path}' can't be written: its folder is not there; make it first")
    if not os.access(path if kind else path.parent, os.W_OK):
        raise UsageError(f"{name} '{path}' can't be written; check its permissions, or use another")
    if len(os.fsencode(path.name)) > os.pathconf(path.parent, "PC_NAME_MAX"):
        raise UsageError(f"{name} '{str(path)[:60]}…' can't be made: its name is too long; use a shorter one")


def _is_remote(path: Any) -> bool:
    return "://" in str(path)

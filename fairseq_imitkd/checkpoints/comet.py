"""COMET (Rei et al. 2020) of the package unbabel-comet: a trained model that scores translations.

The model is a file of the user's own; nothing is downloaded. The package's version 2.2.7 needs transformers
below 5.
"""

import logging
import os
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq_imitkd.checkpoints.guard import all_are_trusted
from fairseq_imitkd.checkpoints.safe_load import TRUST
from fairseq_imitkd.data.files import sha256
from fairseq_imitkd.errors import UsageError, in_one_line

COMET = "comet"
TOGETHER = 64  # sentences that the encoder reads at once
# What PyTorch Lightning saves beside weights and settings. None of it runs anything when it is read.
HARMLESS = {
    "argparse.Namespace",
    "lightning_fabric.utilities.data.AttributeDict",
    "pathlib.PosixPath",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.utilities.parsing.AttributeDict",
}


def load_comet(path: Path, flag: str) -> Any:
    """Return COMET's model of a file.

    Args:
        path: checkpoint, ``model.ckpt`` in its folder.
        flag: flag and value that ask for COMET, for messages.

    Raises:
        UsageError: the package is not installed, or the file is missing, unsafe, or not a COMET model.
    """
    check_comet(path, flag)
    comet = _package(flag)
    # It logs its devices and advertises products at each prediction.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    try:
        # COMET looks for other files in the folder above the checkpoint's, so the path is absolute and a link
        # is not followed.
        return comet.load_from_checkpoint(str(path.absolute()))
    except Exception as error:  # its many packages raise all kinds of errors on a wrong file
        raise UsageError(f"--comet-model '{path}' can't be used: {in_one_line(error)}") from error


def check_comet(path: Path, flag: str) -> None:
    """Check that the package is installed and that reading the file runs no code.

    Raises:
        UsageError: one of the two is not the case.
    """
    if not path.is_file():
        raise UsageError(
            f"--comet-model '{path}' is not a file; use the checkpoint of a COMET model, model.ckpt"
        )
    _package(flag)
    if all_are_trusted():
        return
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception as error:  # a file of another format
        raise UsageError(
            f"--comet-model '{path}' is not a checkpoint of a COMET model; use its model.ckpt"
        ) from error
    if unsafe := sorted(set(names) - HARMLESS):
        raise UsageError(
            f"--comet-model '{path}' needs {', '.join(unsafe)[:60]}, which may run code; if you trust the "
            f"file, set {TRUST}=1"
        )


def _package(flag: str) -> Any:
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")  # nothing is downloaded unasked
    try:
        return import_module("comet")
    except ImportError as error:
        raise UsageError(
            f"{flag} needs {error.name or 'comet'}: pip install unbabel-comet, or leave comet out"
        ) from error


def comet_signature(path: Path) -> str:
    """Return the settings with which COMET scores are comparable, in the form of sacreBLEU's signatures."""
    return f"unbabel-comet|model:{sha256(path)[:12]}|version:{version('unbabel-comet')}"


class CometSimilarity:
    """COMET of each translation of a sentence with each reference.

    Each sentence is encoded once, and then compared with all others, as in the package's ``comet-mbr``.

    Args:
        path: checkpoint of a COMET model that compares with references.
        device: where it computes.

    Raises:
        UsageError: as for :func:`load_comet`; or the model needs no references, or it computes nothing.
    """

    def __init__(self, path: Path, device: torch.device):
        self.model = load_comet(path, "--metric comet")
        if not all(hasattr(self.model, name) for name in ("get_sentence_embedding", "estimate")) or (
            not self.model.requires_references()
        ):
            raise UsageError(
                f"--comet-model '{path}' must be a regression model with references, such as wmt22-comet-da, "
                f"but is a {type(self.model).__name__}"
            )
        self.model.eval().to(device)
        self.device = device
        try:
            self.scores("a", ["a"], ["a"])
        except Exception as error:  # versions of its packages that do not fit together
            raise UsageError(
                f"--comet-model '{path}' can't compute: {in_one_line(error)[:60]}; see which transformers "
                "unbabel-comet needs"
            ) from error

    @torch.no_grad()
    def scores(self, source: str, texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """Return ``(N, M)`` float64: the score of text ``i`` with reference ``j``.

        Args:
            source: the sentence.
            texts: ``N`` translations of it.
            references: ``M`` translations that these are compared with.
        """
        every = {text: place for place, text in enumerate(dict.fromkeys([source, *texts, *references]))}
        encoded = self._encoded(list(every))  # (different texts, dimensions)
        compared = encoded[[every[text] for text in references]]
        source_rows = encoded[every[source]].expand_as(compared)
        rows = [
            self.model.estimate(source_rows, encoded[every[text]].expand_as(compared), compared)["score"]
            for text in texts
        ]
        return torch.stack(rows).double().cpu().numpy()

    def _encoded(self, texts: list[str]) -> Tensor:
        parts = []
        for start in range(0, len(texts), TOGETHER):
            batch = self.model.encoder.prepare_sample(texts[start : start + TOGETHER])
            parts.append(
                self.model.get_sentence_embedding(
                    batch["input_ids"].to(self.device), batch["attention_mask"].to(self.device)
                )
            )
        return torch.cat(parts)

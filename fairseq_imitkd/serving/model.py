"""The model that a server translates with, and what the server says about it."""

import re
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor


class ServedModel(Protocol):
    """The interface of the model: :class:`~fairseq_imitkd.export.bundle.Bundle` has it.

    ``encode`` and ``decode`` run in one thread, ``translate`` in another.

    Attributes:
        manifest: what the model's folder says about it.
        longest_source: maximum number of source tokens, EOS included.
        longest_word: maximum number of characters between two spaces; None allows any.
    """

    manifest: dict[str, Any]
    longest_source: int
    longest_word: int | None

    def encode(self, text: str) -> Tensor:
        """Return the tokens of a sentence, ``(S,)`` with an EOS."""

    def decode(self, tokens: Tensor) -> str:
        """Return the text of a translation ``(T,)``."""

    def translate(self, sources: Sequence[Tensor]) -> list[Tensor]:
        """Return the translations of a batch, in its order."""


def model_facts(model: ServedModel) -> dict[str, Any]:
    """Return what ``/health`` says about a model; a fact that the manifest lacks is None."""
    manifest = model.manifest
    return {
        "source_lang": manifest.get("source_lang"),
        "target_lang": manifest.get("target_lang"),
        "engine": manifest.get("form"),
        "quantization": manifest.get("quantization"),
        "parameters": manifest.get("student", {}).get("parameters"),
    }


def manifest_error(model: ServedModel) -> str | None:
    """Return what keeps :func:`model_facts` from being JSON; None if nothing does.

    Loading a model checks the rest of the manifest.
    """
    student, quantization = model.manifest.get("student", {}), model.manifest.get("quantization")
    if not isinstance(student, dict):
        return f"its student is {student!r:.50}"
    if not isinstance(parameters := student.get("parameters"), int | None):
        return f"its student's parameters are {parameters!r:.50}"
    if not (
        quantization is None or (isinstance(quantization, str) and re.fullmatch(r"\w{1,100}", quantization))
    ):
        return f"its quantization is {quantization!r:.50}"
    return None

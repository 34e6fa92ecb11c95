"""Models of every family with their tokenizers, and what ``imitkd-import`` makes of them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fairseq.data import Dictionary

from fairseq_imitkd.data.corpus import Languages, dataset_builder
from fairseq_imitkd.huggingface.importer import Imported, ImportJob, import_model
from tests.helpers import huggingface_models as models


@dataclass(frozen=True)
class Case:
    """A model and its import.

    Args:
        origin: the model's folder.
        out: folder of the import.
        pair: source and target language.
        made: what the import reports.
    """

    origin: Path
    out: Path
    pair: tuple[str, str]
    made: Imported

    @property
    def languages(self) -> Languages:
        """The dictionaries of the import."""
        return Languages.of(self.out, *self.pair)


def _marian(**files: Any) -> tuple[str, dict[str, Any], dict[str, Any], tuple[str, str]]:
    given = models.marian_files(**files)
    size = len(given["vocab.json"])
    last = {"vocab_size": size, "pad_token_id": size - 1, "decoder_start_token_id": size - 1}
    return "marian", given, {**last, "eos_token_id": 0}, ("de", "en")


def _m2m() -> tuple[str, dict[str, Any], dict[str, Any], tuple[str, str]]:
    given = models.m2m_files()
    return "m2m_100", given, {"vocab_size": len(given["vocab.json"]) + 108}, ("de", "en")


def _nllb() -> tuple[str, dict[str, Any], dict[str, Any], tuple[str, str]]:
    given = models.nllb_files(["deu_Latn", "eng_Latn", "zsm_Latn"])
    return "m2m_100", given, {"vocab_size": 301 + 3 + 1 + 2}, ("deu_Latn", "eng_Latn")


def _fast() -> tuple[str, dict[str, Any], dict[str, Any], tuple[str, str]]:
    """NLLB as transformers saves it after a call that cuts and pads: a ``tokenizer.json`` that keeps both."""
    kind, files, settings, pair = _nllb()
    del files["sentencepiece.bpe.model"]
    content = json.loads(files["tokenizer.json"])
    content["truncation"] = {
        "direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    content["padding"] = {
        "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 1,
        "pad_type_id": 0, "pad_token": "<pad>",
    }  # fmt: skip
    return kind, {**files, "tokenizer.json": json.dumps(content)}, settings, pair


def _mbart() -> tuple[str, dict[str, Any], dict[str, Any], tuple[str, str]]:
    english = 301 + 3  # the number of en_XX
    settings = {"vocab_size": 301 + 25 + 1, "decoder_start_token_id": english}
    return "mbart", models.mbart_files(), settings, ("de_DE", "en_XX")


def _mbart50() -> tuple[str, dict[str, Any], dict[str, Any], tuple[str, str]]:
    given = models.mbart_files(name="MBart50Tokenizer")
    return "mbart", given, {"vocab_size": 301 + 52 + 1}, ("de_DE", "sl_SI")


def _bart() -> tuple[str, dict[str, Any], dict[str, Any], tuple[str, str]]:
    given = models.byte_level_files()
    return "bart", given, {"vocab_size": len(given["vocab.json"])}, ("source", "target")


def _fsmt() -> tuple[str, dict[str, Any], dict[str, Any], tuple[str, str]]:
    given = models.fsmt_files()
    sizes = {f"{side}_vocab_size": len(given[f"vocab-{side}.json"]) for side in ("src", "tgt")}
    return "fsmt", given, sizes, ("de", "en")


def _pegasus() -> tuple[str, dict[str, Any], dict[str, Any], tuple[str, str]]:
    return "pegasus", models.pegasus_files(), {"vocab_size": 103 + 300}, ("source", "target")


CASES: dict[str, Callable[[], tuple[str, dict[str, Any], dict[str, Any], tuple[str, str]]]] = {
    "marian": _marian,
    "marian-bpe": lambda: _marian(kind="bpe"),
    "marian-bytes": lambda: _marian(kind="bpe", byte_fallback=True, size=500),
    "marian-tags": lambda: _marian(tags=(">>en<<", ">>fr<<")),
    "m2m": _m2m,
    "nllb": _nllb,
    "nllb-fast": _fast,
    "mbart": _mbart,
    "mbart50": _mbart50,
    "bart": _bart,
    "fsmt": _fsmt,
    "pegasus": _pegasus,
}


def write_split(
    folder: Path, pair: tuple[str, str], dictionaries: Sequence[Dictionary], texts: Any, split: str = "valid"
) -> None:
    """Write dictionaries, and lines of symbols of both languages as a split."""
    folder.mkdir(exist_ok=True)
    for language, dictionary, lines in zip(pair, dictionaries, texts, strict=True):
        dictionary.save(str(folder / f"dict.{language}.txt"))
        prefix = folder / f"{split}.{pair[0]}-{pair[1]}.{language}"
        with dataset_builder(prefix, len(dictionary)) as builder:
            for line in lines:
                builder.add_item(dictionary.encode_line(line, add_if_not_exist=False))


@pytest.fixture(scope="session")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Return a function that imports a model of :data:`CASES`, once."""
    root, done = tmp_path_factory.mktemp("imported"), dict[str, Case]()

    def case(name: str) -> Case:
        if name not in done:
            kind, files, settings, pair = CASES[name]()
            origin = models.save(models.built(kind, **settings), root / name, files)
            out = root / f"{name}-imported"
            done[name] = Case(origin, out, pair, import_model(ImportJob(origin, out, *pair)))
        return done[name]

    return case

"""Flags whose text has a form: JSON objects, pairs of numbers, and dictionaries.

fairseq evaluates some of them as Python.
"""

import ast
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq.data import encoders  # noqa: F401  (registers the tokenizers)
from fairseq.dataclass.configs import GenerationConfig
from fairseq.registry import REGISTRIES

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.method.config import Range
from fairseq_imitkd.text.pieces import check_merges, open_pieces
from fairseq_imitkd.training.configuration.generation import DIVERSE, POST_PROCESSES, search_problems
from fairseq_imitkd.training.configuration.ranges import POSITIVE, PROBABILITY, check_value, flag

_PAIRS: dict[str, tuple[Range, str]] = {
    "adam_betas": (PROBABILITY, "(0.9, 0.98)"),
    "adamax_betas": (PROBABILITY, "(0.9, 0.98)"),
    "lamb_betas": (PROBABILITY, "(0.9, 0.98)"),
    "adafactor_eps": (POSITIVE, "(1e-30, 1e-3)"),
}
_DICTIONARIES = {
    "optimizer_overrides": "{'lr': 0.1}",
    "model_overrides": "{'encoder_layers_to_keep': '0,2'}",
    "epoch2lr": "{'1-3': 0.1}",
    "update2lr": "{'1-100': 0.1}",
    "groups": "{}",
    "encoder_xformers_att_config": "{'name': 'scaled_dot_product'}",
    "decoder_xformers_att_config": "{'name': 'scaled_dot_product'}",
}


def check(settings: Mapping[str, Any]) -> None:
    """Refuse texts that don't have their flag's form.

    Raises:
        UsageError: naming the flag, its text, and an example.
    """
    for name, (accepted, example) in _PAIRS.items():
        _check_pair(name, settings.get(name), accepted, example=example)
    for name, example in _DICTIONARIES.items():
        value = settings.get(name)
        if isinstance(value, str) and not isinstance(_literal(value), dict):
            raise UsageError(f"{flag(name)} must be a dictionary such as {example}, but is {_shown(value)}")
    for name in ("epoch2lr", "update2lr"):
        rates = _literal(settings.get(name) or "{}")
        if not all(isinstance(part, str) and isinstance(rates[part], int | float) for part in rates):
            raise UsageError(
                f"{flag(name)} must map texts to numbers, such as {_DICTIONARIES[name]}, but is "
                f"{_shown(settings[name])}"
            )
    value = settings.get("update_epoch_batch_itr")
    if isinstance(value, str) and value not in ("True", "False") and not value.startswith("${"):
        raise UsageError(f"--update-epoch-batch-itr must be True or False, but is {_shown(value)}")
    attention = settings.get("decoder_attention")
    if isinstance(attention, str) and not _is_switches(_literal(attention)):
        raise UsageError(
            "--decoder-attention must be True or False, or a list of them for --arch fconv, but is "
            f"{_shown(attention)}"
        )
    cutoff = settings.get("adaptive_softmax_cutoff")
    if isinstance(cutoff, str) and not _is_ascending(_literal(cutoff)):
        raise UsageError(
            "--adaptive-softmax-cutoff must be ascending whole numbers such as 10000,50000, but is "
            f"{_shown(cutoff)}"
        )
    bpe, known = settings.get("bpe"), REGISTRIES["bpe"]["dataclass_registry"]
    if bpe is not None and bpe not in known:
        raise UsageError(
            f"--bpe {bpe} can't be used, because fairseq has no settings for it: use one of "
            f"{', '.join(sorted(known))}"
        )
    if settings.get("tokenizer") == "moses":
        for name in ("source_lang", "target_lang"):
            if settings.get(name) is None:
                raise UsageError(f"{flag(name)} is not given; --tokenizer moses needs it: add the language")
    if settings.get("bpe") in ("fastbpe", "subword_nmt") and os.path.isfile(settings.get("bpe_codes") or ""):
        check_merges(settings["bpe"], Path(settings["bpe_codes"]))
    if settings.get("bpe") == "sentencepiece" and os.path.isfile(settings.get("sentencepiece_model") or ""):
        open_pieces(settings["sentencepiece_model"])
    if settings.get("eval_bleu") or settings.get("eval_metrics"):
        _check_search(settings.get("eval_bleu_args"))
        _check_detokenizer(settings)


def _is_switches(value: Any) -> bool:
    items = value if isinstance(value, list | tuple) else [value]
    return bool(items) and all(isinstance(item, bool) or item in (0, 1) for item in items)


def _is_ascending(value: Any) -> bool:
    items = list(value) if isinstance(value, list | tuple) else [value]
    return all(isinstance(item, int) and item > 0 for item in items) and items == sorted({*items})


def _check_pair(name: str, value: Any, accepted: Range, *, example: str) -> None:
    if value is None:
        return
    numbers = _literal(value) if isinstance(value, str) else value
    try:
        pair = [float(number) for number in numbers]
    except (TypeError, ValueError):
        pair = []
    if len(pair) != 2 or not all(number in accepted for number in pair):
        raise UsageError(
            f"{flag(name)} must be two numbers, each {accepted.words}, such as '{example}', but is "
            f"{_shown(value)}"
        )


def _check_search(text: Any) -> None:
    """Refuse ``--eval-bleu-args`` that fairseq would end at, or ignore."""
    known = {name for name in GenerationConfig.__dataclass_fields__ if not name.startswith("_")}
    search = _json_object("eval_bleu_args", text, '{"beam": 4, "lenpen": 0.6}')
    for name, value in search.items():
        if name not in known:
            raise UsageError(
                f"--eval-bleu-args has '{name[:60]}', which the search does not have: leave it out"
            )
        check_value(name, value, f"'{name}' of --eval-bleu-args")
        default = getattr(GenerationConfig, name)
        if isinstance(default, int | float) and not isinstance(value, int | float):
            raise UsageError(f"'{name}' of --eval-bleu-args must be like {default!r}, but is {_shown(value)}")
    if search.get("diverse_beam_groups", -1) > 0:
        raise UsageError(f"'diverse_beam_groups' of --eval-bleu-args {DIVERSE}")
    for problem in search_problems(search):
        raise UsageError(f"--eval-bleu-args: {problem}")


def _check_detokenizer(settings: Mapping[str, Any]) -> None:
    """Refuse a detokeniser of validation that fairseq does not have, or settings that it lacks."""
    mark = settings.get("eval_bleu_remove_bpe")
    if mark is not None and mark not in POST_PROCESSES:
        names = ", ".join(map(repr, POST_PROCESSES))
        raise UsageError(f"--eval-bleu-remove-bpe must be one of {names}, but is {_shown(mark)}")
    name, tokenizers = settings.get("eval_bleu_detok"), REGISTRIES["tokenizer"]
    if name not in tokenizers["registry"]:
        names = ", ".join(sorted(tokenizers["registry"]))
        raise UsageError(f"--eval-bleu-detok must be one of {names}, but is {_shown(name)}")
    known = getattr(tokenizers["dataclass_registry"].get(name), "__dataclass_fields__", {})
    example = '{"target_lang": "en"}'
    for key in _json_object("eval_bleu_detok_args", settings.get("eval_bleu_detok_args"), example):
        if key not in known:
            raise UsageError(
                f"--eval-bleu-detok-args has '{key[:60]}', which --eval-bleu-detok {name} does not have: "
                "leave it out"
            )


def _json_object(name: str, text: Any, example: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except (TypeError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{flag(name)} must be a JSON object such as '{example}', but is {_shown(text)}")
    return found


def _literal(text: str) -> Any:
    """Return the value of a Python literal; None for any other text. Nothing is evaluated."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _shown(value: Any, longest: int = 80) -> str:
    text = " ".join(str(value).split())
    return f"'{text if len(text) <= longest else text[:longest] + '…'}'"

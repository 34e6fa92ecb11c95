"""Tiny classifiers of sentences, their data and their checkpoints."""

import random
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq import tasks
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask
from torch import nn

from tests.helpers import in_process
from tests.helpers.fairseq_models import LETTERS, checkpoint_state, letters

CLASSES = 3
POSITIONS = 16
HEAD = "sentence_classification_head"
WIDTHS = {"layers": 1, "embed_dim": 16, "ffn_embed_dim": 16, "attention_heads": 2}
STOCK = ("--task", "sentence_prediction", "--criterion", "sentence_prediction")


def dictionary_with_mask(symbols: Sequence[str]) -> Dictionary:
    """Return a dictionary with the mask that ``sentence_prediction`` adds."""
    dictionary = letters(symbols)
    dictionary.add_symbol("<mask>")
    return dictionary


def stock_task(**settings: Any) -> SentencePredictionTask:
    """Return fairseq's task with three classes of letters, without data."""
    settings = {
        "num_classes": CLASSES,
        "init_token": 0,
        "max_positions": POSITIONS,
        "classification_head_name": HEAD,
        "regression_target": False,
        **settings,
    }
    cfg = SentencePredictionConfig(data="", **settings)
    return SentencePredictionTask(cfg, dictionary_with_mask(LETTERS), dictionary_with_mask("012"))


def build_classifier(seed: int = 1, task: Any = None, **changes: Any) -> nn.Module:
    """Return an untrained RoBERTa with a classification head and dropout.

    Its weights are large enough for distinct classes.
    """
    widths = {f"encoder_{name}": value for name, value in WIDTHS.items()}
    args = Namespace(**{"arch": "roberta", **widths, "dropout": 0.1, "max_positions": POSITIONS, **changes})
    ARCH_CONFIG_REGISTRY["roberta"](args)
    torch.manual_seed(seed)
    model = (task or stock_task()).build_model(args)
    for parameter in model.classification_heads.parameters():
        parameter.data.normal_(std=0.5)
    return model


def sentences(count: int = 7, seed: int = 1, classes: Sequence[int] | None = None) -> dict[str, Any]:
    """Return a batch like fairseq's collated ones: classes in ``(B, 1)``, counted from 0."""
    generator = random.Random(seed)
    rows = [
        [0, *(generator.randrange(4, 20) for _ in range(generator.randint(1, 6))), 2] for _ in range(count)
    ]
    longest = max(map(len, rows))
    return {
        "id": torch.arange(count),
        "net_input": {
            "src_tokens": torch.tensor([row + [1] * (longest - len(row)) for row in rows]),
            "src_lengths": torch.tensor([len(row) for row in rows]),
        },
        "target": torch.tensor(classes or [generator.randrange(CLASSES) for _ in range(count)]).unsqueeze(-1),
        "nsentences": count,
        "ntokens": sum(map(len, rows)),
    }


def write_dictionaries(folder: Path, symbols: Sequence[str] = LETTERS, labels: Sequence[str] = "01") -> Path:
    """Write dictionaries as ``fairseq-preprocess`` does, padded to a multiple of eight."""
    for part, listed in (("input0", symbols), ("label", labels)):
        (folder / part).mkdir(parents=True)
        dictionary = letters(listed)
        dictionary.pad_to_multiple_(8)
        dictionary.save(str(folder / part / "dict.txt"))
    return folder


def config(data: Path, *flags: object) -> Any:
    """Return fairseq's configuration for a command line with two classes."""
    widths = [
        word for name, value in WIDTHS.items() for word in (f"--encoder-{name.replace('_', '-')}", value)
    ]
    classes = ("--num-classes", 2, "--init-token", 0, "--max-positions", POSITIONS, "--max-update", 100)
    return in_process.config(data, data / "saved", "--arch", "roberta", *widths, *classes, *flags)


def write_classifier(path: Path, data: Path, *flags: object) -> Path:
    """Write the checkpoint of an untrained classifier, as the stock task saves it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cfg = config(data, *STOCK, *flags)
    torch.save(checkpoint_state(tasks.setup_task(cfg.task).build_model(cfg.model), cfg), path)
    return path

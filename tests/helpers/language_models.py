"""Small language models, their task and their batches, in the test's own process."""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fairseq.models import ARCH_CONFIG_REGISTRY
from torch import Tensor

from fairseq_imitkd.data.prompts import PromptDataset
from fairseq_imitkd.tasks.language_modeling import (
    LanguageModelingWithTeacherConfig,
    LanguageModelingWithTeacherTask,
)
from tests.helpers.fairseq_models import letters

POSITIONS = 24  # the longest sequence of a model
WIDTHS: dict[str, Any] = {
    "decoder_layers": 2,
    "decoder_embed_dim": 32,
    "decoder_input_dim": 32,
    "decoder_output_dim": 32,
    "decoder_ffn_embed_dim": 32,
    "decoder_attention_heads": 2,
    "dropout": 0.1,
}


def tiny_task(**settings: Any) -> LanguageModelingWithTeacherTask:
    """Return a task with the letters as its dictionary, without data and teacher."""
    cfg = LanguageModelingWithTeacherConfig(prompt_length=0, tokens_per_sample=POSITIONS, **settings)
    dictionary = letters()
    return LanguageModelingWithTeacherTask(cfg, dictionary, dictionary)


def build(seed: int = 1, arch: str = "transformer_lm", **settings: Any) -> Any:
    """Return an untrained language model that continues prompts."""
    sizes = {"tokens_per_sample": POSITIONS, "max_target_positions": POSITIONS, "tpu": False}
    args = Namespace(
        arch=arch, criterion="cross_entropy", add_bos_token=False, **{**WIDTHS, **sizes, **settings}
    )
    ARCH_CONFIG_REGISTRY[arch](args)
    torch.manual_seed(seed)
    return tiny_task().build_model(args)


def sentences(count: int, seed: int, longest: int = 14) -> list[Tensor]:
    """Return random sentences with an EOS each, of 1 to ``longest`` letters."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    eos, size = letters().eos(), len(letters())
    return [
        torch.cat([torch.randint(4, size, (length,), generator=generator), torch.tensor([eos])])
        for length in lengths
    ]


class Sentences(list):
    """Sentences with their lengths, as fairseq's data sets have them."""

    @property
    def sizes(self) -> np.ndarray:
        return np.array([len(sentence) for sentence in self])


def dataset(rows: Sequence[Tensor], cuts: Sequence[int]) -> PromptDataset:
    """Return a data set of sentences whose prompts have ``cuts`` tokens."""
    return PromptDataset(Sentences(rows), np.array(cuts), letters(), shuffle=False)


def batch(count: int = 9, seed: int = 1) -> dict[str, Any]:
    """Return a batch of random sentences whose prompts have 0 to all of their letters."""
    rows = sentences(count, seed)
    generator = torch.Generator().manual_seed(seed)
    cuts = [int(torch.randint(0, len(row), (), generator=generator)) for row in rows]
    made = dataset(rows, cuts)
    return made.collater([made[number] for number in range(count)])


def alone(sample: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Return, of each sentence of a batch, what a language model reads before the continuation, and the
    continuation; without padding.
    """
    pad, found = letters().pad(), []
    for prompt, target in zip(sample["net_input"]["src_tokens"], sample["target"], strict=True):
        tokens = prompt[prompt.ne(pad)]
        found.append((tokens.roll(1), target[target.ne(pad)]))  # the EOS comes first
    return found

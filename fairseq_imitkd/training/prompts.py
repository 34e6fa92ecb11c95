"""Sentences whose beginnings are prompts: data, model and decoding of a language modelling task."""

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Optional

import torch
from fairseq.data import data_utils
from fairseq.dataclass import FairseqDataclass
from fairseq.models import (
    ARCH_MODEL_REGISTRY,
    MODEL_REGISTRY,
    BaseFairseqModel,
    FairseqLanguageModel,
)
from fairseq.tasks import FairseqTask

from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.data.directory import folders_of
from fairseq_imitkd.data.prompts import PromptDataset, TypedPrompts, prompt_lengths
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.models.prompted import prompted


@dataclass
class PromptConfig(FairseqDataclass):
    """The flags that divide a sentence into a prompt and its continuation."""

    prompt_symbol: Optional[str] = field(
        default=None,
        metadata={
            "help": "a sentence's prompt ends at the first occurrence of this symbol of the dictionary; the "
            "student continues prompts, and only continuations count in the loss"
        },
    )
    prompt_length: Optional[int] = field(
        default=None,
        metadata={
            "help": "number of symbols of each sentence's prompt (0: sentences are continuations of nothing)"
        },
    )


# The flags of fairseq's language_modeling with which its sequences are not prompts and continuations, and
# their only values here.
_FIXED = {
    "sample_break_mode": "eos",
    "add_bos_token": False,
    "self_target": False,
    "past_target": False,
    "output_dictionary_size": -1,
    "shorten_method": "none",
    "pad_to_fixed_length": False,
    "pad_to_fixed_bsz": False,
}


def check_prompts(cfg: Any) -> None:
    """Refuse flags with which there are no prompts.

    Args:
        cfg: the task's settings: a :class:`PromptConfig` with the flags of fairseq's ``language_modeling``.

    Raises:
        UsageError: naming the flag, its value and the remedy.
    """
    if (cfg.prompt_symbol is None) == (cfg.prompt_length is None):
        raise UsageError(
            "--prompt-symbol or --prompt-length must be given, and not both: the symbol that ends a prompt, "
            "or its number of symbols (0: no prompts)"
        )
    if cfg.prompt_length is not None and cfg.prompt_length < 0:
        raise UsageError(f"--prompt-length must be 0 or more, but is {cfg.prompt_length}")
    for name, only in _FIXED.items():
        value = getattr(cfg, name)
        value = str(value) if isinstance(only, str) else value
        if value is not None and value != only:
            flag = "--" + name.replace("_", "-")
            shown = "" if value is True else f" {value}"
            raise UsageError(
                f"{flag}{shown} can't be used here, because a sequence is a prompt and its continuation: "
                "leave it out"
            )


if TYPE_CHECKING:
    from fairseq.tasks.language_modeling import LanguageModelingTask as _Task
else:
    _Task = object  # a mixin: the fairseq task class comes after it


class WithPrompts(_Task):
    """Mixin: fairseq's ``language_modeling`` on prompts as sources and continuations as targets.

    Inherit it before the fairseq task class, and after the other mixins. Batches are as those of translation.
    """

    cfg: Any

    def __init__(self, cfg: Any, dictionary: Any, *others: Any, **more: Any):
        super().__init__(cfg, dictionary, *others, **more)
        self.cfg = cfg  # fairseq's class keeps it as args alone
        self._symbol: int | None = None
        if cfg.prompt_symbol is not None:
            self._symbol = dictionary.index(cfg.prompt_symbol)
            if self._symbol < dictionary.nspecial:
                raise UsageError(
                    f"--prompt-symbol {cfg.prompt_symbol} is not a symbol of a sentence: name one of the "
                    "dict.txt of DATA"
                )

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> BaseFairseqModel:
        """Build a language model that continues prompts.

        Raises:
            UsageError: the architecture is not that of a language model.
        """
        name = getattr(cfg, "_name", None) or getattr(cfg, "arch", None)
        kind = MODEL_REGISTRY.get(name) or ARCH_MODEL_REGISTRY.get(name)
        if kind is not None and not issubclass(kind, FairseqLanguageModel):
            raise UsageError(
                f"--arch builds a {kind.__name__}, which is not a language model: use one, such as "
                "transformer_lm"
            )
        return prompted(super().build_model(cfg, from_checkpoint))

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the criterion."""
        return FairseqTask.build_criterion(self, cfg, from_checkpoint)

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **_: Any) -> None:
        """Load a split, and divide its sentences.

        Raises:
            UsageError: a sentence has no prompt.
        """
        folders = folders_of(self.cfg.data)
        path = os.path.join(folders[(epoch - 1) % len(folders)], split)
        sentences = data_utils.load_indexed_dataset(
            path, self.dictionary, self.cfg.dataset_impl, combine=combine
        )
        if sentences is None:
            raise FileNotFoundError(f"there is no {path}.idx")
        cuts = prompt_lengths(
            sentences,
            symbol=self._symbol,
            length=self.cfg.prompt_length or 0,
            split=split,
            name=self.cfg.prompt_symbol,
        )
        self.datasets[split] = PromptDataset(sentences, cuts, self.dictionary, shuffle=True)

    def build_dataset_for_inference(
        self, src_tokens: list[torch.Tensor], src_lengths: list[int], constraints: Any = None, **_: Any
    ) -> TypedPrompts:
        """Return prompts, with an EOS at the end each, as a data set without continuations."""
        return TypedPrompts(src_tokens, src_lengths, self.dictionary, constraints=constraints)

    def inference_step(self, generator: Any, models: Any, sample: Batch, *more: Any, **settings: Any) -> Any:
        """Continue the prompts of a batch."""
        return FairseqTask.inference_step(self, generator, models, sample, *more, **settings)

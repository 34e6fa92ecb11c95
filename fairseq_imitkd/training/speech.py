"""fairseq's ``speech_to_text``, which has no dataclass, in the form of tasks that have one."""

import math
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from fairseq.tasks import LegacyFairseqTask
from fairseq.tasks.speech_to_text import SpeechToTextTask
from torch import Tensor

from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.losses.ctc import best_path
from fairseq_imitkd.models.ctc import SpeechCTC
from fairseq_imitkd.models.logits import full_precision
from fairseq_imitkd.rollout import RolloutGenerator


class BestPathGenerator:
    """Writes the text of the most probable path of students without a decoder, in fairseq's form.

    Args:
        eos: index of the EOS, which ends a text for fairseq.
    """

    def __init__(self, eos: int):
        self.eos = eos

    @torch.no_grad()
    def generate(self, models: Sequence[SpeechCTC], sample: Batch, **_: Any) -> list[list[dict[str, Any]]]:
        """Return one hypothesis for each sentence. Several models have their probabilities averaged."""
        total: list[Tensor] = []
        for model in models:
            model.eval()
            logits, frames = model(**sample["net_input"])
            total.append(full_precision(logits).log_softmax(dim=-1))
        lprobs = torch.stack(total).logsumexp(dim=0) - math.log(len(total))
        hypotheses = []
        for symbols, scores in best_path(lprobs, frames, SpeechCTC.blank):
            written = {"tokens": F.pad(symbols, (0, 1), value=self.eos), "alignment": None, "attention": None}
            scores = F.pad(scores, (0, 1))
            hypotheses.append([{**written, "score": scores.mean(), "positional_scores": scores}])
        return hypotheses


class _FastGeneration(LegacyFairseqTask):
    """Chooses the generator after ``SpeechToTextTask``, which passes its settings on but not the choice:
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/tasks/speech_to_text.py
    """

    def build_generator(
        self, models: Any, args: Any, seq_gen_cls: Any = None, *more: Any, **kwargs: Any
    ) -> Any:
        return super().build_generator(models, args, seq_gen_cls or RolloutGenerator, *more, **kwargs)


class ConfiguredSpeechToText(SpeechToTextTask, _FastGeneration):
    """fairseq's task with the settings of a dataclass. Decoding takes the rollout engine's steps.

    Args:
        cfg: the settings: ``data``, ``config_yaml``, ``max_source_positions``, ``max_target_positions`` and
            ``seed``.
        tgt_dict: the target dictionary.
    """

    @classmethod
    def add_args(cls, parser: ArgumentParser) -> None:
        """Add the flags of the dataclass."""
        super(LegacyFairseqTask, cls).add_args(parser)

    def __init__(self, cfg: Any, tgt_dict: Dictionary):
        super().__init__(cfg, tgt_dict)
        self.cfg = cfg

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the criterion.

        Raises:
            UsageError: the student has no decoder, and the criterion trains one.
        """
        criterion = super().build_criterion(cfg)
        if isinstance(getattr(self, "student", None), SpeechCTC) and not hasattr(criterion, "trains_ctc"):
            name = getattr(cfg, "_name", None) or getattr(cfg, "criterion", None)
            raise UsageError(
                f"--criterion {name} trains a decoder, which a student of --arch s2t_ctc does not have: use "
                "--criterion ctc_kd, or speech_ctc without a teacher"
            )
        return criterion

    def build_generator(self, models: Any, args: Any, *more: Any, **kwargs: Any) -> Any:
        """Build the generator; students without a decoder have one of their own.

        Raises:
            UsageError: they are to be searched by beams, or are in an ensemble with other models.
        """
        kinds = {isinstance(model, SpeechCTC) for model in models}
        if True not in kinds:
            return super().build_generator(models, args, *more, **kwargs)
        if len(kinds) > 1:
            raise UsageError("--path names models with and without a decoder: use those of one kind")
        if getattr(args, "beam", 1) != 1 or getattr(args, "sampling", False):
            raise UsageError(
                "a student of --arch s2t_ctc writes its most probable path, without a beam or samples: add "
                "--beam 1"
            )
        return BestPathGenerator(self.target_dictionary.eos())

"""fairseq's ``speech_to_text``, which has no dataclass, in the form of tasks that have one."""

from argparse import ArgumentParser
from typing import Any

from fairseq.data import Dictionary
from fairseq.tasks import LegacyFairseqTask
from fairseq.tasks.speech_to_text import SpeechToTextTask

from fairseq_imitkd.rollout import RolloutGenerator


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
        """Build the criterion."""
        return super().build_criterion(cfg)

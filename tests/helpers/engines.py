"""A fairseq engine over a toy teacher, and sentences for it."""

import torch
from torch import Tensor

from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.engines.base import SearchSettings
from fairseq_imitkd.engines.fairseq import FairseqEngine
from fairseq_imitkd.teacher.teacher import Teacher
from tests.helpers.fairseq_models import build_student, letters, reversed_pairs, trained_student

PAD, EOS, UNK = 1, 2, 3
LANGUAGES = LanguagePair("src", "tgt", letters(), letters())


def sentences(count: int, seed: int = 1, longest: int = 6) -> list[Tensor]:
    """Return sources, the longest first."""
    sources = [
        torch.tensor([4 + letter for letter in source] + [EOS])
        for source, _ in reversed_pairs(count, seed, longest)
    ]
    return sorted(sources, key=len, reverse=True)


def teacher(*seeds: int) -> Teacher:
    """Return a teacher with a little training, or an ensemble of it and untrained ones."""
    return Teacher(
        [trained_student("transformer"), *(build_student("transformer", seed) for seed in seeds)],
        dtype="fp32",
    )


def fairseq_engine(settings: SearchSettings, speaker: Teacher | None = None) -> FairseqEngine:
    """Return an engine over a teacher in float32 on the CPU."""
    speaker = speaker or teacher()
    speaker.place(torch.device("cpu"), torch.float32)
    return FairseqEngine(speaker.writer, LANGUAGES, settings, longest_target=speaker.max_positions[1])

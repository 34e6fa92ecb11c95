"""Whose prefixes a batch has: references, rollouts, replayed rollouts or samples of the teacher."""

from fairseq_imitkd.mixing.batch import BatchLayout
from fairseq_imitkd.mixing.mixer import MixedBatch, Mixer, Writers

__all__ = ["BatchLayout", "MixedBatch", "Mixer", "Writers"]

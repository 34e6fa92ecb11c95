"""Decoding inside training: what the student itself writes."""

from fairseq_imitkd.rollout.cuda_graphs import release_graphs
from fairseq_imitkd.rollout.engine import Corrector, Rollout, decode
from fairseq_imitkd.rollout.generator import RolloutGenerator
from fairseq_imitkd.rollout.keyed_random import RandomKey, sampling_uniforms
from fairseq_imitkd.rollout.policy import RolloutPolicy
from fairseq_imitkd.rollout.steps import Ensemble

__all__ = [
    "Corrector",
    "Ensemble",
    "RandomKey",
    "Rollout",
    "RolloutGenerator",
    "RolloutPolicy",
    "decode",
    "release_graphs",
    "sampling_uniforms",
]

"""Decoding inside training: what the student itself writes."""

from fairseq_imitkd.rollout.engine import Rollout, decode
from fairseq_imitkd.rollout.generator import RolloutGenerator
from fairseq_imitkd.rollout.policy import RolloutPolicy
from fairseq_imitkd.rollout.randomness import RandomKey, sampling_uniforms

__all__ = [
    "RandomKey",
    "Rollout",
    "RolloutGenerator",
    "RolloutPolicy",
    "decode",
    "sampling_uniforms",
]

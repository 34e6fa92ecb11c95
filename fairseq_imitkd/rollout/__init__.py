"""Decoding during training, by the student or by the teacher."""

from fairseq_imitkd.rollout.cuda_graphs import release_graphs, without_graphs_if_needed
from fairseq_imitkd.rollout.draft import Corrector, Prompt, Rollout, SpecialSymbols
from fairseq_imitkd.rollout.engine import decode
from fairseq_imitkd.rollout.generator import RolloutGenerator
from fairseq_imitkd.rollout.keyed_random import RandomKey, sampling_uniforms
from fairseq_imitkd.rollout.policy import RolloutPolicy
from fairseq_imitkd.rollout.steps import Ensemble

__all__ = [
    "Corrector",
    "Ensemble",
    "Prompt",
    "RandomKey",
    "Rollout",
    "RolloutGenerator",
    "RolloutPolicy",
    "SpecialSymbols",
    "decode",
    "release_graphs",
    "sampling_uniforms",
    "without_graphs_if_needed",
]

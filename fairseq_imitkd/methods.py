"""Every method, by name: whose prefixes, which divergence, what is added. ``--criterion NAME`` takes these defaults.

A new method is one dataclass here, and a function in ``divergences.py`` if its divergence is new.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from fairseq.criterions import register_criterion

from fairseq_imitkd.criterion import DistillationConfig, DistillationCriterion, DivergenceName


def default(name: str, value: Any) -> Any:
    """Another default for an inherited flag, under its own help text."""
    metadata = next(item.metadata for item in fields(DistillationConfig) if item.name == name)
    return field(default=value, metadata=dict(metadata))


@dataclass
class ImitKDConfig(DistillationConfig):
    """ImitKD, optimal-action form (Lin, Wohlwend, Chen & Lei, EMNLP 2020, section 3 and algorithm 1).

    Each sentence keeps its data target with probability ``0.005^(i/I)`` at update ``i`` of ``I``, else its target is
    what the student itself writes; at every prefix of either the student learns the teacher's most probable token.
    """

    student_share: str = default("student_share", "exponential:0.005")
    divergence: DivergenceName = default("divergence", "teacher-argmax")


@dataclass
class ImitKDFullConfig(DistillationConfig):
    """ImitKD, full form (Lin et al. 2020, section 3): the same prefixes, the teacher's whole distribution."""

    student_share: str = default("student_share", "exponential:0.005")
    divergence: DivergenceName = default("divergence", "forward-kl")


@dataclass
class WordKDConfig(DistillationConfig):
    """Word-level distillation (Kim & Rush, EMNLP 2016, section 3.1): half the reference, half the teacher's distribution."""

    student_share: str = default("student_share", "constant:0")
    divergence: DivergenceName = default("divergence", "forward-kl")
    gold_weight: float = default("gold_weight", 0.5)


METHODS: dict[str, type[DistillationConfig]] = {
    "imitkd": ImitKDConfig,
    "imitkd_full": ImitKDFullConfig,
    "word_kd": WordKDConfig,
}

for _name, _defaults in METHODS.items():
    # fairseq keeps a criterion's dataclass on the class itself, so each name needs a class of its own.
    _class_name = _defaults.__name__.removesuffix("Config") + "Criterion"
    _class = type(_class_name, (DistillationCriterion,), {"__doc__": _defaults.__doc__})
    register_criterion(_name, dataclass=_defaults)(_class)

"""Every method, by name: whose prefixes, which divergence, what is added. ``--criterion NAME`` takes these defaults.

A new method is one dataclass here, or in a package of your own, and a function in ``divergences.py`` if its divergence is
new.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from fairseq.criterions import register_criterion

from fairseq_imitkd.criterion import DistillationCriterion
from fairseq_imitkd.method.config import (
    DistillationConfig,
    LossAverage,
    PolicyName,
    ShareUnit,
)


def default(name: str, value: Any) -> Any:
    """Another default for an inherited flag, under its own help text."""
    metadata = next(item.metadata for item in fields(DistillationConfig) if item.name == name)
    return field(default=value, metadata=dict(metadata))


@dataclass
class ImitKDConfig(DistillationConfig):
    """ImitKD, optimal-action form (Lin, Wohlwend, Chen & Lei, EMNLP 2020, section 3 and algorithm 1).

    Each sentence keeps its data target with probability ``0.005^(i/I)`` at update ``i`` of ``I``, else its target is
    what the student itself writes; at every prefix of either the student learns the teacher's most probable token. With
    ``--gold-weight 1``, as in the authors' code, sentences that keep their target teach the target itself.
    """

    student_share: str = default("student_share", "exponential:0.005")
    divergence: str = default("divergence", "teacher-argmax")


@dataclass
class ImitKDFullConfig(DistillationConfig):
    """ImitKD, full form (Lin et al. 2020, section 3): the same prefixes, the teacher's whole distribution."""

    student_share: str = default("student_share", "exponential:0.005")
    divergence: str = default("divergence", "forward-kl")


@dataclass
class WordKDConfig(DistillationConfig):
    """Word-level distillation (Kim & Rush, EMNLP 2016, section 3.1): half the reference, half the teacher's distribution."""

    student_share: str = default("student_share", "constant:0")
    divergence: str = default("divergence", "forward-kl")
    gold_weight: str = default("gold_weight", "0.5")


@dataclass
class GKDConfig(DistillationConfig):
    """Generalised KD (Agarwal et al., ICLR 2024, algorithm 1): on-policy, with the generalised Jensen-Shannon divergence.

    The settings are those of the paper's best translations (section 4.2): all sentences sampled from the student, a
    weight of 0.1, the divergence averaged over each sentence. With ``--student-share 0.5`` half of the batches keep their
    references. With ``--reward`` it is the paper's equation 4.
    """

    student_share: str = default("student_share", "constant:1")
    share_by: ShareUnit = default("share_by", "batch")
    divergence: str = default("divergence", "jsd")
    jsd_weight: float = default("jsd_weight", 0.1)
    loss_average: LossAverage = default("loss_average", "sentence")
    rollout_policy: PolicyName = default("rollout_policy", "sampling")


@dataclass
class FDistillConfig(DistillationConfig):
    """f-distill with the Jensen-Shannon divergence of sentences (Wen, Li, Du & Mou, ACL 2023, section 3.3).

    Half of the sentences are the student's samples. The others should be the teacher's: train on data that it wrote, or
    add ``--teacher-samples``. ``--js-weights exact`` mixes by the prefixes' probabilities instead of half and half.
    """

    student_share: str = default("student_share", "constant:0.5")
    divergence: str = default("divergence", "sequence-js")
    rollout_policy: PolicyName = default("rollout_policy", "sampling")


@dataclass
class FDistillKLConfig(DistillationConfig):
    """f-distill with the KL divergence (Wen et al. 2023, section 3.1): on the teacher's sentences alone."""

    divergence: str = default("divergence", "forward-kl")


@dataclass
class FDistillReverseKLConfig(DistillationConfig):
    """f-distill with the reverse KL divergence (Wen et al. 2023, section 3.2): on the student's samples alone."""

    student_share: str = default("student_share", "constant:1")
    divergence: str = default("divergence", "reverse-kl")
    rollout_policy: PolicyName = default("rollout_policy", "sampling")


@dataclass
class FDistillTVDConfig(DistillationConfig):
    """f-distill with the total variation distance (Wen et al. 2023, section 3.4): half on either's sentences."""

    student_share: str = default("student_share", "constant:0.5")
    divergence: str = default("divergence", "tvd")
    rollout_policy: PolicyName = default("rollout_policy", "sampling")


@dataclass
class AnnealingKDConfig(DistillationConfig):
    """Annealing-KD (Jafari, Rezagholizadeh, Sharma & Ghodsi, EACL 2021, equations 6 to 8), both stages in one run.

    In the first two thirds the student's logits learn the teacher's, scaled by ``1 - (T - 1) / 10`` with ``T`` falling
    from 10 to 1; in the last third it learns the references. For stage I alone ``--gold-weight 0 --annealing-end 1``;
    stage II alone is any criterion of fairseq's, from the best checkpoint of stage I.
    """

    divergence: str = default("divergence", "logit-mse")
    annealing_temperature: int = default("annealing_temperature", 10)
    annealing_end: float = default("annealing_end", 0.66666)
    gold_weight: str = default("gold_weight", "constant:1,warmup=0.66666")


@dataclass
class ContinuationKDConfig(DistillationConfig):
    """Continuation-KD (Jafari et al., Findings of EMNLP 2022): from the teacher's logits to the references without a stage.

    The references' weight rises linearly from 0 to 1 while the temperature falls; logits that are near enough to the
    teacher's are left alone. The paper tunes that margin; this one is ours.
    """

    divergence: str = default("divergence", "logit-mse")
    annealing_temperature: int = default("annealing_temperature", 10)
    logit_margin: float = default("logit_margin", 0.1)
    gold_weight: str = default("gold_weight", "linear:0")


@dataclass
class DistiLLMConfig(DistillationConfig):
    """DistiLLM (Ko, Kim, Chen & Yun, ICML 2024, sections 3.1 and 3.2): skew reverse KL, adaptive share, replay.

    The student's share starts at 0 and grows by 0.1 whenever the validation loss has become worse. More and more of its
    sentences are then old rollouts, of the last 1,000. ``--divergence skew-forward-kl`` is the paper's other one.
    """

    student_share: str = default("student_share", "adaptive:0")
    divergence: str = default("divergence", "skew-reverse-kl")
    rollout_policy: PolicyName = default("rollout_policy", "sampling")
    rollout_replay: int = default("rollout_replay", 1000)


@dataclass
class SpeculativeKDConfig(DistillationConfig):
    """Speculative KD (Xu et al., ICLR 2025, algorithm 1): the student proposes, the teacher disposes.

    Each token that the student samples stands if it is among the teacher's best 25, else the teacher samples it.
    """

    student_share: str = default("student_share", "constant:1")
    divergence: str = default("divergence", "forward-kl")
    rollout_policy: PolicyName = default("rollout_policy", "speculative")


@dataclass
class ATKDConfig(DistillationConfig):
    """ATKD (Zhong et al., ACL 2024, section 3.2): less of the target where the teacher is sure of it.

    The half of a batch's tokens of which the teacher is surest teach only how the other symbols compare, and their mean weighs
    0.2 against 0.8 of the others', as in the authors' code.
    """

    divergence: str = default("divergence", "target-decoupled-kl")


METHODS: dict[str, type[DistillationConfig]] = {
    "imitkd": ImitKDConfig,
    "imitkd_full": ImitKDFullConfig,
    "word_kd": WordKDConfig,
    "gkd": GKDConfig,
    "f_distill": FDistillConfig,
    "f_distill_kl": FDistillKLConfig,
    "f_distill_rkl": FDistillReverseKLConfig,
    "f_distill_tvd": FDistillTVDConfig,
    "annealing_kd": AnnealingKDConfig,
    "continuation_kd": ContinuationKDConfig,
    "distillm": DistiLLMConfig,
    "speculative_kd": SpeculativeKDConfig,
    "atkd": ATKDConfig,
}


def register_method(name: str, defaults: type[DistillationConfig]) -> type[DistillationCriterion]:
    """Make a set of defaults a ``--criterion``. A package that ``--user-dir`` imports can add its own.

    Args:
        name: what to type after ``--criterion``.
        defaults: the settings; its docstring says what it is.

    Returns:
        the criterion's class.
    """
    # fairseq keeps a criterion's dataclass on the class itself, so each name needs a class of its own.
    class_name = defaults.__name__.removesuffix("Config") + "Criterion"
    criterion = type(class_name, (DistillationCriterion,), {"__doc__": defaults.__doc__, "Config": defaults})
    register_criterion(name, dataclass=defaults)(criterion)
    return criterion


for _name, _defaults in METHODS.items():
    register_method(_name, _defaults)


def table() -> str:
    """Every method in Markdown: its name, what it is, its paper, its settings and its tests."""
    lines = ["| `--criterion` | what it is | paper | its settings | tests |", "|---|---|---|---|---|"]
    base = DistillationConfig()
    for name, defaults in METHODS.items():
        summary = " ".join((defaults.__doc__ or "").strip().split("\n\n")[0].split()).removesuffix(".")
        title, _, rest = summary.partition(" (")
        paper, _, more = rest.partition(")")
        own = [
            item.name
            for item in fields(defaults)
            if getattr(defaults(), item.name) != getattr(base, item.name)
        ]
        flags = " ".join(f"`--{flag.replace('_', '-')} {getattr(defaults(), flag)}`" for flag in own)
        divergence = defaults().divergence
        lines.append(
            f"| `{name}` | {title}{more} | {paper} | {flags or 'the defaults'} | "
            f"`test_methods.py[{name}]`, `test_divergences.py[{divergence}]` |"
        )
    return "\n".join(lines)

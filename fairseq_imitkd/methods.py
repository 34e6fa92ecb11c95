"""Every method by name: whose prefixes, which divergence, what is added. ``--criterion NAME`` uses these
defaults.

A new method is one dataclass, here or in your own package, and one function in ``losses/divergences.py`` if
its divergence is new.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from fairseq.criterions import register_criterion

from fairseq_imitkd.criterion import DistillationCriterion
from fairseq_imitkd.losses.divergences import DIVERGENCES
from fairseq_imitkd.method.config import (
    DistillationConfig,
    LossAverage,
    PolicyName,
    SelectionName,
    ShareUnit,
)

__all__ = ["DIVERGENCES", "METHODS", "DistillationConfig", "default", "register_method", "table"]


def default(name: str, value: Any) -> Any:
    """Return a field with another default value for an inherited flag. Its help text stays."""
    metadata = next(item.metadata for item in fields(DistillationConfig) if item.name == name)
    return field(default=value, metadata=dict(metadata))


@dataclass
class ImitKDConfig(DistillationConfig):
    """ImitKD, optimal-action form (Lin, Wohlwend, Chen & Lei, EMNLP 2020, section 3 and algorithm 1).

    At update ``i`` of ``I`` each sentence keeps its reference with probability ``0.005^(i/I)``. Otherwise the
    student writes its target. In both cases the student learns the teacher's most probable token at every
    prefix. With ``--gold-weight 1`` it learns the reference in the sentences that keep it, as in the authors'
    code, where only sampled sentences get the teacher's tokens:
    https://github.com/asappresearch/imitkd/blob/8b9fadded0e9eed7e16bf6ce6c3235f3ad5132e8/generation/distillation.py#L474-L502
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
    """Word-level distillation (Kim & Rush, EMNLP 2016, section 3.1): half reference, half teacher."""

    student_share: str = default("student_share", "constant:0")
    divergence: str = default("divergence", "forward-kl")
    gold_weight: str = default("gold_weight", "0.5")


@dataclass
class GKDConfig(DistillationConfig):
    """Generalised KD (Agarwal et al., ICLR 2024, algorithm 1): on-policy, with the generalised Jensen-Shannon
    divergence.

    The defaults are those of the paper's best translations (section 4.2): the student samples every target,
    the teacher has a weight of 0.1, and the divergence is averaged per sentence. With ``--student-share 0.5``
    half of the batches keep their references. With ``--reward`` it is the paper's equation 4.
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

    Half of the targets are samples of the student. The other half should be samples of the teacher: train on
    data that the teacher wrote, or add ``--teacher-samples``. ``--js-weights exact`` mixes by the
    probabilities of the prefixes instead of one half.
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
    """f-distill with the reverse KL divergence (Wen et al. 2023, section 3.2): on the student's samples
    alone.
    """

    student_share: str = default("student_share", "constant:1")
    divergence: str = default("divergence", "reverse-kl")
    rollout_policy: PolicyName = default("rollout_policy", "sampling")


@dataclass
class FDistillTVDConfig(DistillationConfig):
    """f-distill with the total variation distance (Wen et al. 2023, section 3.4): on sentences of both."""

    student_share: str = default("student_share", "constant:0.5")
    divergence: str = default("divergence", "tvd")
    rollout_policy: PolicyName = default("rollout_policy", "sampling")


@dataclass
class AnnealingKDConfig(DistillationConfig):
    """Annealing-KD (Jafari, Rezagholizadeh, Sharma & Ghodsi, EACL 2021, equations 6 to 8), both stages in one
    run.

    In the first two thirds the student's logits learn the teacher's logits. These are scaled by
    ``1 - (T - 1) / 10``, and ``T`` falls from 10 to 1. In the last third the student learns the references.
    For stage I alone use ``--gold-weight 0 --annealing-end 1``. Stage II alone is any criterion of fairseq,
    from the best checkpoint of stage I.
    """

    divergence: str = default("divergence", "logit-mse")
    annealing_temperature: int = default("annealing_temperature", 10)
    annealing_end: float = default("annealing_end", 0.66666)
    gold_weight: str = default("gold_weight", "constant:1,warmup=0.66666")


@dataclass
class ContinuationKDConfig(DistillationConfig):
    """Continuation-KD (Jafari et al., Findings of EMNLP 2022): from the teacher's logits to the references
    without stages.

    The weight of the references rises linearly from 0 to 1 while the temperature falls. Logits that are close
    enough to the teacher's are left alone. The paper tunes that margin; the default here is our choice.
    """

    divergence: str = default("divergence", "logit-mse")
    annealing_temperature: int = default("annealing_temperature", 10)
    logit_margin: float = default("logit_margin", 0.1)
    gold_weight: str = default("gold_weight", "linear:0")


@dataclass
class DistiLLMConfig(DistillationConfig):
    """DistiLLM (Ko, Kim, Chen & Yun, ICML 2024, sections 3.1 and 3.2): skew reverse KL, adaptive share,
    replay.

    The student's share starts at 0. It grows by 0.1 when the validation loss is 0.1 nats per token above the
    level that counted last, as in the authors' code. A growing part of its sentences are rollouts of earlier
    updates, drawn from the last 1,000. ``--divergence skew-forward-kl`` is the paper's other divergence.
    """

    student_share: str = default("student_share", "adaptive:0")
    divergence: str = default("divergence", "skew-reverse-kl")
    rollout_policy: PolicyName = default("rollout_policy", "sampling")
    rollout_replay: int = default("rollout_replay", 1000)


@dataclass
class SpeculativeKDConfig(DistillationConfig):
    """Speculative KD (Xu et al., ICLR 2025, algorithm 1): the student proposes tokens, the teacher corrects
    them.

    The student samples each token. A token that is not among the teacher's best 25 is replaced by a sample of
    the teacher.
    """

    student_share: str = default("student_share", "constant:1")
    divergence: str = default("divergence", "forward-kl")
    rollout_policy: PolicyName = default("rollout_policy", "speculative")


@dataclass
class ATKDConfig(DistillationConfig):
    """ATKD (Zhong et al., ACL 2024, section 3.2): less weight on the target token if the teacher is sure.

    The half of a batch's tokens that the teacher is most certain of teach only how the other symbols compare.
    Their mean loss has a weight of 0.2, and that of the other half 0.8, as in the authors' code:
    https://github.com/WHU-ZQH/ATKD/blob/2a9b74fffeb00b727458d5e865a5ed483ea4afcb/distill/distill_trainer.py#L480-L483
    """

    divergence: str = default("divergence", "target-decoupled-kl")


@dataclass
class TIEKDConfig(DistillationConfig):
    """TIE-KD (Zhang et al., ACL 2023): a ranking loss keeps the teacher's most probable token on top.

    Half reference, half teacher, as in the authors' script. Their iterations, which predict each token again
    after the student's own predictions, are left out; ``--student-share`` gives prefixes that the student
    wrote itself:
    https://github.com/songmzhang/NMT-KD/blob/e01c09c921c4950016c5eb9e95921c76f297b01c/train_ende_tie_kd.sh#L20
    """

    divergence: str = default("divergence", "ranked-kl")
    gold_weight: str = default("gold_weight", "0.5")


@dataclass
class SelectiveKDConfig(DistillationConfig):
    """Selective KD (Wang et al., ACL 2021): the teacher's distribution at the tokens that the student finds
    hardest.

    All tokens learn the reference. The hardest half, among the last 30,000 tokens, also learns the teacher's
    distribution, with the same weight. ``--token-selection batch`` is the paper's batch-level selection.
    """

    gold_weight: str = default("gold_weight", "0.5")
    token_selection: SelectionName = default("token_selection", "queue")


@dataclass
class EntropyAwareKDConfig(DistillationConfig):
    """Entropy-aware on-policy distillation (Jin et al., 2026): reverse KL, and forward KL where the teacher
    is unsure.

    The student samples every target. The formula is that of the paper's abstract. Its threshold could not be
    read; 0.8 nats is our choice.
    """

    student_share: str = default("student_share", "constant:1")
    divergence: str = default("divergence", "entropy-aware-kl")
    rollout_policy: PolicyName = default("rollout_policy", "sampling")


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
    "tie_kd": TIEKDConfig,
    "selective_kd": SelectiveKDConfig,
    "entropy_aware_kd": EntropyAwareKDConfig,
}


def register_method(name: str, defaults: type[DistillationConfig]) -> type[DistillationCriterion]:
    """Register a set of defaults as a ``--criterion``. A package of ``--user-dir`` can add its own.

    Args:
        name: the value of ``--criterion``.
        defaults: the settings; the docstring describes the method.

    Returns:
        the class of the criterion.
    """
    # fairseq stores a criterion's dataclass on its class, so each name needs a class of its own.
    class_name = defaults.__name__.removesuffix("Config") + "Criterion"
    criterion = type(class_name, (DistillationCriterion,), {"__doc__": defaults.__doc__, "Config": defaults})
    register_criterion(name, dataclass=defaults)(criterion)
    return criterion


for _name, _defaults in METHODS.items():
    register_method(_name, _defaults)


def table() -> str:
    """Return a Markdown table of all methods: name, description, paper, settings and tests."""
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

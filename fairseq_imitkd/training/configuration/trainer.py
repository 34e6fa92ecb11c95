"""Flags of fairseq's trainer that need others, or exclude them."""

from collections.abc import Iterator, Mapping
from typing import Any

from fairseq.criterions import CRITERION_REGISTRY
from fairseq.dataclass.configs import EMAConfig
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.models.nat import FairseqNATModel
from fairseq.tasks import TASK_REGISTRY
from fairseq.tasks.translation import TranslationConfig

from fairseq_imitkd.criterion import DistillationCriterion, no_teacher
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.quick.missing import BATCH, OPTIMIZER
from fairseq_imitkd.text.scores import SCORES
from fairseq_imitkd.training.configuration import schedules
from fairseq_imitkd.training.configuration.data import LANGUAGE_MODELS, PAIRS, TASKS
from fairseq_imitkd.training.configuration.ranges import flag

# fairseq's optimizers that can't keep their state in half precision.
_FULL_PRECISION = ("adadelta", "adagrad", "adamax", "nag", "sgd")
# What the validation of these criteria logs. fairseq looks the metric up after the first validation.
_LOGGED = ("loss", "nll_loss", "ppl", "wps", "wpb", "bsz")
_ACCURACY = ("accuracy", "total", "n_correct")
# Flags of the scores that --eval-bleu and --eval-metrics ask for.
OF_SCORES = (
    "eval_bleu_args", "eval_bleu_detok", "eval_bleu_detok_args", "eval_tokenized_bleu",
    "eval_bleu_remove_bpe", "eval_bleu_print_samples",
)  # fmt: skip
_TASKS = (*TASKS, LANGUAGE_MODELS, PAIRS)
# fairseq's own criteria that can train on sources and targets. Others look for what its batches do not hold.
_TRANSLATE = (
    "adaptive_loss", "composite_loss", "cross_entropy", "label_smoothed_cross_entropy",
    "label_smoothed_cross_entropy_with_alignment", "label_smoothed_cross_entropy_with_rdrop",
)  # fmt: skip


def check(settings: Mapping[str, Any]) -> None:
    """Refuse a training whose flags miss each other.

    Raises:
        UsageError: naming the flag, its value and the remedy.
    """
    problems = (
        _missing,
        _criterion_problems,
        schedules.problems,
        _optimizer_problems,
        _checkpoint_problems,
        _average_problems,
        _student_problems,
        _metric_problems,
        _score_problems,
    )
    for problem in (text for find in problems for text in find(settings)):
        raise UsageError(problem)
    schedules.warn(settings)


def check_task(criterion: str | None, task: str | None) -> None:
    """Refuse a method with a task that has no teacher.

    Args:
        criterion, task: the values of the flags; None if they are not given.

    Raises:
        UsageError: naming the tasks that have one.
    """
    kind = TASK_REGISTRY.get(task)
    if kind is not None and _distils(criterion) and not getattr(kind, "has_teacher", False):
        raise UsageError(no_teacher(str(criterion), str(task)))


def _distils(criterion: Any) -> bool:
    """Return whether a ``--criterion`` is one of a method, those of ``--user-dir`` too."""
    return issubclass(CRITERION_REGISTRY.get(criterion, object), DistillationCriterion)


def _missing(settings: Mapping[str, Any]) -> Iterator[str]:
    if settings.get("max_tokens") is None and settings.get("batch_size") is None:
        yield BATCH
    if settings.get("optimizer") is None:
        yield OPTIMIZER


def _criterion_problems(settings: Mapping[str, Any]) -> Iterator[str]:
    criterion = settings.get("criterion")
    is_fairseqs = getattr(CRITERION_REGISTRY.get(criterion), "__module__", "").startswith("fairseq.")
    if settings.get("task") in _TASKS and is_fairseqs and criterion not in _TRANSLATE:
        yield (
            f"--criterion {criterion} is not for --task {settings['task']}: use a method such as imitkd, or "
            "cross_entropy"
        )
    if criterion == "label_smoothed_cross_entropy_with_alignment" and not settings.get("load_alignments"):
        yield f"--criterion {criterion} needs alignments: add --load-alignments"


def _optimizer_problems(settings: Mapping[str, Any]) -> Iterator[str]:
    optimizer = settings.get("optimizer")
    if optimizer == "composite":
        yield "--optimizer composite can only be used with fairseq-hydra-train: use another, such as adam"
    if optimizer == "adafactor" and settings.get("relative_step"):
        yield "--relative-step can't be used with --lr, which fairseq always sets: leave it out"
    if optimizer == "adafactor" and settings.get("warmup_init"):
        yield "--warmup-init needs --relative-step, which can't be used here: leave it out"

    for name in ("memory_efficient_fp16", "memory_efficient_bf16"):
        if settings.get(name) and optimizer in _FULL_PRECISION:
            yield f"{flag(name)} can't be used with --optimizer {optimizer}: use adam or adafactor"


def _checkpoint_problems(settings: Mapping[str, Any]) -> Iterator[str]:
    if settings.get("disable_validation") and (settings.get("patience") or 0) > 0:
        yield (
            f"--patience {settings['patience']} counts validations, which --disable-validation leaves out: "
            "leave one of them out"
        )
    finetuned, restored = settings.get("finetune_from_model"), settings.get("restore_file")
    if finetuned and restored != "checkpoint_last.pt":
        yield f"--finetune-from-model can't be used with --restore-file {restored}: leave one of them out"
    for name in ("optimizer", "lr_scheduler", "meters", "dataloader"):
        if finetuned and settings.get(f"reset_{name}"):
            yield (
                f"--reset-{name.replace('_', '-')} changes nothing with --finetune-from-model, which resets "
                "it: leave it out"
            )


def _average_problems(settings: Mapping[str, Any]) -> Iterator[str]:
    for name, field in EMAConfig.__dataclass_fields__.items():
        given = settings.get(name, field.default)
        if not name.startswith("_") and given != field.default and not settings.get("store_ema"):
            yield f"{flag(name)} changes nothing without --store-ema: add that, or leave it out"


def _student_problems(settings: Mapping[str, Any]) -> Iterator[str]:
    if settings.get("quant_noise_scalar"):  # its forward passes count, those of validation and rollouts too
        yield (
            f"--quant-noise-scalar {settings['quant_noise_scalar']} can't be used, because checkpoints lack "
            "its scales and a stopped run could not go on: leave it out"
        )
    arch = settings.get("arch")
    if settings.get("task") in _TASKS and issubclass(ARCH_MODEL_REGISTRY.get(arch, object), FairseqNATModel):
        yield (
            f"--arch {arch} does not write from left to right: choose another encoder-decoder, or train it "
            "by fairseq's --task translation_lev, without a teacher"
        )


def _score_problems(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield flags of the scores of a validation that computes none."""
    if settings.get("eval_bleu") or settings.get("eval_metrics") or settings.get("task") not in _TASKS:
        return
    for name in OF_SCORES:
        field = TranslationConfig.__dataclass_fields__[name]
        if settings.get(name, field.default) != field.default:
            either = "--eval-bleu" + (" or --eval-metrics" if "eval_metrics" in settings else "")
            yield f"{flag(name)} changes nothing without {either}: add one, or leave it out"


def _metric_problems(settings: Mapping[str, Any]) -> Iterator[str]:
    criterion, metric = settings.get("criterion"), settings.get("best_checkpoint_metric")
    known = _distils(criterion) or criterion in ("cross_entropy", "label_smoothed_cross_entropy")
    if not known or settings.get("disable_validation") or settings.get("task") not in _TASKS:
        return
    logged = (*_LOGGED, *SCORES.values(), *(_ACCURACY if settings.get("report_accuracy") else ()))
    if metric not in (*logged, *SCORES):  # of the scores, the task says how they are computed
        yield (
            f"--best-checkpoint-metric must be one of {', '.join(logged)}, as the log calls them, but is "
            f"'{str(metric)[:60]}'"
        )

"""The registered methods and their flags, which users have written into scripts."""

import argparse
import re

import pytest
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY, CRITERION_REGISTRY
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.tasks import TASK_REGISTRY
from fairseq.tasks.language_modeling import LanguageModelingConfig
from fairseq.tasks.translation import TranslationConfig

from fairseq_imitkd.criterion import DistillationCriterion
from fairseq_imitkd.losses.divergences import DIVERGENCES
from fairseq_imitkd.methods import METHODS, table
from fairseq_imitkd.tasks.language_modeling import LanguageModelingWithTeacherConfig
from fairseq_imitkd.tasks.translation import TranslationWithTeacherConfig, TranslationWithTeacherTask
from tests.helpers import digit_corpus

TASK_FLAGS = {
    "--teacher-path": None,
    "--teacher-weights": None,
    "--teacher-selection": "fixed",
    "--teacher-dtype": "auto",
    "--teacher-data": None,
    "--teacher-allow-globals": None,
    "--teacher-allow-poor": False,
    "--teacher-device": None,
    "--teacher-encoder-cache": "0",
    "--teacher-cache": None,
    "--init-from-teacher": None,
    "--prune-sparsity": 0.0,
    "--prune-scope": "global",
    "--prune-start": 0,
    "--prune-end": None,
    "--prune-every": 100,
    "--eval-metrics": None,
    "--mono-source-data": None,
    "--mono-source-share": None,
    "--curriculum-scores": None,
}
CRITERION_FLAGS = {
    "--student-share": "constant:0",
    "--share-by": "sentence",
    "--schedule-by": "update",
    "--teacher-samples": False,
    "--divergence": "forward-kl",
    "--jsd-weight": 0.5,
    "--js-weights": "half",
    "--skew": 0.1,
    "--annealing-temperature": 1,
    "--annealing-end": 1.0,
    "--logit-margin": 0.0,
    "--student-temperature": 1.0,
    "--teacher-temperature": 1.0,
    "--teacher-topk": 0,
    "--teacher-tail": "dropped",
    "--gold-weight": "0",
    "--label-smoothing": 0.0,
    "--loss-average": "token",
    "--reward": "none",
    "--reward-weight": 0.5,
    "--reward-baseline": "leave-one-out",
    "--reward-remove-bpe": "auto",
    "--hidden-match": 0.0,
    "--hidden-match-distance": "l1",
    "--hidden-match-only": False,
    "--rollout-policy": "greedy",
    "--rollout-topk": 0,
    "--rollout-topp": 1.0,
    "--rollout-temperature": 1.0,
    "--rollout-teacher-topk": 25,
    "--rollout-max-len-a": 1.2,
    "--rollout-max-len-b": 10,
    "--rollout-pool": False,
    "--rollout-pool-updates": 1,
    "--rollout-replay": 0,
    "--rollout-replay-share": "linear:0",
    "--rollout-cuda-graphs": "auto",
    "--log-rollouts": 0,
    "--log-rollouts-interval": 500,
    "--loss-chunk": 0,
    "--easy-weight": 0.2,
    "--rank-topk": 5,
    "--entropy-threshold": 0.8,
    "--token-selection": "all",
    "--selected-share": 0.5,
    "--selection-queue": 30000,
    "--rollout-confidence": "none",
}
# Other defaults by each method's paper.
METHOD_DEFAULTS = {
    "imitkd": {"--student-share": "exponential:0.005", "--divergence": "teacher-argmax"},
    "imitkd_full": {"--student-share": "exponential:0.005"},
    "word_kd": {"--gold-weight": "0.5"},
    "gkd": {
        "--student-share": "constant:1", "--share-by": "batch", "--divergence": "jsd", "--jsd-weight": 0.1,
        "--loss-average": "sentence", "--rollout-policy": "sampling",
    },
    "f_distill": {
        "--student-share": "constant:0.5",
        "--divergence": "sequence-js",
        "--rollout-policy": "sampling",
    },
    "f_distill_kl": {},
    "f_distill_rkl": {
        "--student-share": "constant:1",
        "--divergence": "reverse-kl",
        "--rollout-policy": "sampling",
    },
    "f_distill_tvd": {
        "--student-share": "constant:0.5",
        "--divergence": "tvd",
        "--rollout-policy": "sampling",
    },
    "annealing_kd": {
        "--divergence": "logit-mse", "--annealing-temperature": 10, "--annealing-end": 0.66666,
        "--gold-weight": "constant:1,warmup=0.66666",
    },
    "continuation_kd": {
        "--divergence": "logit-mse", "--annealing-temperature": 10, "--logit-margin": 0.1,
        "--gold-weight": "linear:0",
    },
    "distillm": {
        "--student-share": "adaptive:0", "--divergence": "skew-reverse-kl", "--rollout-policy": "sampling",
        "--rollout-replay": 1000,
    },
    "speculative_kd": {"--student-share": "constant:1", "--rollout-policy": "speculative"},
    "atkd": {"--divergence": "target-decoupled-kl"},
    "tie_kd": {"--divergence": "ranked-kl", "--gold-weight": "0.5"},
    "selective_kd": {"--gold-weight": "0.5", "--token-selection": "queue"},
    "entropy_aware_kd": {
        "--student-share": "constant:1",
        "--divergence": "entropy-aware-kl",
        "--rollout-policy": "sampling",
    },
}  # fmt: skip
CHOICES = {
    "--teacher-dtype": ["auto", "fp32", "fp16", "bf16", "int8"],
    "--teacher-selection": ["fixed", "agreement", "reinforced"],
    "--prune-scope": ["global", "layer"],
    "--rollout-cuda-graphs": ["auto", "off"],
    "--share-by": ["sentence", "batch"],
    "--schedule-by": ["update", "epoch"],
    "--js-weights": ["half", "exact"],
    "--teacher-tail": ["dropped", "bucket"],
    "--token-selection": ["all", "batch", "queue"],
    "--rollout-confidence": ["none", "entropy", "probability"],
    "--loss-average": ["token", "sentence"],
    "--reward": ["none", "sentence-bleu", "chrf", "rouge-l"],
    "--reward-baseline": ["running", "leave-one-out"],
    "--hidden-match-distance": ["l1", "squared-error", "cosine"],
    "--rollout-policy": ["greedy", "sampling", "speculative"],
}  # fmt: skip
# fairseq's own flags, which the task and the criterion read.
READ = {
    "--seed",
    "--max-update",
    "--max-epoch",
    "--ddp-backend",
    "--find-unused-parameters",
    "--disable-validation",
    "--sentence-avg",
}


def flags(dataclass: type) -> dict[str, argparse.Action]:
    """Return the flags that fairseq's parser makes of a dataclass."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    gen_parser_from_dataclass(parser, dataclass())
    return {action.option_strings[0]: action for action in parser._actions if action.option_strings}


def test_task_flags_are_frozen() -> None:
    """Names and defaults beside those of fairseq's ``translation`` are fixed, because users' scripts depend
    on them.
    """
    own, inherited = flags(TranslationWithTeacherConfig), flags(TranslationConfig)
    assert {
        name: action.default for name, action in own.items() if name not in {*inherited, *READ}
    } == TASK_FLAGS
    assert inherited.keys() < own.keys()
    assert all(own[name].default == action.default for name, action in inherited.items())


def test_flags_of_language_models_are_frozen() -> None:
    """They are those of translation, without an encoder's, and those of prompts."""
    own, inherited = flags(LanguageModelingWithTeacherConfig), flags(LanguageModelingConfig)
    of_scores = {name for name in flags(TranslationConfig) if name.startswith("--eval-")}
    absent = ("--teacher-cache", "--teacher-encoder-cache", "--mono-", "--curriculum-", "--prune-")
    expected = {name for name in TASK_FLAGS if not name.startswith(absent)}
    assert own.keys() - inherited.keys() == expected | of_scores | {"--prompt-symbol", "--prompt-length"}
    assert all(own[name].default == TASK_FLAGS[name] for name in expected)
    changed = {name for name, action in inherited.items() if own[name].default != action.default}
    assert changed == {"--sample-break-mode"}


def test_methods_are_frozen() -> None:
    """The table holds exactly the registered methods."""
    assert METHODS.keys() == METHOD_DEFAULTS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_criterion_flags_are_frozen(name: str) -> None:
    """Every method has every flag, with its paper's defaults."""
    found = {flag: action.default for flag, action in flags(METHODS[name]).items() if flag not in READ}
    assert found == {**CRITERION_FLAGS, **METHOD_DEFAULTS[name]}


@pytest.mark.parametrize("name", METHODS)
def test_choices_and_help(name: str) -> None:
    """Choices and help texts are the same for every method."""
    for flag, action in {
        **flags(METHODS[name]),
        **{f: a for f, a in flags(TranslationWithTeacherConfig).items() if f in TASK_FLAGS},
    }.items():
        if flag in READ:
            continue
        assert action.help, flag
        assert (list(action.choices) if action.choices else None) == CHOICES.get(flag), flag


def test_every_divergence_is_named_in_the_flags_help() -> None:
    """The flag has no fixed choices, because other packages can add divergences."""
    assert all(f" {name}" in flags(METHODS["imitkd"])["--divergence"].help for name in DIVERGENCES)


@pytest.mark.parametrize("name", METHODS)
def test_method_is_registered_under_its_own_class_and_cites_its_paper(name: str) -> None:
    """fairseq stores a criterion's dataclass on its class, so a shared class would mix up the methods'
    defaults.
    """
    registered = CRITERION_REGISTRY[name]
    assert issubclass(registered, DistillationCriterion)
    assert CRITERION_DATACLASS_REGISTRY[name] is METHODS[name]
    assert registered.__dataclass is METHODS[name]
    assert re.search(r"\((?:[^()]|\([^()]*\))*\b(19|20)\d\d\b[^()]*\)", METHODS[name].__doc__ or "")
    assert registered.__doc__ == METHODS[name].__doc__
    others = [CRITERION_REGISTRY[other] for other in METHODS if other != name]
    assert registered not in others
    assert registered.__name__ not in [other.__name__ for other in others]


def test_task_is_registered() -> None:
    """It has the name that users write, and it is marked as a task with a teacher."""
    assert TASK_REGISTRY["translation_with_teacher"] is TranslationWithTeacherTask
    assert TranslationWithTeacherTask.has_teacher is True


def test_documents_list_every_method() -> None:
    """docs/methods.md holds the table that ``python -m fairseq_imitkd --methods`` prints. The README names
    all methods.
    """
    page = (digit_corpus.REPO / "docs" / "methods.md").read_text(encoding="utf-8")
    assert table() in page
    assert [name for name in METHODS if page.count(f"\n| `{name}` |") != 1] == []
    readme = (digit_corpus.REPO / "README.md").read_text(encoding="utf-8")
    assert [name for name in METHODS if f"`{name}`" not in readme] == []


def test_the_tables_tests_exist() -> None:
    """Each method's training test and each divergence's definition test exist."""
    from tests.integration import test_methods as trainings
    from tests.losses import test_divergences as definitions

    assert list(trainings.METHODS) == list(METHODS)
    assert set(definitions.DIVERGENCES) >= {str(defaults().divergence) for defaults in METHODS.values()}

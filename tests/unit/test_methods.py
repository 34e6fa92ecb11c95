"""The methods that are registered, and the flags that users have written into their scripts."""

import argparse
import re

import pytest
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY, CRITERION_REGISTRY
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.tasks import TASK_REGISTRY
from fairseq.tasks.translation import TranslationConfig

from fairseq_imitkd.criterion import DistillationCriterion
from fairseq_imitkd.divergences import DIVERGENCES
from fairseq_imitkd.methods import METHODS
from fairseq_imitkd.task import TranslationWithTeacherConfig, TranslationWithTeacherTask

TASK_FLAGS = {
    "--teacher-path": None,
    "--teacher-dtype": "auto",
    "--teacher-data": None,
    "--teacher-allow-globals": None,
    "--teacher-encoder-cache": "0",
}
CRITERION_FLAGS = {
    "--student-share": "constant:0",
    "--divergence": "forward-kl",
    "--gold-weight": 0.0,
    "--rollout-policy": "greedy",
    "--rollout-topk": 0,
    "--rollout-topp": 1.0,
    "--rollout-temperature": 1.0,
    "--rollout-pool": False,
    "--rollout-pool-updates": 1,
    "--rollout-max-len-a": 1.2,
    "--rollout-max-len-b": 10,
}
# What each method's paper sets otherwise.
METHOD_DEFAULTS = {
    "imitkd": {"--student-share": "exponential:0.005", "--divergence": "teacher-argmax"},
    "imitkd_full": {"--student-share": "exponential:0.005"},
    "word_kd": {"--gold-weight": 0.5},
}
CHOICES = {
    "--teacher-dtype": ["auto", "fp32", "fp16", "bf16"],
    "--divergence": ["teacher-argmax", "forward-kl"],
    "--rollout-policy": ["greedy", "sampling"],
}
# fairseq's own flags, which the criterion only reads.
READ = {"--seed", "--max-update", "--ddp-backend"}


def flags(dataclass: type) -> dict[str, argparse.Action]:
    """The flags that fairseq's parser makes of a dataclass."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    gen_parser_from_dataclass(parser, dataclass())
    return {action.option_strings[0]: action for action in parser._actions if action.option_strings}


def test_task_flags_are_frozen() -> None:
    """The names and defaults beside fairseq's ``translation``: a change breaks users' scripts."""
    own, inherited = flags(TranslationWithTeacherConfig), flags(TranslationConfig)
    assert {name: action.default for name, action in own.items() if name not in inherited} == TASK_FLAGS
    assert inherited.keys() < own.keys()
    assert all(own[name].default == action.default for name, action in inherited.items())


def test_methods_are_frozen() -> None:
    """A name that is gone, or new and not in this table."""
    assert METHODS.keys() == METHOD_DEFAULTS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_criterion_flags_are_frozen(name: str) -> None:
    """Every method has every flag; the defaults are its paper's."""
    found = {flag: action.default for flag, action in flags(METHODS[name]).items() if flag not in READ}
    assert found == {**CRITERION_FLAGS, **METHOD_DEFAULTS[name]}


@pytest.mark.parametrize("name", METHODS)
def test_choices_and_help(name: str) -> None:
    """What a flag may be, and a help text for each, the same in every method."""
    for flag, action in {
        **flags(METHODS[name]),
        **{f: a for f, a in flags(TranslationWithTeacherConfig).items() if f in TASK_FLAGS},
    }.items():
        if flag in READ:
            continue
        assert action.help, flag
        assert (list(action.choices) if action.choices else None) == CHOICES.get(flag), flag


def test_every_divergence_can_be_chosen() -> None:
    """The flag's choices are the functions there are."""
    assert list(DIVERGENCES) == CHOICES["--divergence"]


@pytest.mark.parametrize("name", METHODS)
def test_method_is_registered_under_its_own_class_and_cites_its_paper(name: str) -> None:
    """fairseq keeps a criterion's dataclass on the class: a shared class would give one method another's defaults."""
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
    """Under the name that users write, and marked as one that holds a teacher."""
    assert TASK_REGISTRY["translation_with_teacher"] is TranslationWithTeacherTask
    assert TranslationWithTeacherTask.has_teacher is True

"""The help of fairseq's commands: the plugin's own flags first, under headings; all flags on request."""

import argparse
import copy
from argparse import Action, ArgumentParser
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from fairseq import options

from fairseq_imitkd.cli.arguments import HelpFormatter, Parser, add_traceback_flag, add_verbose_flag
from fairseq_imitkd.method.config import AddedTermsConfig, DivergenceConfig, PrefixConfig
from fairseq_imitkd.models.pruning import PruningConfig
from fairseq_imitkd.rollout.policy import FAIRSEQ_MAX_LEN_A, FAIRSEQ_MAX_LEN_B, MAX_LEN_A, MAX_LEN_B
from fairseq_imitkd.teacher.config import SequenceTeacherConfig
from fairseq_imitkd.text.generate_scorer import NAME as SCORER
from fairseq_imitkd.training.curriculum import CurriculumConfig
from fairseq_imitkd.training.source_only import SourceOnlyConfig
from fairseq_imitkd.training.validation import ValidationConfig

ALL = "--help-all"
TASK = {"--task": "translation_with_teacher"}
METHOD = {"--criterion": "imitkd", "--arch": "transformer"}  # whose flags and defaults are shown
_ABOUT = {
    "train": "Train a student with a teacher: fairseq-train with the plugin.",
    "generate": "Translate a test set: fairseq-generate with the plugin.",
    "interactive": "Translate standard input: fairseq-interactive with the plugin.",
}
_PARSERS = {
    "train": options.get_training_parser,
    "generate": options.get_generation_parser,
    "interactive": options.get_interactive_generation_parser,
}
_TRAINING = (
    "data",
    "arch",
    "criterion",
    "task",
    "optimizer",
    "lr",
    "lr_scheduler",
    "max_tokens",
    "max_update",
    "max_epoch",
    "save_dir",
    "restore_file",
    "finetune_from_model",
    "seed",
    "cpu",
    "fp16",
    "bf16",
)
_DECODING = (
    "data",
    "path",
    "gen_subset",
    "beam",
    "lenpen",
    "max_len_a",
    "max_len_b",
    "batch_size",
    "max_tokens",
    "post_process",
    "results_path",
    "scoring",
    "cpu",
    "fp16",
)
_VALIDATION = (
    "eval_bleu",
    "eval_bleu_args",
    "eval_bleu_remove_bpe",
    "best_checkpoint_metric",
    "maximize_best_checkpoint_metric",
    "patience",
)


# fairseq's flags of a training, in words that say what they do.
_PLAINLY = {
    "data": "fairseq's data directory; of several joined by ':', each epoch reads the next one",
    "arch": "the student's architecture",
    "criterion": "a method, such as imitkd or word_kd, or a loss without a teacher (default: cross_entropy)",
    "optimizer": "the optimizer, such as adam",
    "lr": "learning rate; of several joined by ',', each epoch takes the next one",
    "lr_scheduler": "schedule of the learning rate (default: fixed)",
    "max_update": "end after this many updates; 0 has no such end",
    "max_epoch": "end after this many epochs; 0 has no such end",
    "save_dir": "folder of the checkpoints",
    "restore_file": "checkpoint to continue from (default: checkpoint_last.pt in --save-dir)",
    "finetune_from_model": "checkpoint whose weights the student starts from; all else begins anew",
    "seed": "seed of all random numbers",
    "cpu": "use no GPU",
    "fp16": "train in float16",
    "bf16": "train in bfloat16",
}


def _own(kind: Any) -> list[str]:
    """Return the flags of a dataclass, without those whose value it takes from another flag."""
    return [item.name for item in fields(kind) if not str(item.default).startswith("${")]


# Headings, and the flags under them.
_GROUPS: dict[str, list[tuple[str, Sequence[str]]]] = {
    "train": [
        ("fairseq's flags that most trainings need", _TRAINING),
        ("teacher", _own(SequenceTeacherConfig)),
        *(
            ((kind.__doc__ or "").rstrip(".").lower(), _own(kind))
            for kind in (PrefixConfig, DivergenceConfig, AddedTermsConfig)
        ),
        ("sources without references", _own(SourceOnlyConfig)),
        ("order of the sentences", ["curriculum", *_own(CurriculumConfig)]),
        ("pruning", _own(PruningConfig)),
        ("validation and the best checkpoint", [*_own(ValidationConfig), *_VALIDATION]),
    ],
    "generate": [("fairseq's flags that most translations need", _DECODING)],
    "interactive": [("fairseq's flags that most translations need", [*_DECODING, "input", "buffer_size"])],
}


def short_parser(command: str, arguments: Iterable[str] = ()) -> Parser:
    """Return a parser with the flags of the plugin, and those of fairseq that most users need.

    Args:
        command: one of :data:`~fairseq_imitkd.quick.FAIRSEQS`.
        arguments: further arguments, which may choose a method and so its defaults.
    """
    actions = {action.dest: action for action in all_flags(command, arguments)._actions}
    made = Parser(f"imitkd-{command}", _ABOUT[command])
    add_verbose_flag(made)
    made.usage = (
        f"imitkd-{command} DATA {'--teacher-path TEACHER' if command == 'train' else '--path MODEL'} …"
    )
    made.epilog = f"All flags of fairseq work too; imitkd-{command} {ALL} shows them."
    if command == "train":
        made.epilog += " The defaults are those of the method; --criterion METHOD --help shows another one's."
    shown: set[str] = set()
    for heading, names in _GROUPS[command]:
        group = made.add_argument_group(heading)
        for name in names:
            if name in actions and name not in shown:
                shown.add(name)
                group._add_action(_tidy(actions[name]))
    return made


def all_flags(command: str, arguments: Iterable[str] = ()) -> ArgumentParser:
    """Return fairseq's parser with all flags that the arguments bring in.

    fairseq calls ``modify_parser`` twice: before it adds the flags of the task and the others, and after.

    The arguments are those of :func:`short_parser`.
    """
    given = list(arguments)
    named = {"--arch" if word == "-a" else word.partition("=")[0] for word in given}
    defaults = {**TASK, **(METHOD if command == "train" else {"--path": "x"})}
    given += [word for flag, value in defaults.items() if flag not in named for word in (flag, value)]
    seen: list[ArgumentParser] = []
    options.parse_args_and_arch(_PARSERS[command](), ["data", *given], modify_parser=seen.append)
    parser = seen[-1]
    _show_defaults(parser, command)
    parser.prog, parser.formatter_class = f"imitkd-{command}", HelpFormatter
    add_traceback_flag(parser)
    add_verbose_flag(parser)
    return parser


def _show_defaults(parser: ArgumentParser, command: str) -> None:
    """Let the help name the defaults of the plugin's command where fairseq's are others."""
    limit = "a translation has at most A * source length + B tokens; this is"
    only = "if only --max-len-{} is given"
    task = {"task": f"task (default: {TASK['--task']})"}
    helps = {
        **task,
        "max_len_a": f"{limit} A (default: {MAX_LEN_A:g}; {FAIRSEQ_MAX_LEN_A:g} {only.format('b')})",
        "max_len_b": f"{limit} B (default: {MAX_LEN_B}; {FAIRSEQ_MAX_LEN_B} {only.format('a')})",
    }
    if command == "generate":
        helps["scoring"] = "score of the translations (default: sacrebleu)"
    if command == "train":
        helps = {
            **task,
            **_PLAINLY,
            "eval_bleu_args": "settings of the search in validation as a JSON object "
            f"(default: beam 5, max_len_a {MAX_LEN_A:g}, max_len_b {MAX_LEN_B})",
            "best_checkpoint_metric": "metric of the best checkpoint (default: the first score of "
            "--eval-bleu and --eval-metrics, or loss)",
            "maximize_best_checkpoint_metric": "select the largest value (default: where that is better)",
        }
    for action in parser._actions:
        action.help = helps.get(action.dest, action.help)
        if action.dest == "scoring" and action.choices is not None:  # ours stands in for sacrebleu
            action.choices = [name for name in action.choices if name != SCORER]


def _tidy(action: Action) -> Action:
    """Return a flag for the short help: one metavar, and no list of hundreds of choices."""
    tidied = copy.copy(action)
    tidied.help = (action.help or "").replace("%", "%%").replace("%%(default)s", "%(default)s")
    if action.choices is None and action.nargs != 0 and action.option_strings:
        kinds: dict[Any, str] = {int: "N", float: "X"}
        tidied.metavar = kinds.get(action.type, action.dest.rpartition("_")[2].upper())
    elif action.choices is not None and len(list(action.choices)) > 8:
        tidied.choices, tidied.metavar = None, "NAME"
    tidied.option_strings = sorted(action.option_strings, key=len)[-2:]
    if action.default == "???":
        tidied.default = argparse.SUPPRESS
    return tidied

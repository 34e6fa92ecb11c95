"""Shell completion for ``imitkd`` and ``imitkd-…`` (``imitkd --print-completion SHELL``)."""

import logging
from argparse import ArgumentParser
from typing import Any

import shtab

from fairseq_imitkd.cli.arguments import Parser
from fairseq_imitkd.cli.fairseq_help import all_flags
from fairseq_imitkd.cli.help_texts import parser
from fairseq_imitkd.quick import FAIRSEQS, SUMMARIES


def completion(shell: str) -> str:
    """Return a script that completes commands, flags and choices.

    Args:
        shell: ``bash``, ``zsh`` or ``tcsh``.
    """
    logging.getLogger("shtab").setLevel(logging.WARNING)
    return "\n".join(shtab.complete(made, shell) for made in (_door(), *map(_of_its_own, SUMMARIES)))


def _door() -> ArgumentParser:
    """Return the parser of ``imitkd COMMAND …``."""
    root = Parser("imitkd", "Knowledge distillation for fairseq's sequence-to-sequence models.")
    commands: Any = root.add_subparsers()
    for name, summary in SUMMARIES.items():
        # The parsers exist already, and add_parser() would make others.
        commands.choices[name] = _parser(name)
        commands._choices_actions.append(commands._ChoicesPseudoAction(name, (), summary))
    return root


def _of_its_own(name: str) -> ArgumentParser:
    """Return the parser of ``imitkd-COMMAND …``."""
    made = _parser(name)
    made.prog = f"imitkd-{name}"
    return made


def _parser(name: str) -> ArgumentParser:
    return all_flags(name) if name in FAIRSEQS else parser(name)

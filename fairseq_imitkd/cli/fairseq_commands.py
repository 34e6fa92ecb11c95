"""fairseq's own commands with ``--user-dir`` already set: ``imitkd-train``, ``imitkd-generate``, ``imitkd-interactive``."""

import sys
from pathlib import Path

import fairseq_imitkd


def _arguments(arguments: list[str], defaults: dict[str, str]) -> list[str]:
    """Append each default flag that the user did not write, in either of argparse's spellings."""
    written = {argument.split("=", 1)[0] for argument in arguments}
    missing = [word for flag, value in defaults.items() if flag not in written for word in (flag, value)]
    return [*arguments, *missing]


def _user_dir() -> str:
    return str(Path(fairseq_imitkd.__file__).parent)


def train() -> None:
    """``fairseq-train`` with the plugin loaded and ``--task translation_with_teacher`` unless another is given."""
    from fairseq_cli.train import cli_main

    defaults = {"--user-dir": _user_dir(), "--task": "translation_with_teacher"}
    sys.argv[1:] = _arguments(sys.argv[1:], defaults)
    cli_main()


def generate() -> None:
    """``fairseq-generate`` with the plugin loaded."""
    from fairseq_cli.generate import cli_main

    sys.argv[1:] = _arguments(sys.argv[1:], {"--user-dir": _user_dir()})
    cli_main()


def interactive() -> None:
    """``fairseq-interactive`` with the plugin loaded."""
    from fairseq_cli.interactive import cli_main

    sys.argv[1:] = _arguments(sys.argv[1:], {"--user-dir": _user_dir()})
    cli_main()

"""Packages that some commands need in addition to those that are always installed."""

from collections.abc import Sequence
from importlib import import_module

from fairseq_imitkd.errors import UsageError


def check_extra(command: str, extra: str, packages: Sequence[str]) -> None:
    """Check that the packages of an extra are installed, before any work begins.

    Args:
        command: name of the command, for the message.
        extra: name of the extra.
        packages: names of the packages.

    Raises:
        UsageError: a package is not installed; the message says how to install it.
    """
    for name in packages:
        try:
            import_module(name)
        except ImportError as error:
            raise UsageError(f"{command} needs {name}: pip install 'fairseq-imitkd[{extra}]'") from error

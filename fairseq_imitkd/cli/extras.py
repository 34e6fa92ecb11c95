"""What some commands need beside what is always installed."""

from collections.abc import Sequence
from importlib import import_module

from fairseq_imitkd.errors import UsageError


def check_extra(command: str, extra: str, packages: Sequence[str]) -> None:
    """Whether the packages of an extra are installed, before the work is begun.

    Raises:
        UsageError: naming the one that is not, and what installs it.
    """
    for name in packages:
        try:
            import_module(name)
        except ImportError as error:
            raise UsageError(f"{command} needs {name}: pip install 'fairseq-imitkd[{extra}]'") from error

"""Which of Python's warnings the commands show."""

import sys
import warnings
from collections.abc import Sequence

VERBOSE = "--verbose"
# What hydra, torch and fairseq's use of them warn of at every start, and no user can change.
_NOISE = r"(?s).*(deprecat|no longer experimental|version_base|'pin_memory' argument)"


def silence_warnings(words: Sequence[str] = ()) -> None:
    """Hide warnings that only the authors of hydra, torch and fairseq can heed.

    ``python -W`` and ``PYTHONWARNINGS`` decide instead, if one of them is given.

    Args:
        words: the command line; :data:`VERBOSE` keeps the warnings.
    """
    if sys.warnoptions or VERBOSE in words:
        return
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)
    warnings.filterwarnings("ignore", _NOISE, UserWarning)

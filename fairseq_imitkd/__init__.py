"""Knowledge distillation for fairseq's models. Importing the package registers its tasks and methods."""

import sys

from fairseq_imitkd import quick
from fairseq_imitkd.version import __version__
from fairseq_imitkd.warnings_shown import silence_warnings

# --help and --version of the commands need no registration, which imports torch and fairseq for seconds.
if quick.answer(sys.argv) is None:
    if quick.is_command(sys.argv):  # other programs decide themselves which warnings they show
        silence_warnings(sys.argv)
    from fairseq_imitkd import registration  # noqa: F401

__all__ = ["__version__"]

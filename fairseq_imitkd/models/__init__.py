"""Student architectures that fairseq lacks. Importing this package registers them for ``--arch``."""

from fairseq_imitkd.models import ctc, recurrent, transformer_sizes

__all__ = ["ctc", "recurrent", "transformer_sizes"]

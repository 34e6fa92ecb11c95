"""Student architectures that fairseq lacks. Importing this package registers them for ``--arch``."""

from fairseq_imitkd.models import recurrent, transformer_sizes

__all__ = ["recurrent", "transformer_sizes"]

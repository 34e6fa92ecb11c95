"""Student architectures that fairseq lacks. Importing this registers them, with their named sizes, for ``--arch``."""

from fairseq_imitkd.models import recurrent, transformer_sizes

__all__ = ["recurrent", "transformer_sizes"]

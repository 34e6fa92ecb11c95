"""Knowledge distillation for fairseq's sequence-to-sequence models. Importing it registers the task and the methods."""

from fairseq_imitkd import compat

__version__ = "0.1.0"

compat.allow_fairseq_checkpoints()

from fairseq_imitkd import methods, task  # noqa: E402

__all__ = ["methods", "task"]

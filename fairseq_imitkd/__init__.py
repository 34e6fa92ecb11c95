"""Knowledge distillation for fairseq's sequence-to-sequence models. Importing it registers tasks and methods."""

from fairseq_imitkd import compat

__version__ = "0.1.0"

compat.silence_advice()
compat.allow_fairseq_checkpoints()

from fairseq_imitkd import checkpoints, classification, methods, models, task  # noqa: E402

checkpoints.guard_fairseq()

__all__ = ["classification", "methods", "models", "task"]

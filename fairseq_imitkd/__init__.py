"""Knowledge distillation for fairseq's sequence-to-sequence models. Importing it registers tasks and methods."""

from fairseq_imitkd.checkpoints import torch_compat

__version__ = "0.1.0"

torch_compat.silence_advice()
torch_compat.allow_fairseq_checkpoints()

from fairseq_imitkd import methods, models  # noqa: E402
from fairseq_imitkd.checkpoints import safe_load  # noqa: E402
from fairseq_imitkd.tasks import sentence_prediction, translation  # noqa: E402

safe_load.guard_fairseq()

__all__ = ["methods", "models", "sentence_prediction", "translation"]

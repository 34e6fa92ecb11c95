"""Registers the plugin with fairseq: its tasks, methods and architectures, and its guards."""

from fairseq_imitkd.checkpoints import torch_compat

torch_compat.silence_advice()
torch_compat.allow_fairseq_checkpoints()

from fairseq_imitkd import methods, models  # noqa: E402
from fairseq_imitkd.checkpoints import budget, guard, readers, saving, weights  # noqa: E402
from fairseq_imitkd.data import indexed  # noqa: E402
from fairseq_imitkd.models import layer_drop, swish  # noqa: E402
from fairseq_imitkd.tasks import (  # noqa: E402
    language_modeling,
    sentence_prediction,
    speech_to_text,
    translation,
    translation_multi,
)
from fairseq_imitkd.training import batch_order, ctc_criterion, ranks  # noqa: E402

indexed.check_all_reading()
guard.guard_fairseq()
budget.limit_building()
saving.guard_saving()
weights.check_all_loads()
readers.check_fairseqs_readers()
batch_order.order_without_epochs()
ranks.guard_ranks()
layer_drop.draw_only_in_training()
swish.mend_swish()

__all__ = [
    "ctc_criterion",
    "language_modeling",
    "methods",
    "models",
    "sentence_prediction",
    "speech_to_text",
    "translation",
    "translation_multi",
]

"""A ``--user-dir`` with the plugin, in which one of several processes fails.

``FAULT="RANK PLACE KIND UPDATE"`` says which, where, how, and at which call of this place (0 = first).
"""

import errno
import os
import signal
import time

import torch
from fairseq.data import LanguagePairDataset
from fairseq.models.transformer import TransformerModel
from fairseq.optim.fairseq_optimizer import FairseqOptimizer

import fairseq_imitkd  # noqa: F401  (registers the tasks and methods)
from fairseq_imitkd.checkpoints import saving
from fairseq_imitkd.criterion import DistillationCriterion
from fairseq_imitkd.mixing.mixer import Mixer
from fairseq_imitkd.tasks.translation import TranslationWithTeacherTask
from fairseq_imitkd.teacher.teacher import Teacher

PLACES = {
    "criterion": (TranslationWithTeacherTask, "build_criterion"),
    "data": (LanguagePairDataset, "__getitem__"),
    "rollout": (Mixer, "roll_out"),
    "teacher": (Teacher, "score"),
    "student": (TransformerModel, "forward"),
    "loss": (DistillationCriterion, "_token_loss"),
    "backward": (FairseqOptimizer, "backward"),
    "validation": (TranslationWithTeacherTask, "valid_step"),
    "save": (saving, "_write"),
}


def _fail(kind, result):
    if kind == "oom":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if kind == "memory":
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: out of memory")
    if kind == "error":
        raise ValueError("the fault of the test")
    if kind == "full":
        raise OSError(errno.ENOSPC, "No space left on device")
    if kind == "abort":
        os.abort()
    if kind == "nan":
        return (result[0] * torch.nan, result[1])
    if kind == "slope":  # the loss is finite, and its gradient is not
        loss = result[0]
        return (loss + (loss - loss.detach()).abs().sqrt(), result[1])
    os.kill(os.getpid(), getattr(signal, kind))
    time.sleep(60)  # in the place where the signal arrives
    return result


def _install():
    rank, place, kind, update = os.environ["FAULT"].split()
    holder, name = PLACES[place]
    original, calls = getattr(holder, name), [0]

    def failing(*arguments, **settings):
        calls[0] += 1
        is_now = calls[0] == int(update) + 1
        if is_now and kind not in ("nan", "slope"):
            _fail(kind, None)
        result = original(*arguments, **settings)
        return _fail(kind, result) if is_now else result

    if os.environ["OWN_RANK"] == rank and not getattr(original, "is_faulty", False):
        failing.is_faulty = True
        setattr(holder, name, failing)


if "FAULT" in os.environ:
    _install()

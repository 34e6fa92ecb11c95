"""A ``--user-dir`` with the plugin, in which one of several processes fails.

``FAULT="RANK PLACE KIND UPDATE"`` says which, where, how, and from which update on (0 = first, -1 = before).
``FAULT_LOG`` is a file that gets the moment of the fault and the number of its process. ``SPAWNS`` lets
fairseq start processes without GPUs.
"""

import errno
import os
import signal
import time
from pathlib import Path

import torch
from fairseq.data import LanguagePairDataset
from fairseq.models.transformer import TransformerModel
from fairseq.optim.fairseq_optimizer import FairseqOptimizer

import fairseq_imitkd  # noqa: F401  (registers the tasks and methods)
from fairseq_imitkd.criterion import DistillationCriterion
from fairseq_imitkd.mixing.mixer import Mixer
from fairseq_imitkd.tasks.translation import TranslationWithTeacherTask
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.training.configuration import devices

PLACES = {
    "model": (TranslationWithTeacherTask, "build_model"),
    "criterion": (TranslationWithTeacherTask, "build_criterion"),
    "dataset": (TranslationWithTeacherTask, "load_dataset"),
    "data": (LanguagePairDataset, "__getitem__"),
    "worker": (LanguagePairDataset, "__getitem__"),
    "rollout": (Mixer, "roll_out"),
    "teacher": (Teacher, "score"),
    "student": (TransformerModel, "forward"),
    "loss": (DistillationCriterion, "_token_loss"),
    "backward": (FairseqOptimizer, "backward"),
    "step": (FairseqOptimizer, "step"),
    "validation": (TranslationWithTeacherTask, "valid_step"),
    "save": (torch, "save"),
}
AFTERWARDS = ("nan", "slope")  # kinds that change a result


def _fail(kind, result):
    if kind == "oom":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if kind == "memory":
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: out of memory")
    if kind == "python-memory":
        raise MemoryError
    if kind == "error":
        raise ValueError("the fault of the test")
    if kind == "exit":
        raise SystemExit(7)
    if kind == "full":
        raise OSError(errno.ENOSPC, "No space left on device")
    if kind == "abort":
        os.abort()
    if kind == "nan":
        loss, values = result
        return (loss * torch.nan, {**values, "loss": values["loss"] * torch.nan})
    if kind == "slope":  # the loss is finite, and its gradient is not
        loss = result[0]
        return (loss + (loss - loss.detach()).abs().sqrt(), result[1])
    os.kill(os.getpid(), getattr(signal, kind))
    if kind != "SIGSTOP":
        time.sleep(60)  # in the place where the signal arrives
    return result


def _install():
    rank, place, kind, update = os.environ["FAULT"].split()
    holder, name = PLACES[place]
    original, step = getattr(holder, name), TranslationWithTeacherTask.train_step
    if os.environ.get("OWN_RANK", rank) != rank or getattr(original, "is_faulty", False):
        return
    now, has_failed = -1, False

    def counting(task, sample, model, criterion, optimizer, update_num, **settings):
        nonlocal now
        now = update_num
        return step(task, sample, model, criterion, optimizer, update_num, **settings)

    def failing(*arguments, **settings):
        nonlocal has_failed
        is_now = not has_failed and now >= int(update)
        is_now = is_now and (place != "worker" or torch.utils.data.get_worker_info() is not None)
        if "OWN_RANK" not in os.environ:  # of a process that fairseq has spawned
            is_now = is_now and str(torch.distributed.get_rank()) == rank
        if is_now:
            has_failed = True
            Path(os.environ["FAULT_LOG"]).write_text(f"{time.time()} {os.getpid()}")
        if is_now and kind not in AFTERWARDS:
            _fail(kind, None)
        result = original(*arguments, **settings)
        return _fail(kind, result) if is_now and kind in AFTERWARDS else result

    failing.is_faulty = True
    TranslationWithTeacherTask.train_step = counting
    setattr(holder, name, failing)


if "SPAWNS" in os.environ:
    devices._problems_of_processes = lambda *_: iter(())
if "FAULT" in os.environ:
    _install()

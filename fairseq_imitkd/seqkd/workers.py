"""Translation of batches, in this process or in several."""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fairseq_imitkd.data.bars import Bar
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.seqkd.folder import output_folder, save_batch
from fairseq_imitkd.seqkd.job import Job
from fairseq_imitkd.seqkd.teacher_engine import open_translator
from fairseq_imitkd.seqkd.translator import Translator
from fairseq_imitkd.seqkd.work import Work, read_corpus
from fairseq_imitkd.teacher.teacher import Teacher

Report = Callable[[int], object]  # called with the source tokens of each batch that is done


def translate(work: Work, todo: Sequence[int], teacher: Teacher) -> None:
    """Translate batches, and save each one as soon as it is done.

    Args:
        work: what there is to translate.
        todo: numbers of the batches.
        teacher: the teacher, loaded in this process.

    Raises:
        UsageError: a batch can't be translated or saved, or a worker died.
    """
    total, left = work.tokens(work.batches), work.tokens([work.batches[number] for number in todo])
    with Bar(
        total=total, initial=total - left, desc="translate", unit=" source tokens", unit_scale=True
    ) as bar:
        if work.job.workers > 1 and len(todo) > 1:
            _translate_in_processes(work, todo, bar.update)
        elif todo:
            _translate(work, todo, open_translator(work, 0, teacher), report=bar.update)


def _translate(work: Work, todo: Sequence[int], translator: Translator, *, report: Report) -> None:
    for number in todo:
        ids, sources, references = work.read(work.batches[number])
        save_batch(work.job.out, number, translator.translate(ids, sources, references))
        report(sum(source.numel() for source in sources))


def _translate_in_processes(work: Work, todo: Sequence[int], report: Report) -> None:
    """Share batches out in turn, so that all workers have sentences of every length."""
    job, context = work.job, multiprocessing.get_context("spawn")
    reports = context.Queue()
    shares = [
        _Share(job, work.limits, todo[worker :: job.workers], worker)
        for worker in range(min(job.workers, len(todo)))
    ]
    processes = [context.Process(target=_worker, args=(share, reports), daemon=True) for share in shares]
    for process in processes:
        process.start()
    try:
        while any(process.is_alive() for process in processes) or not reports.empty():
            try:
                message = reports.get(timeout=0.2)
            except queue.Empty:
                message = 0
            if isinstance(message, str):
                raise UsageError(message)
            report(message)
            for worker, process in enumerate(processes):
                if process.exitcode not in (None, 0) and reports.empty():
                    raise UsageError(
                        f"worker {worker} of --workers {job.workers} ended with code {process.exitcode} (see "
                        "its output above); run the same command again: it continues where it stopped"
                    )
    finally:
        for process in processes:
            process.terminate()
            process.join()


@dataclass(frozen=True)
class _Share:
    """What one of several processes has to do.

    Args:
        job: the job.
        limits: most tokens of a source and of a target that the teacher can represent.
        todo: numbers of the batches.
        worker: number of the process.
    """

    job: Job
    limits: tuple[int, int]
    todo: Sequence[int]
    worker: int


def _worker(share: _Share, reports: Any) -> None:
    """Run one of several processes. It ends as soon as the command does, before another run can start.

    Args:
        share: what to do.
        reports: a queue for the source tokens of each batch that is done, or the message of an error.
    """
    job = share.job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the command too, which ends its workers
    parent = multiprocessing.parent_process()
    assert parent is not None
    if not parent.is_alive():  # it was killed while this process started
        return
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(max(1, torch.get_num_threads() // job.workers))
    try:
        with output_folder(job.out).errors():
            languages = job.languages()
            work = Work(job, languages, read_corpus(job, languages), share.limits)
            _translate(work, share.todo, open_translator(work, share.worker), report=reports.put)
    except UsageError as error:
        reports.put(str(error))


def _end_with(parent: Any) -> None:
    """End this process when the command ends: a command that is killed can't tell its workers."""
    parent.join()
    os._exit(1)

"""Imports a model with the vocabulary of a corpus: an import, and the trimming of what it has made."""

import shutil
from collections.abc import Sequence
from dataclasses import replace

from fairseq_imitkd.data.output_folder import NEW, OutputFolder
from fairseq_imitkd.huggingface.folder import read_json
from fairseq_imitkd.huggingface.importer import CHECKPOINT, Imported, ImportJob, import_model
from fairseq_imitkd.huggingface.subwords import open_encoder
from fairseq_imitkd.huggingface.trim import TrimJob, Trimmed, count_symbols, trim
from fairseq_imitkd.text.imported import DESCRIPTION, SIDES

_FLAG = "--trim-to"


def import_trimmed(job: ImportJob, corpora: Sequence[str]) -> tuple[Imported, Trimmed]:
    """Import a model, and trim its vocabulary to raw text.

    Args:
        job: the model to import.
        corpora: prefixes of text: ``PREFIX.LANG`` holds sentences.

    Raises:
        UsageError: as in :func:`~fairseq_imitkd.huggingface.importer.import_model` and
            :func:`~fairseq_imitkd.huggingface.trim.trim`.
    """
    OutputFolder(job.out, NEW).check_new()
    for language in filter(None, (job.source_lang, job.target_lang)):
        count_symbols(_FLAG, corpora, language)  # before the import takes its time
    work = OutputFolder(job.out.resolve().with_name(f".{job.out.name}.import"), NEW)
    whole = work.path / "whole"
    with work.errors(), work.lock():
        shutil.rmtree(whole, ignore_errors=True)  # of a run that was killed
        try:
            made = import_model(replace(job, out=whole))
            content = read_json(whole / DESCRIPTION)
            counts = {}
            for side in SIDES:
                # The tags that an encoder adds are not text. The trimmed model keeps them.
                encoder = replace(open_encoder(whole, side), before=(), after=())
                language = content["text"][side]["language"]
                counts[side] = count_symbols(_FLAG, corpora, language, split=encoder.symbols)
            return made, trim(TrimJob(whole / CHECKPOINT, job.out, corpora, flag=_FLAG), counts)
        finally:
            shutil.rmtree(work.path, ignore_errors=True)

"""The engine that translates as the teacher: fairseq, or CTranslate2, which is first compared with it."""

import logging
import os
from typing import Any

import numpy as np
import torch
from fairseq.data import LanguagePairDataset

from fairseq_imitkd.checkpoints.comet import CometSimilarity
from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.engines import ctranslate2_convert
from fairseq_imitkd.engines.base import Engine
from fairseq_imitkd.engines.ctranslate2 import CTranslate2Engine
from fairseq_imitkd.engines.fairseq import FairseqEngine
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.seqkd.folder import AGREEMENT, CONVERTED, DECODED, output_folder
from fairseq_imitkd.seqkd.job import Job
from fairseq_imitkd.seqkd.translations import GivenTranslations
from fairseq_imitkd.seqkd.translator import COMPARED, Translator, agreement
from fairseq_imitkd.seqkd.work import Work, translation_files
from fairseq_imitkd.teacher.likelihood import SENTENCES, check_likelihood
from fairseq_imitkd.teacher.loading import load_teacher
from fairseq_imitkd.teacher.source import TeacherSource
from fairseq_imitkd.teacher.teacher import Teacher

logger = logging.getLogger(__name__)


def load(job: Job, languages: Languages) -> Teacher:
    """Load the teacher.

    Raises:
        UsageError: the teacher can't be used, or its longest target is too short.
    """
    source = TeacherSource(
        job.teacher_path,
        dtype=job.teacher_dtype,
        data=job.teacher_data,
        allow_globals=job.teacher_allow_globals,
    )
    teacher = load_teacher(source, languages)
    longest = teacher.max_positions[1]
    if job.decoding.min_len >= longest:
        raise UsageError(
            f"--min-len must be below {longest}, the teacher's longest target, but is {job.decoding.min_len}"
        )
    return teacher


def check_teacher(work: Work, teacher: Teacher) -> None:
    """Refuse a teacher that does not know the data. Sentences without references show nothing.

    Raises:
        UsageError: it does not.
    """
    job, languages, corpus = work.job, work.languages, work.corpus
    if corpus.references is None:
        logger.info("the data have no references, so the teacher's likelihood of them is not checked")
        return
    work.read(np.arange(min(SENTENCES, len(corpus))))
    alone = job.backend == "fairseq" and job.workers == 1  # else other models need the device's memory
    teacher.place(job.device_of(0) if alone else torch.device("cpu"), torch.float32)
    check_likelihood(
        teacher,
        LanguagePairDataset(
            corpus.sources,
            corpus.lengths,
            languages.source_dictionary,
            corpus.references,
            np.asarray(corpus.references.sizes),
            languages.target_dictionary,
        ),
        paths=job.teacher_path.split(os.pathsep),
        pad=languages.target_dictionary.pad(),
        symbols=len(languages.target_dictionary),
        allow_poor=job.teacher_allow_poor,
    )


def open_translator(work: Work, worker: int, teacher: Teacher | None = None) -> Translator:
    """Return what translates in one process.

    Args:
        work: what there is to translate.
        worker: number of the process.
        teacher: the teacher, if this process has loaded it; CTranslate2 and translations of others need none.
    """
    job, dictionary = work.job, work.languages.target_dictionary
    if job.translations:
        given = GivenTranslations(
            translation_files(job),
            job.student_texts()[1],
            dictionary,
            settings=job.decoding,
            folder=job.out / DECODED,
        )
        return Translator(given, dictionary, **text_of(work, worker), needs_scores=False)
    if job.backend == "ctranslate2":
        engine: Engine = _ctranslate2(work, worker)
    else:
        engine = _fairseq(work, worker, teacher or load(job, work.languages))
    return Translator(engine, dictionary, **text_of(work, worker))


def text_of(work: Work, worker: int) -> dict[str, Any]:
    """Return what makes text for a :class:`Translator`, and what the metric ``comet`` adds to it."""
    job, decode = work.job, work.job.decoders()
    if job.comet_model is None:
        return {"decode": decode}
    comet = CometSimilarity(job.comet_model, job.device_of(worker))
    return {"decode": decode, "comet": comet, "sources": work.languages.source_dictionary}


def _fairseq(work: Work, worker: int, teacher: Teacher) -> FairseqEngine:
    teacher.place(work.job.device_of(worker), torch.float32)
    return FairseqEngine(
        teacher.writer, work.languages, work.job.decoding, longest_target=teacher.max_positions[1]
    )


def _ctranslate2(work: Work, worker: int) -> CTranslate2Engine:
    job = work.job
    return CTranslate2Engine(
        job.out / CONVERTED,
        work.languages,
        job.decoding,
        longest_target=work.limits[1],
        device=job.device_of(worker),
        compute_type=job.quantization,
    )


def convert(work: Work, teacher: Teacher) -> None:
    """Convert the teacher to a CTranslate2 model once, and compare its first outputs with fairseq's.

    Raises:
        UsageError: the teacher can't be converted, or the outputs differ too much.
    """
    job, folder = work.job, output_folder(work.job.out)
    found = folder.read(AGREEMENT)
    if found is None or not (job.out / CONVERTED).is_dir():
        _convert(job, work.languages, teacher)
        text = text_of(work, 0)
        ours, fairseqs = (
            Translator(engine, work.languages.target_dictionary, **text)
            for engine in (_ctranslate2(work, 0), _fairseq(work, 0, teacher))
        )
        found = agreement(ours, fairseqs, [work.read(numbers) for numbers in work.first_batches(COMPARED)])
        folder.write_json(AGREEMENT, found)
    logger.info(
        "%d of the first %d outputs of CTranslate2 are those of fairseq, chrF %.2f",
        found["identical"],
        found["sentences"],
        found["chrf"],
    )
    if found["chrf"] < job.min_agreement:
        other = "" if job.quantization == "float32" else f"another --quantization than {job.quantization}, "
        raise UsageError(
            f"--backend ctranslate2: its first {found['sentences']} outputs differ too much from fairseq's, "
            f"chrF {found['chrf']} with --min-agreement {job.min_agreement:g}; use {other}a lower "
            "--min-agreement, or --backend fairseq"
        )


def _convert(job: Job, languages: Languages, teacher: Teacher) -> None:
    reason = ctranslate2_convert.unsupported_reason(teacher.models[0])
    if reason is not None:
        raise UsageError(
            f"--backend ctranslate2 can't compute --teacher-path '{job.teacher_path}': {reason}; "
            "use --backend fairseq"
        )
    if not (job.out / CONVERTED).is_dir():
        ctranslate2_convert.convert(
            teacher.models[0], languages, job.out / CONVERTED, quantization=job.quantization
        )

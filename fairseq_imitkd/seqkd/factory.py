"""From a corpus and a teacher to the teacher's data set: plan, translate, resume, write."""

import logging
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

import fairseq_imitkd
from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.data.files import sync
from fairseq_imitkd.data.output_folder import OutputFolder
from fairseq_imitkd.engines import ctranslate2_convert
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.seqkd.dataset import Student, Written, summary, write
from fairseq_imitkd.seqkd.filters import Counts, PairFilter
from fairseq_imitkd.seqkd.folder import (
    AGREEMENT,
    BUILDING,
    DECODED,
    JOB,
    MANIFEST,
    finished,
    output_folder,
    saved_batches,
    saved_files,
)
from fairseq_imitkd.seqkd.job import Job
from fairseq_imitkd.seqkd.reverse import check_reverse, qualities, score_back
from fairseq_imitkd.seqkd.teacher_engine import check_teacher, convert, load
from fairseq_imitkd.seqkd.work import Work, check_subwords, check_text, read_corpus
from fairseq_imitkd.seqkd.workers import translate
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.text.marks import AUTO, subword_mark

logger = logging.getLogger(__name__)

UNLIMITED = (2**31, 2**31)  # tokens of a source and of a target that others have translated


@dataclass(frozen=True)
class Result:
    """The outcome of a run.

    Args:
        manifest: the manifest of the finished data set; None while other machines have batches left.
        batches: number of batches of the job.
        done: number of batches that are translated.
        fresh: whether this run finished the data set.
    """

    manifest: dict[str, Any] | None
    batches: int
    done: int
    fresh: bool = True


def make(job: Job) -> Result:
    """Translate what is not yet translated and, when nothing is left, write the data set.

    Raises:
        UsageError: the files, the flags and the folder do not fit together. Nothing that was there is
            overwritten.
    """
    folder = output_folder(job.out)
    with folder.errors():
        languages = job.languages()
        job = _with_subword_mark(job, languages)
        identity = job.identity(languages)
        folder.check(identity)
        with folder.lock(None if job.shard_id is None else str(job.shard_id)):
            is_new = folder.claim(identity)
            manifest = finished(folder, identity)
            if manifest is not None:
                return Result(manifest, 0, 0, fresh=False)
            with suppress(FileNotFoundError):  # the run before was killed just before its end
                (job.out / BUILDING / DECODED).rename(job.out / DECODED)
            try:
                work, teacher = _prepare(job, languages)
            except UsageError:
                if is_new and job.shard_id is None:  # other settings may use the folder then
                    shutil.rmtree(job.out / DECODED, ignore_errors=True)
                    (job.out / JOB).unlink()
                raise
            return _make(work, folder, identity, teacher=teacher)


def _with_subword_mark(job: Job, languages: Languages) -> Job:
    """Return the job with the name of its subwords in place of ``auto``."""
    mark = job.decoding.remove_bpe
    if mark in (None, AUTO) and job.subwords[1].bpe == "gpt2":  # numbers have none
        mark = None
    else:
        mark = subword_mark(languages.target_dictionary, mark, "--remove-bpe")
    return replace(job, decoding=replace(job.decoding, remove_bpe=mark))


def _prepare(job: Job, languages: Languages) -> tuple[Work, Teacher | None]:
    """Read the corpus and the teachers, and convert the teacher if that is wanted."""
    check_text(job, languages)
    check_subwords(job, languages)
    corpus = read_corpus(job, languages)
    check_reverse(job, languages)
    _student(job, languages)
    if job.translations:
        return Work(job, languages, corpus, UNLIMITED), None
    if job.source_text is None:
        corpus.warn_of_other_subwords(languages, job.split)
    teacher = load(job, languages)
    work = Work(job, languages, corpus, teacher.max_positions)
    check_teacher(work, teacher)
    if work.batches and job.backend == "ctranslate2":
        convert(work, teacher)
    return work, teacher


def _make(
    work: Work, folder: OutputFolder, identity: Mapping[str, Any], *, teacher: Teacher | None
) -> Result:
    job, count = work.job, len(work.batches)
    done = {number for number, _ in saved_batches(job.out)}
    if job.shard_id is not None:
        mine = range(job.shard_id, count, job.num_shards)
        translate(work, [number for number in mine if number not in done], teacher)
        score_back(work, mine)
        return Result(None, count, len(saved_files(job.out)))
    translate(work, [number for number in range(count) if number not in done], teacher)
    score_back(work, range(count))
    return Result(finish(work, folder, identity), count, count)


def finish(work: Work, folder: OutputFolder, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Write the data set under another name, check its counts, and then give it its own name.

    All translations are in memory meanwhile. The manifest is written last. Until it is there, ``decoded`` is
    kept, for a run that is killed here; it is deleted as a part of ``building``, which the next run deletes
    too.

    Returns:
        the manifest.
    """
    job, out = work.job, work.job.out
    building = out / BUILDING
    for left in (building, out / "text", out / "data-bin"):
        shutil.rmtree(left, ignore_errors=True)
    counts, agreed = _write(work), folder.read(AGREEMENT)
    manifest = {
        "versions": _versions(job),
        **identity,
        **({"agreement": agreed} if agreed else {}),
        **summary(counts, building),
    }
    for name in ("text", "data-bin"):
        for path in (building / name).iterdir():
            sync(path)
        sync(building / name)
        (building / name).rename(out / name)
    (out / DECODED).rename(building / DECODED)
    folder.remove_leftovers()
    folder.write_json(MANIFEST, manifest)
    shutil.rmtree(building, ignore_errors=True)
    return manifest


def _write(work: Work) -> Counts:
    """Write the data set into ``building``, and return what became of the sentences."""
    job, lengths = work.job, work.corpus.lengths
    batches = dict(saved_batches(job.out))
    if sorted(batches) != list(range(len(work.batches))):
        raise RuntimeError(f"{len(work.batches)} batches were translated, but {len(batches)} are there")
    counts = Counts(
        sentences=len(work.corpus),
        too_long=int((lengths > work.limits[0]).sum()),
        empty_sources=int((lengths <= 1).sum()),
    )
    written = Written(
        work.corpus,
        work.languages,
        job.decoding.remove_bpe,
        job.decoders(),
        from_text=bool(job.translations),
    )
    every = list(batches.values())
    found = PairFilter(work.corpus, every, job.filters, sides=written.sides, qualities=qualities(job, every))
    write(
        job.out / BUILDING,
        found.judged(counts),
        written,
        split=job.split,
        total=len(work.corpus) * job.decoding.kept,
        student=_student(job, work.languages),
    )
    is_translated = np.zeros(len(work.corpus), dtype=bool)
    for batch in every:
        is_translated[batch.ids] = True
    counts.check(int(is_translated.sum()), sum(int(batch.counts.sum()) for batch in every))
    _check_written(counts)
    return counts


def _student(job: Job, languages: Languages) -> Student | None:
    """Return the student with other symbols than the teacher's; None if there is none."""
    students = job.student_languages(languages)
    if students is None:
        return None
    return Student(students, *job.student_texts())


def _check_written(counts: Counts) -> None:
    """Refuse an empty data set; warn if most pairs were dropped."""
    dropped = counts.translations + counts.gold - counts.written
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in counts.dropped.items() if number)
    if not counts.written:
        raise UsageError(
            f"no pair is left to train on: of {counts.sentences:,} sources {counts.empty_sources:,} are "
            f"empty, {counts.too_long:,} too long; dropped translations: {reasons or 'none'}; use other "
            "text, --max-len-b or filters, and another --out"
        )
    if dropped > counts.written:
        logger.warning("most pairs are dropped: %s", reasons)


def _versions(job: Job) -> dict[str, str]:
    versions = {"fairseq_imitkd": fairseq_imitkd.__version__, "torch": torch.__version__}
    if job.backend == "ctranslate2":
        versions["ctranslate2"] = ctranslate2_convert.library().__version__
    return versions

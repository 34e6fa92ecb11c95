"""From a corpus and a teacher to the teacher's corpus: planned, shared out, translated, resumed, written."""

import errno
import json
import logging
import multiprocessing
import os
import queue
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import data_utils
from tqdm import tqdm

import fairseq_imitkd
from fairseq_imitkd.checkpoints.safe_load import check_files
from fairseq_imitkd.data.corpus import Corpus, Languages, check_sentences, of_split, of_text, split_hashes
from fairseq_imitkd.data.files import alone, is_left_over, sha256, sync, write_json
from fairseq_imitkd.engines import ctranslate2_convert
from fairseq_imitkd.engines.base import Backend, Decoding, FairseqBackend, Translated, Translator
from fairseq_imitkd.engines.ctranslate2 import COMPARED, CTranslateBackend, agreement, check_quantization
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.seqkd.dataset import Counts, Filters, pairs, summary, write
from fairseq_imitkd.seqkd.journal import Journal, records
from fairseq_imitkd.teacher.loading import load_teacher
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.text.subwords import Text, TextSettings

logger = logging.getLogger(__name__)
FORMAT = 1  # of what is kept in the folder: another version begins anew
JOB, DECODED, BUILDING, MANIFEST = "job.json", "decoded", "building", "manifest.json"
CONVERTED, AGREEMENT = "ctranslate2", "agreement.json"  # of what is decoded
BACKENDS = ("fairseq", "ctranslate2")
# A folder that can't be written to: no permission, no such kind of file, no quota, too large, too long a name, a broken disk.
UNWRITABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EDQUOT, errno.EFBIG, errno.ENAMETOOLONG,
    errno.ELOOP, errno.EIO, errno.ENOENT,
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """Everything ``imitkd-seqkd`` is told.

    Args:
        data: fairseq's data directory, whose dictionaries are the teacher's.
        teacher_path: checkpoints joined by ``:``.
        out: the folder to make.
        decoding, filters: see there.
        split: which split to translate; with ``source_text``, the name of the one that is made.
        source_text: raw sentences to translate instead.
        text: how they are made symbols.
        source_lang, target_lang: None reads them off the data directory.
        teacher_dtype, teacher_data, teacher_allow_globals: as in training.
        backend: what translates, one of :data:`BACKENDS`.
        quantization: what ``ctranslate2`` computes in.
        min_agreement: the least chrF of its first outputs against fairseq's.
        max_tokens, batch_size: of a batch of sources; 0 is no bound.
        workers: processes on this machine.
        num_shards, shard_id: of machines that share the work and ``out``.
        cpu: even where there is a GPU.
    """

    data: Path
    teacher_path: str
    out: Path
    decoding: Decoding
    filters: Filters
    split: str = "train"
    source_text: Path | None = None
    text: TextSettings = field(default_factory=TextSettings)
    source_lang: str | None = None
    target_lang: str | None = None
    teacher_dtype: str = "fp32"
    teacher_data: str | None = None
    teacher_allow_globals: str | None = None
    backend: str = "fairseq"
    quantization: str = "float32"
    min_agreement: float = 90.0
    max_tokens: int = 4096
    batch_size: int = 0
    workers: int = 1
    num_shards: int = 1
    shard_id: int | None = None
    cpu: bool = False

    def __post_init__(self) -> None:
        for flag, value, least in (("--max-tokens", self.max_tokens, 0), ("--batch-size", self.batch_size, 0),
                                   ("--workers", self.workers, 1), ("--num-shards", self.num_shards, 1)):  # fmt: skip
            if value < least:
                raise UsageError(f"{flag} must be {least} or more, but is {value}")
        if not self.max_tokens and not self.batch_size:
            raise UsageError("--max-tokens 0 needs a --batch-size: one of them must bound a batch")
        if (self.shard_id is None) != (self.num_shards == 1):
            raise UsageError(
                "--shard-id needs a --num-shards of 2 or more, and that a --shard-id: give both or none"
            )
        if self.shard_id is not None and not 0 <= self.shard_id < self.num_shards:
            raise UsageError(f"--shard-id must be in 0..{self.num_shards - 1}, but is {self.shard_id}")
        if not self.split or "/" in self.split:
            raise UsageError(f"--gen-subset must be the name of a split, like train, but is '{self.split}'")
        if self.source_text is not None and not os.path.isfile(self.source_text):
            raise UsageError(
                f"--source-text '{self.source_text}' is no file: give one with a sentence a line, in UTF-8"
            )
        if self.source_text is not None and (self.decoding.select == "best" or self.filters.mix_gold):
            flag = "--select best" if self.decoding.select == "best" else "--mix-gold"
            raise UsageError(
                f"{flag} needs references, which --source-text has none of: leave one of them out"
            )
        self._check_backend()

    def _check_backend(self) -> None:
        if self.backend not in BACKENDS:
            raise UsageError(f"--backend must be one of {', '.join(BACKENDS)}, but is {self.backend}")
        if not 0.0 <= self.min_agreement <= 100.0:
            raise UsageError(f"--min-agreement must be in 0..100, but is {self.min_agreement}")
        if self.backend == "fairseq":
            return
        for flag, value, only in (
            ("--select", self.decoding.select, ("first", "best")),
            ("--unkpen", self.decoding.unkpen, (0.0,)),
            ("--teacher-dtype", self.teacher_dtype, ("fp32",)),
        ):
            if value not in only:
                raise UsageError(
                    f"{flag} must be {' or '.join(map(str, only))} under --backend ctranslate2, but is {value}: use --backend "
                    "fairseq"
                )
        if os.pathsep in self.teacher_path:
            raise UsageError(
                "--backend ctranslate2 translates with one model, not an ensemble: use --backend fairseq"
            )
        check_quantization(self.quantization, self.device)

    @property
    def device(self) -> str:
        """Where to decode."""
        return "cuda" if torch.cuda.is_available() and not self.cpu else "cpu"


@dataclass(frozen=True)
class Result:
    """What a run has come to.

    Args:
        manifest: of the finished data set; None while other machines have batches left.
        batches, done: of the whole work.
        fresh: whether this run finished it.
    """

    manifest: dict[str, Any] | None
    batches: int
    done: int
    fresh: bool = True


def make(job: Job) -> Result:
    """Translate what is not yet translated and, when nothing is left, write the data set.

    Raises:
        UsageError: files, flags and folder do not fit together. Nothing that was there is overwritten.
    """
    with one_line(job.out):
        languages = Languages.of(job.data, job.source_lang, job.target_lang)
        identity = identify(job, languages)
        is_new = claim(job.out, identity)
        with alone(job.out, shared=job.shard_id is not None):
            # Again: the run before may have been refused, and have left the folder free.
            is_new = claim(job.out, identity) or is_new
            return _made(job, languages, identity, is_new)


def _made(job: Job, languages: Languages, identity: dict[str, Any], is_new: bool) -> Result:
    building = job.out / BUILDING
    if (job.out / MANIFEST).is_file():
        shutil.rmtree(building, ignore_errors=True)  # of a run that was killed when all was done
        return Result(check_made(job.out, identity), 0, 0, fresh=False)
    with suppress(FileNotFoundError):  # of a run that was killed just before
        (building / DECODED).rename(job.out / DECODED)
    try:
        corpus, counts = read_corpus(job, languages)
        teacher = load(job, languages)
        limits = teacher.max_positions
        batches = plan(corpus, job, limits[0])
        if job.backend == "ctranslate2" and batches:
            first = np.sort(np.concatenate(batches))[:COMPARED]
            convert(job, languages, corpus, teacher, plan(corpus, job, limits[0], first))
    except UsageError:
        if is_new and job.shard_id is None:  # with other settings the folder can then be used
            shutil.rmtree(job.out / DECODED, ignore_errors=True)
            (job.out / JOB).unlink()
        raise
    counts.too_long = int((corpus.lengths > limits[0]).sum())
    done = {number for number, _ in records(job.out / DECODED)}
    todo = [number for number in range(len(batches)) if number not in done]
    if job.shard_id is not None:
        todo = [number for number in todo if number % job.num_shards == job.shard_id]
    translate(job, languages, corpus, teacher, batches, todo)
    if job.shard_id is not None:
        return Result(None, len(batches), len({number for number, _ in records(job.out / DECODED)}))
    return Result(finish(job, languages, corpus, identity, counts, len(batches)), len(batches), len(batches))


def identify(job: Job, languages: Languages) -> dict[str, Any]:
    """What makes this data set this one, by contents and not by names of files."""
    check_files(job.teacher_path)
    bpe = (
        {}
        if job.text.bpe is None
        else {"_name": job.text.bpe, **{n: sha256(path) for n, path in job.text.files.items()}}
    )
    data = {"source_text": sha256(job.source_text)} if job.source_text else split_hashes(languages, job.split)
    identity = {
        "format": FORMAT,
        "teachers": [sha256(Path(path)) for path in job.teacher_path.split(os.pathsep)],
        "teacher_dtype": job.teacher_dtype,
        "backend": {"name": job.backend, "quantization": job.quantization},
        "languages": [languages.source, languages.target],
        "dictionaries": languages.dictionary_hashes(),
        "split": job.split,
        "data": data,
        "bpe": bpe,
        "decoding": asdict(job.decoding),
        "filters": asdict(job.filters),
        "batches": {"max_tokens": job.max_tokens, "batch_size": job.batch_size},
    }
    return json.loads(json.dumps(identity))


def claim(out: Path, identity: dict[str, Any]) -> bool:
    """Make the folder this job's, or see that it is.

    Returns:
        whether it was none's before.

    Raises:
        UsageError: it is another's.
    """
    mark = out / JOB
    if mark.is_file():
        theirs = _read_json(mark)
        difference = _first_difference(theirs, identity)
        if difference:
            name, was, now = difference
            raise UsageError(
                f"--out '{out}' was begun with {name} = {was}, but now it is {now}: give another --out, or the settings of then"
            )
        return False
    if out.exists() and (not out.is_dir() or not all(map(is_left_over, out.iterdir()))):
        if mark.is_file():  # another machine was first
            return claim(out, identity)
        raise UsageError(
            f"--out '{out}' is there and no folder of this command's: give one that is empty or not there"
        )
    out.mkdir(parents=True, exist_ok=True)
    return write_json(mark, identity, replace=False) or claim(out, identity)


def check_made(out: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a folder that is finished, if it is still what that says.

    Raises:
        UsageError: a file has gone or changed.
    """
    manifest = _read_json(out / MANIFEST)
    difference = _first_difference({name: manifest.get(name) for name in identity}, identity)
    files = manifest.get("files")
    if difference or not isinstance(files, dict):
        raise UsageError(
            f"{out / MANIFEST} is not of this folder's job: give another --out, or delete '{out}'"
        )
    for name, said in files.items():
        path = out / name
        if (
            not path.is_file()
            or path.stat().st_size != said.get("bytes")
            or sha256(path) != said.get("sha256")
        ):
            raise UsageError(
                f"{path} is not what {MANIFEST} says any more: delete '{out}' and run the same command again"
            )
    return manifest


def read_corpus(job: Job, languages: Languages) -> tuple[Corpus, Counts]:
    """The sentences to translate, and what is known of them so far. Raw text is made tokens the first time."""
    folder = job.out / DECODED
    folder.mkdir(exist_ok=True)
    if job.source_text is None:
        corpus = of_split(languages, job.split)
    else:
        corpus = of_text(job.source_text, Text(job.text), languages, folder)
    if job.decoding.select == "best" or job.filters.mix_gold:
        flag = "--select best" if job.decoding.select == "best" else "--mix-gold"
        if corpus.references is None:
            raise UsageError(
                f"{flag} needs references, but --gen-subset {job.split} of DATA '{job.data}' has no target side"
            )
    counts = Counts(sentences=len(corpus), empty_sources=int((corpus.lengths <= 1).sum()))
    return corpus, counts


def load(job: Job, languages: Languages) -> Teacher:
    """The teacher, ready to decode.

    Raises:
        UsageError: it can't be used, or its targets are too short.
    """
    teacher = load_teacher(
        job.teacher_path, languages, job.teacher_dtype, job.teacher_data, job.teacher_allow_globals
    )
    longest = teacher.max_positions[1]
    if job.decoding.min_len >= longest:
        raise UsageError(
            f"--min-len must be below {longest}, the teacher's longest target, but is {job.decoding.min_len}"
        )
    return teacher


def plan(corpus: Corpus, job: Job, longest: int, numbers: np.ndarray | None = None) -> list[np.ndarray]:
    """Batches of sentence numbers, the longest sentences first: if memory is too small, that shows at once.

    A sentence's batch does not depend on what is done already: with another one, rounding could change its words.

    Args:
        corpus: the sentences.
        job: how large batches may be.
        longest: the most tokens of a source; longer ones are left out.
        numbers: of the sentences; None is all.
    """
    lengths = corpus.lengths
    numbers = np.arange(len(lengths)) if numbers is None else numbers
    order = numbers[np.argsort(-lengths[numbers], kind="stable")]
    order = order[(lengths[order] > 1) & (lengths[order] <= longest)].astype(np.int64)
    sizes = lengths[order].astype(np.int64)
    if not order.size:
        return []
    if 0 < job.max_tokens < sizes.max():
        raise UsageError(
            f"--max-tokens {job.max_tokens} is less than the longest source's {sizes.max()} tokens: raise it to that, or give 0"
        )
    return data_utils.batch_by_size(
        order, lambda index: int(lengths[index]), sizes, job.max_tokens or None, job.batch_size or None,
        required_batch_size_multiple=1,
    )  # fmt: skip


def convert(
    job: Job, languages: Languages, corpus: Corpus, teacher: Teacher, batches: Sequence[np.ndarray]
) -> None:
    """Make the teacher a CTranslate2 model, the first time, and see that its outputs are fairseq's on these batches.

    Raises:
        UsageError: it can't be one, or its outputs are too unlike.
    """
    folder, compared = job.out / DECODED / CONVERTED, job.out / DECODED / AGREEMENT
    if not (compared.is_file() and folder.is_dir()):
        reason = ctranslate2_convert.why_not(teacher.models[0])
        if reason is not None:
            raise UsageError(
                f"--backend ctranslate2 can't compute --teacher-path '{job.teacher_path}': {reason}; use --backend fairseq"
            )
        if not folder.is_dir():
            ctranslate2_convert.convert(
                teacher.models[0],
                languages.source_dictionary,
                languages.target_dictionary,
                folder,
                job.quantization,
            )
        teacher.place(_device(job, 0), torch.float32)
        engines = (
            _ctranslate(job, languages, teacher.max_positions, 0),
            _fairseq(teacher, languages, job.decoding),
        )
        ours, fairseqs = (Translator(engine, job.decoding, languages) for engine in engines)
        found = agreement(ours, fairseqs, [_batch(corpus, languages, ids) for ids in batches], languages)
        write_json(compared, found)
    found = _read_json(compared)
    logger.info(
        "{identical} of the first {sentences} outputs of CTranslate2 are fairseq's, chrF {chrf:.2f}".format(
            **found
        )
    )
    if found["chrf"] < job.min_agreement:
        other = "" if job.quantization == "float32" else f"another --quantization than {job.quantization}, "
        raise UsageError(
            f"--backend ctranslate2: its first {found['sentences']} outputs are too unlike fairseq's, chrF {found['chrf']}, "
            f"where --min-agreement is {job.min_agreement:g}: use {other}a lower --min-agreement, or --backend fairseq"
        )


def _device(job: Job, worker: int) -> torch.device:
    return torch.device(job.device if job.device == "cpu" else f"cuda:{worker % torch.cuda.device_count()}")


def _ctranslate(job: Job, languages: Languages, limits: tuple[int, int], worker: int) -> CTranslateBackend:
    folder = job.out / DECODED / CONVERTED
    return CTranslateBackend(
        folder, languages, job.decoding, limits[1], _device(job, worker), job.quantization
    )


def _backend(
    job: Job, languages: Languages, limits: tuple[int, int], teacher: Teacher | None, worker: int
) -> Backend:
    """What translates in one process; CTranslate2 needs no teacher there."""
    if job.backend == "ctranslate2":
        return _ctranslate(job, languages, limits, worker)
    teacher = teacher or load(job, languages)
    teacher.place(_device(job, worker), torch.float32)
    return _fairseq(teacher, languages, job.decoding)


def _fairseq(teacher: Teacher, languages: Languages, decoding: Decoding) -> FairseqBackend:
    return FairseqBackend(teacher.writer, languages, decoding, teacher.max_positions[1])


def translate(
    job: Job,
    languages: Languages,
    corpus: Corpus,
    teacher: Teacher,
    batches: Sequence[np.ndarray],
    todo: Sequence[int],
) -> None:
    """Translate batches, in this process or in several, and keep each as soon as it is there."""
    total = int(sum(corpus.lengths[ids].sum() for ids in batches))
    left = int(sum(corpus.lengths[batches[number]].sum() for number in todo))
    with tqdm(
        total=total, initial=total - left, desc="translate", unit=" source tokens", unit_scale=True
    ) as bar:
        if not todo:
            return
        if job.workers == 1 or len(todo) < 2:
            backend = _backend(job, languages, teacher.max_positions, teacher, 0)
            _work(job, languages, corpus, backend, batches, todo, 0, bar.update)
        else:
            _in_processes(job, teacher.max_positions, todo, bar.update)


def _work(
    job: Job,
    languages: Languages,
    corpus: Corpus,
    backend: Backend,
    batches: Sequence[np.ndarray],
    todo: Sequence[int],
    worker: int,
    report: Callable[[int], object],
) -> None:
    translator = Translator(backend, job.decoding, languages)
    with closing(Journal(job.out / DECODED / f"{job.shard_id or 0:03d}-{worker:03d}.journal")) as journal:
        for number in todo:
            ids, sources, references = _batch(corpus, languages, batches[number])
            journal.add(number, translator.translate(ids, sources, references))
            report(sum(source.numel() for source in sources))


def _batch(
    corpus: Corpus, languages: Languages, numbers: np.ndarray
) -> tuple[list[int], list[torch.Tensor], list[torch.Tensor] | None]:
    """Numbers, sources and references of a batch, seen to be of these dictionaries."""
    ids = numbers.tolist()
    sources = [corpus.sources[sentence].long() for sentence in ids]
    check_sentences(ids, sources, languages.source_dictionary, languages.source)
    if corpus.references is None:
        return ids, sources, None
    references = [corpus.references[sentence].long() for sentence in ids]
    check_sentences(ids, references, languages.target_dictionary, languages.target)
    return ids, sources, references


def _in_processes(
    job: Job, limits: tuple[int, int], todo: Sequence[int], report: Callable[[int], object]
) -> None:
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    processes = [
        context.Process(
            target=_worker, args=(job, limits, todo[worker :: job.workers], worker, reports), daemon=True
        )
        for worker in range(min(job.workers, len(todo)))
    ]
    for process in processes:
        process.start()
    try:
        while any(process.is_alive() for process in processes) or not reports.empty():
            try:
                told = reports.get(timeout=0.2)
            except queue.Empty:
                told = 0
            if isinstance(told, str):
                raise UsageError(told)
            report(told)
            for worker, process in enumerate(processes):
                if process.exitcode not in (None, 0) and reports.empty():
                    raise UsageError(
                        f"worker {worker} of --workers {job.workers} ended with code {process.exitcode} (what it said is "
                        "above); run the same command again: it goes on where it stopped"
                    )
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _worker(job: Job, limits: tuple[int, int], todo: Sequence[int], worker: int, reports: Any) -> None:
    """One of several processes. It ends as soon as the command does: the next run must not meet a worker of this one."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a terminal's Ctrl-C is the command's, which ends its workers
    parent = multiprocessing.parent_process()
    assert parent is not None
    if not parent.is_alive():  # while this one was starting
        return
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(max(1, torch.get_num_threads() // job.workers))
    try:
        with one_line(job.out):
            languages = Languages.of(job.data, job.source_lang, job.target_lang)
            corpus, _ = read_corpus(job, languages)
            backend = _backend(job, languages, limits, None, worker)
            _work(job, languages, corpus, backend, plan(corpus, job, limits[0]), todo, worker, reports.put)
    except UsageError as error:
        reports.put(str(error))


def _end_with(parent: Any) -> None:
    """A command that was killed can't tell its workers."""
    parent.join()
    os._exit(1)


def finish(
    job: Job, languages: Languages, corpus: Corpus, identity: dict[str, Any], counts: Counts, batches: int
) -> dict[str, Any]:
    """Write the data set under another name, check its counts, and then let it have its own.

    The manifest comes last. What was decoded is thrown away after it, from a folder that tells the next run to do so.
    """
    found: dict[int, Translated] = {}
    for number, translated in records(job.out / DECODED):
        found.setdefault(number, translated)
    if sorted(found) != list(range(batches)):
        raise RuntimeError(f"{batches} batches were translated, but {len(found)} are there")
    building = job.out / BUILDING
    for folder in (building, job.out / "text", job.out / "data-bin"):  # of a run that was killed here
        shutil.rmtree(folder, ignore_errors=True)
    every = [found[number] for number in range(batches)]
    sentences = len({sentence for batch in every for sentence in batch.ids.tolist()})
    marks = job.decoding.remove_bpe
    written = pairs(
        corpus, every, job.filters, counts, lambda target: languages.target_dictionary.string(target, marks)
    )
    total = len(corpus) * job.decoding.kept
    write(building, languages, corpus, job.split, written, marks, total)
    counts.check(sentences, job.decoding.kept)
    _check_written(counts)
    compared = job.out / DECODED / AGREEMENT
    agreed = {"agreement": _read_json(compared)} if compared.is_file() else {}
    versions = {"fairseq_imitkd": fairseq_imitkd.__version__, "torch": torch.__version__}
    if job.backend == "ctranslate2":
        versions["ctranslate2"] = ctranslate2_convert.library().__version__
    made = {"versions": versions, **identity, **agreed, **summary(counts, building)}
    for name in ("text", "data-bin"):
        for path in (building / name).iterdir():
            sync(path)
        sync(building / name)
        (building / name).rename(job.out / name)
    (job.out / DECODED).rename(building / DECODED)
    for path in list(job.out.rglob("*.partial")):  # of runs that were killed
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_json(job.out / MANIFEST, made)
    shutil.rmtree(building, ignore_errors=True)
    return made


def _check_written(counts: Counts) -> None:
    """Nobody can train on nothing, and few will want to on little."""
    left_out = counts.translations + counts.gold - counts.written
    why = ", ".join(f"{number:,} {reason}" for reason, number in counts.dropped.items() if number)
    if not counts.written:
        raise UsageError(
            f"no pair is left to train on: of {counts.sentences:,} sentences {counts.empty_sources:,} have an empty source, "
            f"{counts.too_long:,} one that is too long; translations left out: {why or 'none'}; give other text, --max-len-b "
            "or filters, and another --out"
        )
    if left_out > counts.written:
        logger.warning("most pairs are left out: %s", why)


def _read_json(path: Path) -> dict[str, Any]:
    """Raises :class:`UsageError` on a file that is no such thing."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        read = None
    if not isinstance(read, dict):
        raise UsageError(f"{path} is damaged: give another --out")
    return read


@contextmanager
def one_line(out: Path) -> Iterator[None]:
    """A full disk, a folder that can't be written to, or a file elsewhere that can't be read, in one line."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UsageError(
                f"--out '{out}': no space is left on the device; make room and run the same command again: it goes on where it "
                "stopped"
            ) from error
        if error.errno in UNWRITABLE and not _concerns(error, out):
            raise UsageError(f"'{error.filename}' can't be read: {error.strerror}") from error
        if error.errno in UNWRITABLE:
            raise UsageError(
                f"--out '{out}' can't be written to: {error.strerror} ({error.filename})"
            ) from error
        raise


def _concerns(error: OSError, out: Path) -> bool:
    """Whether it is of the folder, of something in it, or of a folder that it is in."""
    if not isinstance(error.filename, str | os.PathLike):
        return True
    file, folder = (Path(os.path.abspath(path)) for path in (error.filename, out))
    return file.is_relative_to(folder) or folder.is_relative_to(file)


def _first_difference(theirs: Any, own: Any, name: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(theirs, dict) and isinstance(own, dict):
        for key in {**theirs, **own}:
            found = _first_difference(theirs.get(key), own.get(key), f"{name}.{key}" if name else key)
            if found:
                return found
        return None
    return None if theirs == own else (name, theirs, own)

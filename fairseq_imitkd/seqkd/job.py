"""A job of ``imitkd-seqkd``: its flags, and the identity that tells its output from another job's."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from fairseq_imitkd.checkpoints.comet import COMET, check_comet
from fairseq_imitkd.data.corpus import Languages, split_hashes
from fairseq_imitkd.data.files import sha256
from fairseq_imitkd.engines.base import SearchSettings
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.seqkd.filters import Filters
from fairseq_imitkd.seqkd.translator import Decoders, check_ctranslate2
from fairseq_imitkd.teacher.source import check_files
from fairseq_imitkd.text.subwords import Text, TextSettings

FORMAT = 1  # version of the files in the output folder
BACKENDS = ("fairseq", "ctranslate2")


@dataclass(frozen=True)
class Job:
    """The flags of ``imitkd-seqkd``.

    Args:
        data: fairseq's data directory, made with the teacher's dictionaries; with ``translations``, with the
            student's.
        teacher_path: checkpoints joined by ``:``; empty with ``translations``.
        out: the output folder.
        decoding: how to translate, and which hypothesis to keep.
        filters: which pairs to drop, and how many references to add.
        comet_model: file of COMET's model, for the metric ``comet``.
        split: the split to translate; with ``source_text``, the name of the split that is made.
        source_text: a file of raw sentences to translate instead.
        text: how raw text is tokenised and split into subwords.
        translations: files of translations that others have made, in place of a teacher.
        scores: as many files with a score of each of these translations; empty keeps the files' own.
        reverse_teacher: checkpoints, joined by ``:``, of a model that translates back. Its log-probability of
            the source decides what ``filters.drop_worst`` drops; None leaves it to the scores.
        student_data: data directory of a student with other dictionaries, for which the data set is made.
        student_text: how text is split into the student's subwords, source and target; with
            ``student_data`` or ``translations``.
        source_lang, target_lang: the languages; None reads them from the names of the data files.
        teacher_dtype, teacher_data, teacher_allow_globals, teacher_allow_poor: as in training.
        backend: the engine that translates, one of :data:`BACKENDS`.
        quantization: the type that the backend ``ctranslate2`` computes in.
        min_agreement: least chrF of the first outputs of ``ctranslate2``, with those of fairseq as
            references.
        max_tokens: most source tokens in a batch; 0 means unlimited.
        batch_size: most sentences in a batch; 0 means unlimited.
        workers: number of processes on this machine.
        num_shards: number of machines that share the work and ``out``.
        shard_id: number of this machine, from 0; None if ``num_shards`` is 1.
        cpu: whether to translate on the CPU even if there is a GPU.

    Raises:
        UsageError: a value is out of range, or two flags exclude each other.
    """

    data: Path
    teacher_path: str
    out: Path
    decoding: SearchSettings
    filters: Filters
    comet_model: Path | None = None
    split: str = "train"
    source_text: Path | None = None
    text: TextSettings = field(default_factory=TextSettings)
    translations: tuple[Path, ...] = ()
    scores: tuple[Path, ...] = ()
    reverse_teacher: str | None = None
    student_data: Path | None = None
    student_text: tuple[TextSettings, TextSettings] = (TextSettings(), TextSettings())
    source_lang: str | None = None
    target_lang: str | None = None
    teacher_dtype: str = "fp32"
    teacher_data: str | None = None
    teacher_allow_globals: str | None = None
    teacher_allow_poor: bool = False
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
        checks = self._work_checks, self._source_checks, self._translation_checks, self._backend_checks
        for valid, message in (each for check in checks for each in check()):
            if not valid:
                raise UsageError(message)
        if self.backend == "ctranslate2":
            check_ctranslate2(self.quantization, self.device)
        if self.comet_model is not None:
            check_comet(self.comet_model, "--metric comet")

    def _work_checks(self) -> Iterator[tuple[bool, str]]:
        """Yield whether a condition holds, and the message if it does not."""
        for name, least in (("max_tokens", 0), ("batch_size", 0), ("workers", 1), ("num_shards", 1)):
            flag, value = f"--{name.replace('_', '-')}", getattr(self, name)
            yield value >= least, f"{flag} must be {least} or more, but is {value}"
        yield (
            self.max_tokens > 0 or self.batch_size > 0,
            "--max-tokens 0 needs a --batch-size; one of them must limit a batch",
        )
        yield (
            (self.shard_id is None) == (self.num_shards == 1),
            f"--num-shards {self.num_shards} needs --shard-id; add the number of this job, from 0"
            if self.shard_id is None
            else f"--shard-id {self.shard_id} needs --num-shards; add the number of all jobs, 2 or more",
        )
        yield (
            self.shard_id is None or 0 <= self.shard_id < self.num_shards,
            f"--shard-id must be in 0..{self.num_shards - 1}, but is {self.shard_id}",
        )

    def _source_checks(self) -> Iterator[tuple[bool, str]]:
        """Yield the same as :meth:`_work_checks`."""
        yield (
            bool(self.split) and "/" not in self.split,
            f"--gen-subset must be the name of a split, like train, but is '{self.split}'",
        )
        if self.source_text is not None:
            yield (
                os.path.isfile(self.source_text),
                f"--source-text '{self.source_text}' is not a file; use a UTF-8 file with one sentence per "
                "line",
            )
            yield (
                not self.reference_flag,
                f"{self.reference_flag} needs references, but --source-text has none; leave one of them out",
            )

    def _translation_checks(self) -> Iterator[tuple[bool, str]]:
        """Yield the same as :meth:`_work_checks`."""
        given = bool(self.translations)
        for flag, paths in (("--translations", self.translations), ("--scores", self.scores)):
            for path in paths:
                yield os.path.isfile(path), f"{flag} '{path}' is not a file; use a file that is there"
        yield (
            given != bool(self.teacher_path),
            "--translations takes the place of --teacher-path; leave one of them out"
            if given
            else "--teacher-path is not given; name the teacher's checkpoint, or files of --translations",
        )
        yield (
            not given or self.source_text is None,
            "--source-text changes nothing with --translations, which hold the sources; leave one out",
        )
        yield (
            not given or self.student_data is None,
            "--student-data changes nothing with --translations: let DATA be the student's",
        )
        yield (
            len(self.scores) in (0, len(self.translations)),
            f"--scores must name one file for each of the {len(self.translations)} --translations, but names "
            f"{len(self.scores)}",
        )
        yield (
            (self.decoding.metric == COMET) == (self.comet_model is not None),
            "--metric comet and --comet-model FILE need each other; use both or neither",
        )
        judges = self.reverse_teacher is not None or given
        yield (
            not self.filters.drop_worst or judges,
            "--drop-worst needs --reverse-teacher, or the scores of --translations; add one of them",
        )
        yield (
            self.reverse_teacher is None or self.filters.drop_worst > 0,
            "--reverse-teacher changes nothing without --drop-worst, the share that is dropped; add it",
        )

    def _backend_checks(self) -> Iterator[tuple[bool, str]]:
        """Yield the same as :meth:`_work_checks`."""
        yield (
            self.backend in BACKENDS,
            f"--backend must be one of {', '.join(BACKENDS)}, but is {self.backend}",
        )
        yield (
            0.0 <= self.min_agreement <= 100.0,
            f"--min-agreement must be in 0..100, but is {self.min_agreement}",
        )
        if self.backend == "ctranslate2":
            for flag, value, supported in (
                ("--select", self.decoding.select, ("first", "best", "mbr")),
                ("--diverse-beam-groups", self.decoding.diverse_beam_groups, (0,)),
                ("--unkpen", self.decoding.unkpen, (0.0,)),
                ("--teacher-dtype", self.teacher_dtype, ("fp32",)),
            ):
                yield (
                    value in supported,
                    f"{flag} must be {' or '.join(map(str, supported))} with --backend ctranslate2, but is "
                    f"{value}; use --backend fairseq",
                )
            yield (
                not self.decoding.draws,
                "--select mbr needs --nbest with --backend ctranslate2, which does not sample here; add it, "
                "or use --backend fairseq",
            )
            yield (
                os.pathsep not in self.teacher_path,
                "--backend ctranslate2 translates with one model, not an ensemble; use --backend fairseq",
            )

    @property
    def reference_flag(self) -> str:
        """The flag that makes the job need references; empty if there is none."""
        if self.decoding.select == "best":
            return "--select best"
        return "--mix-gold" if self.filters.mix_gold else ""

    @property
    def device(self) -> str:
        """``cuda`` or ``cpu``, where the teacher translates."""
        return "cuda" if torch.cuda.is_available() and not self.cpu else "cpu"

    def device_of(self, worker: int) -> torch.device:
        """Return the device of a worker; workers share the GPUs in turn."""
        if self.device == "cpu":
            return torch.device("cpu")
        return torch.device(f"cuda:{worker % torch.cuda.device_count()}")

    def languages(self) -> Languages:
        """Read the languages and dictionaries of the data."""
        return Languages.of(self.data, self.source_lang, self.target_lang)

    def student_languages(self, languages: Languages) -> Languages | None:
        """Read the dictionaries of a student with other ones than the teacher's; None if there is none."""
        if self.student_data is None:
            return None
        try:
            return Languages.of(self.student_data, languages.source, languages.target)
        except UsageError as error:
            raise UsageError(f"--student-data: {error}") from error

    def student_texts(self) -> tuple[Text, Text]:
        """Return what splits text into the student's subwords, of the source and of the target."""
        source, target = self.student_text
        return Text(source), Text(target)

    @property
    def subwords(self) -> tuple[TextSettings, TextSettings]:
        """How text becomes the symbols of ``data``, source and target, as far as flags tell."""
        return self.student_text if self.translations else (self.text, self.text)

    def decoders(self) -> Decoders:
        """Return what makes text of these symbols; None leaves a side to ``decoding.remove_bpe``."""
        source, target = (None if each.bpe is None else Text(each).decode for each in self.subwords)
        return source, target

    def identity(self, languages: Languages) -> dict[str, Any]:
        """Return everything that decides the output, by content and not by the names of files."""
        if not self.translations:
            check_files(self.teacher_path)
        if self.reverse_teacher is not None:
            check_files(self.reverse_teacher, "--reverse-teacher", "reverse teacher")
        return {
            "format": FORMAT,
            "teachers": _hashes(self.teacher_path),
            "teacher_dtype": self.teacher_dtype,
            "backend": {"name": self.backend, "quantization": self.quantization},
            "languages": [languages.source, languages.target],
            "dictionaries": languages.dictionary_hashes(),
            "split": self.split,
            "data": self._data(languages),
            "bpe": _subwords(self.text),
            "decoding": asdict(self.decoding),
            "filters": asdict(self.filters),
            "batches": {"max_tokens": self.max_tokens, "batch_size": self.batch_size},
            "reverse_teachers": _hashes(self.reverse_teacher or ""),
            "student": self._student(languages),
            # Only with COMET, so that output of earlier versions can be continued.
            **({"comet": sha256(self.comet_model)} if self.comet_model else {}),
        }

    def _data(self, languages: Languages) -> dict[str, Any]:
        """Return the hashes of the sentences."""
        if self.translations:
            return {
                "translations": [sha256(path) for path in self.translations],
                "scores": [sha256(path) for path in self.scores],
            }
        if self.source_text is not None:
            return {"source_text": sha256(self.source_text)}
        return split_hashes(languages, self.split)

    def _student(self, languages: Languages) -> dict[str, Any]:
        """Return what decides the symbols of a student that are made of text; empty if they are not."""
        student = languages if self.translations else self.student_languages(languages)
        if student is None:
            return {}
        return {
            "dictionaries": student.dictionary_hashes(),
            "bpe": [_subwords(settings) for settings in self.student_text],
        }


def _hashes(paths: str) -> list[str]:
    """Return the SHA-256 of each checkpoint of a list that is joined by ``:``."""
    return [sha256(path) for path in paths.split(os.pathsep) if path]


def _subwords(settings: TextSettings) -> dict[str, str]:
    """Return the kind and the files of subwords, by content; empty if there are none."""
    files = {name: sha256(path) for name, path in settings.files.items()}
    return {} if settings.bpe is None else {"_name": settings.bpe, **files}

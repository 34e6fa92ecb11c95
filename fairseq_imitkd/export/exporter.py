"""Export of a checkpoint: convert it, compare it with fairseq's model, and keep it only if both agree."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.models import BaseFairseqModel
from torch import Tensor

import fairseq_imitkd
from fairseq_imitkd.checkpoints.tags import language_tags
from fairseq_imitkd.checkpoints.translation import load_student
from fairseq_imitkd.data.bars import Bar
from fairseq_imitkd.data.corpus import Corpus, Languages, check_sentences, read_split
from fairseq_imitkd.data.files import sha256, write_json
from fairseq_imitkd.data.output_folder import OutputFolder
from fairseq_imitkd.engines.base import Engine, SearchSettings
from fairseq_imitkd.engines.fairseq import FairseqEngine
from fairseq_imitkd.engines.registry import CONVERTERS, engine_for, open_engine, unsupported_reason
from fairseq_imitkd.errors import UsageError, in_one_line
from fairseq_imitkd.export import checks
from fairseq_imitkd.export.bundle import (
    FORMAT,
    INTEGERS,
    MANIFEST,
    MODEL,
    MOST,
    MOST_BEAM,
    SUBWORD_FILES,
    is_language,
    validated,
)
from fairseq_imitkd.export.text_check import check_dictionaries, share_encoded_otherwise
from fairseq_imitkd.text.bootstrap import Bootstrap
from fairseq_imitkd.text.marks import is_known, subword_mark
from fairseq_imitkd.text.scored import ScoredText
from fairseq_imitkd.text.scores import SCORES, TITLES, check_installed
from fairseq_imitkd.text.subwords import TextSettings

SCORED = 64  # sentences whose log-probabilities are compared
EXACT = "float32"
LOSS = ("loss", "low", "high")  # names in the manifest of a loss and its 95% interval
QUANTIZATIONS = tuple(dict.fromkeys(name for each in CONVERTERS.values() for name in each.QUANTIZATIONS))
AUTO = "auto"  # the score that the student's validation asked for
# What replaces a quantisation that loses too much: the types that a device computes fast, smallest first.
FALLBACKS = {"cpu": ("int8_float32", EXACT), "cuda": ("int8_float16", "float16", EXACT)}


@dataclass(frozen=True)
class ExportJob:
    """The settings of one run of ``imitkd-export``.

    Args:
        checkpoint: file of the student.
        data: fairseq's data directory that the student was trained on.
        out: folder to create.
        quantization: type of the stored weights, one of :data:`QUANTIZATIONS`.
        text: how raw text becomes subwords.
        search: how the exported student translates.
        split: split whose sentences the export is checked on.
        sentences: number of these sentences; 0 is all.
        metric: score that quantisation may not lower, a key of :data:`~fairseq_imitkd.text.scores.SCORES`;
            :data:`AUTO` is the one that the student's validation asked for, else BLEU.
        max_loss: maximum loss of this score by quantisation, in points of 0 to 100.
        device: device that the student will run on, a key of :data:`FALLBACKS`.
        strict: whether to write nothing if the quantisation loses too much.
        remove_bpe: subword mark to remove from translations where ``text`` has no subwords, by fairseq's
            name; None recognises it.
        source_lang, target_lang: the languages; None infers them from the data directory.
        allow_globals: types that the checkpoint may hold besides fairseq's own.

    Raises:
        UsageError: a value is out of range, or the folder can't be created.
    """

    checkpoint: str
    data: Path
    out: Path
    quantization: str
    text: TextSettings
    search: SearchSettings
    split: str = "valid"
    sentences: int = 500
    metric: str = AUTO
    max_loss: float = 0.5
    device: str = "cpu"
    strict: bool = False
    remove_bpe: str | None = None
    source_lang: str | None = None
    target_lang: str | None = None
    allow_globals: str | None = None

    def __post_init__(self) -> None:
        if self.quantization not in QUANTIZATIONS:
            raise UsageError(
                f"--quantization must be one of {', '.join(QUANTIZATIONS)}, but is {self.quantization}"
            )
        if self.sentences < 0:
            raise UsageError(f"--sentences must be 0 (all) or more, but is {self.sentences}")
        if self.metric not in (AUTO, *SCORES):
            raise UsageError(f"--metric must be one of {', '.join((AUTO, *SCORES))}, but is {self.metric}")
        if not 0.0 <= self.max_loss <= 100.0:
            raise UsageError(f"--max-loss must be in 0..100 points, but is {self.max_loss}")
        if self.device not in FALLBACKS:
            raise UsageError(f"--device must be one of {', '.join(FALLBACKS)}, but is {self.device}")
        self.text.check_mark(self.remove_bpe)
        if not is_known(self.remove_bpe):
            raise UsageError(
                "--remove-bpe must be a subword mark that fairseq knows, like '@@ ', but is "
                f"{self.remove_bpe!r:.60}"
            )
        for name in INTEGERS:
            value, most = getattr(self.search, name), MOST_BEAM if name == "beam" else MOST
            if value > most:
                raise UsageError(f"--{name.replace('_', '-')} must be at most {most}, but is {value}")
        output_folder(self.out).check_new()


def output_folder(out: Path) -> OutputFolder:
    """Return the output folder at a path; it must be new or empty."""
    return OutputFolder(out, "empty")


def export(job: ExportJob) -> dict[str, Any]:
    """Create the folder of an exported student; it appears whole or not at all.

    Returns:
        its manifest.

    Raises:
        UsageError: the job's files and settings don't fit together, or the exported model differs from the
            student.
    """
    languages = Languages.of(job.data, job.source_lang, job.target_lang)
    _check_languages(languages)
    check_dictionaries(job.text, languages)
    text = languages.text(job.text)
    mark = None
    if job.text.bpe is None:
        mark = subword_mark(languages.target_dictionary, job.remove_bpe, "--remove-bpe")
    scored = ScoredText(languages.target_dictionary, mark, text.decode)
    corpus = read_split(languages, job.split)
    if corpus.references is None:
        raise UsageError(
            f"--gen-subset {job.split} has no target side, which the checks need; use another split"
        )
    corpus.warn_of_other_subwords(languages, job.split)
    student = _load(job, languages)
    packages = _package_versions(student.engine)
    sample = _sample(corpus, languages, longest=student.longest, count=job.sentences)
    encoded_otherwise = share_encoded_otherwise(job.text, languages, sample.sources, split=job.split)
    with output_folder(job.out).built() as folder:
        conversion = _Conversion(job, student, languages, scored=scored, sample=sample, folder=folder / MODEL)
        converted = conversion.run()
        converted["checks"]["encoded_otherwise"] = round(encoded_otherwise, 4)
        manifest = {
            "format": FORMAT,
            "form": student.engine,
            **converted,
            "source_lang": languages.source,
            "target_lang": languages.target,
            "longest_source": student.longest[0],
            "longest_target": student.longest[1],
            "decoding": asdict(job.search),
            "text": {**_copy_text_files(job, languages, folder), "remove_bpe": mark},
            "student": student.description(),
            "versions": {
                "fairseq_imitkd": fairseq_imitkd.__version__,
                "torch": torch.__version__,
                **packages,
            },
            "files": _hashes(folder),
        }
        if sha256(job.checkpoint) != student.sha256:
            raise UsageError(
                f"CHECKPOINT '{job.checkpoint}' changed during the export; use one that no training writes"
            )
        write_json(folder / MANIFEST, manifest)
        _read_back(folder)
    return manifest


def _check_languages(languages: Languages) -> None:
    """Refuse languages whose names an exported folder can't hold."""
    for flag, language in (("--source-lang", languages.source), ("--target-lang", languages.target)):
        if not is_language(language):
            raise UsageError(
                f"{flag} must be of letters, digits, '_', '-' and single '.', but is {language!r:.50}; use "
                "data whose languages have such names"
            )


def _read_back(folder: Path) -> None:
    """Check a folder as its reader does."""
    try:
        validated(folder)
    except UsageError as error:
        raise UsageError(
            f"the exported student can't be read back: {in_one_line(error, 100)}; nothing was written. "
            "Please report it with the command's flags"
        ) from error


@dataclass(frozen=True)
class _Student:
    """The student to export.

    Args:
        model: the model, on the CPU and in evaluation mode.
        arch: name of its architecture.
        engine: name of the engine that it is exported to.
        metric: score that it is judged by.
        sha256: hash of its checkpoint.
    """

    model: BaseFairseqModel
    arch: str
    engine: str
    metric: str
    sha256: str | None

    @property
    def longest(self) -> tuple[int, int]:
        """Maximum numbers of tokens of a source and of a target."""
        source, target = self.model.max_positions()
        return min(source, MOST), min(target, MOST)

    @property
    def converter(self) -> Any:
        """Module that converts the model."""
        return CONVERTERS[self.engine]

    def description(self) -> dict[str, Any]:
        """Return what the manifest says about the student."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return {"arch": self.arch, "parameters": parameters, "sha256": self.sha256}


def _load(job: ExportJob, languages: Languages) -> _Student:
    """Load the student and check that it can be exported as the job asks.

    Raises:
        UsageError: the checkpoint can't be loaded or exported, or a setting doesn't suit the student.
    """
    digest = sha256(job.checkpoint) if os.path.isfile(job.checkpoint) else None
    model, arch, score, config = load_student(job.checkpoint, languages, job.allow_globals)
    engine = engine_for(model)
    if engine is None:
        raise UsageError(f"CHECKPOINT '{job.checkpoint}' can't be exported: {unsupported_reason(model)}")
    tags = language_tags(config.task, (languages.source, languages.target))
    if tags:
        raise UsageError(
            f"CHECKPOINT '{job.checkpoint}' can't be exported: it needs the language tags {tags}; export a "
            "student of it, which needs none"
        )
    metric = (score or "bleu") if job.metric == AUTO else job.metric
    check_installed(f"--metric {metric}", [metric])
    student = _Student(model, arch, engine, metric, digest)
    if engine == "onnx" and job.device != "cpu":
        raise UsageError(
            f"--device {job.device} can't be used: recurrent models run on the CPU; leave it out"
        )
    if job.quantization not in student.converter.QUANTIZATIONS:
        raise UsageError(
            f"--quantization must be one of {', '.join(student.converter.QUANTIZATIONS)} for this student, "
            f"which is exported to {engine}, but is {job.quantization}"
        )
    if job.search.min_len >= student.longest[1]:
        raise UsageError(
            f"--min-len must be below {student.longest[1]}, the student's longest target, but is "
            f"{job.search.min_len}"
        )
    return student


def _package_versions(engine: str) -> dict[str, str]:
    """Return the versions of the packages that an engine needs.

    Raises:
        UsageError: a package is not installed.
    """
    try:
        return {name: str(import_module(name).__version__) for name in CONVERTERS[engine].PACKAGES}
    except ImportError as error:
        raise _missing_package(error) from error


def _missing_package(error: ImportError) -> UsageError:
    return UsageError(f"imitkd-export needs {error.name}: pip install 'fairseq-imitkd[fast]'")


@dataclass(frozen=True)
class _Sample:
    """Sentences that the exported student is checked on.

    Args:
        sources: ``N`` tensors ``(S,)`` int64 with an EOS.
        references: ``N`` tensors ``(T,)`` int64 with an EOS.
    """

    sources: list[Tensor]
    references: list[Tensor]


def _sample(corpus: Corpus, languages: Languages, *, longest: tuple[int, int], count: int) -> _Sample:
    """Choose evenly spaced sentences that are not empty and that the student can represent.

    Args:
        corpus: sentences with references.
        languages: their dictionaries.
        longest: maximum numbers of tokens of a source and of a target.
        count: number of sentences to choose; 0 is all.
    """
    references: Any = corpus.references
    fits = (
        (corpus.lengths > 1) & (corpus.lengths <= longest[0]) & (np.asarray(references.sizes) <= longest[1])
    )
    ids = evenly_spaced(fits, count)
    sources, references = ([data[number].long() for number in ids] for data in (corpus.sources, references))
    check_sentences(ids, sources, languages.source_dictionary, language=languages.source)
    check_sentences(ids, references, languages.target_dictionary, language=languages.target)
    return _Sample(sources, references)


def evenly_spaced(fits: np.ndarray, count: int) -> list[int]:
    """Return the numbers of evenly spaced sentences among those that fit.

    Args:
        fits: ``(N,)``, whether a sentence can be chosen.
        count: number of sentences to choose; 0 is all.

    Raises:
        UsageError: there are none.
    """
    numbers = np.flatnonzero(fits)
    if not numbers.size:
        raise UsageError(
            "--gen-subset holds only sentences that are empty or too long for the student; use another split"
        )
    if count and count < numbers.size:
        numbers = numbers[np.linspace(0, numbers.size - 1, count).round().astype(int)]
    return [int(number) for number in numbers]


class _Conversion:
    """The conversion of a student, and the comparison of each converted model with fairseq's.

    Args:
        job: what was asked for.
        student: the student.
        languages: its language pair with the dictionaries.
        scored: how tokens become raw text, which the score is computed on.
        sample: sentences that both models translate.
        folder: where the model is written.
    """

    def __init__(
        self,
        job: ExportJob,
        student: _Student,
        languages: Languages,
        *,
        scored: ScoredText,
        sample: _Sample,
        folder: Path,
    ):
        self.job, self.student, self.languages = job, student, languages
        self.sample, self.folder = sample, folder
        self.greedy = SearchSettings(beam=1, max_len_a=job.search.max_len_a, max_len_b=job.search.max_len_b)
        self.scored = scored
        self.scorer = checks.Scorer(student.metric, self.scored.references(sample.references))

    def run(self) -> dict[str, Any]:
        """Write the model in the job's quantisation, or in a larger one that keeps the score.

        The float32 model always comes first: only its numbers are close enough to fairseq's to show a fault.

        Returns:
            what the manifest says about the quantisation and the checks.

        Raises:
            UsageError: the converted model differs from the student, or the job is strict and its
                quantisation loses too much.
        """
        wanted = candidates(self.job.quantization, self.job.device, self.student.converter.QUANTIZATIONS)
        with Bar(total=2 + len(wanted), desc="export", unit=" step", leave=False) as bar:
            fairseqs = FairseqEngine.of_model(self.student.model, self.languages, self.greedy)
            expected = checks.translations(fairseqs, self.sample.sources)
            bar.update()
            exact = self._convert(EXACT)
            difference = self._lprob_difference(exact, fairseqs)
            translations = checks.translations(exact, self.sample.sources)
            agreement = checks.agreement(translations, expected, fairseqs, sources=self.sample.sources)
            checks.refuse_another_model(difference, agreement)
            exact_score = self._score(translations)
            bar.update()
            quantization, judged = self._smallest(wanted, exact_score, bar)
        return {
            "quantization": quantization,
            "asked": self.job.quantization,
            "checks": {
                "sentences": len(self.sample.sources),
                "split": self.job.split,
                "largest_lprob_difference": difference,
                "greedy": asdict(agreement),
                "metric": self.student.metric,
                "signature": self.scorer.signature,
                "float32": round(exact_score.score, 2),
                "quantized": judged,
                "max_loss": self.job.max_loss,
                "device": self.job.device,
            },
        }

    def _smallest(
        self, wanted: Sequence[str], exact: Bootstrap, bar: Bar
    ) -> tuple[str, dict[str, dict[str, Any]]]:
        """Convert to one quantisation after another until the score is kept, which float32 always does.

        Returns:
            the quantisation that was written last, and of each that was judged its score, its loss with the
            95% interval, whether it was refused, and the type that the device computes it in, if known.
        """
        judged: dict[str, dict[str, Any]] = {}
        for quantization in wanted:
            if quantization == EXACT:
                if judged:  # a quantised model has replaced the float32 one
                    self._convert(EXACT)
                bar.update()
                return EXACT, judged
            engine = self._convert(quantization, self.job.device)
            score = self._score(checks.translations(engine, self.sample.sources))
            bar.update()
            loss = self.scorer.loss(score, exact)
            refused = checks.is_too_large(loss, self.job.max_loss)
            judged[quantization] = {
                "score": round(score.score, 2),
                **{name: round(value, 2) for name, value in zip(LOSS, astuple(loss), strict=True)},
                "refused": refused,
                "computed_in": getattr(engine, "compute_type", None),
            }
            if not refused:
                break
            if self.job.strict:
                raise UsageError(
                    f"--quantization {refusal(quantization, self.student.metric, judged)}, more than "
                    f"--max-loss {self.job.max_loss:g}; nothing was written: raise it, or leave --strict out"
                )
        return quantization, judged

    def _convert(self, quantization: str, device: str = "cpu") -> Engine:
        """Write the model in place of an earlier one, and load it on a device."""
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            self.student.converter.convert(
                self.student.model, self.languages, self.folder, quantization=quantization
            )
        except ImportError as error:
            raise _missing_package(error) from error
        return open_engine(
            self.student.engine,
            self.folder,
            self.languages,
            settings=self.greedy,
            longest=self.student.longest,
            device=device,
        )

    def _lprob_difference(self, exact: Engine, fairseqs: Engine) -> float:
        step = max(1, len(self.sample.sources) // SCORED)
        sources, references = self.sample.sources[::step], self.sample.references[::step]
        return checks.lprob_difference(exact, fairseqs, sources=sources, targets=references)

    def _score(self, translations: Sequence[Tensor]) -> Bootstrap:
        return self.scorer.score(self.scored.hypotheses(translations))


def candidates(asked: str, device: str, available: Sequence[str]) -> list[str]:
    """Return the quantisation that is asked for, and those that may replace it, in the order to try.

    Args:
        asked: type of the stored weights.
        device: device that the student will run on, a key of :data:`FALLBACKS`.
        available: types that the student's engine can store.
    """
    # CTranslate2's int8 leaves all else in the student's type, which is float32 here. So it and int8_float32
    # are one file, and the other types with int8 are coarser.
    rounds_more = asked.startswith("int8") and asked not in ("int8", "int8_float32")
    larger = [
        name
        for name in FALLBACKS[device]
        if name in available and (rounds_more or not name.startswith("int8"))
    ]
    return list(dict.fromkeys([asked, *larger]))


def refusal(quantization: str, metric: str, judged: Mapping[str, Mapping[str, Any]]) -> str:
    """Return in words what a quantisation loses.

    Args:
        quantization: type of the stored weights.
        metric: score that was lost.
        judged: the manifest's ``checks.quantized``.
    """
    loss, low, high = (judged[quantization][name] for name in LOSS)
    title = TITLES.get(SCORES[metric], metric)
    return f"{quantization} loses {loss:.2f} {title} (95% interval {low:.2f} to {high:.2f})"


def _copy_text_files(job: ExportJob, languages: Languages, folder: Path) -> dict[str, Any]:
    """Copy the dictionaries and the subword files, and return what the manifest says about text."""
    for language in (languages.source, languages.target):
        shutil.copyfile(languages.folder / f"dict.{language}.txt", folder / f"dict.{language}.txt")
    files = {}
    for name, path in job.text.files.items():
        (folder / SUBWORD_FILES).mkdir(exist_ok=True)
        files[name] = name  # without the suffix, which can hold anything
        shutil.copyfile(path, folder / SUBWORD_FILES / name)
    return {"bpe": job.text.bpe, "tokenizer": job.text.tokenizer, "files": files}


def _hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in the folder, by its path in the folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): sha256(path) for path in files}

"""From a checkpoint to an exported student: converted, held against fairseq, and only then given its name."""

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.models import BaseFairseqModel
from torch import Tensor
from tqdm import tqdm

import fairseq_imitkd
from fairseq_imitkd.data.corpus import Corpus, Languages, check_sentences, of_split
from fairseq_imitkd.data.files import alone, sha256, sync, write_json
from fairseq_imitkd.engines.base import Decoding
from fairseq_imitkd.engines.exported import FORMS, ModelEngine, form_of, open_engine, why_none
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.export import checks
from fairseq_imitkd.export.bundle import FORMAT, MANIFEST, MODEL, SUBWORD_FILES
from fairseq_imitkd.teacher.loading import load_student
from fairseq_imitkd.text.subwords import Text, TextSettings

logger = logging.getLogger(__name__)
SCORED = 64  # sentences whose log-probabilities are compared
EXACT = "float32"
# Of sentences that were encoded again: Moses' tokens come back in about nine of ten of a noisy corpus, subwords in all; under a
# tokeniser that the data never saw, hardly a sentence with a punctuation mark does.
NATURAL, MOST_OTHER_WORDS = 0.05, 0.5
QUANTIZATIONS = tuple(dict.fromkeys(name for form in FORMS.values() for name in form.QUANTIZATIONS))


@dataclass(frozen=True)
class Job:
    """Everything ``imitkd-export`` is told.

    Args:
        checkpoint: the student.
        data: fairseq's data directory that it was trained on.
        out: the folder to make.
        quantization: of its weights, one of :data:`QUANTIZATIONS`.
        text: how raw text is made symbols.
        decoding: how the exported student is to translate.
        split: whose sentences it is checked on.
        sentences: how many of them; 0 is all.
        max_bleu_loss: the most BLEU that the quantisation may cost on them.
        source_lang, target_lang: None reads them off the data directory.
        allow_globals: types that the checkpoint may hold beside fairseq's own.
    """

    checkpoint: str
    data: Path
    out: Path
    quantization: str
    text: TextSettings
    decoding: Decoding
    split: str = "valid"
    sentences: int = 500
    max_bleu_loss: float = 0.5
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
        if not 0.0 <= self.max_bleu_loss <= 100.0:
            raise UsageError(f"--max-bleu-loss must be in 0..100, but is {self.max_bleu_loss}")
        check_out(self.out)


def check_out(out: Path) -> None:
    """Refuse a folder that can't be made.

    Raises:
        UsageError: it holds something, or its name is none.
    """
    try:
        if out.is_symlink() or out.resolve() == Path.cwd() or out.name in ("", ".."):
            raise UsageError(f"--out '{out}' must be the name of a folder to make: give another")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(
                f"--out '{out}' holds something already: give another folder, or delete it first"
            )
    except OSError as error:
        raise UsageError(f"--out '{out}' can't be written to: {error.strerror}") from error


def export(job: Job) -> dict[str, Any]:
    """Make the folder, whole or not at all.

    Returns:
        its manifest.

    Raises:
        UsageError: something is wrong with what was given, or the exported student is not the student.
    """
    languages = Languages.of(job.data, job.source_lang, job.target_lang)
    text = Text(job.text, languages.source, languages.target)
    corpus = of_split(languages, job.split)
    if corpus.references is None:
        raise UsageError(
            f"--gen-subset {job.split} has no target languages, which the checks need: give another split"
        )
    digest = sha256(job.checkpoint) if os.path.isfile(job.checkpoint) else None
    student, arch = load_student(job.checkpoint, languages, job.allow_globals)
    form = form_of(student)
    if form is None:
        raise UsageError(f"CHECKPOINT '{job.checkpoint}' can't be exported: {why_none(student)}")
    if job.quantization not in FORMS[form].QUANTIZATIONS:
        raise UsageError(
            f"--quantization must be one of {', '.join(FORMS[form].QUANTIZATIONS)} for this student, which is exported to "
            f"{form}, but is {job.quantization}"
        )
    if job.decoding.min_len >= student.max_positions()[1]:
        raise UsageError(
            f"--min-len must be below {student.max_positions()[1]}, the student's longest target, but is {job.decoding.min_len}"
        )
    packages = _packages(form)
    sample = _sample(corpus, languages, student.max_positions(), job.sentences)
    otherwise = _check_text(job, text, languages, sample)
    with building(job.out) as folder:
        checked = _converted(job, form, languages, text, student, sample, folder)
        checked["checks"]["encoded_otherwise"] = round(otherwise, 4)
        manifest = {
            "format": FORMAT,
            "form": form,
            **checked,
            "source_lang": languages.source,
            "target_lang": languages.target,
            "longest_source": student.max_positions()[0],
            "longest_target": student.max_positions()[1],
            "decoding": asdict(job.decoding),
            "text": _add_files(job, languages, folder),
            "student": {
                "arch": arch,
                "parameters": sum(parameter.numel() for parameter in student.parameters()),
                "sha256": digest,
            },
            "versions": {
                "fairseq_imitkd": fairseq_imitkd.__version__,
                "torch": torch.__version__,
                **packages,
            },
            "files": {
                str(path.relative_to(folder)): sha256(path)
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            },
        }
        if sha256(job.checkpoint) != digest:
            raise UsageError(
                f"CHECKPOINT '{job.checkpoint}' was changed meanwhile: give one that no training writes"
            )
        write_json(folder / MANIFEST, manifest)
    return manifest


@contextmanager
def building(out: Path) -> Iterator[Path]:
    """A folder that gets the name ``out`` when all has gone well; nobody else makes the same one meanwhile."""
    work = out.with_name(f".{out.name}.partial")
    folder = work / "bundle"
    try:
        with ExitStack() as stack:
            while True:
                work.mkdir(parents=True, exist_ok=True)
                try:
                    stack.enter_context(alone(work))
                    break
                except FileNotFoundError:  # the run that was waited for has ended
                    continue
            check_out(out)  # it may have made it
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
            folder.mkdir()
            try:
                yield folder
                for path in folder.rglob("*"):
                    sync(path)
                if out.exists():
                    out.rmdir()  # it is empty
                folder.rename(out)
                sync(out.parent)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise UsageError(
            f"--out '{out}' can't be written to: {error.strerror} ({error.filename or out})"
        ) from error
    finally:
        with suppress(OSError):  # another run is in it
            work.rmdir()


@dataclass(frozen=True)
class _Sample:
    """``N`` sentences of the data: sources and references, ``(S,)`` and ``(T,)`` int64 each, with an EOS."""

    sources: list[Tensor]
    references: list[Tensor]


def _sample(corpus: Corpus, languages: Languages, longest: tuple[int, int], count: int) -> _Sample:
    """Evenly spread ones, without those that the student can't represent."""
    references: Any = corpus.references
    fits = (
        (corpus.lengths > 1) & (corpus.lengths <= longest[0]) & (np.asarray(references.sizes) <= longest[1])
    )
    numbers = np.flatnonzero(fits)
    if not numbers.size:
        raise UsageError(
            "--gen-subset holds no sentence that is not empty or too long for the student: give another split"
        )
    if count and count < numbers.size:
        numbers = numbers[np.linspace(0, numbers.size - 1, count).round().astype(int)]
    ids = numbers.tolist()
    sources, references = ([data[number].long() for number in ids] for data in (corpus.sources, references))
    check_sentences(ids, sources, languages.source_dictionary, languages.source)
    check_sentences(ids, references, languages.target_dictionary, languages.target)
    return _Sample(sources, references)


def _converted(
    job: Job,
    form: str,
    languages: Languages,
    text: Text,
    student: BaseFairseqModel,
    sample: _Sample,
    folder: Path,
) -> dict[str, Any]:
    """Write the model as small as its BLEU allows. The exact one is always made first: quantised ones can't tell a fault."""
    greedy = Decoding(beam=1, max_len_a=job.decoding.max_len_a, max_len_b=job.decoding.max_len_b)
    longest = student.max_positions()
    dictionary = languages.target_dictionary
    references = [text.decode(dictionary.string(tokens)) for tokens in sample.references]

    def converted(quantization: str) -> Any:
        shutil.rmtree(folder / MODEL, ignore_errors=True)
        try:
            FORMS[form].convert(
                student, languages.source_dictionary, dictionary, folder / MODEL, quantization
            )
            return open_engine(form, folder / MODEL, languages, greedy, longest)
        except ImportError as error:
            raise UsageError(
                f"imitkd-export needs {error.name}: pip install 'fairseq-imitkd[fast]'"
            ) from error

    def bleu(outputs: Sequence[Tensor]) -> tuple[float, str]:
        return checks.bleu([text.decode(dictionary.string(tokens)) for tokens in outputs], references)

    wanted = list(
        dict.fromkeys([job.quantization, *(q for q in ("float16", EXACT) if q in FORMS[form].QUANTIZATIONS)])
    )
    with tqdm(total=2 + len(wanted), desc="export", unit=" step", leave=False) as bar:
        fairseqs = ModelEngine(student, languages, greedy)
        expected = checks.translations(fairseqs, sample.sources)
        bar.update()
        exact = converted(EXACT)
        scored = [part[:: max(1, len(part) // SCORED)] for part in (sample.sources, sample.references)]
        difference = checks.lprob_difference(exact, fairseqs, *scored)
        own = checks.translations(exact, sample.sources)
        agreed = checks.agreement(own, expected, fairseqs, sample.sources)
        _refuse_another(difference, agreed)
        score, signature = bleu(own)
        bar.update()
        refused = {}
        for quantization in wanted:
            if quantization == EXACT:
                found = score
                if job.quantization != EXACT:
                    converted(EXACT)
            else:
                found, _ = bleu(checks.translations(converted(quantization), sample.sources))
            bar.update()
            if score - found <= job.max_bleu_loss:
                break
            logger.warning(
                "%s loses %.2f BLEU (%.2f from %.2f), more than --max-bleu-loss %g: refused",
                *(quantization, score - found, found, score, job.max_bleu_loss),
            )
            refused[quantization] = round(found, 2)
    return {
        "quantization": quantization,
        "asked": job.quantization,
        "checks": {
            "sentences": len(sample.sources),
            "split": job.split,
            "largest_lprob_difference": difference,
            "greedy": asdict(agreed),
            "bleu": {
                "float32": round(score, 2),
                quantization: round(found, 2),
                **refused,
                "signature": signature,
            },
            "max_bleu_loss": job.max_bleu_loss,
        },
    }


def _refuse_another(difference: float, agreed: checks.Agreement) -> None:
    if not difference <= checks.TOLERANCE:
        raise UsageError(
            f"the exported student is not the student: a log-probability differs by {difference:.2g}, more than "
            f"{checks.TOLERANCE:g}; nothing was written. Please report it with the checkpoint's --arch and flags"
        )
    if agreed.unexplained:
        raise UsageError(
            f"the exported student is not the student: {agreed.unexplained} of {agreed.sentences} greedy translations part at "
            "a token that is no tie; nothing was written. Please report it with the checkpoint's --arch and flags"
        )


def _add_files(job: Job, languages: Languages, folder: Path) -> dict[str, Any]:
    """Dictionaries and subwords, copied; what the manifest says of them."""
    for language in (languages.source, languages.target):
        shutil.copyfile(languages.folder / f"dict.{language}.txt", folder / f"dict.{language}.txt")
    files = {}
    for name, path in job.text.files.items():
        (folder / SUBWORD_FILES).mkdir(exist_ok=True)
        files[name] = name + path.suffix
        shutil.copyfile(path, folder / SUBWORD_FILES / files[name])
    return {"bpe": job.text.bpe, "tokenizer": job.text.tokenizer, "files": files}


def _packages(form: str) -> dict[str, str]:
    """Versions of what a form needs.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return {name: str(import_module(name).__version__) for name in FORMS[form].PACKAGES}
    except ImportError as error:
        raise UsageError(f"imitkd-export needs {error.name}: pip install 'fairseq-imitkd[fast]'") from error


def _check_text(job: Job, text: Text, languages: Languages, sample: _Sample) -> float:
    """Whether raw text becomes the symbols that the student knows.

    Returns:
        the share of sentences whose text becomes other symbols than those of the data.

    Raises:
        UsageError: much of it becomes unknown symbols, or most of it other words.
    """
    dictionary = languages.source_dictionary
    back = Text(
        job.text, languages.target, languages.source
    )  # of a source: what joins words minds their language
    unknown, count, sentences, otherwise, other_words = 0, 0, 0, 0, 0
    for source in sample.sources:
        symbols = dictionary.string(source)
        encoded = text.encode(back.decode(symbols))
        again = dictionary.encode_line(encoded, add_if_not_exist=False).long()
        unknown += max(0, int(again.eq(dictionary.unk()).sum()) - int(source.eq(dictionary.unk()).sum()))
        count += again.numel()
        if not source.eq(dictionary.unk()).any():  # the text of such a one is lost
            sentences += 1
            otherwise += not torch.equal(again, source)
            other_words += _words(text, encoded) != _words(text, symbols)
    if unknown > 0.01 * count:
        raise UsageError(
            f"{unknown / count:.1%} of the symbols of raw text would be unknown to the student: give the --bpe, its file and "
            "the --tokenizer that --data was made with"
        )
    # Words: data may be of subwords that were drawn at random, which no model writes again.
    if other_words > MOST_OTHER_WORDS * sentences:
        raise UsageError(
            f"{other_words / sentences:.1%} of the sentences of --gen-subset {job.split} are of other words than their own "
            "text: give the --tokenizer that --data was made with, or none"
        )
    share = otherwise / max(1, sentences)
    if share > NATURAL:
        logger.warning(
            "%.1f%% of the sentences of --gen-subset %s are of other symbols than their own text: see that --bpe, its file and "
            "--tokenizer are those that --data was made with (only BPE dropout does the same)",
            *(100.0 * share, job.split),
        )
    marked = sum(symbol.startswith("\u2581") or symbol.endswith("@@") for symbol in dictionary.symbols)
    if text.bpe is None and marked > 0.1 * len(dictionary):
        logger.warning(
            "the student knows subwords, but there is no --bpe: what is translated must be made of subwords already"
        )
    return share


def _words(text: Text, symbols: str) -> list[str]:
    """What the subwords were made of."""
    return (symbols if text.bpe is None else text.bpe.decode(symbols)).split()

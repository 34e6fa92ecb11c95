"""Export of a checkpoint in Hugging Face's format, for ``AutoModelForSeq2SeqLM`` and ``AutoTokenizer``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fairseq_imitkd
from fairseq_imitkd.checkpoints.tags import language_tags
from fairseq_imitkd.checkpoints.translation import LoadedStudent, load_student
from fairseq_imitkd.data.corpus import Languages, read_split
from fairseq_imitkd.data.files import sha256, write_json
from fairseq_imitkd.data.output_folder import NEW, OutputFolder
from fairseq_imitkd.engines.base import SearchSettings
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.export.exporter import evenly_spaced
from fairseq_imitkd.export.huggingface_check import Compared, compare, longest_translation
from fairseq_imitkd.export.huggingface_model import Described, Inexpressible, describe
from fairseq_imitkd.export.huggingface_text import SourceText, source_text
from fairseq_imitkd.export.model_card import Origin, origin_of, write_card
from fairseq_imitkd.export.text_check import check_dictionaries, share_encoded_otherwise
from fairseq_imitkd.huggingface import check
from fairseq_imitkd.huggingface.config import config_json, read_config
from fairseq_imitkd.huggingface.convert import convert, revert, shared_tables
from fairseq_imitkd.huggingface.importer import FORMAT
from fairseq_imitkd.huggingface.subwords import write_description
from fairseq_imitkd.huggingface.vocabulary import PAD, Rows
from fairseq_imitkd.huggingface.weights import SAFE
from fairseq_imitkd.huggingface.written_tokens import write_tokenizer
from fairseq_imitkd.text.imported import SIDES
from fairseq_imitkd.text.subwords import TextSettings

_OTHER_FORMAT = "leave --format out: CTranslate2 or ONNX may take it"


@dataclass(frozen=True)
class HuggingFaceJob:
    """A checkpoint to export.

    Args:
        checkpoint: the student.
        data: fairseq's data directory that it was trained on.
        out: folder to create.
        text: how raw text becomes subwords.
        search: how the exported student translates.
        split: split whose sentences are compared.
        sentences: number of these sentences; 0 is all.
        scores: names and values of scores, for the model card.
        teacher: name of the teacher in the model card; None takes that of the checkpoint.
        source_lang, target_lang: languages; None infers them from the data directory.
        allow_globals: types that the checkpoint may hold beside fairseq's own.
    """

    checkpoint: str
    data: Path
    out: Path
    text: TextSettings
    search: SearchSettings
    split: str = "valid"
    sentences: int = 500
    scores: Sequence[tuple[str, str]] = ()
    teacher: str | None = None
    source_lang: str | None = None
    target_lang: str | None = None
    allow_globals: str | None = None


@dataclass(frozen=True)
class Exported:
    """What an export has made.

    Args:
        model: name of the model's class in ``transformers``.
        tokenizer: name of the tokenizer's class.
        parameters: number of parameters; shared ones count once.
        compared: result of the comparison with ``transformers``; None if it was not made.
        notes: what the user should know.
    """

    model: str
    tokenizer: str
    parameters: int
    compared: Compared | None
    notes: tuple[str, ...]


def export_huggingface(job: HuggingFaceJob) -> Exported:
    """Export a checkpoint. The folder appears whole or not at all.

    Raises:
        UsageError: no model or tokenizer of ``transformers`` computes what the student does, a file can't be
            read, or the exported student translates otherwise.
    """
    out = OutputFolder(job.out, NEW)
    out.check_new()
    languages = Languages.of(job.data, job.source_lang, job.target_lang)
    student = load_student(job.checkpoint, languages, job.allow_globals)
    most = longest_translation(student.model)
    if job.search.min_len > most:
        raise UsageError(
            f"--min-len must be at most {most} with --format huggingface, as the student's positions allow, "
            f"but is {job.search.min_len}"
        )
    has_tags = bool(language_tags(student.config.task, (languages.source, languages.target)))
    check_dictionaries(job.text, languages)
    text = source_text(job.text, languages, has_tags=has_tags)
    _check_tags(student, languages, text, job=job)
    described = _describe(student, languages, text)
    shared = shared_tables(described.state)
    content = config_json(described.config, shared)
    weights = revert(described.state, described.config, name=f"CHECKPOINT '{job.checkpoint}'")
    _check_inverse(weights, described, content, job=job)
    sources = _sources(job, languages, longest=min(student.model.max_positions()))
    if not has_tags:  # the text of the check has none
        share_encoded_otherwise(job.text, languages, sources, split=job.split)
    with out.built() as folder:
        _write(folder, weights, content=content, described=described, job=job)
        write_tokenizer(
            folder,
            text.subwords,
            (tuple(languages.source_dictionary.symbols), tuple(languages.target_dictionary.symbols)),
            pair=(languages.source, languages.target),
            longest=described.config.positions,
        )
        _describe_text(folder, languages, text, kind=described.config.kind)
        notes, compared = described.notes, None
        if check.is_possible():
            compared = compare(
                folder, student.model, languages, text=text, sources=sources, min_len=job.search.min_len
            )
        else:
            notes += ("not compared with transformers: pip install 'fairseq-imitkd[huggingface]'",)
        origin = _origin(job, student)
        write_card(
            folder,
            origin,
            model=content,
            subwords=text.subwords,
            pair=(languages.source, languages.target),
            scores=job.scores,
            checks=card_checks(compared, job.split),
        )
    return Exported(content["architectures"][0], text.subwords.tokenizer, origin.parameters, compared, notes)


def _check_tags(
    student: LoadedStudent, languages: Languages, text: SourceText, *, job: HuggingFaceJob
) -> None:
    """Refuse a model with language tags that the text is not given.

    Raises:
        UsageError: its tags are not those of the subwords.
    """
    of_source, of_target = language_tags(student.config.task, (languages.source, languages.target)).sides
    given = (*text.subwords.before, *text.subwords.after)
    if set(of_source) - set(given) or set(of_target) - set(text.subwords.target_before):
        raise UsageError(
            f"CHECKPOINT '{job.checkpoint}' needs the language tags {' '.join((*of_source, *of_target))}; "
            "add --subwords with the folder of its import, or export a student of it, which needs none"
        )


def _describe(student: LoadedStudent, languages: Languages, text: SourceText) -> Described:
    """Describe the student as a model of ``transformers``.

    Raises:
        UsageError: there is none.
    """
    dictionaries = languages.source_dictionary, languages.target_dictionary
    try:
        tags = [dictionaries[1].index(symbol) for symbol in text.subwords.target_before]
        if len(tags) > 1:
            raise Inexpressible("its targets begin with several tags")
        if text.subwords.needs_one_dictionary and dictionaries[0].symbols != dictionaries[1].symbols:
            raise Inexpressible(
                "its source and target have two dictionaries, which only --bpe sentencepiece, or merges with "
                "--tokenizer moses, can have"
            )
        return describe(student.model, (languages.source, languages.target), tags[0] if tags else None)
    except Inexpressible as error:
        raise UsageError(
            f"--format huggingface can't express the student: {error}; {_OTHER_FORMAT}"
        ) from error


def _check_inverse(
    weights: Mapping[str, Tensor], described: Described, content: Mapping[str, Any], *, job: HuggingFaceJob
) -> None:
    """Read the weights back as ``imitkd-import`` does; they must be the student's, bit for bit."""
    sizes = [side.vocabulary for side in (described.config.encoder, described.config.decoder)]
    source, target = (tuple(range(size)) for size in sizes)
    config = read_config(content, f"--out '{job.out}'")
    state = convert(weights, config, rows=Rows(source, target, target), name=f"--out '{job.out}'").state
    expected = {
        key: value for key, value in described.state.items() if not key.endswith(("version", "_float_tensor"))
    }
    tables = {key for key in expected if key.endswith("embed_positions.weight")}
    for key, value in expected.items():
        found = state.get(key)
        # fairseq never reads the first rows of a table of positions.
        same = found is not None and (
            torch.equal(found[PAD + 1 :], value[PAD + 1 :]) if key in tables else torch.equal(found, value)
        )
        if not same:
            raise UsageError(
                f"CHECKPOINT '{job.checkpoint}' can't be exported: {key:.80} would not come back; please "
                "report it"
            )


def _write(
    folder: Path,
    weights: Mapping[str, Tensor],
    *,
    content: Mapping[str, Any],
    described: Described,
    job: HuggingFaceJob,
) -> None:
    """Write weights, configuration, and how ``generate`` searches by default."""
    from safetensors.torch import save_file  # not needed by training

    # Tables of one storage can't be saved, and a copy of a table is a table of its own.
    save_file(
        {name: value.clone().contiguous() for name, value in weights.items()},
        folder / SAFE,
        metadata={"format": "pt"},
    )
    config, search = described.config, job.search
    write_json(folder / "config.json", content)
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": config.bos,
            "pad_token_id": config.pad,
            "eos_token_id": config.eos,
            "decoder_start_token_id": config.start,
            "forced_bos_token_id": config.forced_first,
            "forced_eos_token_id": config.eos,
            # As fairseq, whose translations have at least min_len tokens before the EOS, and no padding.
            "min_length": search.min_len + 1,
            "suppress_tokens": [config.pad],
            "max_length": config.positions,
            "num_beams": search.beam,
            "length_penalty": search.lenpen,
            "no_repeat_ngram_size": search.no_repeat_ngram_size,
        },
    )


def _describe_text(folder: Path, languages: Languages, text: SourceText, *, kind: str) -> None:
    """Write what an import of the folder needs to know about its text."""
    subwords = text.subwords
    before = subwords.before, text.subwords.target_before
    write_description(
        folder,
        {
            "format": FORMAT,
            "family": kind,
            "weights": {SAFE: sha256(folder / SAFE)},
            "text": {
                side: {
                    "language": language,
                    "before": list(before[number]),
                    "after": list(subwords.after) if number == 0 else [],
                }
                for number, (side, language) in enumerate(
                    zip(SIDES, (languages.source, languages.target), strict=True)
                )
            },
            "fairseq_imitkd": fairseq_imitkd.__version__,
        },
    )


def _sources(job: HuggingFaceJob, languages: Languages, *, longest: int) -> list[Tensor]:
    """Return evenly spaced sources that are not empty, that the student can read, and whose text is known."""
    corpus, unknown = read_split(languages, job.split), languages.source_dictionary.unk()
    fits = (corpus.lengths > 1) & (corpus.lengths <= longest)
    known = [bool(fit) and unknown not in corpus.sources[number] for number, fit in enumerate(fits)]
    numbers = evenly_spaced(np.asarray(known) if any(known) else fits, job.sentences)
    return [corpus.sources[number].long() for number in numbers]


def _origin(job: HuggingFaceJob, student: LoadedStudent) -> Origin:
    parameters = sum(parameter.numel() for parameter in student.model.parameters())
    found = origin_of(student.config, arch=student.arch, parameters=parameters)
    return replace(found, teacher=job.teacher or found.teacher)


def card_checks(compared: Compared | None, split: str) -> list[str]:
    """Return in words what was compared, for the model card and the command's output.

    Args:
        compared: the result; None if ``transformers`` is missing.
        split: name of the split.
    """
    if compared is None:
        return ["the weights read back are the student's, bit for bit; transformers was not installed"]
    return [
        f"{compared.identical} of {compared.translated} greedy translations of {split} sentences are those "
        f"of fairseq, token for token; log-probabilities differ by at most {compared.difference:.2g}",
        f"ids of {compared.same_ids} of {compared.sentences} sentences by AutoTokenizer are those of the "
        "student's text"
        + (f"; the first that differs: {compared.first_other:.80}" if compared.first_other else ""),
    ]

"""Looks at every file that a recipe names, before anything runs."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from fairseq_imitkd.checkpoints.build import configuration
from fairseq_imitkd.checkpoints.direction import check_direction
from fairseq_imitkd.checkpoints.safe_load import check_readable, find_damage, read_checkpoint, reported
from fairseq_imitkd.data.files import kind_of, not_text, sha256
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.pipeline.lengths import check_lengths
from fairseq_imitkd.pipeline.recipe import Recipe
from fairseq_imitkd.pipeline.sentencepieces import first_lines
from fairseq_imitkd.quick.recipe_words import SPLITS
from fairseq_imitkd.text.counted import counted
from fairseq_imitkd.text.pieces import open_pieces

FOREIGN = 0.05  # share of pieces that a dictionary may lack before the subwords count as another model's
LOOKED_AT = 1000  # lines of the validation text that are compared with the teacher's dictionaries
# Bytes on the disk for each byte of text: its subwords and its binary form, and both again for the teacher's
# translations.
DISK, SEQKD_DISK = 3, 3
# Flags that name files or folders which their command reads.
FILES = (
    "--bpe-codes", "--comet-model", "--continue-once", "--curriculum-scores", "--decoder-embed-path",
    "--ema-seed-model", "--encoder-embed-path", "--finetune-from-model", "--gpt2-encoder-json",
    "--gpt2-vocab-bpe", "--model", "--pretrained-checkpoint", "--quantization-config-path", "--restore-file",
    "--reverse-teacher", "--scores", "--sentencepiece-model", "--source-text", "--student-bpe-codes",
    "--student-data", "--student-gpt2-encoder-json", "--student-gpt2-vocab-bpe",
    "--student-sentencepiece-model", "--student-target-bpe-codes", "--student-target-sentencepiece-model",
    "--subwords", "--teacher-cache",
)  # fmt: skip
FOLDERS = ("--model", "--scores", "--student-data", "--subwords", "--teacher-cache")  # which may be folders
PAIR = 160  # bytes of a pair of made-up sentences


@dataclass(frozen=True)
class Text:
    """A file of text.

    Args:
        lines: number of its lines.
        empty: number of those that are empty.
        first_empty: number of the first one, from 1; 0 if there is none.
        bytes: its size.
        digest: hash of its content.
    """

    lines: int
    empty: int
    first_empty: int
    bytes: int
    digest: str


@dataclass(frozen=True)
class Inputs:
    """What a recipe's files hold.

    Args:
        texts: each file of text, by its path; none if the text is made up.
        digests: hash of each file or folder that the recipe names, by its path.
        long: a warning for each file with sentences that are too long for the models.
    """

    texts: Mapping[Path, Text]
    digests: Mapping[str, str]
    long: Sequence[str] = ()

    def repeated(self, recipe: Recipe) -> Iterator[str]:
        """Yield a warning for each split that has the text of the validation."""
        pairs = recipe.text.pairs if recipe.text.made_up is None else {}
        digests = {
            split: [self.texts[path].digest for path in (pair.source, pair.target)]
            for split, pair in pairs.items()
        }
        for split, effect in (
            ("train", "its loss will not show when the student stops to learn"),
            ("test", "its scores will be of text that the best checkpoints are chosen by"),
        ):
            if pairs and digests["valid"] == digests[split]:
                yield f"text.valid has the sentences of text.{split}, so {effect}"

    def blank(self, recipe: Recipe) -> Iterator[str]:
        """Yield a warning for each side of a text that has more empty lines than the other."""
        for split, pair in recipe.text.pairs.items() if recipe.text.made_up is None else ():
            source, target = self.texts[pair.source], self.texts[pair.target]
            if source.empty == target.empty:
                continue
            path, text = (pair.source, source) if source.empty > target.empty else (pair.target, target)
            yield (
                f"text.{split} '{path}' has {counted(text.empty, 'empty line')}, the first is line "
                f"{text.first_empty:,}; the other side has {min(source.empty, target.empty):,}: are the two "
                "aligned?"
            )

    def disk(self, recipe: Recipe, parameters: int) -> int:
        """Return the bytes that a run takes at least on the disk.

        Args:
            recipe: the recipe.
            parameters: number of a student's parameters.
        """
        text = sum(text.bytes for text in self.texts.values())
        if recipe.text.made_up is not None:
            text = PAIR * sum(recipe.text.made_up.sizes.values())
        data = text * (DISK + SEQKD_DISK * len(recipe.translated))
        # Two checkpoints of each training hold the weights and Adam's two moments, in float32.
        trainings = sum(len(recipe.seeds_of(method)) for method in recipe.methods)
        return data + 2 * 3 * 4 * parameters * trainings


def look(recipe: Recipe) -> Inputs:
    """Look at every file of a recipe.

    Raises:
        UsageError: a file is missing or unreadable, the two sides of a text have different lengths, or text
            and teacher have other subwords.
    """
    texts = {} if recipe.text.made_up is not None else _look_at_texts(recipe)
    digests = {str(path): text.digest for path, text in texts.items()}
    if recipe.subwords is not None and recipe.subwords.model is not None:
        digests[str(recipe.subwords.model)] = _file(recipe.subwords.model, "sentencepiece")
    digests.update(_look_at_teacher(recipe))
    digests.update(_look_at_flags(recipe))
    if recipe.user_dir is not None:
        digests[str(recipe.user_dir)] = _folder(recipe.user_dir, "user_dir", "*.py")
    return Inputs(_read_of(recipe, texts), digests, _check_subwords(recipe))


def _read_of(recipe: Recipe, texts: Mapping[Path, Text]) -> Mapping[Path, Text]:
    """Return what the run reads of each text; a rehearsal reads its first lines."""
    if recipe.first is None or not texts:
        return texts
    names = {path: split for split, pair in recipe.text.pairs.items() for path in astuple(pair)}
    if recipe.text.mono is not None:
        names[recipe.text.mono] = "mono"
    read = dict(texts)
    for path, name in names.items():
        text = texts[path]
        lines = min(text.lines, recipe.first[name])
        read[path] = replace(text, lines=lines, bytes=text.bytes * lines // text.lines)
    return read


def check_room(out: Path, needed: int) -> None:
    """Refuse a disk that is too small for a run.

    Args:
        out: folder of the run, which need not exist yet.
        needed: bytes that the run takes at least.

    Raises:
        UsageError: less is free.
    """
    folder = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    used = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) if out.exists() else 0
    free = shutil.disk_usage(folder).free
    if needed - used > free:
        raise UsageError(
            f"--out '{out}' needs {(needed - used) / 1e9:,.1f} GB, but its disk has {free / 1e9:,.1f} GB; "
            "make room, or use another"
        )


def _look_at_texts(recipe: Recipe) -> dict[Path, Text]:
    """Look at all files of text; return what they hold."""
    texts: dict[Path, Text] = {}
    for split in SPLITS:
        pair = recipe.text.pairs[split]
        for path in (pair.source, pair.target):
            texts[path] = _look_at_text(path, f"text.{split}", recipe.text.origin)
        source, target = texts[pair.source], texts[pair.target]
        if source.lines != target.lines:
            raise UsageError(
                f"text.{split} must have two files of as many lines, but '{pair.source}' has "
                f"{source.lines:,} and '{pair.target}' {target.lines:,}; align them"
            )
        for path in (pair.source, pair.target):
            if texts[path].empty == texts[path].lines:
                raise UsageError(f"text.{split} '{path}' is empty; name a file with sentences")
        if source.digest == target.digest:
            raise UsageError(
                f"text.{split} '{pair.source}' and '{pair.target}' have the same text; name a file of each "
                "language"
            )
    train, tested = recipe.text.pairs["train"], recipe.text.pairs["test"]
    if (texts[train.source].digest, texts[train.target].digest) == (
        texts[tested.source].digest,
        texts[tested.target].digest,
    ):
        raise UsageError(
            f"text.test '{tested.source}' has the sentences of text.train, so its scores would mean nothing; "
            "name other text"
        )
    for own, name in ((recipe.text.references, "text.references"), (recipe.text.mono, "text.mono")):
        if own is not None:
            texts[own] = _look_at_text(own, name, recipe.text.origin)
            if not texts[own].lines:
                raise UsageError(f"{name} '{own}' is empty; name a file with sentences")
    references, test = recipe.text.references, recipe.text.pairs["test"].target
    if references is not None and texts[references].lines != texts[test].lines:
        raise UsageError(
            f"text.references must have a line for each of the {texts[test].lines:,} sentences of text.test, "
            f"but '{references}' has {texts[references].lines:,}"
        )
    return texts


def _look_at_text(path: Path, name: str, origin: str) -> Text:
    """Read a file once: count its lines, hash it, and check that fairseq reads it as the same UTF-8 lines."""
    if kind_of(path, name) != "file":
        remedy = f"it is {origin}" if origin else "name a UTF-8 file with one sentence per line"
        raise UsageError(f"{name} '{path}' is not a file; {remedy}")
    digest, lines, empty, first_empty, size = hashlib.sha256(), 0, 0, 0, 0
    try:
        with open(path, "rb") as file:
            for line in file:
                digest.update(line)
                lines, size = lines + 1, size + len(line)
                if not line.strip():
                    empty, first_empty = empty + 1, first_empty or lines
                line.decode("utf-8")
                if b"\0" in line:
                    raise not_text(f"{name} '{path}'", path, lines, has_null=True)
                if b"\r" in line.removesuffix(b"\n").removesuffix(b"\r"):  # fairseq ends a line there
                    raise UsageError(
                        f"{name} '{path}' has a carriage return within line {lines:,}, which ends a line "
                        "for fairseq; remove it (tr -d '\\r')"
                    )
    except UnicodeDecodeError as error:
        raise not_text(f"{name} '{path}'", path, lines) from error
    except OSError as error:
        raise UsageError(
            f"{name} '{path}' can't be read: {error.strerror}; check the path and its permissions"
        ) from error
    return Text(lines, empty, first_empty, size, digest.hexdigest())


def _file(path: Path, name: str) -> str:
    if kind_of(path, name) != "file":
        raise UsageError(f"{name} '{path}' is not a file; check the path")
    return sha256(path)


def _file_or_folder(path: Path, name: str) -> str:
    return _folder(path, name) if kind_of(path, name) == "folder" else _file(path, name)


def _folder(path: Path, name: str, pattern: str = "*") -> str:
    """Return a hash of the files in a folder, without those of hidden folders, such as .git."""
    if kind_of(path, name) != "folder":
        raise UsageError(f"{name} '{path}' is not a folder; check the path")
    files = sorted(
        file
        for file in path.rglob(pattern)
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts[:-1])
    )
    content = "".join(f"{file.relative_to(path)} {sha256(file)}\n" for file in files)
    return hashlib.sha256(content.encode()).hexdigest()


def _look_at_teacher(recipe: Recipe) -> Iterator[tuple[str, str]]:
    teacher = recipe.teacher
    if teacher.huggingface is not None:
        name = "teacher.huggingface"
        digest = _folder(teacher.huggingface, name)
        if not os.path.isfile(teacher.huggingface / "config.json"):
            raise UsageError(
                f"{name} '{teacher.huggingface}' lacks config.json; name a model's folder in Hugging "
                "Face's format"
            )
        yield str(teacher.huggingface), digest
    if teacher.checkpoint is None or teacher.dictionaries is None:
        return
    check_readable(str(teacher.checkpoint), "teacher")
    damage = find_damage(teacher.checkpoint)
    if damage is not None:
        raise UsageError(
            f"teacher '{teacher.checkpoint}' is damaged: {damage}; copy it again, or use another"
        )
    _check_direction(recipe, str(teacher.checkpoint))
    yield str(teacher.checkpoint), sha256(teacher.checkpoint)
    digests = []
    for language in (recipe.source, recipe.target):
        path = teacher.dictionaries / f"dict.{language}.txt"
        if not os.path.isfile(path):
            raise UsageError(
                f"'{teacher.dictionaries}' lacks dict.{language}.txt; name the folder of the teacher's "
                "training data (--teacher-data, or teacher.dictionaries in a recipe)"
            )
        digests.append(sha256(path))
        yield str(path), digests[-1]
    yield str(teacher.dictionaries), " ".join(digests)


def _check_direction(recipe: Recipe, path: str) -> None:
    """Refuse a teacher of the opposite direction before students without a teacher are trained."""
    with reported(path, "teacher"):
        check_direction(
            configuration(read_checkpoint(path, None)),
            (recipe.source, recipe.target),
            reader="languages are",
            remedy="exchange the languages and the files, or use another teacher",
        )


def _look_at_flags(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield a hash of each file that flags name by an absolute path; other paths start from the run's folder,
    whose files may not exist yet.
    """
    for key, flags in recipe.flags():
        flag = ""
        for word in flags:
            value = word
            if word.startswith("--"):
                flag, _, value = word.partition("=")
            if not value.startswith("/"):  # NAME=FILE has its file after the sign
                value = value.partition("=")[2]
            files = [Path(file) for file in value.split(":")]
            if flag in FILES and all(file.is_absolute() for file in files):
                look = _file_or_folder if flag in FOLDERS else _file
                yield value, " ".join(look(file, f"{key}: {flag}") for file in files)


def _check_subwords(recipe: Recipe) -> Sequence[str]:
    """Refuse a SentencePiece model whose pieces the teacher's dictionaries lack, and sentences that no batch
    can hold. Return warnings of sentences that will be left out.
    """
    model = recipe.subwords.model if recipe.subwords is not None else None
    processor = open_pieces(model, "sentencepiece") if model is not None else None
    if recipe.text.made_up is not None:
        return ()
    if recipe.subwords is not None:
        _check_whole_words(recipe)
    if recipe.subwords is not None and processor is None:  # they are trained from this text
        return check_lengths(recipe, str.split)
    warnings = check_lengths(
        recipe, str.split if processor is None else lambda line: processor.encode(line, out_type=str)
    )
    if recipe.teacher.dictionaries is None:
        return warnings
    valid = recipe.text.pairs["valid"]
    for language, path in ((recipe.source, valid.source), (recipe.target, valid.target)):
        dictionary = recipe.teacher.dictionaries / f"dict.{language}.txt"
        known = {line.rsplit(" ", 1)[0] for line in dictionary.read_text(encoding="utf-8").splitlines()}
        lines = first_lines(str(path), LOOKED_AT)
        split = processor.encode(lines, out_type=str) if processor else [line.split() for line in lines]
        pieces = [piece for some in split for piece in some]
        unknown = sum(piece not in known for piece in pieces)
        if unknown > FOREIGN * len(pieces):
            subwords = f"sentencepiece '{model}'" if model else "text without sentencepiece"
            raise UsageError(
                f"{subwords} is not the teacher's: {dictionary.name} lacks "
                f"{unknown / len(pieces):.0%} of the subwords of '{path.name}'; use the model that the "
                "teacher's text was split with"
            )
    return warnings


def _check_whole_words(recipe: Recipe) -> None:
    """Refuse text that is split into subwords already: it would be split again."""
    for path in astuple(recipe.text.pairs["valid"]):
        lines = first_lines(str(path), LOOKED_AT)
        if sum("\u2581" in line for line in lines) > len(lines) / 2:
            raise UsageError(
                f"text.valid '{path}' is split into subwords already (\u2581), and sentencepiece would split "
                "it again; name the text before it was split"
            )

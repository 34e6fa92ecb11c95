"""Every file of a recipe is looked at before anything runs."""

import gzip
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sentencepiece

from fairseq_imitkd.data.files import sha256
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.pipeline import inputs, sentencepieces
from fairseq_imitkd.pipeline.recipe_file import parse
from tests.pipeline.recipes import recipe


@pytest.fixture
def text(tmp_path: Path) -> Path:
    for split in ("train", "valid", "test"):
        lines = [("1 2 3", "one two three"), ("4 5 6 7", "four five six seven")]
        for number, side in enumerate(("src", "tgt")):
            some = [pair[number] for pair in (lines[::-1] if split == "test" else lines)]
            (tmp_path / f"{split}.{side}").write_text("\n".join(some * 20) + "\n")
    return tmp_path


def look(text: Path, /, **changes: Any) -> inputs.Inputs:
    return inputs.look(parse(recipe(text, **changes), text))


def test_texts_are_counted_and_hashed(text: Path) -> None:
    (text / "train.src").write_text("1\n\n" * 20)
    found = look(text)
    source = found.texts[text / "train.src"]
    assert (source.lines, source.empty, source.bytes) == (40, 20, 60)
    assert found.digests[str(text / "valid.src")] == sha256(text / "valid.src")


def test_a_validation_on_the_training_text_is_warned_of(text: Path) -> None:
    found, wanted = look(text), parse(recipe(text), text)
    assert [warning.partition(", so")[0] for warning in found.repeated(wanted)] == [
        "text.valid has the sentences of text.train"
    ]
    (text / "valid.src").write_text((text / "test.src").read_text())
    assert not list(look(text).repeated(wanted)), "one side is another"
    (text / "valid.tgt").write_text((text / "test.tgt").read_text())
    assert next(look(text).repeated(wanted)).startswith("text.valid has the sentences of text.test, so")


def packed(text: Path) -> None:
    (text / "train.src").write_bytes(gzip.compress(b"1\n" * 20))


def cut(text: Path) -> None:
    (text / "valid.tgt").write_text("one\n")


def binary(text: Path) -> None:
    (text / "train.src").write_bytes(b"1\n\xff\n" * 20)


def two_in_one(text: Path) -> None:
    (text / "train.src").write_bytes(b"1\r\n" + b"1 2\r3\n" * 39)


def doubled_return(text: Path) -> None:
    (text / "valid.tgt").write_bytes(b"1\n2\r\r\n" * 20)


def empty(text: Path) -> None:
    for side in ("src", "tgt"):
        (text / f"test.{side}").write_text("")


def blank(text: Path) -> None:
    (text / "test.tgt").write_text("\n" * 40)


def one_language(text: Path) -> None:
    (text / "valid.tgt").write_text((text / "valid.src").read_text())


def known(text: Path) -> None:
    for side in ("src", "tgt"):
        (text / f"test.{side}").write_text((text / f"train.{side}").read_text())


def missing(text: Path) -> None:
    (text / "test.src").unlink()


def test_further_files_of_text_are_looked_at(text: Path) -> None:
    pairs = {split: [f"{split}.src", f"{split}.tgt"] for split in ("train", "valid", "test")}
    (text / "more").write_text("8 9\n")
    found = look(text, text={**pairs, "mono": "more"}, methods=["seqkd"])
    assert found.texts[text / "more"].lines == 1
    assert str(text / "more") in found.digests
    with pytest.raises(UsageError, match=r"text\.references must have a line for each of the 40 sentences"):
        look(text, text={**pairs, "references": "more"})
    (text / "test.src").unlink()
    with pytest.raises(UsageError, match=r"test\.src' is not a file; it is at example\.org"):
        look(text, text={**pairs, "origin": "at example.org"})


def test_files_in_flags_are_looked_at(text: Path) -> None:
    """In each form; a path that starts from the run's folder may not exist yet."""
    for name in ("codes", "one.pt", "two.pt", "a=b"):
        (text / name).write_text(name)
    (text / "deep").mkdir()
    (text / "deep" / "file").write_text("1")
    one, two, deep = f"{text}/one.pt", f"{text}/two.pt", f"{text}/deep"
    found = look(
        text,
        evaluate="--bpe-codes {folder}/codes --sentencepiece-model subwords.model "
        "--gpt2-vocab-bpe={folder}/a=b --model old={folder}/deep",
        distillation="--teacher-cache {folder}/deep",
        seqkd=f"--reverse-teacher {one}:{two} --scores {one} {two} --beam 2",
        export={"flags": f"--scores=a={two}"},
        methods=["seqkd", {"criterion": "none", "flags": f"--finetune-from-model={one}"}],
    )
    assert {f"{text}/codes", f"{text}/a=b", deep, one, two, f"{one}:{two}"} <= set(found.digests)
    assert found.digests[f"{one}:{two}"] == f"{found.digests[one]} {found.digests[two]}"


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluate": "--bpe-codes /nowhere"},
        {"evaluate": "--model old=/nowhere"},
        {"evaluate": "--model=old=/nowhere"},
        {"evaluate": "--gpt2-encoder-json /nowhere"},
        {"export": {"flags": "--scores=exported=/nowhere"}},
        {"distillation": "--teacher-cache /nowhere"},
        {"training": "--max-update 1 --continue-once /nowhere"},
        {"training": "--max-update 1 --ema-seed-model /nowhere"},
        {"student": {"arch": "lstm", "flags": "--quantization-config-path /nowhere"}},
        {"seqkd": "--student-sentencepiece-model /nowhere", "methods": ["seqkd"]},
        {"seqkd": "--student-data /nowhere", "methods": ["seqkd"]},
    ],
)
def test_a_file_in_flags_that_is_missing_is_refused(changes: dict[str, Any], text: Path) -> None:
    with pytest.raises(UsageError, match=r": --[\w-]+ '/nowhere' is not a file; check the path$"):
        look(text, **changes)


SKIPS = "--skip-invalid-size-inputs-valid-test"  # changes nothing here


@pytest.mark.parametrize(
    ("training", "flag", "limit"),
    [
        ("--max-tokens 900", "--max-tokens", 900),
        (f"--max-tokens 900 {SKIPS}", "--max-tokens", 900),
        ("--max-tokens 900 --max-tokens-valid 1000", "--max-tokens-valid", 1000),
    ],
)
def test_a_sentence_that_no_batch_of_the_validation_holds_is_refused(
    training: str, flag: str, limit: int, text: Path
) -> None:
    """The end of a sentence is a token too. Longer ones, beyond the model's positions, are in no batch."""
    changes = {"training": f"{training} --max-update 1"}
    (text / "train.tgt").write_text("six " * 2000 + "\n" + "six seven\n" * 39)
    for length in (limit, limit - 1):
        (text / "valid.tgt").write_text("six " * 2000 + "\n" + "six " * length + "\n" + "seven eight\n" * 38)
        if length == limit:
            with pytest.raises(UsageError, match="has a sentence of") as error:
                look(text, **changes)
            assert f"sentence of {limit + 1:,} tokens, but {flag} allows {limit:,}; raise it" in str(
                error.value
            )
        else:
            look(text, **changes)
    (text / "test.tgt").write_text("six " * limit + "\n" + "seven eight\n" * 39)  # which nothing validates on
    look(text, **changes)


@pytest.mark.parametrize("part", ["valid", "test"])
@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"training": "--max-update 1"}, 1024),
        ({"teacher": {"arch": "lstm", "flags": "--max-target-positions 50"}}, 50),
        ({"training": f"--max-tokens 900 --max-update 1 {SKIPS}"}, 1024),
    ],
)
def test_a_sentence_beyond_the_model_s_positions_is_warned_of(
    changes: dict[str, Any], limit: int, part: str, text: Path
) -> None:
    """It is left out, as one of the training is."""
    (text / "train.tgt").write_text("six " * 2000 + "\n" + "six seven\n" * 39)
    for length, lines in (
        (10, []),
        (limit, [f"{limit + 1:,} tokens, but --max-target-positions allows {limit:,}"]),
    ):
        (text / f"{part}.tgt").write_text("six " * length + "\n" + "seven eight\n" * 39)
        found = look(text, **changes).long
        assert [warning.partition("a sentence of ")[2].partition(";")[0] for warning in found] == lines


def test_hidden_folders_do_not_count(text: Path) -> None:
    (text / ".git").mkdir()
    before = inputs._folder(text, "teacher")
    (text / ".git" / "index").write_text("1")
    assert inputs._folder(text, "teacher") == before
    (text / "config.json").write_text("1")
    assert inputs._folder(text, "teacher") != before


def test_lines_that_are_empty_on_one_side_are_warned_of(text: Path) -> None:
    wanted = parse(recipe(text), text)
    assert not list(look(text).blank(wanted))
    lines = (text / "valid.src").read_text().splitlines()
    (text / "valid.src").write_text("\n".join(["1", " ", *lines[2:4], "", *lines[5:]]) + "\n")
    [warning] = look(text).blank(wanted)
    assert warning == (
        f"text.valid '{text / 'valid.src'}' has 2 empty lines, the first is line 2; the other side has 0: "
        "are the two aligned?"
    )


def test_a_rehearsal_is_counted_by_what_it_reads(text: Path) -> None:
    """Whole text: 1,500 lines, all of the same length."""
    for side in ("src", "tgt"):
        (text / f"train.{side}").write_text(f"one two {side}\n" * 1500)
    whole, part = (inputs.look(parse(recipe(text, rehearsal=is_short), text)) for is_short in (False, True))
    train, test = text / "train.src", text / "test.src"
    assert (whole.texts[train].lines, part.texts[train].lines) == (1500, 300)
    assert whole.texts[train].bytes == 5 * part.texts[train].bytes
    assert part.texts[test].lines == min(30, whole.texts[test].lines)


def test_made_up_text_has_no_files_yet(text: Path) -> None:
    made_up = {"made_up": {"train": 1000, "valid": 10, "test": 10}}
    found = look(Path("/nowhere"), text=made_up, methods=["none"])
    assert not found.texts
    assert found.disk(parse(recipe(text, text=made_up, methods=["none"]), text), 0) == 1020 * 160 * 3
    look(Path("/nowhere"), text=made_up, methods=["none"], sentencepiece={"vocabulary": 50})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, "text.valid must have two files of as many lines"),
        (binary, "must be UTF-8, but line 2 is not; convert the file"),
        (two_in_one, "text.train '{}/train.src' has a carriage return within line 2, which ends a line"),
        (doubled_return, "has a carriage return within line 2,"),
        (empty, "is empty; name a file with sentences"),
        (blank, "text.test '{}/test.tgt' is empty; name a file with sentences"),
        (packed, "text.train '{0}/train.src' is compressed; unpack it"),
        (one_language, "text.valid '{0}/valid.src' and '{0}/valid.tgt' have the same text"),
        (known, "text.test '{}/test.src' has the sentences of text.train"),
        (missing, "is not a file; name a UTF-8 file with one sentence per line"),
    ],
)
def test_wrong_text_is_refused(spoil: Callable[[Path], None], message: str, text: Path) -> None:
    spoil(text)
    with pytest.raises(UsageError, match="text") as error:
        look(text)
    assert message.format(text) in str(error.value)


def test_text_that_is_split_already_is_refused(text: Path) -> None:
    """Without a SentencePiece model it is text of symbols, which may hold anything."""
    path = text / "valid.src"
    path.write_text("".join(f"\u2581{line}\n" for line in path.read_text().splitlines()), encoding="utf-8")
    with pytest.raises(UsageError, match=r"valid\.src' is split into subwords already"):
        look(text, sentencepiece={"vocabulary": 50}, teacher={"arch": "transformer"})


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("nothing.pt", "is not a file"),
        ({"checkpoint": "train.src"}, "is damaged: "),
        ({"huggingface": "nowhere"}, "is not a folder"),
        ({"huggingface": "."}, "lacks config.json"),
    ],
)
def test_a_wrong_teacher_is_refused(teacher: Any, message: str, text: Path) -> None:
    with pytest.raises(UsageError, match="teacher") as error:
        look(text, teacher=teacher)
    assert message in str(error.value)


@pytest.mark.parametrize("is_short", [False, True])
def test_a_wrong_user_dir_is_refused(is_short: bool, text: Path) -> None:
    """In a rehearsal too, which asks it for architectures."""
    with pytest.raises(UsageError, match=r"user_dir '.*/nowhere' is not a folder; check the path"):
        look(text, user_dir="nowhere", rehearsal=is_short)


def test_a_teacher_of_the_opposite_direction_is_refused(
    text: Path, digits: Any, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "configuration", lambda _: configured("tgt", "src"))
    own = {"checkpoint": str(teacher), "dictionaries": str(digits.dictionaries)}
    with pytest.raises(UsageError, match="translates tgt-src, but languages are src-tgt; exchange the lang"):
        look(text, teacher=own)
    monkeypatch.setattr(inputs, "configuration", lambda _: configured("src", "tgt"))
    look(text, teacher=own)


def configured(source: str, target: str) -> Any:
    return SimpleNamespace(task=SimpleNamespace(source_lang=source, target_lang=target, data=None))


def test_a_teacher_of_other_subwords_is_refused(text: Path, digits: Any, teacher: Path) -> None:
    own = {"checkpoint": str(teacher), "dictionaries": str(digits.dictionaries)}
    look(text, teacher=own)
    sentencepieces.train(text / "other.model", 40, [str(text / "train.src"), str(text / "train.tgt")])
    with pytest.raises(UsageError, match=r"is not the teacher's: dict\.src\.txt lacks 88% of the subwords"):
        look(text, teacher=own, sentencepiece=str(text / "other.model"))
    with pytest.raises(UsageError, match=r"lacks dict\.src\.txt; name the folder of"):
        look(text, teacher={**own, "dictionaries": str(text)})
    with pytest.raises(UsageError, match=r"is not a model of SentencePiece; use the \.model file that"):
        look(text, teacher=own, sentencepiece=str(text / "train.src"))


def test_a_disk_that_is_too_small_is_refused(text: Path) -> None:
    inputs.check_room(text / "new" / "run", 1)
    with pytest.raises(UsageError, match=r"needs 1,000,000.0 GB, but its disk has .* GB; make room"):
        inputs.check_room(text / "new" / "run", 10**15)


def test_two_trainings_of_subwords_make_the_same_file(text: Path) -> None:
    for name in ("a", "b"):
        sentencepieces.train(text / name, 40, [str(text / "train.src"), str(text / "train.tgt")])
    assert (text / "a").read_bytes() == (text / "b").read_bytes()


def test_subwords_of_large_text_are_trained_on_a_part(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines are spread over both files."""
    monkeypatch.setattr(sentencepieces, "SAMPLED", 20)
    files = [str(text / f"train.{side}") for side in ("src", "tgt")]
    lines = list(sentencepieces.spread(files, 80))
    assert len(lines) == 20
    assert lines[0] == "1 2 3"
    assert sum(line.startswith(("one", "four")) for line in lines) == 10
    sentencepieces.train(text / "model", 30, files)
    assert (text / "model").stat().st_size > 0


def test_subwords_of_long_lines(text: Path) -> None:
    """SentencePiece alone leaves out lines of more than 4,192 bytes. Shorter lines make the model of its own
    settings.
    """
    long = text / "long"
    long.write_text("ein kleiner satz mit vielen worten " * 200 + "\n")
    sentencepieces.train(text / "model", 40, [str(long)])
    sentencepieces.main(["train", str(text / "same"), "30", str(long), "--lines", "3"])
    assert (text / "same").stat().st_size > 0
    sentencepieces.train(text / "of_short", 40, [str(text / "train.tgt")])
    with (text / "expected").open("wb") as made:
        sentencepiece.SentencePieceTrainer.train(
            input=[str(text / "train.tgt")], model_writer=made, vocab_size=40, model_type="bpe",
            character_coverage=1.0, num_threads=1, minloglevel=1,
        )  # fmt: skip
    assert (text / "of_short").read_bytes() == (text / "expected").read_bytes()
    long.write_text("x" * 70_000 + "\n")
    with pytest.raises(SystemExit, match="needs lines of at most 65,535 bytes, but all lines of the text"):
        sentencepieces.train(text / "model", 40, [str(long)])

"""The data set of imitkd-seqkd: order, filters, counts, text, ids, binarised data, added references."""

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq.data import data_utils
from torch import Tensor

from fairseq_imitkd.data.corpus import Corpus, Languages, dataset_builder
from fairseq_imitkd.data.files import sha256
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.seqkd.dataset import Written, summary, write
from fairseq_imitkd.seqkd.filters import Counts, Filters, Pair, PairFilter, Sides
from fairseq_imitkd.seqkd.translator import TranslatedBatch
from fairseq_imitkd.text.language import is_other_language
from tests.helpers.fairseq_models import LETTERS, letters, write_dictionaries

EOS = 2
NOTHING = dict.fromkeys(("cut", "empty", "ratio", "copy", "repeats", "language", "duplicate", "worst"), 0)


class Sentences(list):
    """What is asked of fairseq's data sets."""

    @property
    def sizes(self) -> np.ndarray:
        return np.array([sentence.numel() for sentence in self])


def ids(text: str) -> Tensor:
    """Letters to symbols, an EOS after them, in the type that files have."""
    return torch.tensor([4 + LETTERS.index(letter) for letter in text] + [EOS], dtype=torch.int32)


def corpus(*sources: str, references: Sequence[str] | None = None) -> Corpus:
    return Corpus(
        Sentences(map(ids, sources)), None if references is None else Sentences(map(ids, references))
    )


def found(*batches: dict[int, Sequence[str]]) -> list[TranslatedBatch]:
    """Batches of sentence number -> translations; ``!`` at the end means cut; scores count down from -0.5."""
    made, count = [], 0
    for batch in batches:
        texts = [text for some in batch.values() for text in some]
        tokens = [ids(text.removesuffix("!")) for text in texts]
        made.append(
            TranslatedBatch(
                ids=np.array(list(batch), dtype=np.int64),
                counts=np.array([len(some) for some in batch.values()], dtype=np.int32),
                lengths=np.array([each.numel() for each in tokens], dtype=np.int32),
                scores=-0.5 - np.arange(count, count + len(texts), dtype=np.float32),
                cut=np.array([text.endswith("!") for text in texts], dtype=np.uint8),
                tokens=torch.cat(tokens).numpy(),
            )
        )
        count += len(texts)
    return made


BLANK = 4 + LETTERS.index("p")  # a mark of subwords, in these tests


def as_text(target: torch.Tensor) -> str:
    return "".join(" " if token == BLANK else LETTERS[token - 4] for token in target[:-1])


def kept(
    some: Corpus, translated: Sequence[TranslatedBatch], counts: Counts | None = None, **settings: Any
) -> list[Pair]:
    qualities = settings.pop("qualities", None)
    sides = Sides(lambda sentence: as_text(some.sources[sentence]), as_text)
    judge = PairFilter(some, translated, Filters(**settings), sides=lambda: sides, qualities=qualities)
    return [pair for pair, reason in judge.judged(counts or Counts()) if reason is None]


def listed(
    some: Corpus, translated: Sequence[TranslatedBatch], counts: Counts | None = None, **settings: Any
) -> list[tuple[int, str, str]]:
    """Sentence, origin and letters of each pair."""
    return [
        (pair.sentence, pair.origin, "".join(LETTERS[token - 4] for token in pair.target[:-1]))
        for pair in kept(some, translated, counts, **settings)
    ]


def test_blank_translations_are_empty() -> None:
    """Subwords that are marks alone make no words."""
    some, counts = corpus("a", "bb", "ccc"), Counts()
    blank = LETTERS[BLANK - 4]
    assert listed(some, found({0: [blank], 1: [blank + blank], 2: [blank + "c"]}), counts) == [
        (2, "teacher", blank + "c")
    ]
    assert counts.dropped["empty"] == 2


def test_order_is_the_corpus() -> None:
    """Batches do not matter; sentences without translations are left out; scores stay with their pairs."""
    some = corpus("a", "bb", "", "ccc", "d")
    translated = found({3: ["c", "cc"], 1: ["b", "a"]}, {4: ["d", "e"], 0: ["a", "f"]})
    expected = [(0, "a"), (0, "f"), (1, "b"), (1, "a"), (3, "c"), (3, "cc"), (4, "d"), (4, "e")]
    assert listed(some, translated) == [(number, "teacher", text) for number, text in expected]
    scores = [pair.score for pair in kept(some, translated)]
    assert scores == [-6.5, -7.5, -2.5, -3.5, -0.5, -1.5, -4.5, -5.5]
    every = kept(some, translated)
    assert all(pair.target.dtype == torch.int64 and pair.target[-1] == EOS for pair in every)


@pytest.mark.parametrize(
    ("settings", "left", "dropped"),
    [
        ({}, [0, 1, 3, 4, 5, 6], {"cut": 1, "empty": 1}),
        ({"max_ratio": 3.0}, [0, 1, 4, 5, 6], {"cut": 1, "empty": 1, "ratio": 1}),
        ({"max_ratio": 2.0}, [0, 1, 5, 6], {"cut": 1, "empty": 1, "ratio": 2}),
        ({"max_ratio": 1.0}, [0, 1, 6], {"cut": 1, "empty": 1, "ratio": 3}),
        ({"dedup": True}, [0, 3, 4, 5, 6], {"cut": 1, "empty": 1, "duplicate": 1}),
        ({"dedup": True, "max_ratio": 1.0}, [0, 6], {"cut": 1, "empty": 1, "ratio": 3, "duplicate": 1}),
    ],
    ids=str,
)
def test_filters(settings: dict[str, Any], left: list[int], dropped: dict[str, int]) -> None:
    """Each filter drops the right pairs and counts them by its reason."""
    some = corpus("ab", "ab", "abc", "a", "abcdef", "ab", "abcd", "b")
    translated = found(
        {0: ["ba"], 1: ["ba"], 2: [""], 3: ["bbbb"], 4: ["ab"], 5: ["b"], 6: ["ba" * 2], 7: ["a!"]}
    )
    counts = Counts(sentences=8)
    assert [number for number, _, _ in listed(some, translated, counts, **settings)] == left
    assert counts.dropped == {**NOTHING, **dropped}
    assert (counts.translations, counts.gold, counts.written) == (8, 0, len(left))
    counts.check(8, 8)


GERMAN = ("Der Mann liest am Abend ein Buch.", "Wir haben gestern im Wald gespielt.")
ENGLISH = ("The man reads a book in the evening.", "We played in the forest yesterday.")


@pytest.mark.parametrize(("code", "left"), [("de", [0, 1]), ("en", [2, 3]), (None, [0, 1, 2, 3])])
def test_other_languages(code: str | None, left: list[int]) -> None:
    """Texts of the language stay, and the others are counted."""
    texts, counts = (*GERMAN, *ENGLISH), Counts()
    some, translated = corpus("a", "b", "c", "d"), found({number: ["abcd"[number]] for number in range(4)})
    sides = Sides(lambda sentence: "?", lambda target: texts["abcd".index(as_text(target))])
    judge = PairFilter(some, translated, Filters(language=code), sides=lambda: sides)
    assert [pair.sentence for pair, reason in judge.judged(counts) if reason is None] == left
    assert counts.dropped == {**NOTHING, "language": 4 - len(left)}


def test_numbers_and_marks_are_of_every_language() -> None:
    is_other = is_other_language("de", "--flag")
    assert [is_other(text) for text in ("1 2 3", "!", "", ENGLISH[0])] == [False, False, False, True]


def test_a_language_that_is_unknown_or_cannot_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"--drop-other-languages must be the code .* but is 'german'"):
        Filters(language="german")
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(UsageError, match="--drop-other-languages needs the package py3langid; pip install"):
        Filters(language="de")


def test_ratio_is_of_words_without_the_end() -> None:
    """Exactly so many times longer passes."""
    assert listed(corpus("aa"), found({0: ["aaa"]}), max_ratio=1.5)
    assert not listed(corpus("aa"), found({0: ["aaa"]}), max_ratio=1.49)
    assert not listed(corpus("aaa"), found({0: ["aa"]}), max_ratio=1.49)


def test_duplicates_are_of_source_and_target() -> None:
    """The same target of another source is none, nor is the same source with another; among samples too."""
    some = corpus("ab", "a", "ab", "b")
    translated = found({0: ["c", "c"], 1: ["c", "bc"], 2: ["c", "d"], 3: ["c", "d"]})
    assert [entry[::2] for entry in listed(some, translated, dedup=True)] == [
        (0, "c"),
        (1, "c"),
        (1, "bc"),
        (2, "d"),
        (3, "c"),
        (3, "d"),
    ]
    # The place where source ends and target begins matters.
    assert len(listed(corpus("ab", "a"), found({0: ["c"], 1: ["bc"]}), dedup=True)) == 2


def test_gold_comes_after_its_translation() -> None:
    """Of every sentence that was translated, a cut translation's too, and subject to the same filters."""
    some = corpus("ab", "ab", "c", "", "d", references=["ba", "b", "", "a", "dddd"])
    translated = found({0: ["ba"], 1: ["aa!"], 2: ["c"], 4: ["d"]})
    counts = Counts(sentences=5, empty_sources=1)
    assert listed(some, translated, counts, mix_gold=1.0) == [
        (0, "teacher", "ba"),
        (0, "gold", "ba"),
        (1, "gold", "b"),
        (2, "teacher", "c"),
        (4, "teacher", "d"),
        (4, "gold", "dddd"),
    ]
    assert counts.dropped == {**NOTHING, "cut": 1, "empty": 1}
    assert (counts.translations, counts.gold, counts.written) == (4, 4, 6)
    counts.check(4, 4)
    counts = Counts(sentences=5, empty_sources=1)
    assert listed(some, translated, counts, mix_gold=1.0, dedup=True, max_ratio=3.0) == [
        (0, "teacher", "ba"),
        (1, "gold", "b"),
        (2, "teacher", "c"),
        (4, "teacher", "d"),
    ]
    assert counts.dropped == {**NOTHING, "cut": 1, "empty": 1, "ratio": 1, "duplicate": 1}
    counts.check(4, 4)


def test_share_of_gold() -> None:
    """About the given share, the same sentences under one seed, and all of those of a smaller share."""
    number = 4000
    some = corpus(*["a"] * number, references=["b"] * number)
    translated = found({sentence: ["c"] for sentence in range(number)})

    def gold(share: float, seed: int = 1) -> set[int]:
        return {
            sentence
            for sentence, origin, _ in listed(some, translated, mix_gold=share, seed=seed)
            if origin == "gold"
        }

    assert gold(0.0) == set()
    assert gold(1.0) == set(range(number))
    bound = math.sqrt(math.log(2e12) / (2 * number))  # Hoeffding's
    assert abs(len(gold(0.3)) / number - 0.3) < bound
    assert gold(0.3) == gold(0.3)
    assert gold(0.3) != gold(0.3, seed=2)
    assert gold(0.1) < gold(0.3)


def test_counts_that_do_not_add_up() -> None:
    """A lost, a doubled and an uncounted one: never passed over."""
    good = Counts(sentences=10, too_long=1, empty_sources=2, translations=14, gold=3, written=13)
    good.dropped["empty"] = 4
    good.check(7, 14)
    for name, change in (
        ("translations", -1),
        ("translations", 2),
        ("written", 1),
        ("gold", 1),
        ("too_long", -1),
    ):
        with pytest.raises(RuntimeError):
            dataclasses.replace(good, **{name: getattr(good, name) + change}).check(7, 14)
    for sentences in (6, 8):
        with pytest.raises(RuntimeError, match="sentences must have translations"):
            good.check(sentences, 14)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_ratio": 0.5}, "--max-ratio must be 1 or more, or 0 for no limit, but is 0.5"),
        ({"max_ratio": -1.0}, "--max-ratio must be 1 or more, or 0 for no limit, but is -1.0"),
        ({"max_ratio": math.nan}, "--max-ratio must be 1 or more, or 0 for no limit, but is nan"),
        ({"max_ratio": math.inf}, "--max-ratio must be 1 or more, or 0 for no limit, but is inf"),
        ({"mix_gold": -0.1}, "--mix-gold must be in 0..1, but is -0.1"),
        ({"mix_gold": 1.1}, "--mix-gold must be in 0..1, but is 1.1"),
        ({"mix_gold": math.nan}, "--mix-gold must be in 0..1, but is nan"),
    ],
)
def test_refusals(settings: dict[str, Any], message: str) -> None:
    """The flag, its value, what it must be."""
    with pytest.raises(UsageError) as error:
        Filters(**settings)
    assert str(error.value) == message


def languages(folder: Path) -> Languages:
    """Of two dictionaries, the target's with subword marks."""
    write_dictionaries(folder, target=[letter + "@@" if letter in "ab" else letter for letter in LETTERS])
    return Languages.of(folder, "src", "tgt")


def write_pairs(folder: Path, some: Corpus, every: list[Pair], **settings: Any) -> None:
    settings = {"split": "train", **settings}
    written = Written(some, settings.pop("languages"), settings.pop("remove_bpe", None))
    write(folder, iter([(pair, None) for pair in every]), written, total=len(every), **settings)


@pytest.mark.parametrize(
    ("marks", "targets"),
    [(None, ["c a@@ c", "d", "b@@ b@@ c"]), ("@@ ", ["c ac", "d", "bbc"])],
    ids=["marks", "joined"],
)
def test_text_and_data_say_the_same(tmp_path: Path, marks: str | None, targets: list[str]) -> None:
    """Line by line, subword marks undone in the text alone; the ids are in the third file."""
    both = languages(tmp_path / "data")
    some = corpus("ab", "c", "ddd")
    every = [
        Pair(0, "teacher", -0.25, ids("cac").long()),
        Pair(0, "gold", None, ids("d").long()),
        Pair(2, "teacher", -1.5, ids("bbc").long()),
    ]
    write_pairs(tmp_path / "out", some, every, languages=both, remove_bpe=marks)
    text = tmp_path / "out" / "text"
    sources = ["a b", "a b", "d d d"]
    assert (text / "train.src").read_text().splitlines() == sources
    assert (text / "train.tgt").read_text().splitlines() == targets
    heads = ["0\tteacher\t-0.2500", "0\tgold\t", "2\tteacher\t-1.5000"]
    expected = ["\t".join(parts) for parts in zip(heads, sources, targets, strict=True)]
    assert (text / "train.tsv").read_text().splitlines() == expected
    assert {path.name for path in text.iterdir()} == {
        "train.src",
        "train.tgt",
        "train.tsv",
        "train.dropped.tsv",
    }
    data = tmp_path / "out" / "data-bin"
    for side, dictionary, lines, undone in (
        ("src", both.source_dictionary, sources, None),
        ("tgt", both.target_dictionary, targets, marks),
    ):
        dataset = data_utils.load_indexed_dataset(str(data / f"train.src-tgt.{side}"), dictionary)
        assert [dictionary.string(row, undone) for row in dataset] == lines
        assert all(row[-1] == EOS for row in dataset)
        assert (data / f"dict.{side}.txt").read_bytes() == (
            tmp_path / "data" / f"dict.{side}.txt"
        ).read_bytes()


def test_a_pair_is_a_line(tmp_path: Path) -> None:
    """Whatever a sentence of text holds that some tools take for a line's end."""
    raw = tmp_path / "raw"
    raw.write_text("a\rb\r\nc\u2028d\x0be\n", encoding="utf-8", newline="")
    both = languages(tmp_path / "data")
    some = Corpus(Sentences([ids("a"), ids("b")]), None, raw)
    every = [Pair(0, "teacher", -0.25, ids("c").long()), Pair(1, "teacher", -0.5, ids("d").long())]
    write_pairs(tmp_path / "out", some, every, languages=both)
    text = tmp_path / "out" / "text"
    assert (text / "train.src").read_text(encoding="utf-8").splitlines() == ["a b", "c d e"]
    rows = (text / "train.tsv").read_text(encoding="utf-8").splitlines()
    assert [row.split("\t")[3:] for row in rows] == [["a b", "c"], ["c d e", "d"]]


def test_other_splits_come_along(tmp_path: Path) -> None:
    """Validation and test splits are copied under one name for both directions, except the new split."""
    both = languages(tmp_path / "data")
    kept = (
        "valid.tgt-src.src.bin",
        "valid.tgt-src.tgt.idx",
        "valid1.src-tgt.src.idx",
        "test.tgt-src.src.bin",
    )
    others = ("train.tgt-src.src.bin", "valid.en-de.en.bin", "validation.txt", "test.tgt-src.src.bin.partial")
    for name in (*kept, *others):
        (tmp_path / "data" / name).write_text(name)
    pair = Pair(0, "teacher", -1.0, ids("b").long())
    write_pairs(tmp_path / "out", corpus("a"), [pair], languages=both, split="test")
    made = {path.name: path for path in (tmp_path / "out" / "data-bin").iterdir()}
    assert made.keys() == {
        "dict.src.txt",
        "dict.tgt.txt",
        *(f"test.src-tgt.{side}.{end}" for side in ("src", "tgt") for end in ("bin", "idx")),
        "valid.src-tgt.src.bin",
        "valid.src-tgt.tgt.idx",
        "valid1.src-tgt.src.idx",
    }
    assert made["valid.src-tgt.tgt.idx"].read_text() == "valid.tgt-src.tgt.idx"
    assert made["test.src-tgt.src.bin"].read_bytes() == np.array([4, EOS], dtype=np.uint16).tobytes()


def test_file_has_its_name_only_when_whole(tmp_path: Path) -> None:
    """Not before, and not if something goes wrong."""
    prefix = tmp_path / "source"
    with dataset_builder(prefix, 20) as builder:
        builder.add_item(ids("a"))
        assert all(path.name.endswith(".partial") for path in tmp_path.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"source.bin", "source.idx"}
    with pytest.raises(ZeroDivisionError), dataset_builder(tmp_path / "other", 20):
        raise ZeroDivisionError
    assert not list(tmp_path.glob("other.bin")) + list(tmp_path.glob("other.idx"))


def test_two_write_the_same_at_once(tmp_path: Path) -> None:
    """As machines that share a folder do: neither reads half of the other's."""
    with dataset_builder(tmp_path / "source", 20) as slow:
        slow.add_item(ids("abcd"))
        with dataset_builder(tmp_path / "source", 20) as fast:
            fast.add_item(ids("abcd"))
            fast.add_item(ids("b"))
        dataset = data_utils.load_indexed_dataset(str(tmp_path / "source"), letters())
        assert [row.tolist() for row in dataset] == [ids("abcd").tolist(), ids("b").tolist()]
        slow.add_item(ids("b"))


def test_summary(tmp_path: Path) -> None:
    """Counts, and every file's size and checksum."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a").write_text("one")
    made = summary(Counts(sentences=3, written=2), tmp_path)
    assert made["counts"] == {
        "sentences": 3,
        "too_long": 0,
        "empty_sources": 0,
        "translations": 0,
        "dropped": NOTHING,
        "gold": 0,
        "written": 2,
    }
    assert made["files"] == {"text/a": {"bytes": 3, "sha256": sha256(tmp_path / "text" / "a")}}

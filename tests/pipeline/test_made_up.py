"""Tests of the made-up languages: reproducible, no leaks, agreement, word order and ambiguity."""

import functools
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fairseq_imitkd.pipeline import made_up

SCRIPT = Path(made_up.__file__)


@pytest.fixture(scope="module")
def language() -> ModuleType:
    return made_up


@pytest.fixture(scope="module")
def sentences(language: ModuleType) -> list[tuple[list[str], list[list[str]]]]:
    drawn = language.corpus(3, {"train": 4000})["train"]
    return [(source.split(), [target.split() for target in targets]) for source, targets in drawn]


@pytest.fixture(scope="module")
def pairs(sentences: list) -> list[tuple[list[str], list[str]]]:
    """The sentence pairs of the corpus."""
    return [(source, targets[0]) for source, targets in sentences]


def test_files_are_aligned_and_the_same_in_every_process(tmp_path: Path) -> None:
    written = []
    for hash_seed in "12":
        out = tmp_path / hash_seed
        sizes = ["--train", "60", "--valid", "20", "--test", "30", "--seed", "5"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        subprocess.run([sys.executable, SCRIPT, out, *sizes], check=True, env=environment)
        written.append({path.name: path.read_text() for path in out.iterdir()})
    assert written[0] == written[1]
    lines = {name: text.splitlines() for name, text in written[0].items()}
    assert {name: len(rows) for name, rows in lines.items()} == {
        "train.src": 60, "train.tgt": 60, "valid.src": 20, "valid.tgt": 20,
        "test.src": 30, "test.tgt": 30, "test.all": 30,
    }  # fmt: skip
    assert all(row.strip() for rows in lines.values() for row in rows)
    assert [row.split("\t")[0] for row in lines["test.all"]] == lines["test.tgt"]


def test_another_seed_makes_another_language(language: ModuleType) -> None:
    one, two = (language.corpus(seed, {"train": 50})["train"] for seed in (1, 2))
    assert not {source for source, _ in one} & {source for source, _ in two}


def test_no_sentence_comes_twice_even_where_there_are_few(
    language: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = functools.partial(language.Language, nouns=1, ambiguous=0, adjectives=2, verbs=1)
    drawn = few(1)
    sources = [drawn.sentence()[0] for _ in range(700)]
    assert len(set(sources)) < len(sources), "the check below would not see a leak"
    monkeypatch.setattr(language, "Language", few)
    splits = language.corpus(1, {"test": 200, "valid": 100, "train": 400})
    sources = [source for rows in splits.values() for source, _ in rows]
    assert len(set(sources)) == len(sources) == 700


def test_a_longer_training_set_leaves_the_test_set_as_it_is(language: ModuleType) -> None:
    short, long = (language.corpus(1, {"test": 20, "valid": 10, "train": size}) for size in (30, 60))
    assert (short["test"], short["valid"]) == (long["test"], long["valid"])
    assert short["train"] == long["train"][:30]


def test_an_empty_split_is_refused(language: ModuleType) -> None:
    with pytest.raises(ValueError, match="--valid must be at least 1, but is 0"):
        language.corpus(1, {"test": 1, "valid": 0})


def test_most_sentences_are_long_enough_to_drift(pairs: list) -> None:
    lengths = [len(target) for _, target in pairs]
    assert max(lengths) <= 25
    assert sum(length >= 8 for length in lengths) > 0.75 * len(lengths)
    assert sum(length >= 16 for length in lengths) > 0.25 * len(lengths)


def test_words_agree_with_the_noun_that_they_belong_to(language: ModuleType, pairs: list) -> None:
    drawn = language.Language(3)
    gender = dict(reading for noun in drawn.nouns for reading in noun.readings)
    determiners, adjectives = ({word[1] for word in words} for words in (drawn.determiners, drawn.adjectives))
    checked = Counter()
    for _, target in pairs:
        # A determiner opens its phrase. All words up to the next one agree with the noun between them.
        agreed = None
        for position, word in enumerate(target):
            stem, ending = word.rstrip("aeoi"), word[len(word.rstrip("aeoi")) :]
            if stem in determiners:
                noun = next(word for word in target[position:] if word.removesuffix("u") in gender)
                agreed = {"m": "o", "f": "a", "n": "e"}[gender[noun.removesuffix("u")]] + "i" * noun.endswith(
                    "u"
                )
                assert ending == agreed, target
                checked["determiner"] += 1
            elif stem in adjectives or stem == drawn.relative[1]:
                assert ending == agreed, target
                checked["adjective or pronoun"] += 1
    assert checked["determiner"] > 1000
    assert checked["adjective or pronoun"] > 1000


def plain(drawn: Any, sentences: list) -> Iterator[tuple[list[str], Any]]:
    """Return the sentences with one clause and no relative clauses."""
    joining = {drawn.relative[0], *(source for source, _ in drawn.conjunctions)}
    return ((source, target) for source, target in sentences if not joining & set(source))


def test_the_last_source_verb_comes_second_and_agrees_with_its_subject(
    language: ModuleType, pairs: list
) -> None:
    drawn = language.Language(3)
    verbs = {verb.source: verb.target for verb in drawn.verbs}
    nouns = {noun.source: noun.readings for noun in drawn.nouns}
    adverbs = dict(drawn.adverbs).values()
    determiners = {target for _, target in drawn.determiners}
    opened_by = Counter()
    for source, target in plain(drawn, pairs):
        verb, tense = source[-2][:-1], source[-2][-1]
        subject = next(word for word in source if word.removesuffix("e") in nouns)
        plural = subject.endswith("e")
        (gender,) = (
            gender for stem, gender in nouns[subject.removesuffix("e")] if stem + "u" * plural in target
        )
        ending = {"m": "o", "f": "a", "n": "e"}[gender] + "i" * plural
        place = target.index(verbs[verb] + "t" * (tense == "o") + ending)
        opening = target[:place]
        if opening[0] in adverbs:
            assert place == 1, (source, target)
        else:
            assert sum(word.rstrip("aeoi") in determiners for word in opening) == 1, (source, target)
        opened_by["adverb" if opening[0] in adverbs else "phrase"] += 1
    assert min(opened_by["adverb"], opened_by["phrase"]) > 50


def test_every_right_translation_is_another_order_of_the_same_words(
    language: ModuleType, sentences: list
) -> None:
    drawn = language.Language(3)
    adverbs, prepositions, adjectives = (
        dict(words) for words in (drawn.adverbs, drawn.prepositions, drawn.adjectives)
    )
    nouns = {noun.source for noun in drawn.nouns}
    for source, targets in plain(drawn, sentences):
        assert len({tuple(target) for target in targets}) == len(targets)
        assert len({tuple(sorted(target)) for target in targets}) == 1
        if len(said := [word for word in source if word.removesuffix("e") in nouns]) > len(set(said)):
            continue  # two phrases may be the same, and then some orders are the same too
        openings = 2 + any(word in adverbs for word in source) + any(word in prepositions for word in source)
        assert len(targets) == openings * (2 if any(word in adjectives for word in source) else 1), source


def test_the_clauses_verb_and_only_it_decides_what_an_ambiguous_noun_means(
    language: ModuleType, pairs: list
) -> None:
    drawn = language.Language(3)
    ambiguous = {
        noun.source: [stem for stem, _ in noun.readings] for noun in drawn.nouns if len(noun.readings) == 2
    }
    seen, by_verb = defaultdict(set), defaultdict(set)
    for source, target in plain(drawn, pairs):
        words = {word.removesuffix("u") for word in target}
        for noun in {word.removesuffix("e") for word in source} & set(ambiguous):
            meant = [stem for stem in ambiguous[noun] if stem in words]
            assert len(meant) == 1, (source, target)
            seen[noun].add(meant[0])
            by_verb[noun, source[-2][:-1]].add(meant[0])
    assert len(seen) == len(ambiguous) > 10
    assert all(len(readings) == 2 for readings in seen.values())
    assert all(len(readings) == 1 for readings in by_verb.values())
    assert all(
        len({gender for _, gender in noun.readings}) == 2 for noun in drawn.nouns if len(noun.readings) == 2
    )

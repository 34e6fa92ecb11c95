"""An artificial pair of languages: learnt in minutes by a teacher, and yet too much for a very small student.

What a translator has to get right:

- order: the source puts the verb last and adjectives before their noun. The target puts the verb second (first in a
  clause after a conjunction or a relative pronoun) and adjectives after their noun;
- agreement: the source has no gender. In the target, determiners, adjectives and relative pronouns agree with their
  noun, and verbs with their subject, in gender and number;
- ambiguity: some source nouns have two translations, of different gender. Which one is meant depends on the verb of the
  noun's own clause, which the source says last: whoever misreads it gets determiner, noun, adjectives and verb wrong.
"""

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Pair = tuple[str, str]
#: Target endings of agreeing words: gender -> (singular, plural).
ENDINGS = {"m": ("o", "oi"), "f": ("a", "ai"), "n": ("e", "ei")}
SOURCE_SOUNDS = ("ptkmswj", "aiu", "nlt")
TARGET_SOUNDS = ("bdgvzrf", "aeou", "nrlks")


@dataclass(frozen=True)
class Noun:
    """A noun: its source stem, and its readings as (target stem, gender). Two readings: the clause's verb chooses."""

    source: str
    readings: tuple[Pair, ...]


@dataclass(frozen=True)
class Verb:
    """A verb: source stem, target stem, and the number of the reading that it gives to its clause's nouns."""

    source: str
    target: str
    reading: int


@dataclass(frozen=True)
class Phrase:
    """A noun phrase; ``relative`` is the verb and the object of a relative clause, whose subject is the noun."""

    noun: Noun
    determiner: Pair
    plural: bool
    adjectives: list[Pair]
    relative: "tuple[Verb, Phrase] | None" = None


@dataclass(frozen=True)
class Clause:
    """A verb, its tense, its subject and its object; before them an adverb, after them a preposition's phrase."""

    verb: Verb
    past: bool
    subject: Phrase
    object: Phrase
    adverb: Pair | None
    place: tuple[Pair, Phrase] | None


class Language:
    """A pair of languages, and an endless source of its sentences. All chance comes from ``seed``."""

    def __init__(self, seed: int, nouns: int = 60, ambiguous: int = 20, adjectives: int = 24, verbs: int = 30) -> None:
        self.chance = random.Random(seed)
        sources, targets = self._stems(*SOURCE_SOUNDS), self._stems(*TARGET_SOUNDS)

        def words(count: int) -> list[Pair]:
            return [(next(sources), next(targets)) for _ in range(count)]

        def noun(readings: int) -> Noun:
            return Noun(next(sources), tuple((next(targets), g) for g in self.chance.sample(list(ENDINGS), readings)))

        self.nouns = [noun(1) for _ in range(nouns)] + [noun(2) for _ in range(ambiguous)]
        self.verbs = [Verb(*word, reading=i % 2) for i, word in enumerate(words(verbs))]
        self.adjectives, self.adverbs, self.prepositions = words(adjectives), words(8), words(5)
        self.determiners, self.conjunctions = words(2), words(3)
        self.relative = words(1)[0]

    def _stems(self, onsets: str, vowels: str, codas: str) -> Iterator[str]:
        """New pronounceable stems for ever; all end in a consonant, so that no two take endings to the same word."""
        pick, seen = self.chance.choice, set()
        while True:
            stem = "".join(pick(onsets) + pick(vowels) for _ in range(pick((1, 2, 2)))) + pick(codas)
            if stem not in seen:
                seen.add(stem)
                yield stem

    def _phrase(self, may_relate: bool) -> Phrase:
        pick, chance = self.chance.choice, self.chance.random
        adjectives = self.chance.sample(self.adjectives, pick((0, 0, 1, 1, 2)))
        relative = (pick(self.verbs), self._phrase(False)) if may_relate and chance() < 0.25 else None
        return Phrase(pick(self.nouns), pick(self.determiners), chance() < 0.4, adjectives, relative)

    def _clause(self) -> Clause:
        pick, chance = self.chance.choice, self.chance.random
        adverb = pick(self.adverbs) if chance() < 0.4 else None
        place = (pick(self.prepositions), self._phrase(False)) if chance() < 0.4 else None
        return Clause(pick(self.verbs), chance() < 0.5, self._phrase(True), self._phrase(True), adverb, place)

    def sentence(self) -> Pair:
        """A new sentence, as (source, target): one clause, or two joined by a conjunction."""
        first = self._clause()
        source, target = self._source_clause(first), self._target_clause(first, subordinate=False)
        if self.chance.random() < 0.4:
            conjunction, second = self.chance.choice(self.conjunctions), self._clause()
            source += [conjunction[0], *self._source_clause(second)]
            target += [conjunction[1], *self._target_clause(second, subordinate=True)]
        return " ".join([*source, "."]), " ".join([*target, "."])

    def _source_phrase(self, phrase: Phrase) -> list[str]:
        words = [phrase.determiner[0], *(a[0] for a in phrase.adjectives), phrase.noun.source + "e" * phrase.plural]
        if phrase.relative:
            verb, obj = phrase.relative
            words += [self.relative[0], *self._source_phrase(obj), verb.source + "e"]
        return words

    def _source_clause(self, clause: Clause) -> list[str]:
        words = [clause.adverb[0]] if clause.adverb else []
        words += self._source_phrase(clause.subject) + self._source_phrase(clause.object)
        if clause.place:
            words += [*self._source_phrase(clause.place[1]), clause.place[0][0]]  # a postposition
        return [*words, clause.verb.source + ("o" if clause.past else "e")]

    def _target_phrase(self, phrase: Phrase, reading: int) -> tuple[list[str], str]:
        """The phrase's words, and the ending of what agrees with it."""
        stem, gender = phrase.noun.readings[reading % len(phrase.noun.readings)]
        ending = ENDINGS[gender][phrase.plural]
        words = [phrase.determiner[1] + ending, stem + "u" * phrase.plural]
        words += [adjective[1] + ending for adjective in phrase.adjectives]
        if phrase.relative:
            verb, obj = phrase.relative
            words += [self.relative[1] + ending, verb.target + ending, *self._target_phrase(obj, verb.reading)[0]]
        return words, ending

    def _target_clause(self, clause: Clause, subordinate: bool) -> list[str]:
        subject, ending = self._target_phrase(clause.subject, clause.verb.reading)
        verb = [clause.verb.target + "t" * clause.past + ending]
        rest = self._target_phrase(clause.object, clause.verb.reading)[0]
        if clause.place:
            rest += [clause.place[0][1], *self._target_phrase(clause.place[1], clause.verb.reading)[0]]
        adverb = [clause.adverb[1]] if clause.adverb else []
        if subordinate:
            return verb + subject + rest + adverb
        return (adverb + verb + subject if adverb else subject + verb) + rest


def corpus(seed: int, sizes: dict[str, int]) -> dict[str, list[Pair]]:
    """Draw the splits of ``sizes`` (name -> sentences), in its order; no source sentence comes twice, in any split.

    Raises:
        ValueError: a size is not positive.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"--{name} must be at least 1, but is {size}")
    language, seen, splits = Language(seed), set(), {}
    for name, size in sizes.items():
        splits[name] = []
        while len(splits[name]) < size:
            pair = language.sentence()
            if pair[0] not in seen:
                seen.add(pair[0])
                splits[name].append(pair)
    return splits


def main() -> None:
    """Write OUT/{test,valid,train}.{src,tgt}."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("out", type=Path)
    for name, size in (("test", 1000), ("valid", 500), ("train", 20000)):
        parser.add_argument(f"--{name}", type=int, default=size, help="sentences (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    # Test first: a longer training set then leaves the test set as it is.
    sizes = {"test": arguments.test, "valid": arguments.valid, "train": arguments.train}
    try:
        splits = corpus(arguments.seed, sizes)
    except ValueError as error:
        parser.error(str(error))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, pairs in splits.items():
        for side, lines in zip(("src", "tgt"), zip(*pairs, strict=True), strict=True):
            (arguments.out / f"{name}.{side}").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

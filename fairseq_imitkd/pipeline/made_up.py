"""Makes up a pair of languages. A teacher learns it in minutes, but it is hard for a very small student.

A translator must handle:

- order: the source puts the verb last and adjectives before their noun. The target puts the verb second, or
  first in the clause after a conjunction and in a relative clause;
- agreement: the source has no gender. In the target, determiners, adjectives and relative pronouns agree with
  their noun, and verbs with their subject, in gender and number;
- ambiguity: some source nouns have two translations of different gender. The verb of the noun's clause, which
  comes last in the source, decides which one is meant. A wrong reading makes determiner, noun, adjectives and
  verb wrong;
- freedom: as in most languages, one sentence has several right translations. Subject, object, place or adverb
  may open it, and adjectives stand before or after their nouns, in the same way throughout a sentence. The
  corpus holds one translation, drawn at random. A translator has to choose one and keep to it.
"""

import argparse
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Pair = tuple[str, str]
# A source sentence and all its right translations; the first one is in the corpus.
Sentence = tuple[str, list[str]]
# Parts that may open a sentence -> relative frequency. The other parts follow in this order.
OPENINGS = {"subject": 6, "object": 2, "place": 2, "adverb": 2}
ADJECTIVE_FIRST = 0.3
# Target endings of agreeing words: gender -> (singular, plural)
ENDINGS = {"m": ("o", "oi"), "f": ("a", "ai"), "n": ("e", "ei")}
LONGEST = 25  # words of a target sentence, the full stop included
SOURCE_SOUNDS = ("ptkmswj", "aiu", "nlt")
TARGET_SOUNDS = ("bdgvzrf", "aeou", "nrlks")


@dataclass(frozen=True)
class Noun:
    """A noun.

    Args:
        source: source stem.
        readings: (target stem, gender) of each reading; the clause's verb chooses among two.
    """

    source: str
    readings: tuple[Pair, ...]


@dataclass(frozen=True)
class Verb:
    """A verb.

    Args:
        source: source stem.
        target: target stem.
        reading: number of the reading that it gives to the nouns of its clause.
    """

    source: str
    target: str
    reading: int


@dataclass(frozen=True)
class Phrase:
    """A noun phrase. ``relative`` holds verb and object of a relative clause, whose subject is the noun."""

    noun: Noun
    determiner: Pair
    plural: bool
    adjectives: list[Pair]
    relative: "tuple[Verb, Phrase] | None" = None

    def ending(self, reading: int) -> str:
        """Return the target ending of words that agree with this phrase."""
        return ENDINGS[self.noun.readings[reading % len(self.noun.readings)][1]][self.plural]


@dataclass(frozen=True)
class Clause:
    """A verb with tense, subject and object. An adverb may precede, and a prepositional phrase may follow."""

    verb: Verb
    past: bool
    subject: Phrase
    object: Phrase
    adverb: Pair | None
    place: tuple[Pair, Phrase] | None


class Language:
    """A pair of languages and an endless source of sentences. ``seed`` decides all random choices."""

    def __init__(
        self, seed: int, *, nouns: int = 40, ambiguous: int = 12, adjectives: int = 16, verbs: int = 20
    ) -> None:
        self.chance = random.Random(seed)
        sources, targets = self._stems(*SOURCE_SOUNDS), self._stems(*TARGET_SOUNDS)

        def words(count: int) -> list[Pair]:
            return [(next(sources), next(targets)) for _ in range(count)]

        def noun(readings: int) -> Noun:
            return Noun(
                next(sources), tuple((next(targets), g) for g in self.chance.sample(list(ENDINGS), readings))
            )

        self.nouns = [noun(1) for _ in range(nouns)] + [noun(2) for _ in range(ambiguous)]
        self.verbs = [Verb(*word, reading=i % 2) for i, word in enumerate(words(verbs))]
        self.adjectives, self.adverbs, self.prepositions = words(adjectives), words(8), words(5)
        self.determiners, self.conjunctions = words(2), words(3)
        self.relative = words(1)[0]

    def _stems(self, onsets: str, vowels: str, codas: str) -> Iterator[str]:
        """Yield new pronounceable stems. All end in a consonant, so stem and ending are unambiguous."""
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

    def sentence(self) -> Sentence:
        """Return a new sentence of one or two clauses. Its first translation is drawn; the others follow."""
        first = self._clause()
        source = self._source_clause(first)
        second_target: list[list[str]] = [[], []]
        if self.chance.random() < 0.4:
            conjunction, second = self.chance.choice(self.conjunctions), self._clause()
            source += [conjunction[0], *self._source_clause(second)]
            second_target = [
                [conjunction[1], *self._target_clause(second, None, early)] for early in (False, True)
            ]
        openings = [name for name in OPENINGS if getattr(first, name)]
        opening = self.chance.choices(openings, [OPENINGS[name] for name in openings])[0]
        drawn = (opening, self.chance.random() < ADJECTIVE_FIRST)
        styles = sorted(itertools.product(openings, (False, True)), key=lambda style: style != drawn)
        targets = [[*self._target_clause(first, *style), *second_target[style[1]], "."] for style in styles]
        return " ".join([*source, "."]), list(dict.fromkeys(" ".join(target) for target in targets))

    def _source_phrase(self, phrase: Phrase) -> list[str]:
        words = [
            phrase.determiner[0],
            *(a[0] for a in phrase.adjectives),
            phrase.noun.source + "e" * phrase.plural,
        ]
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

    def _target_phrase(self, phrase: Phrase, reading: int, early: bool) -> list[str]:
        """Return the words of a phrase; ``early`` puts adjectives before their noun."""
        stem, ending = phrase.noun.readings[reading % len(phrase.noun.readings)][0], phrase.ending(reading)
        adjectives = [adjective[1] + ending for adjective in phrase.adjectives]
        noun = [stem + "u" * phrase.plural]
        words = [phrase.determiner[1] + ending, *(adjectives + noun if early else noun + adjectives)]
        if phrase.relative:
            verb, obj = phrase.relative
            words += [
                self.relative[1] + ending,
                verb.target + ending,
                *self._target_phrase(obj, verb.reading, early),
            ]
        return words

    def _target_clause(self, clause: Clause, opening: str | None, early: bool) -> list[str]:
        """Return the words of a clause. The verb follows the ``opening``; without one it comes first."""
        reading = clause.verb.reading
        verb = clause.verb.target + "t" * clause.past + clause.subject.ending(reading)
        parts = {
            name: self._target_phrase(getattr(clause, name), reading, early) for name in ("subject", "object")
        }
        if clause.place:
            parts["place"] = [clause.place[0][1], *self._target_phrase(clause.place[1], reading, early)]
        if clause.adverb:
            parts["adverb"] = [clause.adverb[1]]
        return [*(parts.pop(opening) if opening else []), verb, *itertools.chain(*parts.values())]


def corpus(seed: int, sizes: dict[str, int]) -> dict[str, list[Sentence]]:
    """Draw splits in the order of ``sizes`` (name -> number of sentences). Source sentences never repeat.

    Raises:
        ValueError: a size is not positive.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"--{name} must be at least 1, but is {size}")
    language, seen = Language(seed), set[str]()
    splits: dict[str, list[Sentence]] = {}
    for name, size in sizes.items():
        splits[name] = []
        while len(splits[name]) < size:
            source, targets = language.sentence()
            if source not in seen and len(targets[0].split()) <= LONGEST:
                seen.add(source)
                splits[name].append((source, targets))
    return splits


def main() -> None:
    """Write OUT/{test,valid,train}.{src,tgt}, and the test set's translations in OUT/test.all."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("out", type=Path)
    # Test comes first, so that a larger training set does not change it.
    sizes = {"test": 1000, "valid": 500, "train": 20000}
    for name, size in sizes.items():
        parser.add_argument(
            f"--{name}", type=int, default=size, help="number of sentences (default: %(default)s)"
        )
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    try:
        splits = corpus(arguments.seed, {name: getattr(arguments, name) for name in sizes})
    except ValueError as error:
        parser.error(str(error))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, sentences in splits.items():
        files = {
            f"{name}.src": [source for source, _ in sentences],
            f"{name}.tgt": [every[0] for _, every in sentences],
        }
        if name == "test":
            files["test.all"] = ["\t".join(every) for _, every in sentences]
        for file, lines in files.items():
            (arguments.out / file).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

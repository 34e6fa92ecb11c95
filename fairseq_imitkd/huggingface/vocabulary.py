"""Maps the ids of a model's symbols to the indices of fairseq's dictionaries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairseq.data import Dictionary

from fairseq_imitkd.huggingface.config import ModelConfig

ABSENT = -1  # in place of an id: the model has no such symbol
BOS, PAD, EOS, UNK = range(4)  # indices of fairseq's special symbols
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")


@dataclass(frozen=True)
class Vocabulary:
    """The symbols of one side.

    Args:
        ids: the model's id of each index of fairseq's dictionary, :data:`ABSENT` for a symbol that it lacks.
        symbols: fairseq's symbol of each index.
    """

    ids: tuple[int, ...]
    symbols: tuple[str, ...]

    def index_of(self, number: int) -> int:
        """Return the index of an id of the model."""
        return self.ids.index(number)

    def save(self, path: Path) -> None:
        """Write the dictionary. Counts are not known, so all are 1; fairseq keeps the order of the file."""
        dictionary = Dictionary()
        for symbol in self.symbols[len(SPECIAL) :]:
            dictionary.add_symbol(symbol)
        dictionary.save(str(path))


def vocabulary(
    config: ModelConfig, size: int, *, tokens: Mapping[int, str], unknown: int | None
) -> Vocabulary:
    """Return the symbols of one side: fairseq's special ones, then the model's others in their order.

    Args:
        config: the model's configuration.
        size: number of the model's symbols.
        tokens: symbols by id, as text holds them; ``id:N`` takes the place of one that is missing or that a
            dictionary can't hold.
        unknown: id of the unknown symbol; None takes that of the family.
    """
    unknown = config.family.unknown if unknown is None else unknown
    special: list[int] = []
    for number in (config.bos, config.pad, config.eos, unknown):
        is_other = number in (config.pad, config.eos) and len(special) in (BOS, UNK)
        fits = number is not None and number < size and not is_other and number not in special
        special.append(number if number is not None and fits else ABSENT)
    others = sorted(set(range(size)) - set(special))
    return Vocabulary((*special, *others), (*SPECIAL, *_names(others, tokens)))


def _names(numbers: Sequence[int], tokens: Mapping[int, str]) -> list[str]:
    """Return a symbol for each id: a word without spaces that no other id has."""
    taken = set(SPECIAL)
    names = []
    for number in numbers:
        name = tokens.get(number, "")
        if name in taken or not is_symbol(name):
            name = f"id:{number}"
            while name in taken:
                name += "'"
        taken.add(name)
        names.append(name)
    return names


def is_symbol(name: str) -> bool:
    """Return whether a line of a dictionary, and a line of text, can hold a symbol."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return name.split() == [name] and "\0" not in name


@dataclass(frozen=True)
class Rows:
    """Which row of the model's tables fairseq reads at each index.

    Args:
        encoder: rows of the encoder's embedding.
        decoder: rows of the decoder's embedding.
        output: rows of the output matrix.
    """

    encoder: tuple[int, ...]
    decoder: tuple[int, ...]
    output: tuple[int, ...]


def rows_of(source: Vocabulary, target: Vocabulary, *, start: int, source_ends: Sequence[int]) -> Rows:
    """Return the rows that make fairseq's sentences those of the model.

    fairseq's decoder begins with EOS, and never reads EOS elsewhere. So the decoder's row of EOS holds what
    the model begins with. fairseq's sources end with EOS. A model whose sources end with EOS and a tag finds
    the tag in the row of EOS, and EOS in that of ``<s>``, which the text of the source must hold.

    Args:
        source, target: symbols of the two sides.
        start: id of the decoder's first input.
        source_ends: ids that end each source: EOS, or EOS and a tag.
    """
    encoder, decoder = list(source.ids), list(target.ids)
    if len(source_ends) > 1:
        encoder[BOS], encoder[EOS] = source_ends
    decoder[EOS] = start
    return Rows(tuple(encoder), tuple(decoder), target.ids)

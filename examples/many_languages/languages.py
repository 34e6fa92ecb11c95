"""Makes the texts of three languages: ``languages.py RAW OUT [--words N]``.

RAW has {train,valid,test}.{de,en}. German and English are its sentences of at most N words. The third
language, xx, is English in a cipher: each vowel becomes the next vowel, and each consonant the next
consonant. Only the first quarter of the training pairs has it, so that its pair has fewer sentences than the
others.
"""

import argparse
from pathlib import Path

VOWELS, CONSONANTS = "aeiou", "bcdfghjklmnpqrstvwxyz"
SHARE = 4  # one of so many training pairs has the third language


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("raw", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--words", type=int, default=10, help="most words of a sentence")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "valid", "test"):
        sides = [
            (args.raw / f"{split}.{side}").read_text(encoding="utf-8").splitlines() for side in ("de", "en")
        ]
        pairs = [
            pair for pair in zip(*sides, strict=True) if max(len(side.split()) for side in pair) <= args.words
        ]
        third = pairs[: len(pairs) // SHARE] if split == "train" else pairs
        texts = {
            "de-en.de": [german for german, _ in pairs],
            "de-en.en": [english for _, english in pairs],
            "de-xx.de": [german for german, _ in third],
            "de-xx.xx": [ciphered(english) for _, english in third],
        }
        for name, lines in texts.items():
            text = "".join(f"{line}\n" for line in lines)
            (args.out / f"{split}.{name}").write_text(text, encoding="utf-8")


def ciphered(text: str) -> str:
    """Return a text with each vowel and each consonant replaced by the next one."""
    table = {}
    for letters in (VOWELS, CONSONANTS, VOWELS.upper(), CONSONANTS.upper()):
        table.update(zip(letters, letters[1:] + letters[0], strict=True))
    return text.translate(str.maketrans(table))


if __name__ == "__main__":
    main()

"""Trains and applies SentencePiece for the recipes.

subwords.py train PREFIX SIZE TEXT…
subwords.py encode MODEL < text
"""

import sys

import sentencepiece


def main() -> None:
    match sys.argv[1:]:
        case ["train", prefix, size, *texts] if texts:
            try:
                sentencepiece.SentencePieceTrainer.train(
                    input=texts,
                    model_prefix=prefix,
                    vocab_size=int(size),
                    model_type="bpe",
                    character_coverage=1.0,
                    minloglevel=1,
                )
            except RuntimeError as error:
                sys.exit(
                    f"subwords.py: {', '.join(texts)} must allow a VOCABULARY of {size}, but do not "
                    f"({error}); use a smaller one"
                )
        case ["encode", model]:
            processor = sentencepiece.SentencePieceProcessor(model_file=model)
            for line in sys.stdin:
                print(" ".join(processor.encode(line.rstrip("\n"), out_type=str)))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()

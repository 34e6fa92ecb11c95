"""SentencePiece for the recipes: ``subwords.py train PREFIX SIZE TEXT…`` and ``subwords.py encode MODEL < text``."""

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
                    f"subwords.py: no vocabulary of {size} (VOCABULARY) can be made of {', '.join(texts)}: {error}"
                )
        case ["encode", model]:
            processor = sentencepiece.SentencePieceProcessor(model_file=model)
            for line in sys.stdin:
                print(" ".join(processor.encode(line.rstrip("\n"), out_type=str)))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()

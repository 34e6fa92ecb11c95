"""``imitkd-encode``: split text into the subwords of an imported model."""

import sys
from pathlib import Path

from fairseq_imitkd.cli.arguments import Parser
from fairseq_imitkd.data.files import is_compressed
from fairseq_imitkd.errors import UsageError, one_line_errors
from fairseq_imitkd.huggingface.subwords import open_encoder
from fairseq_imitkd.text.imported import SIDES


@one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the command; ``arguments`` default to those of the command line."""
    args = parser().parse_args(arguments)
    encoder = open_encoder(args.model, args.side, tags=args.tags)
    unknown = symbols = 0
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            if number == 1 and is_compressed(line):
                raise UsageError("standard input is compressed; unpack it") from error
            raise UsageError(
                f"line {number} of standard input must be UTF-8, but is not; convert it, or give text"
            ) from error
        if "\0" in text:  # valid UTF-8, but of a binary file, such as a model of SentencePiece
            raise UsageError(f"line {number} of standard input has a null byte, so it is not text; give text")
        encoded = encoder.symbols(text)
        unknown += encoded.count(encoder.dictionary.unk_word)
        symbols += len(encoded)
        sys.stdout.buffer.write(" ".join(encoded).encode("utf-8") + b"\n")
    share = unknown / symbols if symbols else 0.0
    print(f"{symbols:,} symbols, {unknown:,} of them unknown ({share:.2%})", file=sys.stderr)


def parser() -> Parser:
    """Return the parser."""
    made = Parser(
        "imitkd-encode",
        "Split the text of standard input into the subwords of an imported model, for fairseq-preprocess "
        "with the model's dictionaries. A teacher adds its language tags itself.",
    )
    made.add_argument("model", metavar="FOLDER", type=Path, help="folder that imitkd-import has written")
    made.add_argument("--side", choices=SIDES, default="source", help="which text it is")
    made.add_argument(
        "--tags",
        action="store_true",
        help="write the model's language tags too, for fairseq-generate with the model itself",
    )
    return made


if __name__ == "__main__":
    main()

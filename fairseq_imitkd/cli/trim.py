"""``imitkd-trim``: trim a model's vocabulary to the symbols of a corpus, exactly."""

from pathlib import Path

from fairseq_imitkd.cli.arguments import Parser, add_checkpoint_flags, positive
from fairseq_imitkd.cli.messages import show_warnings
from fairseq_imitkd.errors import one_line_errors
from fairseq_imitkd.huggingface.trim import SideReport, TrimJob, Trimmed, trim


@one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the command; ``arguments`` default to those of the command line."""
    show_warnings()
    args = parser().parse_args(arguments)
    print(
        report(
            trim(
                TrimJob(
                    args.checkpoint,
                    args.out,
                    args.text,
                    data=args.data,
                    min_count=args.min_count,
                    keep=args.keep,
                    source_lang=args.source_lang,
                    target_lang=args.target_lang,
                    allow_globals=args.allow_globals,
                )
            )
        )
    )


def parser() -> Parser:
    """Return the parser."""
    made = Parser(
        "imitkd-trim",
        "Trim the vocabulary of a translation model to the symbols of a corpus. The log-probabilities of the "
        "symbols that stay are those of the model, renormalised; the command compares them.",
    )
    made.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="the model's checkpoint")
    made.add_argument(
        "--text",
        nargs="+",
        required=True,
        metavar="PREFIX",
        help="corpora: PREFIX.LANG holds symbols with spaces between them, as for fairseq-preprocess",
    )
    made.add_argument("--out", type=Path, required=True, help="folder to create")
    made.add_argument(
        "--data", type=Path, help="folder of the model's dictionaries (default: that of CHECKPOINT)"
    )
    made.add_argument(
        "--min-count", type=positive, default=1, help="fewest occurrences of a symbol that stays"
    )
    made.add_argument("--keep", nargs="+", default=(), metavar="SYMBOL", help="further symbols that stay")
    add_checkpoint_flags(made)
    return made


def report(done: Trimmed) -> str:
    """Return what the command prints about a trimmed model."""
    before, after = done.parameters
    return "\n".join(
        [
            f"{done.checkpoint}: {after:,} parameters instead of {before:,}",
            *(_line(side) for side in done.sides),
            f"log-probabilities differ from the renormalised ones by at most {done.difference:.2g}",
        ]
    )


def _line(side: SideReport) -> str:
    shares = [count / side.tokens for count in (side.unknown_before, side.unknown_after)]
    return (
        f"{side.language}: {side.after:,} symbols instead of {side.before:,}; {side.unknown_after:,} of the "
        f"{side.tokens:,} tokens are unknown ({shares[1]:.2%}), {side.unknown_before:,} before "
        f"({shares[0]:.2%})"
    )


if __name__ == "__main__":
    main()

"""``imitkd-dictionary``: write the dictionaries of a teacher, with the language tags that its task adds."""

from pathlib import Path

from fairseq_imitkd.cli.arguments import Parser, add_checkpoint_flags
from fairseq_imitkd.cli.messages import show_warnings
from fairseq_imitkd.errors import one_line_errors
from fairseq_imitkd.teacher.dictionaries import write_dictionaries

_SHOWN = 6  # added symbols that are printed


@one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the command; ``arguments`` default to those of the command line."""
    show_warnings()
    args = parser().parse_args(arguments)
    written, tags = write_dictionaries(
        args.checkpoint,
        args.out,
        data=args.teacher_data,
        pair=(args.source_lang, args.target_lang),
        allow_globals=args.allow_globals,
    )
    for each in written:
        shown = " ".join((*each.added[:_SHOWN], *(["…"] if len(each.added) > _SHOWN else [])))
        added = f", {len(each.added):,} of them added by the model's task: {shown}" if each.added else ""
        print(f"{each.path}: {each.symbols:,} symbols{added}")
    print(f"tags that the model needs, and a teacher adds itself: {tags or 'none'}")
    print(
        f"Next: give the files of {args.out} to fairseq-preprocess by --srcdict and --tgtdict; data that was "
        "made with the old dictionaries only needs these files in place of its own"
    )


def parser() -> Parser:
    """Return the parser."""
    made = Parser(
        "imitkd-dictionary",
        "Write the dictionaries of a multilingual model, with the language tags that its task adds to those "
        "of its data. Data for a student need them.",
    )
    made.add_argument("checkpoint", metavar="CHECKPOINT", help="the model's checkpoint")
    made.add_argument("--out", type=Path, required=True, help="folder to create")
    made.add_argument(
        "--teacher-data",
        metavar="DIR",
        help="folder with the dictionaries that the model was trained with (default: the checkpoint's "
        "folder, then the data folder that the checkpoint names)",
    )
    add_checkpoint_flags(made)
    return made


if __name__ == "__main__":
    main()

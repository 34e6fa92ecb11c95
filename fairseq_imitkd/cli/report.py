"""``imitkd-report``: shows a set of distillation runs on one page."""

import os
import sys
from pathlib import Path

from fairseq_imitkd.cli.arguments import Parser
from fairseq_imitkd.cli.extras import check_extra
from fairseq_imitkd.cli.messages import show_warnings
from fairseq_imitkd.data.files import atomic_files, kind_of, remedy_to_write
from fairseq_imitkd.errors import UsageError, one_line_errors
from fairseq_imitkd.text.counted import counted

EXTRA = ("jinja2", "matplotlib")


@one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the command; its status is 1 if a training does not exist or an evaluation can't be read.

    Args:
        arguments: those of the command line if None.
    """
    args = parser().parse_args(arguments)
    show_warnings()
    if not args.runs and not args.evaluation:
        raise UsageError("there is nothing to report; give folders of trainings, --evaluation DIR, or both")
    check_out(args.out)
    check_extra("imitkd-report", "report", EXTRA)
    from fairseq_imitkd.report.evaluations import check_evaluation, read_evaluations
    from fairseq_imitkd.report.page import page
    from fairseq_imitkd.report.runs import read_runs

    for folder in args.evaluation:
        check_evaluation(folder)
    runs, about_runs = read_runs(args.runs)
    evaluations, about_evaluations = read_evaluations(args.evaluation)
    if not runs and not evaluations:
        raise UsageError("nothing could be read: " + "; ".join([*about_runs, *about_evaluations]))
    html, notes = page(runs, evaluations, [*about_runs, *about_evaluations])
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    write(args.out, html)
    counts = f"{counted(len(runs), 'run')}, {counted(len(evaluations), 'evaluation')}"
    print(f"{args.out}: {counts}, {args.out.stat().st_size / 1e6:.2f} MB")
    unread = len({path.resolve() for path in args.evaluation}) > len(evaluations)
    if unread or not all(map(os.path.exists, args.runs)):  # a warning has named it
        sys.exit(1)


def parser() -> Parser:
    """Return the parser."""
    made = Parser(
        "imitkd-report",
        "Show distillation runs on one page, an HTML file that needs nothing else: curves of the trainings, "
        "and what imitkd-evaluate has measured.",
    )
    made.add_argument(
        "runs",
        nargs="*",
        type=Path,
        metavar="RUN_DIR",
        help="--save-dir of a training with one of the plugin's tasks; for other trainings, a folder with "
        "fairseq's output in train.log or another *.log (--log-format json), or with TensorBoard's files",
    )
    made.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="page to write; a former report is overwritten",
    )
    made.add_argument(
        "--evaluation", type=Path, action="append", default=[], metavar="DIR",
        help="--out folder of imitkd-evaluate; once for each evaluation",
    )  # fmt: skip
    return made


def check_out(out: Path) -> None:
    """Check, before the work is done, that the page can be written.

    Raises:
        UsageError: it can't.
    """
    if kind_of(out, "--out") == "folder":
        raise UsageError(f"--out '{out}' is a folder; use a file, such as {out / 'report.html'}")
    if kind_of(out.parent, "--out") != "folder":
        raise UsageError(f"--out '{out}' can't be written: its folder does not exist; create it")
    if os.path.lexists(out) and not _is_report(out):
        raise UsageError(f"--out '{out}' exists and is not a report; use another file, or delete it first")


def _is_report(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return b'content="imitkd-report' in file.read(1000)
    except OSError:
        return False


def write(out: Path, html: str) -> None:
    """Write the page, or leave the former one as it is.

    Raises:
        UsageError: it can't be written.
    """
    try:
        with atomic_files(out) as [file]:
            file.write(html.encode("utf-8", errors="replace"))
    except OSError as error:
        raise UsageError(
            f"--out '{out}' can't be written ({error.strerror}); {remedy_to_write(error, 'another file')}"
        ) from error


if __name__ == "__main__":
    main()

"""``imitkd-report``: one page that shows what a set of distillation runs came to."""

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path

from fairseq_imitkd.cli.arguments import Parser
from fairseq_imitkd.cli.extras import check_extra
from fairseq_imitkd.data.files import kind_of, partial
from fairseq_imitkd.errors import UsageError, interruptible

EXTRA = ("jinja2", "matplotlib")


@interruptible()
def main(arguments: list[str] | None = None) -> None:
    """The command; ``arguments`` are those of the command line unless given."""
    args = parser().parse_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, force=True)
    if not args.runs and not args.evaluation:
        raise UsageError("there is nothing to report: give folders of trainings, --evaluation DIR, or both")
    check_out(args.out)
    check_extra("imitkd-report", "report", EXTRA)
    from fairseq_imitkd.report.evaluations import read_evaluations
    from fairseq_imitkd.report.logs import read_runs
    from fairseq_imitkd.report.page import page

    runs, about_runs = read_runs(args.runs)
    evaluations, about_evaluations = read_evaluations(args.evaluation)
    if not runs and not evaluations:
        raise UsageError("nothing could be reported: " + "; ".join([*about_runs, *about_evaluations]))
    html, notes = page(runs, evaluations, [*about_runs, *about_evaluations])
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    without = [f"'{run.source}'" for run in runs if not run.is_distillation]
    if without:
        print(
            f"note: no figures of the plugin's criteria, such as student_share, in {', '.join(without)}",
            file=sys.stderr,
        )
    write(args.out, html)
    counts = [
        f"{len(each)} {name}{'s' * (len(each) != 1)}"
        for each, name in ((runs, "run"), (evaluations, "evaluation"))
    ]
    print(f"{args.out}: {', '.join(counts)}, {args.out.stat().st_size / 1e6:.2f} MB")


def parser() -> Parser:
    """Every flag."""
    made = Parser(
        "imitkd-report",
        "Show what distillation runs came to on one page, an HTML file that needs nothing else: curves from fairseq's "
        "logs, and what imitkd-evaluate has measured.",
    )
    made.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN_DIR",
        help="folder of a training, with fairseq's output in train.log or another *.log (--log-format simple or json), or "
        "with TensorBoard's event files",
    )  # fmt: skip
    made.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="page to write; a former report is overwritten",
    )
    made.add_argument(
        "--evaluation", type=Path, action="append", default=[], metavar="DIR",
        help="the --out of imitkd-evaluate; as often as there are evaluations",
    )  # fmt: skip
    return made


def check_out(out: Path) -> None:
    """Whether a page may be written there, before the work is done.

    Raises:
        UsageError: it may not.
    """
    if kind_of(out, "--out") == "folder":
        raise UsageError(f"--out '{out}' is a folder: give the name of a file, such as {out / 'report.html'}")
    if kind_of(out.parent, "--out") != "folder":
        raise UsageError(f"--out '{out}' can't be written: its folder is not there; make it first")
    if os.path.lexists(out) and not _is_report(out):
        raise UsageError(
            f"--out '{out}' is there already and no report: give another name, or delete it first"
        )


def _is_report(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return b'content="imitkd-report' in file.read(1000)
    except OSError:
        return False


def write(out: Path, html: str) -> None:
    """All of the page or nothing of it.

    Raises:
        UsageError: it can't be written.
    """
    begun = partial(out)
    try:
        with open(begun, "w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(html)
            file.flush()
            os.fsync(file.fileno())
        begun.replace(out)
    except OSError as error:
        raise UsageError(
            f"--out '{out}' can't be written ({error.strerror}): make room, or give another file"
        ) from error
    finally:
        with suppress(OSError):
            begun.unlink(missing_ok=True)


if __name__ == "__main__":
    main()

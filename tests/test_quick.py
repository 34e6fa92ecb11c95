"""What commands answer without importing torch and fairseq."""

import subprocess
import sys
from pathlib import Path

import pytest

from fairseq_imitkd import quick
from fairseq_imitkd.version import __version__
from tests.helpers.digit_corpus import REPO


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ("imitkd", 0, "usage: imitkd COMMAND"),
        ("imitkd --help", 0, "usage: imitkd COMMAND"),
        ("imitkd --version", 0, f"fairseq-imitkd {__version__}\n"),
        ("/x/imitkd-train --version", 0, f"fairseq-imitkd {__version__}\n"),
        ("imitkd serve --version", 0, f"fairseq-imitkd {__version__}\n"),
        ("imitkd train -h", 0, "usage: imitkd-train DATA"),
        ("imitkd-export --help", 0, "usage: imitkd-export"),
        ("imitkd train", 2, "usage: imitkd-train DATA"),
        ("imitkd trian --help", 2, "error: 'trian' is not a command of imitkd: did you mean train?"),
        ("imitkd shrink", 2, "error: 'shrink' is not a command of imitkd: use one of distill, train,"),
        ("imitkd help", 0, "usage: imitkd COMMAND"),
        ("imitkd help export", 0, "usage: imitkd-export"),
        ("imitkd help trian", 2, "error: 'trian' is not a command of imitkd: did you mean train?"),
        ("imitkd -V", 0, f"fairseq-imitkd {__version__}\n"),
        ("imitkd --versoin", 2, "error: --versoin is not a flag of imitkd: did you mean --version?"),
        ("imitkd TRAIN", 2, "error: 'TRAIN' is not a command of imitkd: did you mean train?"),
        ("imitkd /", 2, "error: '/' is a folder; name a command before it, such as imitkd-train /; see"),
        ("imitkd evaluate", 2, "error: --model is not given; add it, and --data, --out too; see imitkd-eval"),
        ("imitkd-seqkd DATA --out", 2, "error: --out needs a value; see imitkd-seqkd --help"),
        ("imitkd serve o --max-batch 0", 2, "error: --max-batch"),
        ("imitkd --lr 3", 2, "error: --lr is not a flag of imitkd, but of imitkd-train"),
        ("imitkd --criterion imitkd", 2, "error: --criterion is not a flag of imitkd, but of imitkd-train"),
        (
            "imitkd-train DATA --teacher-path t.pt",
            1,
            "error: --arch is not given; add the student's architecture, such as --arch "
            "transformer_imitkd_2_2; --max-tokens and --optimizer too",
        ),
        (
            "imitkd --beam 5",
            2,
            "error: --beam is not a flag of imitkd, but of imitkd-train and imitkd-generate and",
        ),
        ("imitkd --blurb", 2, "error: --blurb is neither a flag of imitkd nor of its commands"),
        ("imitkd-train DATA -a lstm --lr -1", 1, "error: --max-tokens is not given; add the most tokens"),
        ("imitkd-train DATA --arch=lstm --batch-size 8", 1, "error: --optimizer is not given; add one"),
        ("imitkd-generate DATA --beam 5", 1, "error: --path is not given; name the student's checkpoint"),
        (
            "imitkd --list",
            2,
            "error: --list is not a flag of imitkd, but of imitkd-distill",
        ),
        ("imitkd-train help", 0, "usage: imitkd-train DATA"),
        ("imitkd-distill nowhere.yaml", 1, "error: recipe 'nowhere.yaml' can't be read: No such file"),
        (
            "imitkd-distill multi30",
            1,
            "error: RECIPE 'multi30' is neither a file nor a recipe of the",
        ),
        ("imitkd distill --teacher t.pt", 1, "error: --sentencepiece and --train and --valid and --test are"),
        ("imitkd-distill quickstart --updates 9", 1, "error: --updates changes nothing beside RECIPE"),
        ("imitkd-interactive", 2, "error: DATA is not given; name a directory; see imitkd-interactive"),
        (
            "imitkd --print-completion",
            2,
            "error: the shell of --print-completion must be bash, zsh or tcsh",
        ),
        ("imitkd --print-completion fish", 2, "error: the shell of --print-completion must be bash, zsh or"),
    ],
)
def test_answers(arguments: str, status: int, text: str) -> None:
    """Help and version end with status 0; a wrong command is one line, with the nearest name."""
    answer = quick.answer(arguments.split())
    assert answer is not None
    assert (answer.status, answer.text[: len(text)]) == (status, text)
    assert status == 0 or text.startswith("usage") or answer.text.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        "imitkd train DATA --help", "imitkd train --help --criterion gkd", "imitkd train --help-all",
        "imitkd evaluate --model a=b --data d --out o", "imitkd-generate DATA --pth student.pt",
        "imitkd-train DATA -a lstm --optimizer adam --max-tokens 400", "imitkd-generate DATA --path s.pt",
        "imitkd export --check --arch x", "imitkd-distill --method imitkd gkd",
        "imitkd --print-completion zsh", "pytest --help", "",
    ],
)  # fmt: skip
def test_other_command_lines_run_a_command(arguments: str) -> None:
    """A method's help has its own defaults; other programs are not answered."""
    assert quick.answer(arguments.split()) is None


def test_no_help_imports_torch() -> None:
    """The same process that imports the package for a training imports nothing for the help."""
    code = (
        "import sys; sys.argv = sys.argv[1:]\n"
        "import fairseq_imitkd\n"
        "print(sorted({'torch', 'fairseq', 'omegaconf', 'numpy'} & set(sys.modules)))"
    )
    for words in (
        ["imitkd", "train", "--help"],
        ["imitkd-report", "--version"],
        ["imitkd", "trian"],
        ["imitkd", "serve"],
    ):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=REPO)
        assert done.stdout == "[]\n", done.stderr


def test_every_command_has_a_help_file() -> None:
    """There is no other file."""
    assert {path.stem for path in Path(quick.HELP).iterdir()} == set(quick.SUMMARIES)

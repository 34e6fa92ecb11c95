"""The console of real commands: in a pipe, on a terminal, stopped, and with fairseq's own formats."""

import os
import pty
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import warm_commands
from tests.helpers.digit_corpus import ENVIRONMENT, TINY, run

TRAIN = (
    "--cpu", "--criterion", "imitkd", "--optimizer", "adam", "--lr", "5e-3", "--max-tokens", "400",
    "--num-workers", "0", "--no-save", *TINY,
)  # fmt: skip
# PYTHONWARNINGS: as a user's shell has it.
PLAIN = {"PYTHONWARNINGS": ""}
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| \S.*")


def test_a_training_in_a_pipe(digits: Any, teacher: Path, tmp_path: Path) -> None:
    """A dozen lines of text, with the scores, and nothing beside them."""
    done = run(
        "imitkd-train", digits.data, "--save-dir", tmp_path, "--teacher-path", teacher, *TRAIN,
        "--max-update", 4, "--log-interval", 2, "--eval-bleu", "--eval-bleu-args", '{"beam": 1}',
        env=PLAIN, real=True,
    )  # fmt: skip
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert all(LINE.fullmatch(line) for line in lines), done.stdout
    texts = [line.split(" | ", 1)[1] for line in lines]
    assert len(texts) < 15
    assert "the best checkpoint is the one of the highest bleu (--best-checkpoint-metric)" in texts
    assert [text for text in texts if re.match("model: [0-9,]+ parameters", text)]
    assert [text for text in texts if re.match("update [24]/4, epoch 1 .*loss .* left$", text)]
    assert [text for text in texts if re.match("valid, update 4: bleu .*, loss ", text)]
    assert [text for text in texts if re.match("trained 4 updates in ", text)]


@pytest.mark.parametrize(("flags", "dumps"), [((), False), (("--verbose",), True)])
def test_fairseqs_own_format(
    flags: tuple[str, ...], dumps: bool, digits: Any, teacher: Path, tmp_path: Path
) -> None:
    """Has all of its lines; its settings and the model come with ``--verbose``."""
    done = run(
        "imitkd-train", digits.data, "--save-dir", tmp_path, "--teacher-path", teacher, *TRAIN,
        "--max-update", 2, "--log-interval", 1, "--log-format", "json", "--disable-validation", *flags,
    )  # fmt: skip
    for text in (
        " | INFO | fairseq_cli.train | num. shared model params: ",
        ' | INFO | train_inner | {"epoch": 1, ',
        ' | INFO | train | {"epoch": 1, "train_loss": ',
        " | INFO | fairseq_cli.train | done training in ",
    ):
        assert text in done.stdout
    assert ("{'_name': None, 'common'" in done.stdout) == dumps
    assert ("(embed_tokens): Embedding" in done.stdout) == dumps


def test_a_translation_keeps_its_output_to_itself(digits: Any, teacher: Path) -> None:
    done = run("imitkd-generate", digits.data, "--path", teacher, "--cpu", "--beam", 1, env=PLAIN)
    assert {line[:2] for line in done.stdout.splitlines()} == {"S-", "T-", "H-", "D-", "P-", "Ge"}
    assert all(LINE.fullmatch(line) for line in done.stderr.splitlines())
    assert "Translated 104 sentences" in done.stderr


def on_terminal(command: list[str], stop_at: bytes | None = None) -> tuple[int, str]:
    """Run a command on a terminal; return its status, and all that it wrote to the terminal.

    Args:
        command: the command.
        stop_at: Ctrl-C comes when this is on the terminal; None lets the command end.
    """
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    environment = {**ENVIRONMENT, "TERM": "xterm-256color", "COLUMNS": "100", **PLAIN}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    output, deadline = b"", time.monotonic() + 240
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        try:
            output += os.read(ours, 1 << 16)
        except BlockingIOError:
            time.sleep(0.05)
        except OSError:
            break
        else:
            if stop_at is not None and stop_at in output:
                process.send_signal(signal.SIGINT)
                stop_at = None
            continue
        if ended:
            break
    os.close(ours)
    return process.wait(30), output.decode()


def command(name: str, *arguments: object) -> list[str]:
    return [str(warm_commands.folder() / name), *map(str, arguments)]


def visible(output: str) -> str:
    """Return what a terminal's output says, without its colours and moves of the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output).replace("\r", "")


@pytest.mark.parametrize("stop", [False, True], ids=["to its end", "ctrl-c"])
def test_a_training_on_a_terminal(stop: bool, digits: Any, teacher: Path, tmp_path: Path) -> None:
    """A bar, with rollouts in colour above it. Ctrl-C ends with one line, and the cursor is there."""
    status, output = on_terminal(
        command(
            "imitkd-train", digits.data, "--save-dir", tmp_path, "--teacher-path", teacher, *TRAIN,
            "--student-share", "constant:0.5", "--max-update", 3000 if stop else 8, "--disable-validation",
            "--log-rollouts", 1, "--rollout-max-len-b", 3,
        ),
        b" left" if stop else None,
    )  # fmt: skip
    text = visible(output)
    assert re.search(r"epoch 1 [━╸╺ ]+ \d+/(8|3,000) +\d+:\d\d:\d\d left +loss \d\.\d+ +rollouts \d+%", text)
    assert "rollouts of update 1 ([student → teacher] where they disagree)" in text
    assert "\x1b[31m" in output
    assert "\x1b[32m" in output
    assert output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l")
    assert "Traceback" not in text
    bars = r"(?m)^epoch 1 [━╸╺ ]+.*(?:\n|\Z)"  # the terminal has erased them
    left = visible(re.sub(r"[^\n]*\x1b\[2K", "", output))
    last = re.sub(bars, "", left).rstrip("\n").splitlines()[-1]
    if stop:
        assert status == 130
        assert last == "stopped; there is no checkpoint yet, so the same command starts from the beginning"
    else:
        assert status == 0
        assert re.fullmatch(r"trained 8 updates in \d:\d\d:\d\d", last)


def test_a_refusal_on_a_terminal(digits: Any, tmp_path: Path) -> None:
    status, output = on_terminal(
        command(
            "imitkd-train",
            digits.data,
            "--save-dir",
            tmp_path,
            *TRAIN,
            "--teacher-path",
            "no.pt",
            "--max-update",
            1,
        )
    )
    assert status == 1
    assert visible(output).splitlines()[0].startswith("error: --teacher-path 'no.pt' ")
    assert len(visible(output).splitlines()) == 1

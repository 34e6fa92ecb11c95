"""``imitkd COMMAND``: it runs the command, its help is up to date, and shells complete it."""

import re
import subprocess
import sys
from typing import Any

import pytest

from fairseq_imitkd import quick
from fairseq_imitkd.cli import door, fairseq_commands, fairseq_help, help_texts, report
from fairseq_imitkd.cli.completion import completion
from fairseq_imitkd.methods import METHODS
from fairseq_imitkd.pipeline import packaged


@pytest.mark.parametrize("command", quick.SUMMARIES)
def test_help_files_are_up_to_date(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``python -m fairseq_imitkd.cli.help_texts`` writes them."""
    monkeypatch.setenv("COLUMNS", str(help_texts.WIDTH))
    text = help_texts.parser(command).format_help()
    assert (quick.HELP / f"{command}.txt").read_text(encoding="utf-8") == text


def test_words_that_are_read_without_torch_are_up_to_date() -> None:
    """``python -m fairseq_imitkd.cli.help_texts`` writes them."""
    assert quick.WORDS.read_text(encoding="utf-8") == help_texts.words()
    assert quick.RECIPES.read_text(encoding="utf-8") == packaged.listed() + "\n"


@pytest.mark.parametrize(
    ("line", "module", "name"),
    [
        (["imitkd", "report", "--out=x"], report, "main"),
        (["/bin/imitkd-report", "--out=x"], report, "main"),
        (["imitkd", "generate", "--out=x"], fairseq_commands, "generate"),
    ],
)
def test_a_command_gets_its_own_arguments(
    line: list[str], module: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both spellings are the same to the command."""
    seen: list[list[str]] = []
    monkeypatch.setattr(module, name, lambda: seen.append(list(sys.argv)))
    monkeypatch.setattr(sys, "argv", line)
    door.main()
    assert seen == [[f"imitkd-{'report' if name == 'main' else name}", "--out=x"]]


def test_the_short_help_shows_every_flag_of_the_plugin_once() -> None:
    """The flags of fairseq's stock translation task and criterion are not the plugin's."""
    stock = {"--task": "translation", "--criterion": "cross_entropy"}
    words = [word for pair in stock.items() for word in pair]
    theirs = {action.dest for action in fairseq_help.all_flags("train", words)._actions}
    every = {action.dest for action in fairseq_help.all_flags("train")._actions}
    shown = [action.dest for action in fairseq_help.short_parser("train")._actions]
    assert len(shown) == len(set(shown))
    assert every - theirs == {"student_share"} | (every - theirs)
    assert every - theirs <= set(shown), "a flag of the plugin has no heading"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--criterion", "gkd", "--help"], ["--jsd-weight X", "(default: 0.1)"]),
        (["DATA", "--criterion=gkd", "-h"], ["(default: 0.1)"]),
        (["--help-all", "-a", "lstm"], ["--encoder-hidden-size", "--student-share", "--traceback"]),
    ],
)
def test_help_of_a_method(
    words: list[str], parts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own defaults, and with ``--help-all`` the flags of the architecture too."""
    monkeypatch.setattr(sys, "argv", ["imitkd-train", *words])
    with pytest.raises(SystemExit) as end:
        fairseq_commands.train()
    assert not end.value.code
    printed = capsys.readouterr().out
    assert all(part in printed for part in parts)


def test_completion_is_a_script_of_the_shell() -> None:
    """bash reads it, and it knows commands, flags and methods."""
    script = completion("bash")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert "--teacher-encoder-cache" in script
    assert all(name in script for name in (*quick.SUMMARIES, *METHODS))
    completed = re.findall(r"^complete .* (\S+)$", script, re.MULTILINE)
    assert completed == ["imitkd", *(f"imitkd-{name}" for name in quick.SUMMARIES)]

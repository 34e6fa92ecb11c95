"""The console commands: fairseq's own, with the plugin and its task unless the user typed others."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fairseq import options, utils

import fairseq_imitkd
from fairseq_imitkd.cli import fairseq_commands

PLUGIN = str(Path(fairseq_imitkd.__file__).parent)


@pytest.mark.parametrize("name", ["train", "generate", "interactive"])
@pytest.mark.parametrize(
    ("typed", "added"),
    [
        (["data"], ["--user-dir", PLUGIN, "--task", "translation_with_teacher"]),
        (["data", "--task", "translation"], ["--user-dir", PLUGIN]),
        (["data", "--task=translation", "--user-dir=mine"], []),
    ],
    ids=["neither", "task", "both"],
)
def test_missing_flags_are_added(name: str, typed: list[str], added: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding too goes through our task, whose greedy and sampled decoding is the rollouts' engine."""
    called = []
    module = SimpleNamespace(cli_main=lambda: called.append(sys.argv[1:]))
    monkeypatch.setattr(fairseq_commands.importlib, "import_module", lambda module_name: called.append(module_name) or module)
    monkeypatch.setattr(sys, "argv", ["command", *typed])
    monkeypatch.setattr(fairseq_commands.logging.root, "handlers", [])
    getattr(fairseq_commands, name)()
    assert called == [f"fairseq_cli.{name}", [*typed, *added]]


@pytest.mark.parametrize(("typed", "xla", "tpu"), [([], None, False), (["--tpu"], None, True), ([], "torch_xla", True)])
def test_bf16_is_a_tpu_s_only_where_there_may_be_one(
    typed: list[str], xla: str | None, tpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = []

    def command() -> None:
        parser = options.get_training_parser(default_task="translation")
        flags = ["data", "--arch", "transformer", "--criterion", "cross_entropy", "--bf16", *typed]
        parsed.append(options.parse_args_and_arch(parser, flags))

    monkeypatch.setattr(fairseq_commands.importlib, "import_module", lambda name: SimpleNamespace(cli_main=command))
    monkeypatch.setattr(sys, "argv", ["imitkd-train", "data", *typed])
    monkeypatch.setattr(fairseq_commands.logging.root, "handlers", [])
    monkeypatch.setattr(utils, "xm", xla)
    fairseq = options.parse_args_and_arch
    fairseq_commands.train()
    assert (parsed[0].bf16, parsed[0].tpu) == (True, tpu)
    assert options.parse_args_and_arch is fairseq


def test_help_shows_the_methods_flags(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """fairseq's own ends before it knows which task and criterion were typed."""
    monkeypatch.setattr(sys, "argv", ["imitkd-train", "--help", "--criterion", "gkd"])
    with pytest.raises(SystemExit) as end:
        fairseq_commands.train()
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for flag in ("--jsd-weight", "--teacher-path", "--max-tokens", "--student-share"):
        assert flag in shown

"""What fairseq's parser reports, as one line each."""

import sys
from argparse import ArgumentParser, Namespace
from typing import Any

import pytest
from fairseq import options

import fairseq_imitkd  # noqa: F401  (registers the task and the criteria)
from fairseq_imitkd.cli.fairseq_parser import (
    check_texts,
    misspelt_flag,
    one_line_parsers,
    parse_carefully,
)
from fairseq_imitkd.errors import UsageError

TRAINING = (
    "data", "--task", "translation_with_teacher", "--arch", "transformer", "--criterion", "imitkd",
    "--optimizer", "adam", "--lr-scheduler", "triangular", "--max-lr", "1",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser looks for misspelt flags in the command line, which is pytest's here."""
    monkeypatch.setattr(sys, "argv", ["imitkd-train"])


def parse(*flags: str, without: str = "") -> Namespace:
    """Parse the command line of a training as ``imitkd-train`` does, without one of its words."""
    words = [word for word in (*TRAINING, *flags) if word != without]
    parser = options.get_training_parser()
    return options.parse_args_and_arch(parser, words, modify_parser=parse_carefully)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--max-update", "x"), "--max-update must be a whole number, but is 'x'"),
        (("--dropout", "x"), "--dropout must be a number, but is 'x'"),
        (("--max-sentences", "x"), "--batch-size must be a whole number, but is 'x'"),
        (("--seed",), "--seed needs a value"),
        (("--seed", "9" * 90 + "x"), f"--seed must be a whole number, but is '{'9' * 79}…'"),
        (("--lr", "0.1,,"), "--lr must be numbers joined by commas, but is '0.1,,'"),
        (("--update-freq", "(1"), "--update-freq must be numbers joined by commas, but is '(1'"),
        (("--max-lr", "???"), "--max-lr is not given; add it"),
        (("--ddp-comm-hook", "x"), "--ddp-comm-hook must be one of none, fp16, but is 'x'"),
        (("--optimizer", "adm"), "--optimizer 'adm' does not exist: did you mean adam?"),
        (("--optimizer", "new"), "--optimizer must be one of "),
        (("--max-updates", "3"), "--max-updates is not a flag of this command: did you mean --max-update"),
        (("--max-updates=3",), "--max-updates=3 is not a flag of this command: did you mean --max-update"),
        (
            ("--jsd-wieght", "1"),
            "--jsd-wieght is not a flag of this command: did you mean --jsd-weight or --js-weights?",
        ),
        (("--max-upd", "3"), "--max-upd is not a flag of this command: did you mean --max-update"),
        (("--momentum", "0.9"), "--momentum can't be used here: it is a flag of --optimizer nag"),
        (
            ("--encoder-hidden-size", "8"),
            "--encoder-hidden-size is not a flag of this command, or belongs to",
        ),
        (("--max_update", "3"), "--max_update is not a flag of this command: did you mean --max-update?"),
        (("-lr", "3"), "-lr is not a flag of this command: did you mean --lr?"),
        (("--device", "cuda"), "--device is not a flag of this command: a GPU is used if there is one"),
        (
            ("--label-smothing", "1"),
            "--label-smothing is not a flag of this command: did you mean --label-sm",
        ),
        (("--beam", "3"), "--beam can't be used here: it is a flag of imitkd-generate; leave it out"),
        (("more",), "'more' is an extra word: leave it out, or give its flag"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_word_is_one_line(flags: tuple[str, ...], line: str, capsys: Any) -> None:
    """It names the flag, what it must be, and its value. argparse's usage has 200 lines."""
    with one_line_parsers("imitkd-train"), pytest.raises(SystemExit) as end:
        parse(*flags)
    assert end.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"error: {line}"), shown.err
    assert shown.err.endswith("; see imitkd-train --help\n")
    assert shown.err.count("\n") == 1
    assert len(shown.err) < 400


def test_a_misspelt_flag_is_named_before_a_missing_word(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be meant by it. A flag that another choice would add is not misspelt."""
    typed = ["--max-update", "3", "--jsd-wieght", "3"]
    monkeypatch.setattr("sys.argv", ["imitkd-train", *typed])
    with one_line_parsers("imitkd-train"), pytest.raises(SystemExit):
        parse(without="data")
    assert capsys.readouterr().err.startswith("error: --jsd-wieght is not a flag of this command: did you me")
    parser = ArgumentParser(add_help=False)
    assert misspelt_flag(parser, ["-s", "de", "--lr", "-1", "--encoder-hidden-size", "8", "--beam=3"]) is None
    assert "did you mean --jsd-weight" in str(misspelt_flag(parser, typed))


def test_data_that_are_not_given(capsys: Any) -> None:
    with one_line_parsers("imitkd-train"), pytest.raises(SystemExit):
        parse(without="data")
    assert capsys.readouterr().err == (
        "error: DATA is not given; name a directory; see imitkd-train --help\n"
    )


def test_one_of_many_choices_is_suggested(capsys: Any) -> None:
    """All choices of a few, and those of many that are most like the value."""
    parser = ArgumentParser()
    parser.add_argument("--arch", choices=[f"model_{number}" for number in range(200)])
    with one_line_parsers("imitkd-train"), pytest.raises(SystemExit):
        parser.parse_args(["--arch", "modl_77"])
    line = capsys.readouterr().err
    assert line.startswith("error: --arch 'modl_77' does not exist: did you mean model_77 or ")
    assert line.count("model_") == 2


def test_parsers_are_as_before_afterwards(capsys: Any) -> None:
    with one_line_parsers("imitkd-train"):
        pass
    with pytest.raises(SystemExit):
        ArgumentParser().parse_args(["--nope"])
    assert capsys.readouterr().err.startswith("usage: ")


def test_lists_and_texts_that_parse() -> None:
    args = parse("--lr", "0.1,0.2", "--update-freq", "[1, 2]", "--share-by", "batch")
    assert (args.lr, args.update_freq, args.share_by) == ([0.1, 0.2], [1, 2], "batch")


@pytest.mark.parametrize(
    "text", ["", "a b", "it's", '{"beam": 1}', "(0.9, 0.98)", "ü", "$x", "C:\\dir", "x" * 999]
)
def test_texts_that_hydra_reads(text: str) -> None:
    check_texts(Namespace(data=text, eval_bleu_args=text, number=3, nothing=None))


@pytest.mark.parametrize("text", ["\\", "a\\\\", "a\\'b", "${x}", "${x", "\\" * 200])
def test_texts_that_hydra_can_not_read(text: str) -> None:
    """fairseq passes every value on to it. When that fails, it logs the values of all flags. Hydra reads two
    backslashes at the end as one.
    """
    for name, flag in (("data", "DATA"), ("eval_bleu_args", "--eval-bleu-args")):
        with pytest.raises(UsageError) as refused:
            check_texts(Namespace(**{name: text}))
        message = str(refused.value)
        assert message.startswith(
            f"{flag} can't hold a backslash before a quote or at its end, or ${{…}} that is not defined, but "
        )
        assert len(message) < 220

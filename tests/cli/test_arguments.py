"""The command lines of our own commands: what they refuse, in one line, and what their help shows."""

import argparse
from typing import Any

import pytest

from fairseq_imitkd.cli import (
    cache,
    dictionary,
    encode,
    evaluate,
    export,
    import_model,
    prune,
    report,
    seqkd,
    serve,
    trim,
)
from fairseq_imitkd.cli.arguments import Parser, positive
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.teacher.cache.writer import CacheRequest

PARSERS = {
    "imitkd-cache": cache.parser,
    "imitkd-encode": encode.parser,
    "imitkd-evaluate": evaluate.parser,
    "imitkd-export": export.parser,
    "imitkd-import": import_model.parser,
    "imitkd-prune": prune.parser,
    "imitkd-report": report.parser,
    "imitkd-seqkd": seqkd.parser,
    "imitkd-serve": serve.parser,
    "imitkd-trim": trim.parser,
    "imitkd-dictionary": dictionary.parser,
}
GIVEN = {
    "imitkd-cache": ("data", "--teacher-path", "t.pt", "--out", "c", "--keep", "hidden"),
    "imitkd-encode": ("folder",),
    "imitkd-evaluate": ("--model", "a=c.pt", "--data", "data", "--out", "o"),
    "imitkd-export": ("c.pt", "--data", "data", "--out", "o"),
    "imitkd-import": ("model", "--out", "o"),
    "imitkd-prune": ("c.pt",),
    "imitkd-report": ("run", "--out", "r.html"),
    "imitkd-seqkd": ("data", "--teacher-path", "t.pt", "--out", "o"),
    "imitkd-serve": ("folder",),
    "imitkd-trim": ("c.pt", "--text", "t", "--out", "o"),
    "imitkd-dictionary": ("c.pt", "--out", "o"),
}


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--none",), "--none is not a flag of this command"),
        (("FLAG",), "FLAG needs a value"),
        (("FLA", "x"), "FLA is not a flag of this command: did you mean FLAG?"),
    ],
    ids=["unknown", "value", "abbreviated"],
)
def test_wrong_command_line_ends_in_one_line(
    name: str, flags: tuple[str, ...], message: str, capsys: Any
) -> None:
    """With status 2, as of argparse, but without the usage; no part of a flag's name stands for it."""
    flag = {"imitkd-serve": "--host", "imitkd-encode": "--side"}.get(name, "--out")
    words = {"FLAG": flag, "FLA": flag[:-1]}
    message = message.replace("FLAG", flag).replace("FLA", flag[:-1])
    with pytest.raises(SystemExit) as end:
        PARSERS[name]().parse_args([*GIVEN[name], *(words.get(word, word) for word in flags)])
    assert end.value.code == 2
    assert capsys.readouterr() == ("", f"error: {message}; see {name} --help\n")


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("imitkd-evaluate", "DATA --model a=b --out o", "'DATA' is an extra word: did you mean --data DATA?"),
        (
            "imitkd-evaluate",
            "--model a=b c=d --data DATA --out o",
            "'c=d' is an extra word: give --model once for each model",
        ),
        (
            "imitkd-cache",
            "DATA --teacher-path a b --out o",
            "'b' is an extra word: join several values of --teacher-path by ':'",
        ),
        (
            "imitkd-export",
            "--checkpoint c.pt --data DATA --out o",
            "--checkpoint is not a flag of this command: that word is given without a flag",
        ),
        ("imitkd-serve", "--dir o", "--dir is not a flag of this command: that word is given without a flag"),
        (
            "imitkd-seqkd",
            "--teacher_path t",
            "--teacher_path is not a flag of this command: did you mean --tea",
        ),
        (
            "imitkd-report",
            "r --out o a\nb --outt",
            "--outt is not a flag of this command: did you mean --out?",
        ),
    ],
)
def test_a_word_too_many(name: str, words: str, message: str, capsys: Any) -> None:
    """It is named before a word that is missing."""
    with pytest.raises(SystemExit):
        PARSERS[name]().parse_args(words.split(" "))
    assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.parametrize("name", PARSERS)
def test_help_shows_the_defaults_there_are(name: str, capsys: Any) -> None:
    """Each once, a zero too; not that of a switch, or of a flag that has none."""
    parser = PARSERS[name]()
    assert type(parser) is Parser
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("None", "False", "SUPPRESS"):
        assert f"default: {text}" not in shown
    defaults = [
        a.default
        for a in parser._actions
        if a.default not in (None, argparse.SUPPRESS, [], (), "") and a.default is not False
    ]
    assert [value for value in defaults if f"(default: {value})" not in shown] == []
    texts = [action.help for action in parser._actions if action.help]
    assert shown.count("default") == sum("default" in text for text in texts) + len(defaults)


def test_default_is_shown_where_it_says_something(capsys: Any) -> None:
    """Whatever its kind."""
    parser = Parser("command", "What it does.")
    parser.add_argument("place", nargs="?", default="here", help="no flag")
    parser.add_argument("--zero", type=float, default=0.0, help="number")
    parser.add_argument("--told", default=3, help="three by default")
    parser.add_argument("--none", help="nothing")
    parser.add_argument("--switch", action="store_true", help="switch")
    parser.add_argument("--hidden", default=argparse.SUPPRESS, help="kept out")
    parser.add_argument("--bare", default=4)
    lines = [line.split() for line in parser.format_help().splitlines()]
    ends = {line[0]: " ".join(line[1:]) for line in lines if line and line[0] != "usage:"}
    assert ends["place"] == "no flag"
    assert ends["--zero"] == "ZERO number (default: 0.0)"
    assert ends["--told"] == "TOLD three by default"
    assert ends["--none"] == "NONE nothing"
    assert ends["--switch"] == "switch"
    assert ends["--hidden"] == "HIDDEN kept out"
    assert ends["--bare"] == "BARE"
    assert ends["-h,"] == "--help show this help message and exit"


@pytest.mark.parametrize("text", ["0", "-1", "abc", "", "1.5", "1e3", "inf"])
def test_what_is_no_positive_number_is_refused(text: str, capsys: Any) -> None:
    """By the flag's name, with what it must be."""
    with pytest.raises(SystemExit):
        cache.parser().parse_args([*GIVEN["imitkd-cache"], f"--max-tokens={text}"])
    told = f"--max-tokens must be a whole number of 1 or more, but is '{text}'"
    assert capsys.readouterr().err == f"error: {told}; see imitkd-cache --help\n"


def test_positive_numbers_are_read() -> None:
    """As whole numbers."""
    assert [positive("1"), positive("4096")] == [1, 4096]


def request(*flags: str) -> CacheRequest:
    """What ``imitkd-cache`` would write."""
    return cache.request(cache.parser().parse_args([*GIVEN["imitkd-cache"], "--cpu", *flags]))


def test_cache_flags_reach_the_request() -> None:
    """Those that are not given leave its own defaults."""
    assert request() == CacheRequest("data", "t.pt", "c", "hidden")
    assert request("--truncate-source") == CacheRequest("data", "t.pt", "c", "hidden", truncate_source=True)
    assert request("--truncate-source", "--max-source-positions", "7").max_source_positions == 7


@pytest.mark.parametrize("value", ["7", "1024"])
def test_cache_refuses_a_length_that_cuts_nothing(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default's too, before anything is written."""
    monkeypatch.setattr(cache, "write_cache", None)
    with pytest.raises(UsageError) as refused:
        cache.main([*GIVEN["imitkd-cache"], "--max-source-positions", value])
    expected = (
        f"--max-source-positions {value} changes nothing without --truncate-source; add it, or leave this out"
    )
    assert str(refused.value) == expected


def test_seqkd_says_what_its_table_holds() -> None:
    """The table itself has no line of names."""
    [text] = [action.help for action in seqkd.parser()._actions if action.dest == "out"]
    assert (
        "text/SPLIT.tsv has the columns: sentence number from 0, teacher or gold, score, source, target"
        in str(text)
    )

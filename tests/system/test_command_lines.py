"""Random command lines over all flags of ``imitkd-train``, ``-generate`` and ``-interactive``.

fairseq's flags are among them. Each line trains or decodes, or ends in one line of text. It runs in a process
of its own, so it leaves nothing behind for the next.
"""

from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.command_lines import End, flags, random_line, run

EARLY = 0.95  # of the refusals come before any data is read


@pytest.fixture(scope="module")
def names(digits: Any, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the names in capitals of a line stand for."""
    folder = tmp_path_factory.mktemp("folder")
    text = folder.parent / "text.txt"
    text.write_text("no checkpoint\n")
    return {"DATA": digits.data, "TEACHER": teacher, "TEXT": text, "FOLDER": folder}


@pytest.mark.parametrize("number", [12, pytest.param(300, marks=pytest.mark.slow)])
def test_every_line_works_or_is_refused_in_one_line(
    number: int, names: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A failure is shrunk to the flags that cause it."""
    ends: list[End] = []

    @settings(
        max_examples=number,
        derandomize=True,  # the same lines in every run
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def check(draw: Random) -> None:
        line = random_line(draw)
        end = run(line, names, tmp_path_factory.mktemp("line"))
        assert end.fault is None, (
            f"{end.fault}: {line.command} {' '.join(line.arguments)}\n{end.output[-3000:]}"
        )
        ends.append(end)

    check()
    refused = [end for end in ends if end.status]
    early = sum(not end.read_data for end in refused)
    print(f"{len(ends)} lines: {len(refused)} refused, {early} of these before any data is read")
    assert early >= EARLY * len(refused)
    assert 0.2 * number < len(refused) < 0.9 * number, "the lines are of both kinds"
    assert any(end.read_data for end in ends), "reading is seen in the log"


def test_the_flags_are_all_of_help() -> None:
    """fairseq's flags, and those of the task, the method and the architecture."""
    chosen = (
        "--criterion",
        "imitkd",
        "--optimizer",
        "adam",
        "--lr-scheduler",
        "inverse_sqrt",
        "--arch",
        "lstm",
    )
    train = {name for action in flags("train", chosen) for name in action.option_strings}
    assert len(train) > 250
    assert {"--seed", "--update-freq", "--teacher-path", "--student-share", "--adam-betas"} <= train
    assert {"--warmup-init-lr", "--encoder-hidden-size", "--save-dir", "--eval-bleu-args"} <= train
    assert {"--beam", "--gen-subset"} <= {name for a in flags("generate", ()) for name in a.option_strings}
    assert {"--beam", "--input"} <= {name for a in flags("interactive", ()) for name in a.option_strings}

"""How long a plan takes, by passes that are timed."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq_imitkd.pipeline import estimate, inputs, models, sentencepieces
from fairseq_imitkd.pipeline.estimate import Estimate, Pass
from fairseq_imitkd.pipeline.plan import Command, Plan, Step
from fairseq_imitkd.pipeline.recipe_file import parse
from tests.helpers.digit_corpus import TINY
from tests.pipeline.recipes import TRAINING, recipe


def step(name: str, *needs: str, threads: int = 1, gpus: int = 0) -> Step:
    return Step(name, (Command(("true",)),), (), needs, threads=threads, gpus=gpus)


def test_steps_run_as_soon_as_threads_are_free() -> None:
    seconds = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 4.0}
    steps = [
        step("data"),
        step("a", "data"),
        step("b", "data"),
        step("c", "b"),
        step("d", "a", "c", threads=2),
    ]
    expected = Estimate(seconds)
    assert expected.side_by_side(steps, 1) == 10.0
    assert expected.side_by_side(steps, 2) == 7.0
    assert expected.side_by_side(steps[3:], 8) == 6.0, "what is done is not waited for"


def test_steps_share_the_gpus() -> None:
    """A step that asks for more than there are takes all; of a cluster the number is not known."""
    steps = [step(name, gpus=1) for name in "abcd"] + [step("e", gpus=4)]
    expected = Estimate(dict.fromkeys("abcde", 1.0))
    times = {gpus: expected.side_by_side(steps, 16, gpus) for gpus in (1, 2, 4, None)}
    assert times == {1: 5.0, 2: 3.0, 4: 2.0, None: 1.0}


def test_passes_are_multiplied_by_tokens(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An update with a teacher adds a forward pass of each model; a sentence of the teacher, its tokens."""
    passes = iter([Pass(1.0, 3.0, 9.0), Pass(10.0, 30.0, 50.0)])
    beams = []
    monkeypatch.setattr(estimate, "timed", lambda *_, beam: beams.append(beam) or next(passes))
    changes: dict[str, Any] = {"methods": ["none", "seqkd", "imitkd_full"]}
    changes["seqkd"] = {"flags": "--beam 2", "shards": 2}
    wanted = parse(recipe(digits.text, **changes), Path())
    found = inputs.look(wanted)
    made = estimate.estimate(Plan(wanted, found.digests), found)
    tokens = 8 * 400
    length = estimate.average_length(wanted, found)
    train = found.texts[wanted.text.pairs["train"].source].lines
    assert beams == [1, 2]
    assert made.seconds == {
        "train-teacher": tokens * 30.0,
        "seqkd-shard1": train * length * 50.0 / 2,
        "seqkd-shard2": train * length * 50.0 / 2,
        "train-none-seed1": tokens * 3.0,
        "train-seqkd-seed1": tokens * 3.0,
        "train-imitkd_full-seed1": tokens * 14.0,
    }
    assert estimate.tokens_of_update(["--max-tokens", "900", "--batch-size", "10"], 20.0) == 200.0
    assert estimate.tokens_of_update(["--batch-size", "10"], 20.0) == 200.0
    assert estimate.tokens_of_update(["--batch-size", "10", "--update-freq", "4,2"], 20.0) == 400.0
    assert estimate.tokens_of_update([*TRAINING.split(), "--update-freq", "4"], 20.0) == 1600.0
    assert estimate.tokens_of_update(["--max-sentences", "10", "--update-freq", "[4]"], 20.0) == 800.0
    assert estimate.tokens_of_update(["--max-sentences=10", "--update-freq=(4,2)"], 20.0) == 400.0


def test_students_of_other_sizes_are_timed_apart(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An assistant's forward pass counts in place of the teacher's. Flags of a method may change the size."""
    passes = iter([Pass(1.0, 3.0, 9.0), Pass(2.0, 6.0, 9.0), Pass(4.0, 12.0, 9.0), Pass(10.0, 30.0, 50.0)])
    monkeypatch.setattr(estimate, "timed", lambda *_, **__: next(passes))
    wide = {"arch": "transformer", "flags": " ".join(TINY[2:])}
    assistant = {
        "criterion": "none",
        "name": "assistant",
        "student": {**wide, "flags": f"{wide['flags']} --decoder-layers 2"},
    }
    deep = {"criterion": "none", "name": "deep", "flags": "--decoder-layers 3"}
    methods = ["imitkd", assistant, deep, {"criterion": "gkd", "teacher": "assistant"}]
    wanted = parse(recipe(digits.text, methods=methods), Path())
    found = inputs.look(wanted)
    made = estimate.estimate(Plan(wanted, found.digests), found)
    tokens = 8 * 400
    assert made.seconds == {
        "train-teacher": tokens * 30.0,
        "train-imitkd-seed1": tokens * (3.0 + 1.0 + 10.0),
        "train-assistant-seed1": tokens * 6.0,
        "train-deep-seed1": tokens * 12.0,
        "train-gkd-seed1": tokens * (3.0 + 1.0 + 2.0),
    }


def test_a_checkpoint_is_timed(digits: Any, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "SECONDS", 0.0)
    own = {"checkpoint": str(teacher), "dictionaries": str(digits.dictionaries)}
    # So many threads are those of a cluster's machine: here they would take longer than what is timed.
    wanted = parse(recipe(digits.text, teacher=own, methods=["imitkd_full"], threads=1024), Path())
    taken: list[int] = []
    set_threads = torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda count: taken.append(count) or set_threads(count))
    found = inputs.look(wanted)
    former = torch.get_num_threads()
    torch.set_num_threads(former + 1)
    made = estimate.estimate(Plan(wanted, found.digests), found)
    assert torch.get_num_threads() == former + 1
    torch.set_num_threads(former)
    assert max(taken) <= max(former + 1, len(os.sched_getaffinity(0)))
    assert set(made.seconds) == {"train-imitkd_full-seed1"}
    assert 0.0 < made.seconds["train-imitkd_full-seed1"] < 600.0


def test_a_given_sentencepiece_model_has_the_symbols(digits: Any, tmp_path: Path) -> None:
    sentencepieces.train(tmp_path / "spm.model", 40, [str(digits.text / "train.tgt")])
    wanted = parse(recipe(digits.text, sentencepiece="spm.model"), tmp_path)
    assert models.symbols(wanted) == 40

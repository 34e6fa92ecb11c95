"""fairseq's own readers of checkpoints check dictionaries, tags and the training's record, in one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.models import BaseFairseqModel

from fairseq_imitkd.checkpoints.compact import packed_state
from fairseq_imitkd.checkpoints.progress import check_progress
from fairseq_imitkd.checkpoints.readers import _load_into
from fairseq_imitkd.data.dictionaries import fingerprints
from fairseq_imitkd.errors import UsageError
from tests.helpers.fairseq_models import LETTERS, checkpoint_state, letters, tiny_task
from tests.helpers.teacher_checkpoints import saved, state_with


def generated(path: str) -> Any:
    """Read a checkpoint as ``fairseq-generate`` does."""
    return checkpoint_utils.load_model_ensemble([path], task=tiny_task())


class Trainer:
    """As much of fairseq's trainer as decides on a checkpoint."""

    task = tiny_task()


def continued(path: str) -> Any:
    """Read a checkpoint as a training does that continues from it."""
    return _load_into(Trainer(), checkpoint_utils.load_checkpoint_to_cpu, path, load_on_all_ranks=False)


@pytest.mark.parametrize("read", [generated, continued])
def test_other_dictionaries_are_refused(folder: Path, cfg: Any, model: BaseFairseqModel, read: Any) -> None:
    """The same symbols in another order, in decoding and in a training that continues."""
    dictionaries = {"source": letters(), "target": letters()}
    state = checkpoint_state(model, cfg, task_state=fingerprints(dictionaries))
    read(saved(folder, state))
    dictionaries["target"] = letters(LETTERS[::-1])
    path = saved(folder, {**state, "task_state": fingerprints(dictionaries)})
    with pytest.raises(UsageError, match=f"checkpoint '{path}' can't be used: it was trained with another t"):
        read(path)


def test_the_opposite_direction_is_refused(folder: Path, cfg: Any, model: BaseFairseqModel) -> None:
    """Other names of the languages may mean the same, so they pass."""
    path = saved(folder, state_with(model, cfg, "task", source_lang="tgt", target_lang="src"))
    with pytest.raises(UsageError) as error:
        generated(path)
    assert (
        "it translates tgt-src, but DATA is read as src-tgt; use --source-lang tgt --target-lang src"
        in str(error.value)
    )
    generated(saved(folder, state_with(model, cfg, "task", source_lang="source", target_lang="target")))


def test_a_model_that_is_larger_than_its_weights_is_not_built(
    folder: Path, cfg: Any, model: BaseFairseqModel
) -> None:
    """Nor is one whose embeddings start from a file that its settings name."""
    path = saved(folder, state_with(model, cfg, "model", encoder_layers=10**7))
    with pytest.raises(UsageError, match="its settings describe a larger model than its weights"):
        generated(path)
    generated(saved(folder, state_with(model, cfg, "model", encoder_embed_path="/dev/zero")))


def test_whatever_fairseq_raises_names_the_file(folder: Path, cfg: Any, model: BaseFairseqModel) -> None:
    path = saved(folder, state_with(model, cfg, "model", encoder_attention_heads=0))
    with pytest.raises(UsageError, match=f"checkpoint '{path}' can't be used: "):
        generated(path)


@pytest.mark.parametrize("read", [generated, continued])
def test_compact_checkpoints_are_refused_with_the_remedy(
    folder: Path, cfg: Any, model: BaseFairseqModel, read: Any
) -> None:
    path = saved(folder, packed_state(checkpoint_state(model, cfg)))
    with pytest.raises(UsageError, match=f"'{path}' is compact, .* unpack it: imitkd-prune '{path}' --out"):
        read(path)


RECORD: dict[str, Any] = {
    "model": {},
    "optimizer_history": [{"num_updates": 7, "lr_scheduler_state": {"best": 1.0}}],
    "extra_state": {"train_iterator": {"epoch": 2, "iterations_in_epoch": 3}, "best": 1.5, "metrics": {}},
    "last_optimizer_state": {"state": {}},
    "task_state": {},
}


@pytest.mark.parametrize(
    "state",
    [
        RECORD,
        {"model": {}},  # of 2017
        {**RECORD, "last_optimizer_state": None, "extra_state": {"epoch": 1}},
        {**RECORD, "optimizer_history": [{}], "task_state": None},
    ],
    ids=["whole", "nothing", "small", "empty"],
)
def test_records_of_trainings_pass(state: dict[str, Any]) -> None:
    """Parts may be absent, as in older files and in those that were made smaller."""
    check_progress(state)


def record(**iterator: Any) -> dict[str, Any]:
    return {**RECORD, "extra_state": {"train_iterator": {"epoch": 2, **iterator}}}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({**RECORD, "optimizer_history": []}, "'optimizer_history' must be a list of at least one"),
        ({**RECORD, "optimizer_history": [3]}, "'optimizer_history' must be a list of at least one"),
        ({**RECORD, "optimizer_history": [{"num_updates": 10**15}]}, "'num_updates' must be a whole number"),
        (
            {**RECORD, "optimizer_history": [{"lr_scheduler_state": [1]}]},
            "its 'lr_scheduler_state' must be a dictionary, but is a list",
        ),
        ({**RECORD, "extra_state": "x"}, "its 'extra_state' must be a dictionary, but is a str"),
        (record(epoch=-1), r"its 'epoch' must be a whole number in 0\.\.1,000,000,000, but is -1"),
        (record(epoch=1.5), "its 'epoch' must be a whole number"),
        (record(iterations_in_epoch="x"), "its 'iterations_in_epoch' must be a whole number"),
        ({**RECORD, "extra_state": {"best": "x"}}, "its 'best' score must be a number, but is a str"),
        (
            {**RECORD, "last_optimizer_state": torch.ones(2)},
            "its 'last_optimizer_state' must be a dictionary, but is a Tensor",
        ),
        ({**RECORD, "task_state": 7}, "its 'task_state' must be a dictionary, but is a int"),
    ],
    ids=str,
)
def test_records_that_can_not_be_true_are_refused(
    folder: Path, cfg: Any, model: BaseFairseqModel, state: dict[str, Any], message: str
) -> None:
    """Before fairseq reads them, by every training that continues."""
    with pytest.raises(ValueError, match=message):
        check_progress(state)
    path = saved(folder, {**checkpoint_state(model, cfg), **state, "model": model.state_dict()})
    with pytest.raises(UsageError, match=f"checkpoint '{path}' can't be used: .*{message}"):
        continued(path)

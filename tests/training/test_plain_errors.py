"""A task's errors while it builds and reads are one line, and so are those of the whole configuration."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.data import LanguagePairDataset
from omegaconf import DictConfig

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.tasks.translation import TranslationWithTeacherConfig, TranslationWithTeacherTask
from fairseq_imitkd.training.plain_errors import check_run
from tests.helpers import in_process
from tests.helpers.fairseq_models import WIDTHS, letters, make_batch, tiny_task


def test_the_whole_configuration_is_checked_with_a_task_s(digits: Any, tmp_path: Path) -> None:
    """So ``fairseq-train --user-dir`` is refused what ``imitkd-train`` is. A task alone is of no run."""
    config = in_process.config(
        digits.data,
        tmp_path,
        "--task",
        "translation_with_teacher",
        "--criterion",
        "imitkd",
        "--max-update",
        9,
    )
    check_run(config.task)
    assert config.dataset.ignore_unused_valid_subsets
    config.common.seed = -1
    with pytest.raises(UsageError, match=r"^--seed must be a whole number, 0 or more, but is -1$"):
        check_run(config.task)
    config.common.seed, config.dataset.valid_subset = 1, "valid"
    config.dataset.ignore_unused_valid_subsets = False
    digits_and_more = tmp_path / "data"
    digits_and_more.mkdir()
    for file in digits.data.iterdir():
        (digits_and_more / file.name).symlink_to(file)
        if file.name.startswith("valid."):
            (digits_and_more / file.name.replace("valid", "valid1", 1)).symlink_to(file)
    config.task.data = str(digits_and_more)
    with pytest.raises(
        UsageError, match=r"has the validation sets valid1 too: add --valid-subset valid,valid1"
    ):
        check_run(config.task)
    config.common_eval.path = "student.pt"  # decoding, which validates nothing
    config.model.lr_scheduler = "fixed"
    check_run(config.task)
    config.generation.beam = 0
    with pytest.raises(UsageError, match=r"^--beam must be a whole number, 1 or more, but is 0$"):
        check_run(config.task)
    check_run(TranslationWithTeacherConfig(data="none"))


def model_settings(**changed: Any) -> Namespace:
    return Namespace(
        arch="transformer", max_source_positions=9, max_target_positions=9, **{**WIDTHS, **changed}
    )


def test_models_that_can_not_be_built(monkeypatch: Any) -> None:
    config, more = TranslationWithTeacherConfig(), letters("xyz")
    task = TranslationWithTeacherTask(config, letters(), more)
    with pytest.raises(
        UsageError, match=r"^--share-all-embeddings needs one dictionary of both languages, but"
    ):
        task.build_model(model_settings(share_all_embeddings=True))
    with pytest.raises(UsageError) as refused:
        task.build_model(model_settings(encoder_attention_heads=3))
    assert str(refused.value).startswith("--arch transformer can't be built with these flags: ")
    assert str(refused.value).endswith("; change the flags of the student")
    with pytest.raises(AssertionError, match="embed_dim must be divisible by num_heads"):
        task.build_model(model_settings(encoder_attention_heads=3), from_checkpoint=True)
    assert task.build_model(model_settings())


def test_data_that_can_not_be_read(digits: Any, tmp_path: Path) -> None:
    """Its files are there, but one of them is cut off."""
    folder = tmp_path / "data"
    folder.mkdir()
    for file in digits.data.iterdir():
        (folder / file.name).write_bytes(file.read_bytes()[: 20 if file.name.endswith(".idx") else None])
    with pytest.raises(UsageError) as refused:
        tiny_task(data=str(folder)).load_dataset("valid")
    assert str(refused.value).startswith(f"'valid' of DATA '{folder}' can't be read: ")
    assert str(refused.value).endswith("; binarise it again")


def test_unknown_symbols_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """Those of a split when it is read, and those of the first lines that are typed."""
    task = tiny_task()
    dictionary = letters()
    unknown = torch.tensor([dictionary.unk(), dictionary.eos()])
    task.datasets["valid"] = LanguagePairDataset([unknown], [2], dictionary, [unknown], [2], dictionary)
    for _ in range(2):
        task._warn_of_other_subwords("valid")
    assert [message.partition(":")[0] for message in caplog.messages] == [
        f"50.0% of the symbols of --valid-subset 'valid' are unknown to dict.{side}.txt"
        for side in ("src", "tgt")
    ]
    caplog.clear()
    for sentences in (1, 2):
        typed = LanguagePairDataset([unknown] * sentences, [2] * sentences, dictionary)
        task.get_batch_iterator(dataset=typed, max_tokens=9)
    [message] = [message for message in caplog.messages if "unknown" in message]
    assert message.startswith(
        "50.0% of the symbols of the input are unknown to dict.src.txt: encode the text"
    )


def pairs(*lengths: int) -> LanguagePairDataset:
    """Return sentences of these lengths, EOS included."""
    dictionary = letters()
    batches = [make_batch([([1] * (length - 1), [2] * (length - 1))]) for length in lengths]
    sources = [batch["net_input"]["src_tokens"][0] for batch in batches]
    return LanguagePairDataset(sources, list(lengths), dictionary, sources, list(lengths), dictionary)


@pytest.mark.parametrize(
    ("split", "path", "max_tokens_valid", "line"),
    [
        (
            "valid",
            None,
            5,
            "--max-tokens 5 is below the longest sentence of --valid-subset 'valid', which has 8",
        ),
        (
            "valid",
            None,
            6,
            "--max-tokens-valid 5 is below the longest sentence of --valid-subset 'valid', whi",
        ),
        (
            "test",
            "model.pt",
            5,
            "--max-tokens 5 is below the longest sentence of --gen-subset 'test', which has",
        ),
        (
            "train",
            "model.pt",
            5,
            "--max-tokens 5 is below the longest sentence of --gen-subset 'train', which",
        ),
        ("train", None, 5, None),
    ],
)
def test_the_data_set_that_has_no_batch_is_named(
    split: str | None, path: str | None, max_tokens_valid: int, line: str | None
) -> None:
    """It has a flag that names it, and another one that limits its batches."""
    sections = {
        "checkpoint": {},
        "distributed_training": {},
        "dataset": {"max_tokens": 6, "max_tokens_valid": max_tokens_valid + (max_tokens_valid == 5)},
        "common_eval": {"path": path},
        "task": {"train_subset": "train"},
    }
    if max_tokens_valid == 6:
        sections["dataset"] = {"max_tokens": 6, "max_tokens_valid": 5}
    task, data = tiny_task(), pairs(3, 8)
    task.cfg = DictConfig(sections).task
    if split is not None:
        task.datasets[split] = data
    if line is None:
        assert task.get_batch_iterator(
            dataset=data, max_tokens=5, max_positions=(5, 5), ignore_invalid_inputs=True
        )
        return
    with pytest.raises(UsageError) as refused:
        task.get_batch_iterator(dataset=data, max_tokens=5)
    assert str(refused.value).startswith(line)

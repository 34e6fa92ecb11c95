"""COMET's models: what they compare, that each sentence is encoded once, and files that are refused."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairseq_imitkd.checkpoints.comet import CometSimilarity, load_comet
from fairseq_imitkd.errors import UsageError
from tests.helpers import comet_models

CPU = torch.device("cpu")


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("it ran",))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> comet_models.Model:
    made = comet_models.Model()
    monkeypatch.setitem(sys.modules, "comet", comet_models.package(made, []))
    return made


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save({"state_dict": {}}, tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"


def test_scores_are_those_of_each_pair(model: comet_models.Model, checkpoint: Path) -> None:
    """A sentence is encoded once, though it is compared with many."""
    similarity = CometSimilarity(checkpoint, CPU)
    model.encoded.clear()
    texts, references = ["abc", "b", "abc"], ["b c", "abc"]
    found = similarity.scores("b", texts, references)
    expected = [[comet_models.score("b", text, other) for other in references] for text in texts]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert sorted(model.encoded) == ["abc", "b", "b c"]
    many = [f"{number:b}" for number in range(1, 150)]  # more than are encoded at once
    found = similarity.scores("b", many, many)
    assert found.shape == (149, 149)
    assert found[140, 3] == pytest.approx(comet_models.score("b", many[140], many[3]))


def test_models_without_references_are_refused(model: comet_models.Model, checkpoint: Path) -> None:
    model.requires_references = lambda: False  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="must be a regression model with references"):
        CometSimilarity(checkpoint, CPU)


def test_versions_that_do_not_fit_together_are_noticed_at_once(
    model: comet_models.Model, checkpoint: Path
) -> None:
    def estimate(*vectors: torch.Tensor) -> None:
        raise ValueError("not enough values\nto unpack")

    model.estimate = estimate  # type: ignore[method-assign,assignment]
    with pytest.raises(UsageError, match="can't compute: not enough values to unpack; see"):
        CometSimilarity(checkpoint, CPU)


def test_files_that_run_code_are_refused(
    model: comet_models.Model,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The package itself would run it. ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD`` is torch's own word of trust."""
    torch.save({"state_dict": {}, "callbacks": RunsCode()}, checkpoint)
    with pytest.raises(UsageError, match=r"needs builtins\.print, which may run code; if you trust"):
        load_comet(checkpoint, "--metric comet")
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert load_comet(checkpoint, "--metric comet") is model
    monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    checkpoint.write_text("not a checkpoint")
    with pytest.raises(UsageError, match=r"is not a checkpoint of a COMET model; use its model\.ckpt"):
        load_comet(checkpoint, "--metric comet")
    with pytest.raises(UsageError, match=r"--comet-model 'none.ckpt' is not a file"):
        load_comet(Path("none.ckpt"), "--metric comet")

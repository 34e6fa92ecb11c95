"""``imitkd-prune``: what it writes, what it counts, and what it refuses."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairseq_imitkd.cli import prune as command
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.pruning import weights_of_checkpoint, weights_of_model
from tests.fairseq_models import build_student, checkpoint_state, training_config


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Any:
    """The command in this process; what it printed."""

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["imitkd-prune", *map(str, arguments)])
        command.main()
        return capsys.readouterr().out

    return call


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of a student whose embeddings are shared, with its optimizer's state."""
    path = tmp_path / "checkpoint.pt"
    model = build_student("transformer-shared-embeddings")
    torch.save(checkpoint_state(model, training_config(tmp_path)), path)
    return path


def saved(path: Path) -> dict[str, Any]:
    """A file by the safe loader."""
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_pruned_checkpoint_is_whole(run: Any, checkpoint: Path, tmp_path: Path, scope: str) -> None:
    """Exactly the smallest are zero, the rest is as it was, and shared weights are stored once."""
    out = tmp_path / "pruned.pt"
    run(checkpoint, "--sparsity", 0.8, "--scope", scope, "--out", out)
    before, after = saved(checkpoint), saved(out)
    del before["last_optimizer_state"]
    assert after.keys() == before.keys()
    assert all(str(after[key]) == str(before[key]) for key in after if key != "model")
    assert list(after["model"]) == list(before["model"])
    assert after["model"]["decoder.output_projection.weight"].equal(after["model"]["encoder.embed_tokens.weight"])
    weights, others = weights_of_checkpoint(before["model"])
    magnitudes = {name: weight.magnitudes().double().flatten().numpy() for name, weight in weights.items()}
    groups = [list(weights)] if scope == "global" else [[name] for name in weights]
    for names in groups:
        values = np.concatenate([magnitudes[name] for name in names])
        count = round(0.8 * sum(weights[name].count for name in names))
        new = np.concatenate([after["model"][name].flatten().numpy() for name in names])
        old = np.concatenate([before["model"][name].flatten().numpy() for name in names])
        pruned = np.argsort(values, kind="stable")[:count]
        expected = old.copy()
        expected[pruned] = 0.0
        assert (new == expected).all()
    for name, value in before["model"].items():
        if name not in weights and name not in others:
            assert after["model"][name].equal(value)
    assert out.stat().st_size < checkpoint.stat().st_size
    build_student("transformer-shared-embeddings", seed=2).load_state_dict(after["model"], strict=True)


def test_report_counts_parameters_once(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    """As the model itself counts them: shared weights once, no buffer; zeros, and the share of each matrix."""
    model = build_student("transformer-shared-embeddings")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    count = sum(weight.count for weight in weights_of_model(model).values())
    lines = run(checkpoint).splitlines()
    assert lines[-1] == f"{checkpoint}: {checkpoint.stat().st_size / 1e6:.2f} MB"
    dense = int(sum(parameter.count_nonzero() for parameter in model.parameters()))
    assert lines[-2] == f"parameters: {parameters:,}, {dense:,} of them not zero ({dense / parameters:.2%})"
    assert lines[-3] == f"prunable weights: {count:,}, 0 of them zero (0.00%)"
    assert [line.split()[0] for line in lines[:-3]] == list(weights_of_model(model))

    out = tmp_path / "pruned.pt"
    written = run(checkpoint, "--sparsity", 0.75, "--scope", "layer", "--out", out)
    assert run(out) == written
    lines, zeros = written.splitlines(), sum(round(0.75 * weight.count) for weight in weights_of_model(model).values())
    assert lines[-1].startswith(f"{out}: ")
    assert lines[-2] == f"parameters: {parameters:,}, {dense - zeros:,} of them not zero ({(dense - zeros) / parameters:.2%})"
    assert lines[-3] == f"prunable weights: {count:,}, {zeros:,} of them zero ({zeros / count:.2%})"
    assert all(line.endswith("75.00% zero") for line in lines[:-3])


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Negative zeros and whatever is no number, too."""
    return one.shape == other.shape and one.dtype == other.dtype and one.numpy().tobytes() == other.numpy().tobytes()


def test_compact_file_comes_back_bit_for_bit(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    """It holds tensors and plain values alone, and about a bit for each zero."""
    state = saved(checkpoint)
    matrix = state["model"]["decoder.layers.0.fc1.weight"]
    matrix[0, 0], matrix[0, 1] = -0.0, math.nan
    torch.save(state, checkpoint)
    pruned, sparse, dense, direct = (tmp_path / f"{name}.pt" for name in ("pruned", "sparse", "dense", "direct"))
    run(checkpoint, "--sparsity", 0.9, "--out", pruned)
    run(pruned, "--sparse", "--out", sparse)
    run(sparse, "--out", dense)
    run(checkpoint, "--sparsity", 0.9, "--sparse", "--out", direct)
    assert dense.stat().st_size == pytest.approx(pruned.stat().st_size, rel=0.01)
    assert sparse.stat().st_size == pytest.approx(direct.stat().st_size, rel=0.01)
    one, other = saved(pruned), saved(dense)
    assert list(one["model"]) == list(other["model"])
    assert all(same_bits(one["model"][name], other["model"][name]) for name in one["model"])
    assert str({**one, "model": None}) == str({**other, "model": None})
    small = saved(sparse)["model"]
    assert small["encoder.embed_tokens.weight"] is small["decoder.output_projection.weight"]
    weights, _ = weights_of_checkpoint(one["model"])
    size = sum(small[name]["nonzero"].nbytes + small[name]["values"].nbytes for name in weights)
    assert size < (0.1 + 1 / 32 + 0.01) * sum(weight.values.nbytes for weight in weights.values())
    assert sparse.stat().st_size < 0.5 * pruned.stat().st_size
    assert run(sparse).splitlines()[:-1] == run(pruned).splitlines()[:-1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5), (8, 4), (2, 3, 7), (1, 9)])
def test_packing_is_undone(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Whatever the shape and the precision; a bias, and what does not shrink, stays as it is."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    values[values.abs() < 1.2] = 0.0
    values.flatten()[:2] = torch.tensor([-0.0, math.nan], dtype=dtype)
    small = command.packed(values)
    assert same_bits(command.unpacked(small), values)
    assert isinstance(small, dict) == (min(shape) > 1)
    dense = torch.ones(shape, dtype=dtype)
    assert command.packed(dense) is dense


@pytest.mark.parametrize(
    "harm",
    [
        {"shape": [10**9, 10**9]},
        {"shape": [3, 6]},
        {"shape": "33"},
        {"shape": [-1, -15]},
        {"nonzero": torch.zeros(2, dtype=torch.uint8)},
        {"nonzero": torch.zeros(2)},
        {"values": torch.ones(3)},
        {"values": None},
    ],
)
def test_damaged_compact_file_is_refused(run: Any, checkpoint: Path, tmp_path: Path, harm: dict[str, Any]) -> None:
    """In one line, and without the memory that it asks for."""
    state, values = saved(checkpoint), torch.zeros(3, 5)
    values[0, 0] = 1.0
    state["model"]["decoder.layers.0.fc1.weight"] = {**command.packed(values), **harm}
    torch.save({**state, command.SPARSE: 1}, tmp_path / "damaged.pt")
    with pytest.raises(UsageError, match="holds a model that is damaged") as refused:
        run(tmp_path / "damaged.pt")
    assert "\n" not in str(refused.value)


def test_files_are_read_safely(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    """Nothing in a file is run, and every refusal names the command's own arguments."""
    text = tmp_path / "text.pt"
    text.write_text("no checkpoint")
    later = tmp_path / "later.pt"
    torch.save({**saved(checkpoint), command.SPARSE: 2}, later)
    empty = tmp_path / "empty.pt"
    torch.save({**saved(checkpoint), "model": {"bias": torch.ones(3)}}, empty)
    unsafe = tmp_path / "unsafe.pt"
    torch.save({**saved(checkpoint), "extra": Path("x")}, unsafe)
    for path, message in (
        (tmp_path / "none.pt", "is no file"),
        (text, "is no checkpoint that torch can read"),
        (later, "is of the compact format 2, not 1: use the release that wrote it"),
        (empty, "holds no weight matrix: give that of a model"),
        (unsafe, "add --allow-globals pathlib"),
    ):
        with pytest.raises(UsageError) as refused:
            run(path)
        assert str(refused.value).startswith(f"CHECKPOINT '{path}' ")
        assert message in str(refused.value)
        assert "teacher" not in str(refused.value)


def test_flags_that_make_no_sense_are_refused(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    """Before the checkpoint is read, where it does not depend on it; nothing is written."""
    pruned = tmp_path / "pruned.pt"
    run(checkpoint, "--sparsity", 0.5, "--out", pruned)
    before = pruned.read_bytes()
    out = tmp_path / "out.pt"
    for flags, message in (
        (("none.pt", "--sparsity", 1.0, "--out", out), "--sparsity must be at least 0 and below 1, but is 1.0"),
        (("none.pt", "--sparsity", "nan", "--out", out), "--sparsity must be at least 0 and below 1, but is nan"),
        (("none.pt", "--sparsity", 0.5), "--sparsity 0.5 needs --out: say where the new checkpoint shall be"),
        (("none.pt", "--sparse"), "--sparse needs --out: say where the new checkpoint shall be"),
        (
            ("none.pt", "--scope", "layer", "--out", out),
            "--scope layer changes nothing without --sparsity: say what share of the weights shall be zero",
        ),
        (("none.pt", "--out", pruned), f"--out '{pruned}' is there already: give another name, or delete it first"),
        (
            ("none.pt", "--out", tmp_path / "no" / "out.pt"),
            f"--out '{tmp_path}/no/out.pt' can't be written: its folder is not there; make it first",
        ),
        (
            (pruned, "--sparsity", 0.5, "--out", out),
            "--sparsity 0.5 changes nothing: as many weights are zero already; give a larger share",
        ),
    ):
        with pytest.raises(UsageError) as refused:
            run(*flags)
        assert str(refused.value) == message
    assert pruned.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "pruned.pt"}


def test_file_is_there_whole_or_not_at_all(run: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full leaves nothing behind."""

    def fails(state: Any, path: str) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(command.torch, "save", fails)
    with pytest.raises(OSError, match="no space left"):
        run(checkpoint, "--sparsity", 0.5, "--out", tmp_path / "out.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]

"""``imitkd-prune``: what it writes, what it counts, and what it refuses."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairseq_imitkd.checkpoints import compact
from fairseq_imitkd.cli import prune as command
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.models.pruning import weights_of_checkpoint, weights_of_model
from tests.helpers.fairseq_models import build_student, checkpoint_state, training_config

ROOT = Path(__file__).parents[2]


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
    assert after["model"]["decoder.output_projection.weight"].equal(
        after["model"]["encoder.embed_tokens.weight"]
    )
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
    """As the model counts them: shared weights once, no buffers; zeros, and the share of each matrix."""
    model = build_student("transformer-shared-embeddings")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    count = sum(weight.count for weight in weights_of_model(model).values())
    lines = run(checkpoint).splitlines()
    assert lines[-1] == f"{checkpoint}: {checkpoint.stat().st_size / 1e6:.2f} MB"
    dense = int(sum(parameter.count_nonzero() for parameter in model.parameters()))
    assert lines[-2] == f"parameters: {parameters:,}, {dense:,} of them not zero ({dense / parameters:.2%})"
    assert lines[-3] == f"prunable weights: {count:,}, 0 of them zero (0.00%)"
    assert [line.split()[0] for line in lines[:-3]] == list(weights_of_model(model))

    state = saved(checkpoint)
    norm = dict(torch.nn.BatchNorm1d(8).named_buffers(prefix="encoder.layers.0.batch_norm"))
    assert len(norm) == 3
    torch.save({**state, "model": {**state["model"], **norm}}, tmp_path / "normed.pt")
    assert run(tmp_path / "normed.pt").splitlines()[:-1] == lines[:-1]

    out = tmp_path / "pruned.pt"
    written = run(checkpoint, "--sparsity", 0.75, "--scope", "layer", "--out", out)
    assert run(out) == written
    lines, zeros = (
        written.splitlines(),
        sum(round(0.75 * weight.count) for weight in weights_of_model(model).values()),
    )
    assert lines[-1].startswith(f"{out}: ")
    left = dense - zeros
    assert lines[-2] == f"parameters: {parameters:,}, {left:,} of them not zero ({left / parameters:.2%})"
    assert lines[-3] == f"prunable weights: {count:,}, {zeros:,} of them zero ({zeros / count:.2%})"
    assert all(line.endswith("75.00% zero") for line in lines[:-3])


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Negative zeros and NaN too."""
    return (
        one.shape == other.shape
        and one.dtype == other.dtype
        and one.numpy().tobytes() == other.numpy().tobytes()
    )


def test_compact_file_comes_back_bit_for_bit(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    """It holds tensors and plain values alone, and about a bit for each zero."""
    state = saved(checkpoint)
    matrix = state["model"]["decoder.layers.0.fc1.weight"]
    matrix[0, 0], matrix[0, 1] = -0.0, math.nan
    torch.save(state, checkpoint)
    pruned, sparse, dense, direct = (
        tmp_path / f"{name}.pt" for name in ("pruned", "sparse", "dense", "direct")
    )
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
    small = compact.packed(values)
    assert same_bits(compact.unpacked(small), values)
    assert isinstance(small, dict) == (min(shape) > 1)
    dense = torch.ones(shape, dtype=dtype)
    assert compact.packed(dense) is dense


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
def test_damaged_compact_file_is_refused(
    run: Any, checkpoint: Path, tmp_path: Path, harm: dict[str, Any]
) -> None:
    """In one line, and without the memory that it asks for."""
    state, values = saved(checkpoint), torch.zeros(3, 5)
    values[0, 0] = 1.0
    state["model"]["decoder.layers.0.fc1.weight"] = {**compact.packed(values), **harm}
    torch.save({**state, compact.SPARSE: 1}, tmp_path / "damaged.pt")
    with pytest.raises(UsageError, match="holds a model that is damaged") as refused:
        run(tmp_path / "damaged.pt")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (5, torch.ones(3, 4), "5 is not a parameter's name"),
        (("a",) * 100, torch.ones(3, 4), "('a', 'a', "),
        ("a\n\x1b[2J", torch.ones(3, 4), r"'a\n\x1b[2J' is not a parameter's name"),
        ("w", None, "a NoneType in place of a tensor"),
        ("w", [1.0, 2.0], "a list in place of a tensor"),
        ("w", {"shape": [3, 4]}, "a matrix without its nonzero and values"),
        (
            "w",
            {"shape": [math.inf], "nonzero": torch.zeros(1, dtype=torch.uint8), "values": torch.ones(0)},
            "infinity",
        ),
        ("w", torch.eye(3).to_sparse(), "a tensor of torch.float32 and torch.sparse_coo on cpu"),
        ("w", torch.eye(3).to_sparse_csr(), "a tensor of torch.float32 and torch.sparse_csr on cpu"),
        ("w", torch.ones(3, 4, device="meta"), "a tensor of torch.float32 and torch.strided on meta"),
        ("w", torch.ones(3, 4).to(torch.float8_e4m3fn), "a tensor of torch.float8_e4m3fn"),
        ("w", torch.ones(1).expand(10**9, 10**9), "a tensor of shape [1000000000, 1000000000] in 4 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_model_is_refused(
    run: Any, checkpoint: Path, tmp_path: Path, name: Any, value: Any, message: str
) -> None:
    """In one line, nothing counted or written of it."""
    path = tmp_path / "damaged.pt"
    state = saved(checkpoint)
    state["model"][name] = value
    torch.save(state, path)
    for flags in ((), ("--sparsity", 0.5, "--sparse", "--out", tmp_path / "out.pt")):
        with pytest.raises(UsageError) as refused:
            run(path, *flags)
        assert re.match(
            rf"CHECKPOINT '{path}' (holds a model that is damaged|can't be used): ", str(refused.value)
        )
        assert message in str(refused.value)
        assert str(refused.value).isprintable()
    assert {found.name for found in tmp_path.iterdir()} == {"checkpoint.pt", "damaged.pt"}


@pytest.mark.parametrize(
    "model", [None, [torch.ones(3, 4)], torch.ones(3, 4)], ids=["none", "list", "tensor"]
)
def test_what_is_no_model_is_refused(run: Any, checkpoint: Path, model: Any) -> None:
    """And a number of a compact format that is none."""
    whole = saved(checkpoint)
    for state in ({**whole, "model": model}, {**whole, compact.SPARSE: torch.ones(2)}):
        torch.save(state, checkpoint)
        with pytest.raises(UsageError, match="holds a model that is damaged") as refused:
            run(checkpoint)
        assert "\n" not in str(refused.value)


def test_strange_shapes_are_counted(run: Any, checkpoint: Path) -> None:
    """An empty matrix does not count as a weight; an embedding of one row has no padding."""
    state = saved(checkpoint)
    before = run(checkpoint).splitlines()
    state["model"].update({"nothing": torch.ones(3, 4, 0), "embed_tokens.weight": torch.ones(1, 2, 3)})
    torch.save(state, checkpoint)
    after = run(checkpoint).splitlines()
    assert [line.split() for line in after[:-3]] == [
        *(line.split() for line in before[:-3]),
        ["embed_tokens.weight", "1x2x3", "0.00%", "zero"],
    ]


def test_files_are_read_safely(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    """Nothing in a file is run, and every refusal names the command's own arguments."""
    text = tmp_path / "text.pt"
    text.write_text("no checkpoint")
    later = tmp_path / "later.pt"
    torch.save({**saved(checkpoint), compact.SPARSE: 2}, later)
    empty = tmp_path / "empty.pt"
    torch.save({**saved(checkpoint), "model": {"bias": torch.ones(3)}}, empty)
    unsafe = tmp_path / "unsafe.pt"
    torch.save({**saved(checkpoint), "extra": Path("x")}, unsafe)
    for path, message in (
        (tmp_path / "none.pt", "is not a file"),
        (text, "is damaged or not a checkpoint; copy it again, or use another"),
        (later, "is of the compact format 2, not 1; use the release that wrote"),
        (empty, "holds no weight matrix; use a model's checkpoint"),
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
        (
            ("none.pt", "--sparsity", 1.0, "--out", out),
            "--sparsity must be at least 0 and below 1, but is 1.0",
        ),
        (
            ("none.pt", "--sparsity", "nan", "--out", out),
            "--sparsity must be at least 0 and below 1, but is nan",
        ),
        (("none.pt", "--sparsity", 0.5), "--sparsity 0.5 needs --out; add the path of the new checkpoint"),
        (("none.pt", "--sparse"), "--sparse needs --out; add the path of the new checkpoint"),
        (
            ("none.pt", "--scope", "layer", "--out", out),
            "--scope layer changes nothing without --sparsity; add the share of weights to set to zero",
        ),
        (
            ("none.pt", "--out", pruned),
            f"--out '{pruned}' exists already; use another name, or delete it first",
        ),
        (
            (checkpoint, "--out", out),
            f"--out '{out}' would hold the same weights as CHECKPOINT, because nothing is pruned: add "
            "--sparsity, or --sparse to store it compactly",
        ),
        (
            ("none.pt", "--out", tmp_path / "no" / "out.pt"),
            f"--out '{tmp_path}/no/out.pt' can't be written: its folder is missing; make it first",
        ),
        (("none.pt", "--out", ""), "--out '' is not the name of a file; use the name of the new checkpoint"),
        (
            ("none.pt", "--out", f"{out}/"),
            f"--out '{out}/' is not the name of a file; use the name of the new checkpoint",
        ),
        (
            ("none.pt", "--out", "x" * 300 + "/out.pt"),
            f"--out '{'x' * 300}/out.pt' can't be written: its folder is missing; make it first",
        ),
        (
            (pruned, "--sparsity", 0.5, "--out", out),
            "--sparsity 0.5 changes nothing: as many weights are zero already; use a larger share",
        ),
    ):
        with pytest.raises(UsageError) as refused:
            run(*flags)
        assert str(refused.value) == message
    assert pruned.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "pruned.pt"}


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos\n768")], ids=type
)
def test_file_is_there_whole_or_not_at_all(
    run: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A disk that is full leaves nothing behind."""

    def fails(state: Any, file: Any) -> None:
        file.write(b"half")
        raise error

    monkeypatch.setattr(command.torch, "save", fails)
    with pytest.raises(UsageError) as refused:
        run(checkpoint, "--sparsity", 0.5, "--out", tmp_path / "out.pt")
    reason = error.strerror if isinstance(error, OSError) else "unexpected pos 768"
    expected = f"--out '{tmp_path}/out.pt' can't be written ({reason}); make room or use another file"
    assert str(refused.value) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_new_name_is_given_to_what_is_on_the_disk(
    run: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is on the disk before it gets its name, and the name is before the command ends."""
    out, synced = tmp_path / "out.pt", []

    def fsync(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, out.exists()))

    monkeypatch.setattr(command.os, "fsync", fsync)
    run(checkpoint, "--sparsity", 0.5, "--out", out)
    assert synced == [(out.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


@pytest.mark.parametrize(
    ("out", "reason"),
    [("/proc/x.pt", "No such file or directory"), ("x" * 300, "File name too long")],
    ids=["proc", "long"],
)
def test_place_that_takes_no_file(
    run: Any, checkpoint: Path, tmp_path: Path, out: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its folder is there."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as refused:
        run(checkpoint, "--sparsity", 0.5, "--out", out)
    assert str(refused.value) == f"--out '{out}' can't be written ({reason}); use another file"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("limit", [100, 20_000], ids="{} bytes".format)
def test_limit_of_a_files_size(checkpoint: Path, tmp_path: Path, limit: int) -> None:
    """In a process of its own, whose files must stay small: torch hides the system's error behind its own."""
    code = (
        "import resource; from fairseq_imitkd.cli import prune; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); prune.main()"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, checkpoint, "--sparsity", "0.5", "--out", "out.pt"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    reason = "File too large"
    assert (
        done.stderr.splitlines()[-1]
        == f"error: --out 'out.pt' can't be written ({reason}); make room or use another file"
    )
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]

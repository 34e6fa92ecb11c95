"""Everything that runs on a GPU, on an emulated one: no tensor stays on the host, and results are the CPU's.

The emulation has the CPU's arithmetic. In float32 results differ only by the order of sums, where larger
pieces are computed at once.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fairseq_imitkd.cli import cache, seqkd
from fairseq_imitkd.methods import METHODS
from fairseq_imitkd.rollout.cuda_graphs import graph_usage
from tests.helpers import in_process
from tests.helpers.emulated_cuda import Emulation, emulated_cuda

TASK = (
    "--task",
    "translation_with_teacher",
    "--dropout",
    0,
    "--disable-validation",
    "--no-save",
    "--max-update",
    3,
)
HALF = "constant:0.5"


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulation]:
    monkeypatch.setattr(
        in_process, "SETTINGS", tuple(flag for flag in in_process.SETTINGS if flag != "--cpu")
    )
    monkeypatch.setattr(in_process, "DECODE", tuple(flag for flag in in_process.DECODE if flag != "--cpu"))
    with emulated_cuda() as emulation:
        yield emulation


@pytest.fixture(scope="module")
def on_host(digits, teacher, tmp_path_factory) -> Any:
    """Return the weights after a training on the CPU, computed once for each set of flags."""
    trained: dict[tuple[object, ...], dict[str, Tensor]] = {}

    def train(*flags: object) -> dict[str, Tensor]:
        if flags not in trained:
            folder = tmp_path_factory.mktemp("host")
            trained[flags] = in_process.train(
                digits.data, folder, *TASK, "--teacher-path", teacher, *flags
            ).weights()
        return trained[flags]

    return train


def assert_close(found: in_process.Training, expected: dict[str, Tensor], tolerance: float) -> None:
    for name, value in found.weights().items():
        torch.testing.assert_close(value.cpu().float(), expected[name], rtol=tolerance, atol=tolerance)


# Other methods have one of these divergences, or are trained below with their own flags.
WITH_FLAGS = ("f_distill_rkl", "f_distill_tvd", "f_distill_kl", "distillm", "annealing_kd")
FEATURES: dict[str, tuple[str, tuple[object, ...]]] = {
    **{name: (name, ("--student-share", HALF)) for name in METHODS if name not in WITH_FLAGS},
    "distillm": (
        "distillm",
        ("--student-share", HALF, "--rollout-replay", 60, "--rollout-replay-share", "constant:0.5"),
    ),
    "annealing_kd": ("annealing_kd", ()),
    "f_distill_kl": ("f_distill_kl", ("--teacher-samples",)),
    "rewards": ("gkd", ("--reward", "sentence-bleu")),
    "pool": ("imitkd", ("--student-share", HALF, "--rollout-pool", "--update-freq", 2)),
    "pool of updates": ("imitkd_full", ("--student-share", HALF, "--rollout-pool-updates", 2)),
    "encoder cache": ("imitkd_full", ("--student-share", HALF, "--teacher-encoder-cache", "1M")),
    "teacher on the host": (
        "imitkd_full",
        ("--student-share", HALF, "--teacher-device", "cpu", "--teacher-encoder-cache", "1M"),
    ),
    "teacher on the host, small chunks": (
        "imitkd",
        ("--student-share", HALF, "--teacher-device", "cpu", "--loss-chunk", 16),
    ),
    "small chunks": ("imitkd_full", ("--student-share", HALF, "--loss-chunk", 16)),
    "ema": ("imitkd_full", ("--student-share", HALF, "--store-ema")),
    "pruning": ("imitkd_full", ("--prune-sparsity", 0.5, "--prune-every", 1, "--prune-end", 2)),
    "from teacher": ("imitkd_full", ("--init-from-teacher", "embeddings,encoder", "--student-share", HALF)),
    "gru": ("imitkd_full", ("--arch", "gru", "--student-share", HALF)),
    "sru": ("imitkd_full", ("--arch", "sru", "--student-share", HALF)),
    "lstm": ("imitkd_full", ("--arch", "lstm", "--student-share", HALF)),
}


# In the default run: each kind of work beside the loss, which is tested on the host for all methods.
OFTEN = (
    "imitkd", "gkd", "f_distill_kl", "rewards", "pool of updates",
    "teacher on the host, small chunks", "small chunks", "pruning",
)  # fmt: skip


@pytest.mark.parametrize(
    "feature",
    [each if each in OFTEN else pytest.param(each, marks=pytest.mark.slow) for each in FEATURES],
)
def test_trains_as_on_the_host(feature, digits, teacher, on_host, tmp_path, request):
    criterion, flags = FEATURES[feature]
    expected = on_host("--criterion", criterion, *flags)
    request.getfixturevalue("device")
    found = in_process.train(
        digits.data, tmp_path, *TASK, "--teacher-path", teacher, "--criterion", criterion, *flags
    )
    assert_close(found, expected, 1e-4)


@pytest.mark.parametrize("precision", ["--fp16", "--memory-efficient-fp16", "--amp", "bf16"])
def test_trains_in_every_precision(precision, digits, teacher, on_host, tmp_path, request):
    """Results are near those of float32. Loss scale and copies of weights are fairseq's for GPUs."""
    flags = ("--criterion", "imitkd_full", "--student-share", HALF)
    expected = on_host(*flags)
    request.getfixturevalue("device")
    typed, common = ((), {"bf16": True}) if precision == "bf16" else ((precision,), {})
    found = in_process.train(
        digits.data, tmp_path, *TASK, "--teacher-path", teacher, *flags, *typed, common=common
    )
    assert_close(found, expected, 1e-2)


@pytest.mark.parametrize(
    ("policy", "precision"),
    [("greedy", ()), ("greedy", ("--fp16",)), ("greedy", ("--amp",)), ("speculative", ())],
)
def test_trains_with_cuda_graphs(policy, precision, digits, teacher, on_host, tmp_path, request):
    """The weights change between replays, and the rollouts are those of the new weights."""
    flags = ("--criterion", "imitkd", "--student-share", "constant:1", "--rollout-policy", policy)
    expected = on_host(*flags)
    request.getfixturevalue("device")
    found = in_process.train(
        digits.data, tmp_path, *TASK, "--teacher-path", teacher, *flags, *precision
    )  # fmt: skip
    assert_close(found, expected, 1e-2 if precision else 1e-4)
    assert graph_usage(found.trainer.get_model().decoder)[0].replayed


def test_resumes_as_if_uninterrupted(digits, teacher, tmp_path, device):
    flags = ("--task", "translation_with_teacher", "--teacher-path", teacher, "--criterion", "imitkd_full",
             "--disable-validation", "--student-share", HALF, "--save-interval-updates", 3)  # fmt: skip
    whole = in_process.train(digits.data, tmp_path / "whole", *flags, "--max-update", 6).weights()
    in_process.train(digits.data, tmp_path / "parts", *flags, "--max-update", 3)
    resumed = in_process.train(digits.data, tmp_path / "parts", *flags, "--max-update", 6)
    assert all(value.cpu().equal(whole[name].cpu()) for name, value in resumed.weights().items())
    assert graph_usage(resumed.trainer.get_model().decoder)[0].replayed


def test_validates_and_chooses_by_bleu(digits, teacher, tmp_path, device):
    done = in_process.train(
        digits.data, tmp_path, "--task", "translation_with_teacher", "--teacher-path", teacher,
        "--criterion", "distillm", "--max-update", 4, "--validate-interval-updates", 2, "--eval-bleu",
        "--eval-bleu-args", '{"beam": 1}', "--no-save",
    )  # fmt: skip
    assert len(done.metrics["valid"]) >= 2
    assert all("bleu" in metrics for metrics in done.metrics["valid"])


@pytest.mark.parametrize("search", [("--beam", 1), ("--beam", 2)], ids=["greedy", "beam"])
def test_generates_as_on_the_host(search, digits, teacher, tmp_path, request):
    flags = (
        "--task",
        "translation_with_teacher",
        "--user-dir",
        Path(in_process.fairseq_imitkd.__file__).parent,
        *search,
    )
    expected = in_process.generate(digits.data, teacher, tmp_path / "host", *flags)
    request.getfixturevalue("device")
    assert in_process.generate(digits.data, teacher, tmp_path / "device", *flags) == expected


@pytest.mark.parametrize("keep", ["topk:8", "hidden"])
def test_caches_a_teacher_and_learns_from_it(keep, digits, teacher, tmp_path, device):
    where = tmp_path / "cache"
    cache.main([str(digits.data), "--teacher-path", str(teacher), "--teacher-data", str(digits.data),
                "--out", str(where), "--keep", keep])  # fmt: skip
    bucket = ("--teacher-topk", 4, "--teacher-tail", "bucket") if keep != "hidden" else ()
    live, cached = (
        in_process.train(digits.data, tmp_path / name, *TASK, "--criterion", "word_kd", *bucket, *flags)
        for name, flags in {"live": ("--teacher-path", teacher), "cached": ("--teacher-cache", where)}.items()
    )
    assert_close(cached, {name: value.cpu() for name, value in live.weights().items()}, 1e-2)


def test_translates_a_corpus(digits, teacher, tmp_path, device):
    for number, select in enumerate([(), ("--select", "sample")]):
        out = tmp_path / str(number)
        seqkd.main(
            [
                str(digits.data),
                "--teacher-path",
                str(teacher),
                "--out",
                str(out),
                "--gen-subset",
                "valid",
                *select,
            ]
        )
        assert (out / "text" / "valid.tgt").read_text()


@pytest.mark.parametrize(
    "flags", [(), ("--rollout-replay", 60, "--rollout-replay-share", "constant:0.5")], ids=["", "replay"]
)
def test_waits_for_the_device_do_not_grow_with_the_batch(flags, digits, teacher, tmp_path, device):
    """The host waits as often for eight times as many sentences; both runs replay in as many updates."""
    counts = []
    for tokens in (300, 2400):
        device.waits.clear()
        in_process.train(
            digits.data, tmp_path / str(tokens), *TASK, "--teacher-path", teacher, "--criterion", "imitkd",
            "--student-share", HALF, "--rollout-max-len-a", 0, "--rollout-max-len-b", 5,
            "--max-tokens", tokens, *flags,
        )  # fmt: skip
        counts.append(Counter(device.waits))
    few, many = counts
    assert many.total() <= few.total() + 2, (few, many)

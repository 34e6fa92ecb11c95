"""``imitkd-seqkd --backend ctranslate2``: fairseq's data set, a checked agreement, runs that go on."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq_imitkd.cli import seqkd as command
from fairseq_imitkd.data.corpus import dataset_builder
from fairseq_imitkd.engines import ctranslate2_convert
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.seqkd import factory, teacher_engine
from fairseq_imitkd.seqkd.factory import make
from tests.helpers.fairseq_models import build_student, trained_student
from tests.helpers.killable import tree
from tests.helpers.seqkd_jobs import job, make_root, refusal, start_command, write_split

FLAGS = ("--backend", "ctranslate2")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("ctranslate"))


def test_only_the_first_sentences_are_compared(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Those of lowest number that can be translated; not in one batch if the job's are smaller."""
    compared: list[list[int]] = []
    stock = teacher_engine.agreement
    monkeypatch.setattr(
        teacher_engine,
        "agreement",
        lambda *given: compared.extend(batch[0] for batch in given[2]) or stock(*given),
    )
    monkeypatch.setattr(teacher_engine, "COMPARED", 10)
    make(job(root, tmp_path / "out", backend="ctranslate2"))
    assert sorted(number for batch in compared for number in batch) == [
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        8,
        9,
        10,
    ]  # 7 is empty
    assert max(map(len, compared)) == 4


def test_whole_run(root: Path, tmp_path: Path, caplog: Any) -> None:
    """The same data set as the fairseq backend's; the manifest tells by what it was made, and how far the two
    agree.
    """
    with caplog.at_level("INFO"):
        made = make(job(root, tmp_path / "ours", backend="ctranslate2")).manifest
    make(job(root, tmp_path / "fairseqs"))
    assert made is not None
    assert made["backend"] == {"name": "ctranslate2", "quantization": "float32"}
    assert made["agreement"] == {"sentences": 59, "identical": 59, "chrf": 100.0}
    assert "59 of the first 59 outputs of CTranslate2 are those of fairseq, chrF 100.00" in caplog.text
    ours, fairseqs = tree(tmp_path / "ours"), tree(tmp_path / "fairseqs")
    assert ours.keys() == fairseqs.keys()
    same = [name for name in ours if ours[name] == fairseqs[name]]
    assert sorted(ours.keys() - set(same)) == [
        "job.json",
        "manifest.json",
        "text/test.tsv",
    ]  # its scores, in the last digit
    theirs = json.loads((tmp_path / "fairseqs" / "manifest.json").read_text())
    assert theirs["backend"] == {"name": "fairseq", "quantization": "float32"}
    assert "agreement" not in theirs
    assert "was begun with backend.name = " in refusal(job(root, tmp_path / "ours"))
    assert "was begun with backend.quantization = " in refusal(
        job(root, tmp_path / "ours", backend="ctranslate2", quantization="int8")
    )


@pytest.mark.parametrize(
    ("step", "fewest"), [(13, 2), pytest.param(4, 5, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_runs_that_stop(step: int, fewest: int, root: Path, tmp_path: Path) -> None:
    """Killed while converting, comparing or translating, the next run ends the same."""
    make(job(root, tmp_path / "whole", backend="ctranslate2"))
    flags, killed = (*FLAGS, "--workers", 1), 0
    for stop_at in range(1, 40, step):
        (folder := tmp_path / f"stop-{stop_at}").mkdir()
        if start_command(root, folder, flags=flags, stop_at=stop_at).end() != 0:
            killed += 1
            assert start_command(root, folder, flags=flags).end() == 0
        assert tree(folder / "out") == tree(tmp_path / "whole"), f"killed before change {stop_at}"
    assert killed >= fewest


def test_conversion_that_was_stopped_leaves_nothing(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Half a model is begun anew and thrown away; a whole one is not made again."""
    some = job(root, tmp_path / "out", backend="ctranslate2")
    rename = Path.rename
    with monkeypatch.context() as patch:
        patch.setattr(
            Path,
            "rename",
            lambda path, new: sys.exit(3) if path.name.endswith("partial") else rename(path, new),
        )
        with pytest.raises(SystemExit):
            make(some)
    assert list((tmp_path / "out" / "decoded").glob("ctranslate2.*.partial"))
    with monkeypatch.context() as patch:
        patch.setattr(factory, "translate", lambda *_: sys.exit(3))
        with pytest.raises(SystemExit):
            make(some)
    kept = tree(tmp_path / "out" / "decoded" / "ctranslate2")
    monkeypatch.setattr(ctranslate2_convert, "convert", None)
    monkeypatch.setattr(teacher_engine, "agreement", None)
    loaded: list[Any] = []
    stock = teacher_engine.CTranslate2Engine
    monkeypatch.setattr(
        teacher_engine,
        "CTranslate2Engine",
        lambda folder, *rest, **more: loaded.append(tree(folder)) or stock(folder, *rest, **more),
    )
    assert make(some).manifest is not None
    assert loaded == [kept]
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_outputs_that_do_not_agree(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Nothing is translated, and the folder is free again."""

    def other(model: Any, *args: Any, **settings: Any) -> None:
        convert(build_student("transformer", 9), *args, **settings)

    convert = ctranslate2_convert.convert
    monkeypatch.setattr(ctranslate2_convert, "convert", other)
    said = refusal(job(root, tmp_path / "out", backend="ctranslate2"))
    assert said.startswith(
        "--backend ctranslate2: its first 59 outputs differ too much from fairseq's, chrF "
    )
    assert said.endswith("with --min-agreement 90; use a lower --min-agreement, or --backend fairseq")
    assert not (tmp_path / "out").exists()
    some = job(root, tmp_path / "out", backend="ctranslate2", min_agreement=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(factory, "translate", lambda *_: sys.exit(3))
        with pytest.raises(SystemExit):
            make(some)
    assert "with --min-agreement 90; use a lower" in refusal(
        job(root, tmp_path / "out", backend="ctranslate2")
    )


def test_agreement_of_what_is_kept(root: Path, tmp_path: Path) -> None:
    """Of the n best, the one that is chosen is compared, not the first. A damaged teacher or corpus is one
    line here too.
    """
    decoding = {"select": "best", "metric": "chrf", "nbest": 3, "beam": 6}
    made = make(
        job(root, tmp_path / "out", backend="ctranslate2", decoding=decoding, min_agreement=0.0)
    ).manifest
    assert made is not None
    first = make(job(root, tmp_path / "first", backend="ctranslate2", decoding={"beam": 6})).manifest
    assert first is not None
    assert first["agreement"]["identical"] == 59 > made["agreement"]["identical"] >= 40
    other = make_root(tmp_path / "other")
    write_split(other / "data", "test", [[4, 500]] * 5, "src")
    write_split(other / "data", "test", [[4]] * 5, "tgt")
    assert "test.src-tgt.src.bin holds symbol 500" in refusal(
        job(other, tmp_path / "new", backend="ctranslate2")
    )
    write_split(other / "data", "test", [[]] * 5, "src")
    assert "no pair is left to train on" in refusal(job(other, tmp_path / "new", backend="ctranslate2"))
    broken = trained_student("transformer")
    broken.decoder.layers[0].fc1.weight.data.fill_(float("nan"))
    damaged = make_root(tmp_path / "damaged", broken)
    assert "its decoder.layers.0.fc1.weight holds numbers that are infinite or not a number" in refusal(
        job(damaged, tmp_path / "nan", backend="ctranslate2")
    )


def test_sentences_of_other_tools(root: Path, tmp_path: Path) -> None:
    """One without an EOS would lose its last word."""
    other = make_root(tmp_path / "other")
    with dataset_builder(other / "data" / "test.src-tgt.src", 20) as builder:
        for _ in range(60):
            builder.add_item(torch.tensor([4, 5]))
    assert refusal(job(other, tmp_path / "out")).startswith(
        "sentence 0 of DATA does not end in an EOS; binarise the data with"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "onnx"}, "--backend must be one of fairseq, ctranslate2, but is onnx"),
        (
            {"backend": "ctranslate2", "min_agreement": 101.0},
            "--min-agreement must be in 0..100, but is 101.0",
        ),
        (
            {"backend": "ctranslate2", "decoding": {"select": "sample", "beam": 5}},
            "--select must be first or best or mbr with --backend ctranslate2, but is sample; use --backend "
            "fairseq",
        ),
        (
            {"backend": "ctranslate2", "decoding": {"unkpen": 1.0}},
            "--unkpen must be 0.0 with --backend ctranslate2, but is 1.0; use --backend fairseq",
        ),
        (
            {"backend": "ctranslate2", "teacher_dtype": "bf16"},
            "--teacher-dtype must be fp32 with --backend ctranslate2, but is bf16; use --backend fairseq",
        ),
        (
            {"backend": "ctranslate2", "teacher": "a:b"},
            "--backend ctranslate2 translates with one model, not an ensemble; use --backend fairseq",
        ),
        (
            {"backend": "ctranslate2", "quantization": "float16"},
            "--quantization must be one of ",
        ),
    ],
    ids=str,
)
def test_refusals(root: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """Before anything is read."""
    with pytest.raises(UsageError) as error:
        job(root, tmp_path / "out", **changes)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("flag", [("--quantization", "int8"), ("--min-agreement", "50")])
def test_flags_of_the_other_backend(root: Path, tmp_path: Path, flag: tuple[str, str]) -> None:
    given = [
        str(root / "data"),
        "--teacher-path",
        str(root / "teacher.pt"),
        "--out",
        str(tmp_path / "out"),
        "--cpu",
        *flag,
    ]
    with pytest.raises(
        UsageError, match=f"^{flag[0]} changes nothing with --backend fairseq; add --backend ctranslate2$"
    ):
        command.main(given)
    args = command.parser().parse_args([*given, *FLAGS])
    assert getattr(command.job(args), flag[0].strip("-").replace("-", "_")) in ("int8", 50.0)


def test_package_that_is_not_there(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """It is an extra."""
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    make(job(root, tmp_path / "out"))
    with pytest.raises(
        UsageError, match=r"^--backend ctranslate2 needs CTranslate2: pip install 'fairseq-imitkd\[fast\]'$"
    ):
        job(root, tmp_path / "other", backend="ctranslate2")


def test_teacher_that_it_does_not_compute(root: Path, tmp_path: Path) -> None:
    """Says why, and leaves the folder free."""
    other = make_root(
        tmp_path / "tanh", build_student("transformer", activation_fn="tanh"), "--activation-fn", "tanh"
    )
    said = refusal(job(other, tmp_path / "out", backend="ctranslate2", teacher_allow_poor=True))
    assert said == (
        f"--backend ctranslate2 can't compute --teacher-path '{other / 'teacher.pt'}': "
        "its --activation-fn is not relu, gelu, gelu_accurate or swish; use --backend fairseq"
    )
    assert not (tmp_path / "out").exists()

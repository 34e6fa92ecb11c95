"""CTranslate2 as what translates: fairseq's translations, agreement that is checked, and runs that stop and go on."""

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fairseq_imitkd.cli import seqkd as command
from fairseq_imitkd.data.corpus import Languages, whole_dataset
from fairseq_imitkd.engines import ctranslate2_convert
from fairseq_imitkd.engines.base import Decoding, FairseqBackend, Hypothesis, Translator
from fairseq_imitkd.engines.ctranslate2 import CTranslateBackend, agreement
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.seqkd import factory
from fairseq_imitkd.seqkd.factory import make
from fairseq_imitkd.teacher.teacher import Teacher
from tests.helpers.fairseq_models import POSITIONS, build_student, letters, reversed_pairs, trained_student
from tests.helpers.killable import tree
from tests.helpers.seqkd_jobs import apart, job, make_root, refusal, write_split

EOS = 2
LANGUAGES = Languages("src", "tgt", letters(), letters(), Path("unused"))
FLAGS = ("--backend", "ctranslate2")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("ctranslate"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student, converted."""
    folder = tmp_path_factory.mktemp("converted") / "model"
    ctranslate2_convert.convert(learnt(), letters(), letters(), folder, "float32")
    return folder


def learnt() -> Any:
    """A trained student that never thinks of padding: its probability would be shared out differently."""
    model: Any = trained_student("transformer")
    projection = model.decoder.output_projection
    model.decoder.output_projection = torch.nn.Linear(projection.in_features, projection.out_features)
    model.decoder.output_projection.weight = projection.weight
    model.decoder.output_projection.bias = torch.nn.Parameter(
        torch.zeros(len(letters())).index_fill(0, torch.tensor(1), -1e4)
    )
    return model


def sentences(count: int, seed: int = 1) -> list[Tensor]:
    sources = [
        torch.tensor([4 + letter for letter in source] + [EOS]) for source, _ in reversed_pairs(count, seed)
    ]
    return sorted(sources, key=len, reverse=True)


def both(model: Path, decoding: Decoding) -> tuple[CTranslateBackend, FairseqBackend]:
    teacher = Teacher([learnt()], "fp32")
    teacher.place(torch.device("cpu"), torch.float32)
    ours = CTranslateBackend(model, LANGUAGES, decoding, POSITIONS, torch.device("cpu"), "float32")
    return ours, FairseqBackend(teacher.writer, LANGUAGES, decoding, teacher.max_positions[1])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"min_len": 0},
        {"min_len": 0, "beam": 1},
        {"beam": 8},
        {"beam": 3, "lenpen": 0.3},
        {"lenpen": 2.0, "min_len": 0},
    ],
    ids=str,
)
def test_translations_are_fairseqs(model: Path, settings: dict[str, Any]) -> None:
    """The best of every sentence. Its score too, if no token was forbidden on the way."""
    ours, fairseqs = both(model, Decoding(**settings))
    sources = sentences(40)
    for found, expected in zip(
        ours.translate(range(40), sources, 1), fairseqs.translate(range(40), sources, 1), strict=True
    ):
        assert [each.tokens.tolist() for each in found] == [each.tokens.tolist() for each in expected]
        if settings.get("min_len") == 0:
            assert found[0].score == pytest.approx(expected[0].score, abs=1e-4)
        assert found[0].tokens.dtype == torch.int64


@pytest.mark.parametrize("settings", [{"min_len": 3}, {"no_repeat_ngram_size": 2}], ids=str)
def test_what_is_forbidden(model: Path, settings: dict[str, Any]) -> None:
    """Is not written; where much of the probability was on it, the two searches may part."""
    ours, fairseqs = both(model, Decoding(**settings))
    sources = sentences(40)
    found, expected = (
        [some[0].tokens.tolist() for some in backend.translate(range(40), sources, 1)]
        for backend in (ours, fairseqs)
    )
    for tokens in found:
        assert len(tokens) > settings.get("min_len", 0)
        pairs = list(itertools.pairwise(tokens))
        assert "min_len" in settings or len(set(pairs)) == len(pairs)
    free, _ = both(model, Decoding())
    assert found != [some[0].tokens.tolist() for some in free.translate(range(40), sources, 1)]
    assert sum(one == other for one, other in zip(found, expected, strict=True)) >= 28


def test_several_hypotheses_are_fairseqs(model: Path) -> None:
    """In their order, for --select best to choose from. Of a beam's last, each search keeps its own."""
    ours, fairseqs = both(model, Decoding(select="best", metric="chrf", beam=6, nbest=3))
    sources = sentences(40)
    found, expected = (backend.translate(range(40), sources, 3) for backend in (ours, fairseqs))
    assert {len(some) for some in found} == {3}
    same = [
        [each.tokens.tolist() for each in some] == [each.tokens.tolist() for each in others]
        for some, others in zip(found, expected, strict=True)
    ]
    assert [some[0].tokens.tolist() for some in found] == [some[0].tokens.tolist() for some in expected]
    assert sum(same) >= 30


@pytest.mark.parametrize("cap", [1, 2, 3])
def test_length_cap(model: Path, cap: int) -> None:
    """As many tokens and an EOS, as fairseq has it; what the cap has cut is known."""
    ours, fairseqs = both(model, Decoding(max_len_b=cap))
    sources = sentences(20)
    found = [some[0] for some in ours.translate(range(20), sources, 1)]
    assert all(each.tokens[-1] == EOS and each.tokens[:-1].ne(EOS).all() for each in found)
    assert max(each.tokens.numel() for each in found) == cap + 1
    assert all(each.cut for each in found if each.tokens.numel() == cap + 1 and each.score < -3.0)
    assert any(each.cut for each in found)
    assert [each.cut for each in found if each.tokens.numel() <= cap] == [False] * sum(
        f.tokens.numel() <= cap for f in found
    )
    uncut = [number for number, each in enumerate(found) if not each.cut]
    theirs = fairseqs.translate(range(20), sources, 1)
    assert sum(
        found[number].tokens.tolist() == theirs[number][0].tokens.tolist() for number in uncut
    ) >= 0.8 * len(uncut)


def test_cap_of_the_model(model: Path) -> None:
    """No target is longer than the model has positions for."""
    ours = CTranslateBackend(model, LANGUAGES, Decoding(min_len=7), 9, torch.device("cpu"), "float32")
    found = ours.translate(range(5), sentences(5), 1)
    assert all(8 <= some[0].tokens.numel() <= 9 for some in found)


class Scripted:
    """Writes what it is told."""

    def __init__(self, outputs: dict[int, list[int]]):
        self.outputs, self.asked = outputs, []

    def translate(self, ids: Any, sources: Any, nbest: int) -> list[list[Hypothesis]]:
        self.asked += ids
        return [[Hypothesis(torch.tensor([*self.outputs[number], EOS]), -1.0, False)] for number in ids]


def test_agreement() -> None:
    """How many translations are the same, and chrF of ours against theirs."""
    theirs, ours = (
        Translator(
            Scripted({n: [4, 5, 6, 7] if n % 2 or same else [8, 9, 10, 11] for n in range(9)}),
            Decoding(),
            LANGUAGES,
        )
        for same in (True, False)
    )
    source = torch.tensor([4, EOS])
    batches = [([0, 1, 2, 3, 4], [source] * 5, None), ([8, 5], [source] * 2, None)]
    found = agreement(ours, theirs, batches, LANGUAGES)
    assert ours.backend.asked == theirs.backend.asked == [0, 1, 2, 3, 4, 8, 5]
    assert (found["sentences"], found["identical"]) == (7, 3)
    assert 20 < found["chrf"] < 70
    assert agreement(theirs, theirs, batches, LANGUAGES) == {"sentences": 7, "identical": 7, "chrf": 100.0}


def test_only_the_first_sentences_are_compared(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Those of lowest number that can be translated; not in one batch if the job's are smaller."""
    compared: list[list[int]] = []
    stock = factory.agreement
    monkeypatch.setattr(
        factory, "agreement", lambda *given: compared.extend(batch[0] for batch in given[2]) or stock(*given)
    )
    monkeypatch.setattr(factory, "COMPARED", 10)
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
    """The same data set as the fairseq backend's; the manifest tells by what it was made, and how far the two agree."""
    with caplog.at_level("INFO"):
        made = make(job(root, tmp_path / "ours", backend="ctranslate2")).manifest
    make(job(root, tmp_path / "fairseqs"))
    assert made is not None
    assert made["backend"] == {"name": "ctranslate2", "quantization": "float32"}
    assert made["agreement"] == {"sentences": 59, "identical": 59, "chrf": 100.0}
    assert "59 of the first 59 outputs of CTranslate2 are fairseq's, chrF 100.00" in caplog.text
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


def test_runs_that_stop(root: Path, tmp_path: Path) -> None:
    """Killed while converting, comparing or translating, the next run ends the same."""
    make(job(root, tmp_path / "whole", backend="ctranslate2"))
    flags, killed = (*FLAGS, "--workers", 1), 0
    for stop_at in range(1, 40, 4):
        (folder := tmp_path / f"stop-{stop_at}").mkdir()
        if apart(root, folder, flags=flags, stop_at=stop_at).end() != 0:
            killed += 1
            assert apart(root, folder, flags=flags).end() == 0
        assert tree(folder / "out") == tree(tmp_path / "whole"), f"killed before change {stop_at}"
    assert killed >= 5


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
    monkeypatch.setattr(factory, "agreement", None)
    loaded: list[Any] = []
    backend = factory.CTranslateBackend
    monkeypatch.setattr(
        factory,
        "CTranslateBackend",
        lambda folder, *rest: loaded.append(tree(folder)) or backend(folder, *rest),
    )
    assert make(some).manifest is not None
    assert loaded == [kept]
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_outputs_that_do_not_agree(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Nothing is translated, and the folder is free again."""

    def other(model: Any, *args: Any) -> None:
        convert(build_student("transformer", 9), *args)

    convert = ctranslate2_convert.convert
    monkeypatch.setattr(ctranslate2_convert, "convert", other)
    said = refusal(job(root, tmp_path / "out", backend="ctranslate2"))
    assert said.startswith("--backend ctranslate2: its first 59 outputs are too unlike fairseq's, chrF ")
    assert said.endswith("where --min-agreement is 90: use a lower --min-agreement, or --backend fairseq")
    assert not list((tmp_path / "out").iterdir())
    some = job(root, tmp_path / "out", backend="ctranslate2", min_agreement=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(factory, "translate", lambda *_: sys.exit(3))
        with pytest.raises(SystemExit):
            make(some)
    assert "where --min-agreement is 90: use a lower" in refusal(
        job(root, tmp_path / "out", backend="ctranslate2")
    )


def test_agreement_of_what_is_kept(root: Path, tmp_path: Path) -> None:
    """Of the n best, the one that is chosen is compared, not the first. A damaged teacher or corpus is one line here too."""
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
    assert "sentence 0 of DATA holds symbol 500" in refusal(
        job(other, tmp_path / "new", backend="ctranslate2")
    )
    write_split(other / "data", "test", [[]] * 5, "src")
    assert "no pair is left to train on" in refusal(job(other, tmp_path / "new", backend="ctranslate2"))
    broken = trained_student("transformer")
    broken.decoder.layers[0].fc1.weight.data.fill_(float("nan"))
    damaged = make_root(tmp_path / "damaged", broken)
    assert "the teacher's scores are no numbers" in refusal(
        job(damaged, tmp_path / "nan", backend="ctranslate2")
    )


def test_sentences_of_other_tools(root: Path, tmp_path: Path) -> None:
    """One without an EOS would lose its last word."""
    other = make_root(tmp_path / "other")
    with whole_dataset(other / "data" / "test.src-tgt.src", 20) as builder:
        for _ in range(60):
            builder.add_item(torch.tensor([4, 5]))
    assert refusal(job(other, tmp_path / "out")).startswith(
        "sentence 0 of DATA does not end in an EOS: binarise the data with"
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
            "--select must be first or best under --backend ctranslate2, but is sample: use --backend fairseq",
        ),
        (
            {"backend": "ctranslate2", "decoding": {"unkpen": 1.0}},
            "--unkpen must be 0.0 under --backend ctranslate2, but is 1.0: use --backend fairseq",
        ),
        (
            {"backend": "ctranslate2", "teacher_dtype": "bf16"},
            "--teacher-dtype must be fp32 under --backend ctranslate2, but is bf16: use --backend fairseq",
        ),
        (
            {"backend": "ctranslate2", "teacher": "a:b"},
            "--backend ctranslate2 translates with one model, not an ensemble: use --backend fairseq",
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
        UsageError, match=f"^{flag[0]} changes nothing under --backend fairseq: add --backend ctranslate2$"
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
    said = refusal(job(other, tmp_path / "out", backend="ctranslate2"))
    assert said == (
        f"--backend ctranslate2 can't compute --teacher-path '{other / 'teacher.pt'}': "
        "its --activation-fn is not relu, gelu or gelu_accurate; use --backend fairseq"
    )
    assert not list((tmp_path / "out").iterdir())
    shutil.rmtree(tmp_path / "out")

"""The CTranslate2 engine: its translations and scores are fairseq's."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.engines import ctranslate2_convert
from fairseq_imitkd.engines.base import SearchSettings
from fairseq_imitkd.engines.ctranslate2 import CTranslate2Engine
from fairseq_imitkd.engines.fairseq import FairseqEngine
from fairseq_imitkd.engines.registry import open_engine
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.teacher.teacher import Teacher
from tests.helpers.fairseq_models import LETTERS, POSITIONS, letters, reversed_pairs, trained_student

EOS = 2
LANGUAGES = Languages("src", "tgt", letters(), letters(), Path("unused"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student, converted."""
    folder = tmp_path_factory.mktemp("converted") / "model"
    ctranslate2_convert.convert(learnt(), LANGUAGES, folder, quantization="float32")
    return folder


def learnt() -> Any:
    """A trained student that gives padding no probability, which CTranslate2 would share out differently."""
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


def both(model: Path, decoding: SearchSettings) -> tuple[CTranslate2Engine, FairseqEngine]:
    teacher = Teacher([learnt()], dtype="fp32")
    teacher.place(torch.device("cpu"), torch.float32)
    ours = engine(model, decoding)
    return ours, FairseqEngine(teacher.writer, LANGUAGES, decoding, longest_target=teacher.max_positions[1])


def engine(model: Path, settings: SearchSettings, longest_target: int = POSITIONS) -> CTranslate2Engine:
    return CTranslate2Engine(
        model,
        LANGUAGES,
        settings,
        longest_target=longest_target,
        device=torch.device("cpu"),
        compute_type="float32",
    )


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
    """The best of every sentence, and its score too if no token was forbidden on the way."""
    ours, fairseqs = both(model, SearchSettings(**settings))
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
    """It is not written; the two searches may differ where it had much of the probability."""
    ours, fairseqs = both(model, SearchSettings(**settings))
    sources = sentences(40)
    found, expected = (
        [some[0].tokens.tolist() for some in backend.translate(range(40), sources, 1)]
        for backend in (ours, fairseqs)
    )
    for tokens in found:
        assert len(tokens) > settings.get("min_len", 0)
        pairs = list(itertools.pairwise(tokens))
        assert "min_len" in settings or len(set(pairs)) == len(pairs)
    free, _ = both(model, SearchSettings())
    assert found != [some[0].tokens.tolist() for some in free.translate(range(40), sources, 1)]
    assert sum(one == other for one, other in zip(found, expected, strict=True)) >= 28


def test_several_hypotheses_are_fairseqs(model: Path) -> None:
    """In their order, for --select best; the last ones of a beam may differ."""
    ours, fairseqs = both(model, SearchSettings(select="best", metric="chrf", beam=6, nbest=3))
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
    """As many tokens and an EOS, as in fairseq; what the limit cut is marked."""
    ours, fairseqs = both(model, SearchSettings(max_len_b=cap))
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
    ours = engine(model, SearchSettings(min_len=7), longest_target=9)
    found = ours.translate(range(5), sentences(5), 1)
    assert all(8 <= some[0].tokens.numel() <= 9 for some in found)


def test_dictionaries_of_another_model_are_refused(model: Path) -> None:
    """Its words would be other ones: CTranslate2 takes them by their names."""
    permuted = letters(LETTERS[::-1])
    ctranslate2_convert.check_vocabulary(model, LANGUAGES)
    for pair, language in (
        (Languages("src", "tgt", permuted, letters(), model), "src"),
        (Languages("src", "tgt", letters(), permuted, model), "tgt"),
    ):
        with pytest.raises(UsageError, match=rf"other symbols than dict\.{language}\.txt"):
            open_engine("ctranslate2", model, pair, settings=SearchSettings(), longest=(64, 64))


def test_a_machine_without_a_gpu(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CTranslate2 itself would speak of CUDA's driver, and name no flag."""
    monkeypatch.setattr(ctranslate2_convert.library(), "get_cuda_device_count", lambda: 0)
    with pytest.raises(UsageError, match=r"^--device cuda can't be used: .*; use --device cpu, or look at"):
        open_engine(
            "ctranslate2", model, LANGUAGES, settings=SearchSettings(), longest=(64, 64), device="cuda"
        )

"""The parts of imitkd-evaluate: what is counted, timed, scored and refused."""

import errno
import itertools
import json
import os
import random
import re
import sys
import time
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sacrebleu.metrics import BLEU, CHRF, TER
from tqdm import tqdm

from fairseq_imitkd.checkpoints import comet
from fairseq_imitkd.cli.evaluate import main
from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.data.files import sha256
from fairseq_imitkd.data.output_folder import OutputFolder
from fairseq_imitkd.engines.base import SearchSettings
from fairseq_imitkd.engines.ctranslate2 import CTranslate2Engine
from fairseq_imitkd.engines.ctranslate2_convert import convert
from fairseq_imitkd.engines.fairseq import FairseqEngine
from fairseq_imitkd.engines.onnx import OnnxEngine
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.evaluate import evaluation, folder, memory, models, provenance, quality
from fairseq_imitkd.evaluate.markdown import markdown
from fairseq_imitkd.evaluate.quality import Metrics
from fairseq_imitkd.evaluate.schema import EvaluationResults, QualityScore, Quartiles, from_json, to_json
from fairseq_imitkd.evaluate.sentences import Detokenizer, read, spread
from fairseq_imitkd.evaluate.speed import Failures, Timing, interleave, quartiles, speed_result
from fairseq_imitkd.text import bootstrap
from fairseq_imitkd.text.subwords import TextSettings
from tests.helpers import comet_models
from tests.helpers.evaluations import EOS, ScriptedModel, hide, output_of, sentences, tokens, write
from tests.helpers.exports import make_students
from tests.helpers.fairseq_models import (
    build_student,
    checkpoint_state,
    trained_student,
    training_config,
    write_dictionaries,
)
from tests.helpers.huggingface_models import sentencepiece_model
from tests.helpers.seqkd_jobs import write_split

WORDS = [
    "the",
    "a",
    "man",
    "woman",
    "dog",
    "dogs",
    "run",
    "runs",
    "running",
    "red",
    "shirt",
    "street,",
    "park.",
    "people",
]
GREEDY = SearchSettings(beam=1, max_len_b=12)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """``data``, ``transformer.pt``, ``gru.pt``."""
    return make_students(tmp_path_factory.mktemp("students"))


@pytest.fixture(scope="module")
def languages(root: Path) -> Languages:
    return Languages.of(root / "data", "src", "tgt")


def systems(count: int = 60) -> tuple[list[str], dict[str, list[str]]]:
    """References, and systems that spoil ever more of their words; some of their sentences are empty."""
    drawn = random.Random(1)
    references = [" ".join(drawn.choices(WORDS, k=drawn.randint(2, 24))) for _ in range(count)]

    def spoilt(text: str, share: float) -> str:
        return " ".join(drawn.choice(WORDS) if drawn.random() < share else word for word in text.split())

    found = {
        name: [spoilt(text, share) for text in references]
        for name, share in (("good", 0.2), ("fair", 0.3), ("bad", 0.6))
    }
    found["bad"][3] = ""
    return references, found


# The test set.


def test_numbers_are_evenly_spread() -> None:
    """From the first to the last."""
    assert spread(10, 10).tolist() == list(range(10))
    assert spread(9, 3).tolist() == [0, 4, 8]


def test_batches_hold_each_sentence_once_the_longest_first() -> None:
    """Empty sentences are in none."""
    some = sentences(["a b", "", "a b c d", "a", "a b c"], [""] * 5)
    assert some.translatable() == [0, 2, 3, 4]
    assert some.batches(some.translatable(), 3) == [[2, 4, 0], [3]]


def test_an_unknown_word_of_a_reference_matches_no_translation(root: Path, tmp_path: Path) -> None:
    """As in validation; a file of references has none. A sentence is a line."""
    languages = Languages.of(write_dictionaries(tmp_path), "src", "tgt")
    text = Detokenizer(languages, TextSettings())
    unknown = languages.target_dictionary.unk()
    assert text.target.hypotheses([tokens(4, unknown)]) == ["a ZJZJZ"]
    assert text.target.references([tokens(4, unknown)]) == ["a QXQXQ"]
    for side in ("src", "tgt"):
        write_split(tmp_path, "test", [[4, unknown]], side)
    model = models.load(root / "transformer.pt", languages, GREEDY)
    for right, count in ((None, 1), (write(tmp_path, right=["a b"])["right"], 0)):
        found = read(languages, "test", count=0, models={"one": model}, detokenizer=text, right=right)
        assert found.unknown == count
    languages.source_dictionary.symbols[4] = "x\r\ny"
    assert text.source.sources([tokens(4, 5, unknown)]) == ["x y b <unk>"]


def test_sentences_that_a_model_can_not_read_are_left_out_for_all(
    root: Path, languages: Languages, caplog
) -> None:
    """With a warning that names it; the others keep their order, and those asked for are evenly spread among
    them.
    """
    whole = models.load(root / "transformer.pt", languages, GREEDY)
    found = {"far": whole, "near": replace(whole, longest=(4, 64))}
    text = Detokenizer(languages, TextSettings())
    every, short = (
        read(languages, "test", count=0, models=some, detokenizer=text) for some in ({"far": whole}, found)
    )
    assert len(every) == 60
    assert short.source_texts == [line for line in every.source_texts if len(line.split()) < 4]
    assert f"{60 - len(short)} of 60 sentences are left out for all models" in caplog.text
    assert "their source is longer than the 4 tokens of near" in caplog.text
    brief = read(
        languages, "test", count=0, models={"far": replace(whole, longest=(64, 4))}, detokenizer=text
    )
    assert [row.numel() for row in brief.references] == [
        n for row in every.references if (n := row.numel()) <= 4
    ]
    assert len(brief) < 60
    assert "their reference is longer than the 4 tokens of far" in caplog.text
    some = read(languages, "test", count=3, models=found, detokenizer=text)
    assert list(some.reference_texts) == [short.reference_texts[place] for place in spread(len(short), 3)]


# Speed.


def run_interleaved(
    fails: dict[str, int] | None = None, score: float = -1.0
) -> tuple[list[tuple[str, list[int]]], Failures, Any, Any]:
    asked: list[tuple[str, list[int]]] = []
    some = sentences(
        [" ".join("a" * length) for length in (5, 1, 4, 2, 3, 6, 7, 8, 9, 10, 12, 11)], [""] * 12
    )
    engines = {
        (name, "greedy"): ScriptedModel(name, asked, (fails or {}).get(name), score if name == "b" else -1.0)
        for name in "abc"
    }
    failures = Failures()
    with tqdm(disable=True) as bar:
        timings, found = interleave(
            engines, some, some.batches(some.translatable(), 2), failures=failures, bar=bar
        )
    return asked, failures, timings, found


def test_models_take_turns_in_an_order_drawn_for_each_batch() -> None:
    """Every model translates a batch before any sees the next; the first one, of the shortest sentences, is
    not measured.
    """
    asked, failures, timings, found = run_interleaved()
    rounds = [asked[start : start + 3] for start in range(0, len(asked), 3)]
    assert all(len({tuple(ids) for _, ids in turn}) == 1 for turn in rounds)
    assert all({name for name, _ in turn} == set("abc") for turn in rounds)
    assert len({tuple(name for name, _ in turn) for turn in rounds}) > 2
    assert rounds[0][0][1] == [3, 1]
    measured = [ids for turn in rounds[1:] for _, ids in turn[:1]]
    assert sorted(number for ids in measured for number in ids) == list(range(12))
    assert measured != sorted(measured, key=lambda ids: ids[0])
    assert not failures.reasons
    for run, timing in timings.items():
        assert [each.sentences for each in timing] == [2] * 6
        assert all(each.tokens == 4 and each.seconds > 0 for each in timing)
        assert {number: each.tokens.tolist() for number, each in found[run].items()} == {
            n: [4 + n, EOS] for n in range(12)
        }


def test_a_model_that_fails_leaves_the_others_alone() -> None:
    """And is asked no more."""
    asked, failures, timings, found = run_interleaved({"b": 2})
    assert failures.reasons == {"b": "translating (greedy): no more"}
    assert sum(name == "b" for name, _ in asked) == 3
    assert set(timings) == set(found) == {("a", "greedy"), ("c", "greedy")}
    assert all(len(timing) == 6 for timing in timings.values())


def test_scores_that_are_no_numbers_are_a_failure() -> None:
    """Else a damaged model would be reported as one that writes nonsense."""
    _, failures, timings, _ = run_interleaved(score=float("nan"))
    assert "not finite numbers" in failures.reasons["b"]
    assert ("b", "greedy") not in timings


def test_speed_of_known_times() -> None:
    """Totals over totals, ratios of the same rounds, latencies of single sentences alone."""
    own = [Timing(2, 10, 1.0), Timing(2, 20, 2.0), Timing(2, 30, 4.0), Timing(1, 4, 1.0)]
    base = [Timing(2, 10, 2.0), Timing(2, 20, 2.0), Timing(2, 30, 2.0), Timing(1, 4, 4.0)]
    found = speed_result(own, base, "greedy")
    assert found.sentences_per_second == 7 / 8
    assert found.tokens_per_second == 8.0
    assert found.times_baseline == Quartiles(median=1.5, low=0.875, high=2.5)
    assert found.p50_ms is None
    single = speed_result([Timing(1, 5, 0.1), Timing(1, 5, 0.2), Timing(1, 5, 0.3)], None, "greedy")
    assert single.times_baseline is None
    assert single.p50_ms == pytest.approx(200.0)
    assert single.p95_ms == pytest.approx(290.0)
    assert single.rounds.count == 3


def test_quartiles_of_one_value() -> None:
    """Where the test set is one batch."""
    assert quartiles([3.0]) == Quartiles(median=3.0, low=3.0, high=3.0)


# Quality.


def test_scores_are_those_of_sacrebleus_command_line(tmp_path: Path) -> None:
    """To the last digit: scores, signatures, confidence intervals and p."""
    references, found = systems()
    paths = write(tmp_path, references=references, **found)
    metrics = Metrics(sentences(references, references), "en")
    compared = metrics.compare(found, "good")
    command = ("sacrebleu", paths["references"], "-m", "bleu", "chrf", "ter", "-w", "12")
    alone = output_of(*command, "--confidence", "-i", paths["good"])
    for said, key in zip(
        sorted(json.loads(alone), key=lambda each: each["name"]), ("bleu", "ter", "chrf"), strict=True
    ):
        score, own = compared["good"][key], said["score"]
        assert round(score.score, 12) == own
        # Its paired test takes means in single precision, its test of one system does not.
        middle, half = (score.low + score.high) / 2, (score.high - score.low) / 2
        assert (middle, half) == pytest.approx((said["confidence_mean"], said["confidence_var"]), abs=1e-4)
        assert metrics.signatures[key] == said["signature"]
    paired = (*command, "--paired-bs", "--no-color", "-f", "text", "-i", *(paths[name] for name in found))
    rows = [line for line in output_of(*paired).splitlines() if line.startswith("│") and "95% CI" not in line]
    scored = [re.findall(r"([\d.]+) \(([\d.]+) ± ([\d.]+)\)", row) for row in rows if "±" in row]
    chances = [re.findall(r"\(p = ([\d.]+)\)", row) for row in rows if "(p = " in row]
    for name, said, p in zip(found, scored, [[None] * 3, *chances], strict=True):
        for key, (score, mean, half), chance in zip(("bleu", "chrf", "ter"), said, p, strict=True):
            own = compared[name][key]
            assert f"{own.score:.12f}" == score
            assert (own.low, own.high) == pytest.approx(
                (float(mean) - float(half), float(mean) + float(half)), abs=1e-11
            )
            assert (own.p if chance is None else f"{own.p:.4f}") == chance


def test_several_right_translations(root: Path, languages: Languages, tmp_path: Path) -> None:
    """All metrics compare with all of them, as sacreBLEU does; a file has them by line."""
    references, found = systems(12)
    own = sentences(references, references)
    right = [[text, f"{text} once", text.upper()][: 1 + number % 3] for number, text in enumerate(references)]
    metrics = Metrics(replace(own, right=right), "en")
    columns = [[texts[place] if place < len(texts) else None for texts in right] for place in range(3)]
    other = [texts[-1] for texts in right]
    assert all("nrefs:var" in signature for signature in metrics.signatures.values())
    compared = metrics.compare({"bad": found["bad"], "last": other}, None)
    assert compared["last"]["bleu"].score == pytest.approx(100.0)
    for name, metric in (("bleu", BLEU(trg_lang="en")), ("chrf", CHRF()), ("ter", TER())):
        expected = metric.corpus_score(found["bad"], columns).score
        assert compared["bad"][name].score == pytest.approx(expected)
    assert metrics.bleu(other[:5], range(5)) == pytest.approx(100.0)

    models_ = {"one": models.load(root / "transformer.pt", languages, GREEDY)}
    text = Detokenizer(languages, TextSettings())
    whole = read(languages, "test", count=0, models=models_, detokenizer=text)
    lines = [f"{line}\t{line}\ragain\t\t" for line in whole.reference_texts]  # which ends no line
    paths = write(tmp_path, right=[f"\ufeff{lines[0]}", *lines[1:-1], "\t"], short=lines[1:])
    some = read(languages, "test", count=3, models=models_, detokenizer=text, right=paths["right"])
    assert some.right is not None
    numbers = spread(len(whole), 3)
    texts = [whole.reference_texts[number] for number in numbers[:-1]]
    assert some.right == [*([text, f"{text} again"] for text in texts), [""]]
    assert some.reference_texts == [*texts, ""]
    with pytest.raises(
        UsageError, match="must have a line for each of the 60 sentences of --gen-subset, but"
    ):
        read(languages, "test", count=0, models=models_, detokenizer=text, right=paths["short"])


def test_each_system_is_read_and_resampled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By each metric: TER alone takes seconds for thousands of sentences, and the bootstrap computes
    thousands of scores.
    """
    references, found = systems(20)
    metrics = Metrics(sentences(references, references), "en")
    counts: dict[str, int] = {}

    def count(metric, key: str, work: str) -> None:
        stock = getattr(metric, work)

        def counted(*args):
            counts[key + work] = counts.get(key + work, 0) + 1
            return stock(*args)

        monkeypatch.setattr(metric, work, counted)

    for key, metric in metrics.metrics.items():
        for work in ("_compute_segment_statistics", "_compute_score_from_stats"):
            count(metric, key.lower(), work)
    metrics.compare(found, "good")
    assert counts == {
        f"{key}{work}": len(found) * each
        for key in ("bleu", "chrf", "ter")
        for work, each in (
            ("_compute_segment_statistics", 20),
            ("_compute_score_from_stats", bootstrap.RESAMPLES + 1),
        )
    }


def test_ter_can_be_left_out(caplog) -> None:
    """Of long texts it takes hours, which is said before it begins."""
    long = [" ".join(WORDS * 3)] * 2
    Metrics(sentences(long, long), "en")
    assert (
        "TER of references of 42 words is slow: thousands take hours; --no-ter leaves it out" in caplog.text
    )
    caplog.clear()
    metrics = Metrics(sentences(long, long), "en", ter=False)
    assert set(metrics.compare({"one": long}, None)["one"]) == set(metrics.signatures) == {"bleu", "chrf"}
    Metrics(sentences(WORDS, WORDS), "en")
    assert caplog.text == ""


def test_without_a_baseline_there_is_no_p_but_the_same_intervals() -> None:
    """And what writes the same as the baseline has no p: it would be the least of all."""
    references, found = systems()
    metrics = Metrics(sentences(references, references), "en")
    compared, alone = metrics.compare({**found, "again": found["good"]}, "good"), metrics.compare(found, None)
    for name in found:
        for metric in ("bleu", "chrf", "ter"):
            own, other = alone[name][metric], compared[name][metric]
            assert (own.p, own.difference_low, own.difference_high) == (None, None, None)
            assert (own.score, own.low, own.high) == pytest.approx((other.score, other.low, other.high))
            if name != "good":
                assert other.difference_low is not None
                assert other.difference_high is not None
                difference = other.score - compared["good"][metric].score
                assert other.difference_low < difference < other.difference_high
    assert [compared["again"][metric].p for metric in ("bleu", "chrf", "ter")] == [None] * 3


def test_rouge_is_that_of_its_own_command_line(tmp_path: Path) -> None:
    """Its aggregate is drawn without a seed, so the mean of what it prints for each sentence."""
    references, found = systems(30)
    paths = write(tmp_path, references=references, **found)
    metrics = Metrics(sentences(references, references), "en", extra=["rouge"])
    scores = metrics.compare({"bad": found["bad"]}, None)["bad"]
    out = tmp_path / "rouge.csv"
    output_of(
        "rouge_score.rouge",
        f"--target_filepattern={paths['references']}",
        f"--prediction_filepattern={paths['bad']}",
        f"--output_filename={out}",
        "--use_stemmer",
        "--noaggregate",
    )
    header, *rows = [line.split(",") for line in out.read_text().splitlines()]
    for kind in quality.ROUGE:
        column = header.index(f"{kind}-F")
        printed = [float(row[column]) for row in rows]
        assert scores[kind].score == pytest.approx(sum(printed) / len(printed), abs=1e-6)
        assert scores[kind].score < 0.99
    assert "rouge" in metrics.signatures


def test_rouge_has_the_interval_and_p_of_the_same_resamples() -> None:
    """Against the bootstrap's definition, sentence by sentence; a mean's interval is that of its standard
    error.
    """
    references, found = systems(30)
    metrics = Metrics(sentences(references, references), "en", extra=["rouge"], ter=False)
    scores = metrics.compare(found, "good")
    each = {
        name: [metrics._rouge.score(*pair)["rougeL"].fmeasure for pair in zip(references, texts, strict=True)]
        for name, texts in found.items()
    }
    drawn = np.random.default_rng(12345).choice(30, (bootstrap.RESAMPLES, 30))
    means = {
        name: np.array([np.mean([each[name][number] for number in numbers]) for numbers in drawn])
        for name in found
    }
    ordered = sorted(means["bad"])
    low, high = scores["bad"]["rougeL"].low, scores["bad"]["rougeL"].high
    assert (low + high) / 2 == pytest.approx(means["bad"].mean())
    assert (high - low) / 2 == pytest.approx((ordered[974] - ordered[25]) / 2, rel=0.02)
    real = abs(np.mean(each["bad"]) - np.mean(each["good"]))
    differences = np.abs(means["bad"] - means["good"])
    expected = ((differences - differences.mean() > real).sum() + 1) / (bootstrap.RESAMPLES + 1)
    assert scores["bad"]["rougeL"].p == pytest.approx(expected)
    assert scores["good"]["rougeL"].p is None


def test_bleu_by_length_is_of_just_those_sentences() -> None:
    """Every sentence in one group, the boundaries belong below."""
    lengths = [1, 10, 11, 20, 21, 30, 31, 50, 51, 80]
    texts = [" ".join(WORDS[number % len(WORDS)] for number in range(length)) for length in lengths]
    spoilt = [text if number % 2 else text.replace("man", "dog") for number, text in enumerate(texts)]
    metrics = Metrics(sentences(texts, texts), "en")
    groups = metrics.by_length(spoilt)
    assert [(group.first, group.last) for group in groups] == [
        (0, 10),
        (11, 20),
        (21, 30),
        (31, 50),
        (51, None),
    ]
    assert [group.sentences for group in groups] == [2] * 5
    for start, group in zip(range(0, 10, 2), groups, strict=True):
        assert group.bleu == metrics.bleu(spoilt[start : start + 2], [start, start + 1])
    assert groups[1].bleu < 100.0


def test_comet_is_asked_for_its_own_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is large, and so a stand-in: what it is given, and that nothing is fetched."""
    seen: list[Any] = []
    opened: list[str] = []

    class Model:
        def predict(self, data, **settings):
            seen.append(data)
            if len(seen) > 1:
                raise MemoryError("no\nmore")
            return SimpleNamespace(system_score=0.5)

    monkeypatch.setitem(sys.modules, "comet", comet_models.package(Model(), opened))
    monkeypatch.setattr(comet, "version", lambda package: "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    torch.save({"state_dict": {}}, tmp_path / "blob")
    (tmp_path / "model.ckpt").symlink_to(tmp_path / "blob")
    monkeypatch.chdir(tmp_path)
    metrics = Metrics(
        sentences(["s1", "s2"], ["r1", "r2"]), "en", extra=["comet"], comet_model=Path("model.ckpt")
    )
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    # COMET looks for hparams.yaml two folders above; all of its models' files have the same name.
    assert opened == [str(tmp_path / "model.ckpt")]
    assert metrics.signatures["comet"] == f"unbabel-comet|model:{sha256(tmp_path / 'blob')[:12]}|version:1"
    assert metrics.compare({"one": ["t1", "t2"]}, None)["one"]["comet"] == QualityScore(0.5)
    assert seen == [[{"src": "s1", "mt": "t1", "ref": "r1"}, {"src": "s2", "mt": "t2", "ref": "r2"}]]
    scores = metrics.compare({"one": ["t1", "t2"], "two": ["t1", "t2"]}, None)
    assert (len(seen), metrics.failed) == (2, {"comet": "scoring: no more"})
    assert set(scores["one"]) == set(scores["two"]) == {"bleu", "chrf", "ter"}


def test_comet_that_is_not_installed_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to install."""
    monkeypatch.setitem(sys.modules, "comet", None)
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(UsageError, match=r"--metrics comet needs comet: pip install unbabel-comet"):
        Metrics(sentences(["s"], ["r"]), "en", extra=["comet"], comet_model=tmp_path / "model.ckpt")


def test_a_package_of_another_name_is_no_reason_to_lose_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions are asked for last, after hours of decoding; onnxruntime-gpu is not called onnxruntime."""

    def version(package: str) -> str:
        if package == "onnxruntime":
            raise provenance.PackageNotFoundError(package)
        return "1"

    monkeypatch.setattr(provenance, "version", version)
    assert (
        provenance.versions({"onnx", "rouge"}).items()
        >= {"onnxruntime": "unknown", "rouge-score": "1"}.items()
    )


# Models and their size.


def test_shared_weights_count_once(root: Path, languages: Languages, tmp_path: Path) -> None:
    """Parameters, and the bytes of the file's weights, against a count of distinct memory."""
    model = build_student("transformer-shared-embeddings")
    flags = (
        "--task",
        "translation",
        "--share-all-embeddings",
        "--decoder-layers",
        2,
        "--max-source-positions",
        64,
    )
    cfg = training_config(root / "data", *flags, "--max-target-positions", 64)
    torch.save(checkpoint_state(model, cfg), tmp_path / "shared.pt")
    distinct = {
        weight.data_ptr(): weight.numel() for weight in model.state_dict().values() if weight.numel() > 1
    }
    named = sum(weight.numel() for weight in model.state_dict().values() if weight.numel() > 1)
    loaded = models.load(tmp_path / "shared.pt", languages, GREEDY)
    assert loaded.parameters == sum(distinct.values()) < named
    buffers = sum(weight.numel() for weight in model.state_dict().values() if weight.numel() == 1)
    assert models.weight_bytes(tmp_path / "shared.pt") == 4 * (loaded.parameters + buffers)
    assert (
        loaded.bytes_on_disk
        == (tmp_path / "shared.pt").stat().st_size
        > models.weight_bytes(tmp_path / "shared.pt")
    )


def test_a_folder_takes_the_bytes_of_all_its_files(root: Path, languages: Languages, tmp_path: Path) -> None:
    """Those of folders in it too."""
    loaded = models.load(root / "transformer.pt", languages, GREEDY)
    (tmp_path / "inside").mkdir()
    (tmp_path / "a").write_bytes(b"1234")
    (tmp_path / "inside" / "b").write_bytes(b"123")
    assert replace(loaded, path=tmp_path).bytes_on_disk == 7


def test_the_same_weights_translate_by_another_search(
    root: Path, languages: Languages, tmp_path: Path
) -> None:
    """Whatever the engine; the first one goes on as before."""
    beam = replace(GREEDY, beam=3)
    loaded = models.load(root / "gru.pt", languages, GREEDY)
    for engine in (loaded.engine, OnnxEngine.of_model(loaded.fairseq, languages, GREEDY)):
        other = replace(loaded, engine=engine).translating(beam)
        assert type(other) is type(engine)
        assert isinstance(other, FairseqEngine)
        assert (other.writer.models, other.settings) == ([loaded.fairseq], beam)
        assert other._generator.beam_size == 3
    convert(trained_student("transformer"), languages, tmp_path / "m", quantization="float32")
    backend = CTranslate2Engine(
        tmp_path / "m", languages, GREEDY, longest_target=64, device=torch.device("cpu")
    )
    other = replace(loaded, engine=backend).translating(beam)
    assert (other.settings.beam, backend.settings.beam) == (3, 1)
    assert other._translator is backend._translator
    sources = [tokens(5, 6, 7, 8, 9)]
    by_beam = other.translate([0], sources, 1)[0][0].score
    assert by_beam >= backend.translate([0], sources, 1)[0][0].score


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Linux tells a process's children")
def test_the_measurement_of_memory_ends_with_its_forks(
    root: Path, languages: Languages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many models are left, and whatever files of the user's are named as modules of Python."""
    (tmp_path / "queue.py").write_text("raise SystemExit('my own queue')")
    monkeypatch.chdir(tmp_path)
    one = models.load(root / "transformer.pt", languages, GREEDY)
    found = {f"m{number}": one for number in range(50)}
    settings: dict[str, Any] = {"decoding": GREEDY, "batch": [tokens(4, 5)], "threads": 1}
    with closing(memory.MemoryMeasurement(found, languages, **settings, allow_globals=None)) as measured:
        process = measured.process.pid
        children = Path(f"/proc/{process}/task/{process}/children")
        group, until = None, time.monotonic() + 60
        while group is None and time.monotonic() < until:
            time.sleep(0.01)
            for fork in children.read_text().split():
                with suppress(ProcessLookupError):  # the next one has its turn
                    group = os.getpgid(int(fork))
    assert group == process != os.getpgid(0)
    until = time.monotonic() + 60
    while (alive := _is_running(fork)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not alive


def _is_running(process: str) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="Linux tells how much memory a process had"
)
def test_peak_memory_is_the_models_own(root: Path, languages: Languages, tmp_path: Path) -> None:
    """At least its weights; little more than twice them, which loading takes; and next to nothing for a small
    one.
    """
    wide = {"encoder_ffn_embed_dim": 120_000, "decoder_ffn_embed_dim": 120_000}
    flags = [word for name, size in wide.items() for word in ("--" + name.replace("_", "-"), size)]
    positions = ("--max-source-positions", 64, "--max-target-positions", 64)
    cfg = training_config(root / "data", "--task", "translation", *positions, *flags)
    torch.save(checkpoint_state(build_student("transformer", **wide), cfg), tmp_path / "wide.pt")
    weights = models.weight_bytes(tmp_path / "wide.pt")
    common = {
        "data": languages.folder,
        "source": "src",
        "target": "tgt",
        "decoding": vars(GREEDY),
        "batch": [[4, 5, 2]],
    }
    common = {**common, "threads": 1, "allow_globals": None, "kind": "fairseq"}
    needed = [
        memory._in_a_fork({**common, "path": path})
        for path in (tmp_path / "wide.pt", root / "transformer.pt")
    ]
    assert weights > 60e6
    assert weights < needed[0] < 3 * weights
    assert 0 <= needed[1] < 40e6
    assert memory._in_a_fork({**common, "path": tmp_path / "none.pt"}) is None


# The command line.


def command(root: Path, out: Path, *flags: object, model: str | None = None) -> list[str]:
    given = [
        "--model",
        model or f"one={root / 'transformer.pt'}",
        "--data",
        root / "data",
        "--out",
        out,
        *flags,
    ]
    return [str(word) for word in given]


def refusal(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    """The one line that the command ends with, before it translates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "interleave", lambda *_: pytest.fail("it has begun to translate"))
        with pytest.raises(SystemExit) as ended:
            main(arguments)
    said = capsys.readouterr().err.strip() if isinstance(ended.value.code, int) else str(ended.value.code)
    assert ended.value.code not in (0, None)
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--baseline", "two"], "--baseline takes a name of --model (one), but is 'two'"),
        (["--teacher", "two"], "--teacher takes a name of --model (one), but is 'two'"),
        (["--gen-subset", "none"], "--gen-subset 'none' is not in DATA"),
        (["--model", "one=other"], "--model one is given twice"),
        (["--model", "One=other"], "--model One is given twice"),
        (["--model", "../two=other"], "but is '../two'"),
        (["--model", "other"], "--model must be NAME=PATH, but is 'other'"),
        (["--model", "two=/not/there"], "--model two: '/not/there' does not exist"),
        (
            ["--batch-sizes", "1,0"],
            "--batch-sizes must be whole numbers of 1 or more, joined by commas, but is '1,0'",
        ),
        (["--batch-sizes", "many"], "but is 'many'"),
        (["--sentences", "-1"], "--sentences must be 0 (all) or more, but is -1"),
        (["--beam", "0"], "--beam must be 1 or more, but is 0"),
        (["--speed-sentences", "0"], "must be a whole number of 1 or more, but is '0'"),
        (["--threads", "0"], "must be a whole number of 1 or more, but is '0'"),
        (["--probe-sentences", "5"], "--probe-sentences 5 changes nothing without --teacher"),
        (
            ["--teacher", "one", "--probe-sentences", "-5"],
            "--probe-sentences must be 0 (all) or more, but is -5",
        ),
        (["--metrics", "bertscore"], "--metrics must be some of rouge, comet, but has 'bertscore'"),
        (["--metrics", "comet"], "--metrics comet and --comet-model FILE need each other"),
        (["--metrics", "comet", "--comet-model", "/not/there"], "--comet-model '/not/there' is not a file"),
        (["--remove-bpe", "nothing"], "--remove-bpe must be a subword mark"),
        (["--bpe", "sentencepiece"], "--bpe sentencepiece needs --sentencepiece-model"),
        (["--out", "pyproject.toml"], "exists and is not an evaluation"),
    ],
)
def test_what_is_refused(root: Path, tmp_path: Path, capsys, flags: list[str], expected: str) -> None:
    """In one line that names it."""
    assert expected in refusal(command(root, tmp_path / "out", *flags), capsys)
    assert not (tmp_path / "out").exists()


def test_data_and_models_that_do_not_fit_are_refused(root: Path, tmp_path: Path, capsys) -> None:
    """Other dictionaries, no references, no sentences; a folder that is not an exported student."""
    other = write_dictionaries(tmp_path / "other", target="abcdefghijklmnxy")
    write_split(other, "test", [[4]], "src")
    write_split(other, "test", [[4]], "tgt")
    out = tmp_path / "out"
    said = refusal(
        ["--model", f"one={root / 'transformer.pt'}", "--data", str(other), "--out", str(out)], capsys
    )
    assert said.startswith("error: --model one: CHECKPOINT")
    assert "has 'o' at index 18, but --data has 'x'" in said
    alone = write_dictionaries(tmp_path / "alone")
    write_split(alone, "test", [[4]], "src")
    given = ["--model", f"one={root / 'transformer.pt'}", "--out", str(out), "--data"]
    assert "--gen-subset test has no target side" in refusal(
        [*given, str(alone), "-s", "src", "-t", "tgt"], capsys
    )
    nothing = write_dictionaries(tmp_path / "nothing")
    for side in ("src", "tgt"):
        write_split(nothing, "test", [[]], side)
    assert "has no sentence with words" in refusal([*given, str(nothing)], capsys)
    assert "is not an exported student" in refusal(command(root, out, model=f"one={alone}"), capsys)
    assert "--teacher one is an exported model" in refusal(
        command(root, out, "--teacher", "one", model=f"one={alone}"), capsys
    )


def test_a_folder_that_holds_something_else_stays_as_it_is(root: Path, tmp_path: Path, capsys) -> None:
    """Also one whose evaluation.json is none; leftovers of a run that was killed are nothing."""
    (tmp_path / "notes.txt").touch()
    assert "exists and is not an evaluation" in refusal(command(root, tmp_path), capsys)
    (tmp_path / "evaluation.json").write_text("[]")
    assert "is damaged or another program's file" in refusal(command(root, tmp_path), capsys)
    (tmp_path / "evaluation.json").write_text("{}")
    assert "its evaluation.json is another program's" in refusal(command(root, tmp_path), capsys)
    left = tmp_path / "left"
    left.mkdir()
    (left / ".lock").touch()
    folder.check(left)


def test_only_the_outputs_of_a_former_evaluation_are_removed(tmp_path: Path) -> None:
    """Whatever its file says: nothing that lies elsewhere."""
    decodings = [{"outputs": name} for name in ("a.greedy.txt", "../b.txt", "/etc/c.txt", "d.json", None)]
    model = {"decoding": {str(number): decoding for number, decoding in enumerate(decodings)}}
    (tmp_path / "evaluation.json").write_text(json.dumps({"format": 1, "models": {"m": model, "n": 1}}))
    assert folder.former_outputs(tmp_path) == [tmp_path / "a.greedy.txt"]


def written(out: Path) -> dict[str, str]:
    """All files of a folder."""
    return {path.name: path.read_text() for path in out.iterdir()}


def write_evaluation(out: Path, name: str) -> None:
    """Of one model, which writes its name."""
    found = {"format": 1, "models": {name: {"decoding": {"greedy": {"outputs": f"{name}.greedy.txt"}}}}}
    folder.write(
        out,
        sentences([f"source of {name}"], [f"reference of {name}"]),
        {(name, "greedy"): [name]},
        results=found,
    )


@pytest.mark.parametrize("place", range(4))
def test_a_full_disk_leaves_the_former_evaluation(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file it fills up at: hours went into either."""
    write_evaluation(tmp_path, "former")
    before, fsync, calls = written(tmp_path), os.fsync, itertools.count()

    def full(file: int) -> None:
        if next(calls) == place:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    monkeypatch.setattr(os, "fsync", full)
    message = (
        rf"--out '{tmp_path}' can't be written \(No space left on device\); make room or use another folder"
    )
    with pytest.raises(UsageError, match=message):
        write_evaluation(tmp_path, "new")
    assert written(tmp_path) == before
    write_evaluation(tmp_path, "new")
    assert written(tmp_path).keys() == {"evaluation.json", "sources.txt", "references.txt", "new.greedy.txt"}
    assert written(tmp_path)["sources.txt"] == "source of new\n"


def test_what_can_not_be_written_is_refused_before_models_are_loaded(
    root: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading and translating take hours; a folder that was made for nothing goes."""
    monkeypatch.setattr(models, "load", lambda *_: pytest.fail("a model is loaded"))

    def denied(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    def denied_folder(folder: OutputFolder, _: Path) -> None:
        denied(folder.path)

    out = tmp_path / "out"
    remedy = "check the permissions of its folder, or use another folder"
    said = f"error: --out '{out}' can't be written (Permission denied); {remedy}"
    for name, of in (("mkdir", Path), ("_held", OutputFolder), ("iterdir", Path)):
        with monkeypatch.context() as patch:
            if name == "iterdir":
                (tmp_path / "out").mkdir()
            patch.setattr(of, name, denied_folder if of is OutputFolder else denied)
            assert refusal(command(root, tmp_path / "out"), capsys) == said
        assert (tmp_path / "out").exists() == (name == "iterdir")


def test_a_model_that_may_not_be_looked_at_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Path.exists raises on it, up to Python 3.13."""
    (tmp_path / "model.pt").touch()
    hide(monkeypatch, tmp_path)
    with pytest.raises(
        UsageError, match=r"--model one: '.*model.pt' does not exist; use a fairseq checkpoint or a folder"
    ):
        models.parse([f"one={tmp_path / 'model.pt'}"])


def test_subwords_of_another_model_are_warned_of(root: Path, tmp_path: Path, caplog: Any) -> None:
    """Before hours of translation."""
    (tmp_path / "other.model").write_bytes(sentencepiece_model())
    text = TextSettings("sentencepiece", {"sentencepiece_model": tmp_path / "other.model"})
    paths = {"one": str(root / "transformer.pt")}
    job = evaluation.EvaluationJob("", paths, root / "data", tmp_path / "out", GREEDY, text, split="valid")
    evaluation._Evaluation(job)
    assert "of the symbols of raw text would be unknown to the model; use the --bpe" in caplog.text


def test_both_ways_to_undo_subwords_are_one_too_many(tmp_path: Path) -> None:
    """They would be undone twice."""
    with pytest.raises(UsageError, match="--remove-bpe and --bpe both undo subwords"):
        evaluation.EvaluationJob(
            "", {}, tmp_path, tmp_path / "o", SearchSettings(remove_bpe="@@ "), TextSettings("sentencepiece")
        )


# What is printed.


def results(**changes: Any) -> dict[str, Any]:
    """An evaluation of two models."""
    score = {"score": 31.234, "low": 29.04, "high": 33.06, "p": None}
    by_length = [
        {"from": 0, "to": 10, "sentences": 3, "bleu": 40.125},
        {"from": 51, "to": None, "sentences": 1, "bleu": 7.0},
    ]
    faults = {"empty": 1, "truncated": 2, "repeating": 3, "by_length": by_length, "outputs": "one.greedy.txt"}
    quarters = {"median": 2.0, "low": 1.5, "high": 2.5}
    speed = {
        "decoding": "greedy",
        "sentences_per_second": 123.456,
        "tokens_per_second": 4567.8,
        "rounds": {"count": 4, **quarters},
        "times_baseline": quarters,
        "p50_ms": 8.25,
        "p95_ms": 9.75,
    }
    greedy = {
        "bleu": score,
        "chrf": {**score, "score": 55.5},
        "ter": {**score, "score": 44.4, "p": 0.0123},
        **faults,
    }
    exposure = {"student": 30.0, "student_then_teacher": 31.0, "teacher_then_student": 32.0, "teacher": 33.0}
    by_position = [
        {
            "from": 1,
            "to": 5,
            "gold": {"tokens": 1250, "agreement": 0.7},
            "own": {"tokens": 1200, "agreement": 0.6875},
        },
        {
            "from": 31,
            "to": None,
            "gold": {"tokens": 60, "agreement": 0.25},
            "own": {"tokens": 90, "agreement": 0.5},
        },
    ]
    probes = {
        "agreement_gold": 0.7015, "agreement_own": 0.65, "kl_gold": 0.5, "kl_own": 0.75, "nll_gold": 1.5,
        "nll_own": 1.25, "exposure": exposure, "by_position": by_position,
    }  # fmt: skip
    one = {
        "kind": "fairseq",
        "quantization": None,
        "path": "one.pt",
        "arch": "transformer",
        "parameters": 1234567,
        "bytes": 5_000_000,
        "weight_bytes": 2_500_000,
        "peak_memory_bytes": None,
        "speed": {"1": speed},
        "probes": probes,
        "decoding": {"greedy": greedy},
    }
    beam = {
        **greedy,
        "speed": {"batch_size": 32, **speed, "decoding": "beam 5", "p50_ms": None, "p95_ms": None},
    }
    two = {**one, "kind": "onnx", "quantization": "int8", "weight_bytes": None, "probes": None}
    return {
        "format": 1,
        "command": "imitkd-evaluate --model one=one.pt",
        "commit": None,
        "versions": {"torch": "2"},
        "machine": {"processor": "P", "cores": 2, "threads": 1},
        "data": {
            "split": "test",
            "source_lang": "de",
            "target_lang": "en",
            "sentences": 1000,
            "probe_sentences": 250,
        },
        "baseline": "one",
        "teacher": "two",
        "signatures": {"bleu": "nrefs:1|case:mixed"},
        "models": {"one": one, "two": {**two, "decoding": {"greedy": greedy, "beam 5": beam}}},
        "failed": {},
        "seconds": {"decoding": 10.0, "probes": 2.0, "total": 12.0},
        **changes,
    }


def shown(content: dict[str, Any]) -> EvaluationResults:
    """Return a file's content as it is read."""
    return from_json(content, "evaluation.json")


def test_drafts_have_a_table_and_are_read_again() -> None:
    """A row for each student and decoding; files of early versions have none."""
    content = results()
    assert "draft of two" not in markdown(shown(content))
    drafts = {"tokens": 900, "acceptance": 0.75}
    drafts |= {"length": 5, "tokens_per_call": 3.125, "cost": 0.1, "speedup": 2.2}
    content["models"]["one"]["drafts"] = {"greedy": drafts, "sampling": {**drafts, "acceptance": 0.5}}
    found = shown(content)
    assert to_json(found)["models"]["one"]["drafts"]["greedy"] == drafts
    [table] = [each for each in tables(markdown(found)) if each[0][0] == "draft of two"]
    assert table[1:] == [
        ["one", "greedy", "75.0%", "5", "3.12", "0.100", "2.20"],
        ["one", "sampling", "50.0%", "5", "3.12", "0.100", "2.20"],
    ]


def tables(text: str) -> list[list[list[str]]]:
    """The cells of every table of some Markdown; its columns must be as many in all rows."""
    found = []
    for block in text.split("\n\n"):
        lines = block.split("\n")
        if lines[0].startswith("|"):
            cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
            assert all(line.startswith("|") and line.endswith("|") for line in lines)
            assert len({len(row) for row in cells}) == 1
            assert all(re.fullmatch("--:|---", rule) for rule in cells[1])
            found.append([cells[0], *cells[2:]])
    return found


def test_markdown_shows_what_the_file_holds() -> None:
    """Well-formed tables, in this order, each number from its place."""
    text = markdown(shown(results()))
    scores, by_length, speed, size, probes, by_position = tables(text)
    assert scores[1] == [
        "one",
        "greedy",
        "31.23 (29.0 to 33.1)",
        "",
        "55.50",
        "",
        "44.40",
        "0.012",
        "1",
        "2",
        "3",
    ]
    assert [row[:2] for row in scores[1:]] == [["one", "greedy"], ["two", "greedy"], ["two", "beam 5"]]
    assert by_length[0][2:] == ["0 to 10 (3)", "51 or more (1)"]
    assert by_length[1] == ["one", "greedy", "40.12", "7.00"]
    assert speed[1] == [
        "one",
        "greedy",
        "1",
        "2.0 (1.5 to 2.5)",  # a median beside its quartiles, not the total rate
        "4,568",
        "8.2",
        "9.8",
        "2.00 (1.50 to 2.50)",
    ]
    assert speed[3][1:3] == ["beam 5", "32"]
    assert size[1] == ["one", "fairseq", "transformer", "1,234,567", "2.50", ""]  # of the weights
    assert size[2][1] == "onnx, int8"
    nats = ["0.500", "0.750", "1.500", "1.250"]
    assert probes[1] == ["one", "70.2%", "65.0%", *nats, "30.00", "31.00", "32.00", "33.00"]
    assert len(probes) == 2
    for block in (probes, by_position):  # what the columns are follows at once
        after = text.split(f"| {block[-1][0]} | {block[-1][1]} |")[-1]
        assert after.partition("\n")[2].startswith(("\n- agreement: share", "\n- by token: position"))
    assert by_position[0][1:] == ["1 to 5 (1,250)", "31 or more (60)"]
    assert by_position[1:] == [["one", "68.8% of 1,200 (-1.2)", "50.0% of 90 (+25.0)"]]
    assert "nrefs:1|case:mixed" in text
    assert text.endswith("```\nimitkd-evaluate --model one=one.pt\n```")


def test_what_a_file_says_is_no_markdown() -> None:
    """An exported folder's manifest names an architecture, and whoever made it could name it so."""
    hostile = results(failed={"three": "loading: <img src=x>\n# no"})
    hostile["models"]["one"].update(arch="a|b\n# <script>[x](y)", quantization="`int8")
    text = markdown(shown(hostile))
    assert tables(text)[3][1][1:3] == ["fairseq, &#96;int8", "a&#124;b # &#60;script&#62;&#91;x&#93;(y)"]
    assert "`three` failed loading: &#60;img src=x&#62; # no" in text
    assert "<" not in text


def test_markdown_of_other_metrics() -> None:
    """No column of what was not computed; an empty cell where only one model lacks it."""
    some = results()
    for model in some["models"].values():
        for decoding in model["decoding"].values():
            decoding.pop("ter", None)
    some["models"]["one"]["decoding"]["greedy"] = {
        **some["models"]["one"]["decoding"]["greedy"],
        "comet": {"score": 0.5},
    }
    scores = tables(markdown(shown(some)))[0]
    assert scores[0] == [
        "model", "decoding", "BLEU (95%)", "p", "chrF", "p", "COMET", "empty", "truncated", "repeating",
    ]  # fmt: skip
    assert [row[6] for row in scores[1:]] == ["0.5000", "", ""]


def test_markdown_counts_in_words() -> None:
    """One is singular."""
    one = results()
    one["data"]["sentences"] = one["machine"]["cores"] = 1
    for model in one["models"].values():
        for speed in model["speed"].values():
            speed["rounds"]["count"] = 1
    text = markdown(shown(one))
    assert text.startswith("1 sentence of `test`")
    assert "1 round at batch size 1;" in text
    assert "P, 1 core; 1 thread" in text


def test_markdown_without_a_baseline_and_with_a_model_that_failed() -> None:
    """The table has one column less; the failure is told."""
    alone = results(baseline=None, failed={"three": "translating (greedy): no more"})
    for model in alone["models"].values():
        for speed in (
            *model["speed"].values(),
            *(each["speed"] for each in model["decoding"].values() if "speed" in each),
        ):
            speed["times_baseline"] = None
    text = markdown(shown(alone))
    assert len(tables(text)[2][0]) == 7
    assert "`three` failed translating (greedy): no more" in text

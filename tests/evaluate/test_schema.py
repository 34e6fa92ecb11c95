"""evaluation.json: what is written can be read; so can files of earlier versions, and odd ones."""

import json
from pathlib import Path
from typing import Any

import pytest

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.evaluate.markdown import markdown
from fairseq_imitkd.evaluate.schema import LengthGroup, from_json, plain, read, to_json
from fairseq_imitkd.report.evaluations import read_evaluation
from tests.evaluate.test_evaluate import results
from tests.helpers import report_files

EXAMPLES = Path(__file__).parents[2] / "examples"
WRITTEN = sorted([*EXAMPLES.glob("*/results*.json"), *EXAMPLES.glob("*/evaluation*.json")])


def evaluation_of(path: Path) -> dict[str, Any] | None:
    """Return the evaluation of a recipe's results, if it has one."""
    content = json.loads(path.read_text())
    return content if "format" in content else content.get("evaluation")


@pytest.mark.parametrize(
    "path", [path for path in WRITTEN if evaluation_of(path)], ids=lambda path: "/".join(path.parts[-2:])
)
def test_files_of_earlier_versions(path: Path) -> None:
    """All of their content is read, and written again."""
    content = evaluation_of(path)
    assert content is not None
    for model in content["models"].values():
        if model["probes"]:  # the earliest ones have none
            model["probes"] = {**model["probes"], "by_position": model["probes"].get("by_position", [])}
    written = to_json(from_json(content, path.name))
    assert written == content


@pytest.mark.parametrize(
    ("right", "unknown"), [({}, 7), ({"right": "right.tsv"}, 0)], ids=["of-the-data", "of-a-file"]
)
def test_unknown_words_that_no_score_reads(right: dict[str, str], unknown: int, tmp_path: Path) -> None:
    """Beside ``--references``, earlier versions counted those of the data. Nothing shows them."""
    folder = report_files.evaluation(tmp_path)
    content = json.loads((folder / "evaluation.json").read_text())
    content["data"]["unknown_words"] = 7
    report_files.change(folder, data=content["data"], files={**content["files"], **right})
    found = read(folder / "evaluation.json", "x")
    note = "7 unknown words, which match no translation"
    assert (note in markdown(found)) == (unknown > 0)
    assert read_evaluation(folder).signatures.get("references") == (note if unknown else None)
    assert to_json(found)["data"]["unknown_words"] == unknown


def test_the_order_of_keys() -> None:
    """People read the file."""
    content = {**results(), "files": {"sources": "s.txt", "references": "r.txt"}}
    written = to_json(from_json(content, "evaluation.json"))
    assert list(written) == [
        "format", "command", "commit", "versions", "machine", "data", "baseline", "teacher", "signatures",
        "files", "models", "failed", "seconds",
    ]  # fmt: skip
    model = written["models"]["two"]
    assert list(model) == [
        "kind", "quantization", "path", "arch", "parameters", "bytes", "weight_bytes", "peak_memory_bytes",
        "decoding", "speed", "probes",
    ]  # fmt: skip
    searches = model["decoding"]
    faults = ["empty", "truncated", "repeating", "by_length", "outputs"]
    assert list(searches["greedy"]) == ["bleu", "chrf", "ter", *faults]
    assert list(searches["beam 5"]) == ["bleu", "chrf", "ter", *faults, "speed"]
    figures = ["sentences_per_second", "tokens_per_second", "rounds", "times_baseline", "p50_ms", "p95_ms"]
    assert list(searches["beam 5"]["speed"]) == ["batch_size", "decoding", *figures]
    assert list(model["speed"]["1"]) == ["decoding", *figures]
    assert list(written["models"]["one"]["probes"]) == [
        "agreement_gold", "agreement_own", "kl_gold", "kl_own", "nll_gold", "nll_own", "by_position",
        "exposure",
    ]  # fmt: skip


def test_comet_has_a_score_alone() -> None:
    """It has no interval, and no p."""
    content = results()
    content["models"]["one"]["decoding"]["greedy"]["comet"] = {"score": 0.5}
    written = to_json(from_json(content, "evaluation.json"))
    found = written["models"]["one"]["decoding"]["greedy"]
    assert found["comet"] == {"score": 0.5}
    assert found["bleu"] == {"score": 31.234, "low": 29.04, "high": 33.06, "p": None}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "must have format 1, but has None"),
        ([], "must have format 1, but has None"),
        ({"format": 2}, "must have format 1, but has 2"),
        ({"format": "x" * 9999}, "must have format 1, but has 'xxx"),
        ({"format": 1, "models": {"a": {"decoding": 3}, "b": None, "c": []}}, "has no results of any model"),
    ],
)
def test_files_that_are_refused(content: Any, said: str) -> None:
    """In one line that names the file and says what to do."""
    with pytest.raises(UsageError) as refused:
        from_json(content, "--evaluation 'x'")
    message = str(refused.value)
    assert message.startswith(f"--evaluation 'x' {said}")
    assert message.endswith("; let imitkd-evaluate write it again")
    assert "\n" not in message
    assert len(message) < 400


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"evaluation\.json can't be read \(No such file or directory\); use imit"
    ):
        read(tmp_path / "evaluation.json", "evaluation.json")


ODD = [None, True, "x", -1, 1e300, float("nan"), float("inf"), [], {}, [[]], {"a": 1}, [None, {"from": 1}]]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_whatever_a_file_holds(odd: Any, tmp_path: Path) -> None:
    """In each place: the file is read without it, and what is read can be shown and written."""
    whole = to_json(from_json(results(), "x"))
    places = list(paths(whole))
    assert len(places) > 200
    for place in places:
        content = json.loads(json.dumps(whole))
        *outer, last = place
        inner = content
        for key in outer:
            inner = inner[key]
        inner[last] = odd
        if place in (("format",), ("models",)):
            with pytest.raises(UsageError):
                from_json(content, "x")
            continue
        found = from_json(content, "x")
        assert markdown(found)
        assert from_json(to_json(found), "x") == found


def paths(content: Any) -> Any:
    """Yield the path of each part of some JSON."""
    pairs = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for key, value in pairs:
        yield (key,)
        for path in paths(value):
            yield (key, *path)


def test_a_group_is_left_out_without_what_it_needs() -> None:
    """The others stay."""
    content = results()
    content["models"]["one"]["decoding"]["greedy"]["by_length"] = [
        {"from": 1, "sentences": 3, "bleu": 2.0},
        {"from": 2},
    ]
    found = from_json(content, "x").models["one"].searches["greedy"].by_length
    assert found == [LengthGroup(1, None, 3, 2.0)]
    assert plain(found) == [{"from": 1, "to": None, "sentences": 3, "bleu": 2.0}]


def test_the_report_and_the_command_read_the_same(tmp_path: Path) -> None:
    """The report's test files are of the format too."""
    folder = report_files.evaluation(tmp_path)
    assert markdown(read(folder / "evaluation.json", "x")).count("m2") > 5

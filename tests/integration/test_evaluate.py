"""``imitkd-evaluate`` of a teacher, a student and an exported student on a small test set."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq_imitkd.checkpoints import translation
from fairseq_imitkd.cli.evaluate import main
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.evaluate import evaluation
from fairseq_imitkd.export.exporter import export
from tests.evaluate.test_evaluate import tables
from tests.helpers.digit_corpus import ENVIRONMENT
from tests.helpers.evaluations import output_of
from tests.helpers.exports import job, make_students

SENTENCES = 60


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder with ``data``, ``transformer.pt``, ``gru.pt``, and the transformer exported to ``int8``."""
    made = make_students(tmp_path_factory.mktemp("students"))
    export(job(made, made / "int8", quantization="int8", max_loss=100.0))
    return made


def flags(root: Path, out: Path, *more: object) -> list[str]:
    given = [
        f"--model={name}={root / path}"
        for name, path in (("big", "transformer.pt"), ("gru", "gru.pt"), ("small", "int8"))
    ]
    return [
        *given,
        *map(str, ("--data", root / "data", "--out", out, "--threads", 1, "--max-len-b", 12, *more)),
    ]


@pytest.fixture(scope="module")
def evaluation_run(root: Path, tmp_path_factory) -> tuple[Path, dict[str, Any], str]:
    """The folder, the contents of its file, and the output of the command in its own process."""
    out = tmp_path_factory.mktemp("evaluation") / "out"
    more = (
        "--teacher",
        "big",
        "--baseline",
        "gru",
        "--beam",
        3,
        "--batch-sizes",
        "1,8",
        "--speed-sentences",
        6,
    )
    command = [
        sys.executable,
        "-m",
        "fairseq_imitkd.cli.evaluate",
        *flags(root, out, *more, "--probe-sentences", 20),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return out, json.loads((out / "evaluation.json").read_text()), done.stdout


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def test_every_value_of_the_format_is_there(root: Path, evaluation_run) -> None:
    """The file names no path of this machine, except in the command."""
    out, found, _ = evaluation_run
    assert found["format"] == 1
    assert found["command"].startswith("imitkd-evaluate --model=big=")
    assert found["data"] == {
        "split": "test",
        "source_lang": "src",
        "target_lang": "tgt",
        "sentences": SENTENCES,
        "unknown_words": 0,
        "probe_sentences": 20,
    }
    assert (found["baseline"], found["teacher"], found["failed"]) == ("gru", "big", {})
    assert found["machine"]["threads"] == 1
    assert {"fairseq_imitkd", "torch", "sacrebleu", "ctranslate2"} <= set(found["versions"])
    assert {
        name: (model["kind"], model["quantization"], model["path"]) for name, model in found["models"].items()
    } == {
        "big": ("fairseq", None, "transformer.pt"),
        "gru": ("fairseq", None, "gru.pt"),
        "small": ("ctranslate2", "int8", "int8"),
    }
    assert str(root) not in json.dumps({**found, "command": ""})
    files = {"evaluation.json", "sources.txt", "references.txt"}
    for name, model in found["models"].items():
        assert list(model["decoding"]) == ["greedy", "beam 3"]
        assert list(model["speed"]) == ["1", "8"]
        assert model["speed"]["1"]["rounds"]["count"] == 6
        assert model["speed"]["8"]["rounds"]["count"] == 8  # one of the 60 sentences is empty
        assert (model["speed"]["1"]["p50_ms"] is None, model["speed"]["8"]["p50_ms"] is None) == (False, True)
        assert model["peak_memory_bytes"] is None or 0 <= model["peak_memory_bytes"] < 100e6
        for search, decoding in model["decoding"].items():
            assert (
                set(decoding["bleu"])
                == set(decoding["chrf"])
                == set(decoding["ter"])
                == {"score", "low", "high", "p"}
                | (set() if name == found["baseline"] else {"difference_low", "difference_high"})
            )
            assert sum(group["sentences"] for group in decoding["by_length"]) == SENTENCES
            assert decoding["empty"] >= 1
            files.add(decoding["outputs"])
            assert decoding["outputs"] == f"{name}.{search.replace(' ', '')}.txt"
    assert {path.name for path in out.iterdir()} == files
    parameters = [model["parameters"] for model in found["models"].values()]
    assert parameters[0] == parameters[2] != parameters[1]
    assert found["models"]["small"]["bytes"] == sum(
        path.stat().st_size for path in (root / "int8").rglob("*") if path.is_file()
    )
    assert [bool(model["probes"]) for model in found["models"].values()] == [False, True, False]


def test_scores_are_sacrebleus_of_the_files(evaluation_run) -> None:
    """sacreBLEU's own command gives the same scores for the written files, to all digits."""
    out, found, _ = evaluation_run
    for search in ("greedy", "beam 3"):
        outputs = [
            out / found["models"][name]["decoding"][search]["outputs"] for name in ("gru", "big", "small")
        ]
        paired = (
            "-m",
            "bleu",
            "chrf",
            "ter",
            "-w",
            10,
            "--paired-bs",
            "--no-color",
            "-f",
            "text",
            "-i",
            *outputs,
        )
        said = re.findall(
            r"([\d.]+) \([\d.]+ ± [\d.]+\)", output_of("sacrebleu", out / "references.txt", *paired)
        )
        own = [found["models"][name]["decoding"][search] for name in ("gru", "big", "small")]
        assert said == [f"{each[metric]['score']:.10f}" for each in own for metric in ("bleu", "chrf", "ter")]
    assert len(lines(out / "references.txt")) == len(lines(out / "sources.txt")) == SENTENCES
    assert lines(out / "sources.txt")[7] == lines(out / "gru.greedy.txt")[7] == ""


def test_outputs_are_fairseqs_own(root: Path, evaluation_run, tmp_path: Path) -> None:
    """They are those of fairseq-generate with the same search. It may leave out the empty sentence."""
    from tests.helpers import in_process

    more = ("--task", "translation", "--max-len-b", 12, "--source-lang", "src", "--target-lang", "tgt")
    for search, beam in (("greedy", 1), ("beam3", 3)):
        theirs = in_process.generate(root / "data", root / "gru.pt", tmp_path / search, "--beam", beam, *more)
        own = lines(evaluation_run[0] / f"gru.{search}.txt")
        assert [text for number, text in enumerate(theirs) if number != 7] == [
            t for n, t in enumerate(own) if n != 7
        ]


def test_markdown_is_printed_from_the_file(evaluation_run) -> None:
    """The tables are well-formed, and their values are the file's."""
    _, found, printed = evaluation_run
    scores, _, speed, size, probes, by_token, drafts = tables(printed)
    for row in scores[1:]:
        decoding = found["models"][row[0]]["decoding"][row[1]]
        assert row[2].split()[0] == f"{decoding['bleu']['score']:.2f}"
        assert row[4] == f"{decoding['chrf']['score']:.2f}"
        assert row[-3:] == [str(decoding[fault]) for fault in ("empty", "truncated", "repeating")]
    assert [row[2] for row in speed[1:]] == ["1", "8", "8"] * 3
    assert [row[3] for row in size[1:]] == [f"{model['parameters']:,}" for model in found["models"].values()]
    assert [row[0] for row in probes[1:]] == ["gru"]
    [group] = found["models"]["gru"]["probes"]["by_position"]
    assert by_token[0][1:] == [f"1 to 5 ({group['gold']['tokens']:,})"]
    own, gold = (100 * group[prefix]["agreement"] for prefix in ("own", "gold"))
    assert by_token[1:] == [["gru", f"{own:.1f}% of {group['own']['tokens']:,} ({own - gold:+.1f})"]]
    accepted = {how: each["acceptance"] for how, each in found["models"]["gru"]["drafts"].items()}
    assert [row[:3] for row in drafts[1:] if row[0] == "gru"] == [
        ["gru", how, f"{100 * share:.1f}%"] for how, share in accepted.items()
    ]
    assert found["command"] in printed
    assert all(signature in printed for signature in found["signatures"].values())


class NoMeasurement:
    """Replaces the process that measures memory, which would import everything again."""

    def __init__(self, found, *_, **__):
        self.names = list(found)

    def peaks(self) -> dict[str, int | None]:
        return dict.fromkeys(self.names)

    def close(self) -> None:
        pass


def test_a_model_that_fails_does_not_affect_the_others(
    root: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """The output names it, the exit status is 1, and no model is compared with it."""
    monkeypatch.setattr(evaluation, "MemoryMeasurement", NoMeasurement)
    monkeypatch.setattr(translation, "check_model", lambda *_: None)  # it would refuse this model at once
    state = torch.load(root / "gru.pt", weights_only=True)
    for weight in state["model"].values():
        weight.fill_(3e38)  # numbers whose products overflow
    torch.save(state, tmp_path / "broken.pt")
    out, more = (
        tmp_path / "out",
        (f"--model=broken={tmp_path / 'broken.pt'}", "--baseline", "broken", "--teacher", "broken"),
    )
    with pytest.raises(SystemExit) as ended:
        main(flags(root, out, *more, "--quick", "--sentences", 20))
    assert ended.value.code == 1
    found = json.loads((out / "evaluation.json").read_text())
    assert set(found["models"]) == {"big", "gru", "small"}
    assert (found["baseline"], found["teacher"]) == (None, None)
    assert "not finite numbers" in found["failed"]["broken"]
    assert (
        "`broken` failed translating (greedy): its scores are not finite numbers" in capsys.readouterr().out
    )
    for model in found["models"].values():
        assert list(model["decoding"]) == ["greedy"]
        assert model["decoding"]["greedy"]["bleu"]["p"] is None
        assert model["speed"]["32"]["times_baseline"] is None


def test_a_model_that_cannot_be_loaded_does_not_affect_the_others(
    root: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """The output names its file at once, the exit status is 1, and no model is compared with it."""
    monkeypatch.setattr(evaluation, "MemoryMeasurement", NoMeasurement)
    (tmp_path / "bad.pt").write_text("no weights")
    more = (f"--model=bad={tmp_path / 'bad.pt'}", "--quick", "--sentences", 10, "--no-ter")
    with pytest.raises(SystemExit) as ended:
        main(flags(root, tmp_path / "out", *more))
    assert ended.value.code == 1
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert set(found["models"]) == {"big", "gru", "small"}
    assert found["failed"]["bad"].startswith(
        f"loading: CHECKPOINT '{tmp_path / 'bad.pt'}' is damaged or not a checkpoint"
    )
    assert "`bad` failed loading: CHECKPOINT" in capsys.readouterr().out
    assert "ter" not in found["signatures"]
    assert not any("ter" in model["decoding"]["greedy"] for model in found["models"].values())
    for flag in ("--baseline", "--teacher"):
        with pytest.raises(
            UsageError, match=r"--model bad: CHECKPOINT '.*bad\.pt' is damaged or not a checkpoint"
        ):
            main(flags(root, tmp_path / "other", *more, flag, "bad"))
    assert not (tmp_path / "other").exists()


def test_a_former_evaluation_is_overwritten(root: Path, tmp_path: Path, monkeypatch) -> None:
    """The new one has other models. No file of the old ones is left, and other files stay."""
    monkeypatch.setattr(evaluation, "MemoryMeasurement", NoMeasurement)
    common = [
        "--data",
        str(root / "data"),
        "--out",
        str(tmp_path),
        "--quick",
        "--sentences",
        "10",
        "--max-len-b",
        "1",
    ]
    main(["--model", f"one={root / 'transformer.pt'}", *common])
    (tmp_path / "report.html").touch()
    main(["--model", f"two={root / 'transformer.pt'}", *common])
    assert {path.name for path in tmp_path.iterdir()} == {
        "evaluation.json", "references.txt", "report.html", "sources.txt", "two.greedy.txt",
    }  # fmt: skip
    outputs = lines(tmp_path / "two.greedy.txt")
    decoding = json.loads((tmp_path / "evaluation.json").read_text())["models"]["two"]["decoding"]["greedy"]
    # A cap of one token cuts all translations except that of the empty sentence.
    assert [len(output.split()) for output in outputs] == [1, 0, 1, 1, 1, 1, 1, 1, 1, 1]
    assert (decoding["truncated"], decoding["empty"], decoding["repeating"]) == (9, 1, 0)


def test_a_student_that_cannot_be_probed_keeps_its_other_results(
    root: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """The other models keep their probes."""
    monkeypatch.setattr(evaluation, "MemoryMeasurement", NoMeasurement)
    stock = evaluation.Prober.probe

    def probe(self, student, **others):
        if type(student).__name__ == "GRUModel":
            raise RuntimeError("no probe")
        return stock(self, student, **others)

    monkeypatch.setattr(evaluation.Prober, "probe", probe)
    again = f"--model=again={root / 'transformer.pt'}"
    with pytest.raises(SystemExit):
        main(flags(root, tmp_path / "out", again, "--teacher", "big", "--quick", "--sentences", 12))
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["failed"] == {"gru": "being probed: no probe"}
    assert found["models"]["gru"]["probes"] is None
    assert found["models"]["gru"]["decoding"]["greedy"]["bleu"]["score"] > 0
    probes = found["models"]["again"]["probes"]
    assert (probes["agreement_own"], probes["kl_own"]) == (1.0, 0.0)
    assert len(set(probes["exposure"].values())) == 1
    drafts = found["models"]["again"]["drafts"]
    assert [drafts[each]["acceptance"] for each in ("greedy", "sampling")] == pytest.approx([1.0, 1.0])
    assert drafts["greedy"]["tokens_per_call"] > 1.0
    assert "drafts" not in found["models"]["gru"]
    assert found["baseline"] == "again"  # the student without a teacher, not the teacher
    assert "`gru` failed being probed: no probe" in capsys.readouterr().out


def test_a_full_disk_costs_no_results(root: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """The results are printed, and no file is left."""
    monkeypatch.setattr(evaluation, "MemoryMeasurement", NoMeasurement)

    def full(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "out"
    with pytest.raises(
        UsageError, match=rf"--out '{out}' can't be written \(No space left on device\); make room"
    ):
        main(flags(root, out, "--quick", "--sentences", 10, "--no-ter"))
    assert [row[0] for row in tables(capsys.readouterr().out)[0][1:]] == ["big", "gru", "small"]
    assert not out.exists()

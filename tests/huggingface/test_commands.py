"""From an OPUS-MT folder to a student: ``imitkd-import``, ``imitkd-encode``, and fairseq's commands."""

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq_imitkd.checkpoints.translation import load_student
from fairseq_imitkd.cli import encode, import_model
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.huggingface.importer import CHECKPOINT
from fairseq_imitkd.huggingface.subwords import open_encoder
from fairseq_imitkd.teacher.loading import load_teacher
from fairseq_imitkd.teacher.source import TeacherSource
from tests.helpers import digit_corpus, in_process
from tests.helpers.huggingface_models import sentences
from tests.huggingface.conftest import Case, write_split

Imported = Callable[[str], Case]


def encoded(folder: Path, side: str, text: str, monkeypatch: Any, capsys: Any) -> tuple[str, str]:
    """Return what ``imitkd-encode`` writes to both outputs."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode("utf-8"))))
    capsys.readouterr()
    encode.main([str(folder), "--side", side])
    return capsys.readouterr()


def test_import_prints_what_it_has_compared(imported: Imported, tmp_path: Path, capsys: Any) -> None:
    """The size, the greatest difference of logits, ids, and what to do next."""
    case = imported("marian")
    import_model.main([str(case.origin), "--out", str(tmp_path / "t"), "-s", "de", "-t", "en"])
    lines = capsys.readouterr().out.splitlines()
    count = len(case.languages.source_dictionary)
    assert lines[0].startswith(
        f"{tmp_path}/t/model.pt: {case.made.parameters:,} parameters, {count} source and "
    )
    told = r"logits differ from those of transformers by at most \d(\.\d)?e-0\d \([\d,]+ logits of a padded "
    assert re.fullmatch(told + r"batch, the greatest [\d.]+\)", lines[1])
    assert lines[2] == "ids of 9 of 9 sentences equal those of its tokenizer"
    assert lines[3].startswith(f"Next: imitkd-encode {tmp_path}/t --side source < TEXT > SUBWORDS")
    with pytest.raises(UsageError, match=r"exists and is not empty; use a new or empty folder"):
        import_model.main([str(case.origin), "--out", str(tmp_path / "t"), "-s", "de", "-t", "en"])


def test_import_trims_to_a_corpus(imported: Imported, tmp_path: Path, capsys: Any) -> None:
    """``--trim-to`` reads raw text; the folder is that of ``imitkd-trim``, and nothing else is left."""
    case = imported("marian")
    for language, seed in (("de", 5), ("en", 6)):
        (tmp_path / f"raw.{language}").write_text("\n".join(sentences(6, seed)) + "\n", encoding="utf-8")
    given = [str(case.origin), "--out", str(tmp_path / "t"), "-s", "de", "-t", "en", "--skip-check"]
    with pytest.raises(UsageError, match=r"^--trim-to 'none': 'none.de' can't be read \(No such file or dir"):
        import_model.main([*given, "--trim-to", "none"])
    for language in ("de", "en"):
        (tmp_path / f"snow.{language}").write_text("☃☃ ☃☃\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"^--trim-to '.*/snow': 50% of its symbols are unknown to dict\.de"):
        import_model.main([*given, "--trim-to", str(tmp_path / "snow")])
    (tmp_path / ".t.import" / "whole").mkdir(parents=True)  # of a run that was killed
    import_model.main([*given, "--trim-to", str(tmp_path / "raw")])
    for language in ("de", "en"):
        (tmp_path / f"snow.{language}").unlink()
    lines = capsys.readouterr().out.splitlines()
    parameters = int(lines[1].split()[1].replace(",", ""))
    assert parameters < case.made.parameters
    assert lines[0].startswith(f"{tmp_path}/t/model.pt: {parameters:,} parameters, ")
    assert lines[1].endswith(f" parameters instead of {case.made.parameters:,}")
    assert re.fullmatch(
        r"de: \d+ symbols instead of \d+; 0 of the \d+ tokens are unknown \(0.00%\), .*", lines[2]
    )
    assert lines[-1].startswith(f"Next: imitkd-encode {tmp_path}/t --side source")
    assert {path.name for path in tmp_path.iterdir()} == {"raw.de", "raw.en", "t"}
    whole, small = (open_encoder(folder, "source") for folder in (case.out, tmp_path / "t"))
    assert len(small.dictionary) < len(whole.dictionary) / 2
    assert [small.encode(line) for line in sentences(6, 5)] == [
        whole.encode(line) for line in sentences(6, 5)
    ]


@pytest.mark.parametrize("name", ["m2m", "fsmt", "marian"])
def test_shared_tables_are_saved_once(imported: Imported, name: str) -> None:
    """And positions that fairseq computes not at all."""
    case = imported(name)
    state = torch.load(case.out / "model.pt", weights_only=True)["model"]
    tables = [
        state[key] for key in state if key.endswith(("embed_tokens.weight", "output_projection.weight"))
    ]
    expected = {"m2m": 1, "fsmt": 3, "marian": 3}
    assert len({table.data_ptr() for table in tables}) == expected[name]
    assert (case.out / "model.pt").stat().st_size < 4 * case.made.parameters + 60_000


def test_encode_counts_unknown_symbols(imported: Imported, monkeypatch: Any, capsys: Any) -> None:
    """Each line becomes one line, an empty one too."""
    folder = imported("marian").out
    out, error = encoded(folder, "source", "abc\n\n☃ b\r\n", monkeypatch, capsys)
    assert out.count("\n") == 3
    assert out.split("\n")[1] == ""
    assert "<unk>" in out.split("\n")[2]
    symbols = len(out.split())
    assert error == f"{symbols} symbols, 1 of them unknown ({1 / symbols:.2%})\n"


def test_encode_refuses_what_it_can_not_read(imported: Imported, tmp_path: Path, monkeypatch: Any) -> None:
    """Another folder, and text that is not UTF-8."""
    with pytest.raises(UsageError, match=r"^'.*' has no huggingface.json; use a folder that imitkd-import"):
        encode.main([str(tmp_path)])
    with pytest.raises(
        UsageError, match=r"^'.*nowhere' is not a folder; use a folder that imitkd-import has"
    ):
        encode.main([str(tmp_path / "nowhere")])
    (tmp_path / "huggingface.json").write_text("{}")
    with pytest.raises(
        UsageError, match=r"huggingface.json' can't be used: it lacks 'text'; import the model again$"
    ):
        encode.main([str(tmp_path)])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ok\n\xff\n")))
    with pytest.raises(
        UsageError, match=r"^line 2 of standard input must be UTF-8, but is not; convert it, or"
    ):
        encode.main([str(imported("marian").out)])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n\x0e\n\x05<unk>\x15\0\0")))
    with pytest.raises(
        UsageError, match=r"^line 3 of standard input has a null byte, so it is not text; give"
    ):
        encode.main([str(imported("marian").out)])


def binarised(case: Case, folder: Path, *, tags: bool = False) -> Path:
    """Return binary data of encoded text, by ``fairseq-preprocess`` with the dictionaries of an import."""
    source, target = case.pair
    for side, language, seed in (("source", source, 21), ("target", target, 22)):
        encoder = open_encoder(case.out, side, tags=tags)
        for split, count in (("train", 40), ("valid", 8), ("test", 8)):
            lines = [encoder.encode(line) for line in sentences(count, seed)]
            (folder / f"{split}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    digit_corpus.run(
        "fairseq-preprocess", "--source-lang", source, "--target-lang", target, "--destdir", folder / "bin",
        "--trainpref", folder / "train", "--validpref", folder / "valid", "--testpref", folder / "test",
        "--srcdict", case.out / f"dict.{source}.txt", "--tgtdict", case.out / f"dict.{target}.txt",
    )  # fmt: skip
    return folder / "bin"


@pytest.fixture(scope="module")
def data(imported: Imported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text of a Marian model."""
    return binarised(imported("marian"), tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("method", ["word_kd", "imitkd"])
def test_a_student_learns_from_an_imported_teacher(
    imported: Imported, data: Path, tmp_path: Path, method: str
) -> None:
    """With references, and with its own rollouts."""
    trained = in_process.train(
        data, tmp_path, "--task", "translation_with_teacher", "--criterion", method, "--max-update", 2,
        "--teacher-path", imported("marian").out / "model.pt", "--teacher-allow-poor", "--disable-validation",
        *digit_corpus.TINY,
    )  # fmt: skip
    assert all(bool(value.isfinite().all()) for value in trained.weights().values() if torch.is_tensor(value))


OTHERS = ("m2m", "nllb", "mbart", "mbart50", "bart", "fsmt", "pegasus")
LONG = ("nllb", "mbart50", "pegasus")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in OTHERS]
)
def test_a_student_learns_from_each_family(imported: Imported, tmp_path: Path, name: str) -> None:
    """One update, on text that the model's own subwords have encoded."""
    case = imported(name)
    encoders = [open_encoder(case.out, side, tags=False) for side in ("source", "target")]
    texts = [[encoder.encode(line) for line in sentences(12, seed=23)] for encoder in encoders]
    write_split(tmp_path / "bin", case.pair, [encoder.dictionary for encoder in encoders], texts, "train")
    trained = in_process.train(
        tmp_path / "bin", tmp_path, "--task", "translation_with_teacher", "--criterion", "imitkd_full",
        "--max-update", 1, "--teacher-path", case.out / "model.pt", "--teacher-allow-poor",
        "--disable-validation", "--student-share", "constant:1", *digit_corpus.TINY,
    )  # fmt: skip
    assert trained.trainer is not None
    assert trained.trainer.get_num_updates() == 1
    assert all(bool(value.isfinite().all()) for value in trained.weights().values() if torch.is_tensor(value))


@pytest.mark.parametrize("name", ["m2m", "mbart"])
def test_a_teacher_adds_its_tags(imported: Imported, tmp_path: Path, name: str) -> None:
    """A student without tags learns from its own prefixes. The teacher's logits are those that the imported
    model has on text with tags. Data with tags are refused.
    """
    case = imported(name)
    languages = case.languages
    teacher = load_teacher(TeacherSource(str(case.out / CHECKPOINT)), languages)
    model = load_student(str(case.out / CHECKPOINT), languages).model
    lines = sentences(4, 33)
    source, target = languages.source_dictionary, languages.target_dictionary
    for line in lines:
        ids = {
            (side, tags): dictionary.encode_line(
                open_encoder(case.out, side, tags=tags).encode(line), add_if_not_exist=False
            ).long()[None]
            for side, dictionary in (("source", source), ("target", target))
            for tags in (False, True)
        }
        inputs = {key: torch.cat([row[:, -1:], row[:, :-1]], 1) for key, row in ids.items()}

        def net_input(tags: bool, ids: Any = ids, inputs: Any = inputs) -> dict[str, Any]:
            tokens = ids["source", tags]
            lengths = torch.tensor([tokens.size(1)])
            return {
                "src_tokens": tokens, "src_lengths": lengths, "prev_output_tokens": inputs["target", tags]
            }  # fmt: skip

        found = teacher.score({"net_input": net_input(False), "target": ids["target", False]})
        forced = inputs["target", True].size(1) - inputs["target", False].size(1)
        assert forced == (1 if name == "m2m" else 0)
        with torch.no_grad():
            expected = model(**net_input(True))[0][0, forced:]
        torch.testing.assert_close(found.logits(slice(None)), expected, rtol=1e-4, atol=1e-4)

    (tmp_path / "plain").mkdir()
    (tmp_path / "tags").mkdir()
    flags = ("--task", "translation_with_teacher", "--criterion", "imitkd", "--teacher-path",
             case.out / CHECKPOINT, "--teacher-allow-poor", "--disable-validation", "--max-update", 1,
             *digit_corpus.TINY)  # fmt: skip
    trained = in_process.train(binarised(case, tmp_path / "plain"), tmp_path / "student", *flags)
    assert all(bool(value.isfinite().all()) for value in trained.weights().values() if torch.is_tensor(value))
    if name == "m2m":
        with pytest.raises(UsageError, match=r"^the sources of DATA hold the language tag __de__, which the"):
            in_process.train(binarised(case, tmp_path / "tags", tags=True), tmp_path / "other", *flags)


def test_fairseq_generate_reads_it(imported: Imported, data: Path, tmp_path: Path) -> None:
    """With ``--task translation``; the plugin only makes swish work."""
    done = digit_corpus.run(
        "fairseq-generate", data, "--user-dir", digit_corpus.REPO / "fairseq_imitkd", "--task", "translation",
        "--path", imported("marian").out / "model.pt", "--beam", "2", "--cpu",
        "--required-batch-size-multiple", "1", "--max-len-b", "10", "--num-workers", "0",
    )  # fmt: skip
    assert len(re.findall(r"(?m)^H-\d+", done.stdout)) == 8

"""``imitkd-export``: what it writes and refuses, and that it notices a model that is not the student."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sentencepiece
import torch
from fairseq.models import ARCH_MODEL_REGISTRY, BaseFairseqModel

import fairseq_imitkd
from fairseq_imitkd.checkpoints import compact
from fairseq_imitkd.cli import export as command
from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.data.files import sha256
from fairseq_imitkd.engines import ctranslate2_convert, onnx_convert
from fairseq_imitkd.engines.base import SearchSettings
from fairseq_imitkd.engines.fairseq import FairseqEngine
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.export import checks, exporter
from fairseq_imitkd.export.architecture import judge
from fairseq_imitkd.export.bundle import Bundle, read_manifest, text_settings
from fairseq_imitkd.export.exporter import _Student, candidates, export, output_folder
from fairseq_imitkd.text.bootstrap import Bootstrap
from fairseq_imitkd.text.subwords import TextSettings
from tests.helpers.evaluations import hide
from tests.helpers.exports import job, make_students, refusal
from tests.helpers.fairseq_models import build_student, letters, trained_student, write_dictionaries
from tests.helpers.seqkd_jobs import write_split

LANGUAGES = Languages("src", "tgt", letters(), letters(), Path("unused"))
PACKAGE = str(Path(fairseq_imitkd.__file__).parent)
MULTILINGUAL = (
    "--arch", "transformer", "--task", "translation_multi_simple_epoch_with_teacher",
    "--lang-pairs", "de-en,fr-en",
)  # fmt: skip
PAIRS = (
    "--arch",
    "multilingual_transformer",
    "--task",
    "multilingual_translation",
    "--lang-pairs",
    "de-en,en-de",
)
SENTENCES = ["a b c d", "p", "c a b", "e f g h i"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_students(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def exported(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The transformer, exported in int8."""
    out = tmp_path_factory.mktemp("exported") / "out"
    export(job(root, out, quantization="int8", max_loss=100.0))
    return out


def fairseqs_translations(name: str) -> list[str]:
    engine = FairseqEngine.of_model(trained_student(name), LANGUAGES, SearchSettings(beam=1, max_len_b=12))
    sources = [letters().encode_line(text, add_if_not_exist=False).long() for text in SENTENCES]
    return [letters().string(engine.translate([0], [source], 1)[0][0].tokens) for source in sources]


@pytest.mark.parametrize(("name", "form"), [("transformer", "ctranslate2"), ("gru", "onnx")])
def test_an_exported_student_translates_as_fairseq_does(
    name: str, form: str, root: Path, tmp_path: Path
) -> None:
    """From raw text to raw text, in any order, one sentence or several."""
    manifest = export(job(root, tmp_path / "out", checkpoint=root / f"{name}.pt"))
    assert (manifest["form"], manifest["quantization"]) == (form, "float32")
    bundle = Bundle.read(tmp_path / "out")
    sources = [bundle.encode(text) for text in SENTENCES]
    together = [bundle.decode(tokens) for tokens in bundle.translate(sources)]
    assert together == fairseqs_translations(name)
    assert [bundle.decode(bundle.translate([source])[0]) for source in sources] == together
    assert len(set(together)) == len(SENTENCES)


def test_what_is_in_the_folder(root: Path, exported: Path) -> None:
    """Everything that the student needs, identified by hashes; nothing is left next to it."""
    manifest = json.loads((exported / "imitkd.json").read_text())
    there = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert there == {*manifest["files"], "imitkd.json"}
    assert [path.name for path in exported.parent.iterdir()] == ["out"]
    assert manifest["student"] == {
        "arch": "transformer",
        "parameters": sum(parameter.numel() for parameter in trained_student("transformer").parameters()),
        "sha256": sha256(root / "transformer.pt"),
    }
    checked = manifest["checks"]
    assert checked["largest_lprob_difference"] < checks.TOLERANCE
    assert checked["sentences"] == 59  # one has an empty source
    assert checked["greedy"]["unexplained"] == 0
    assert checked["metric"] == "bleu"
    assert checked["quantized"].keys() == {"int8"}
    assert checked["quantized"]["int8"]["low"] <= checked["quantized"]["int8"]["high"]
    assert str(root) not in (exported / "imitkd.json").read_text()


def test_beam_and_length_are_kept(root: Path, tmp_path: Path) -> None:
    """The search settings are exported too; another beam can be requested."""
    export(job(root, tmp_path / "out", search=SearchSettings(beam=4, max_len_b=3)))
    bundle = Bundle.read(tmp_path / "out")
    assert bundle.engine.settings.beam == 4  # type: ignore[attr-defined]
    assert all(tokens.numel() <= 4 for tokens in bundle.translate([bundle.encode("a b c d e f g")]))
    assert Bundle.read(tmp_path / "out", beam=1).engine.settings.beam == 1  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="--beam must be 1 or more, but is 0"):
        Bundle.read(tmp_path / "out", beam=0)


def test_sentences_of_the_checks(root: Path, monkeypatch: Any, tmp_path: Path) -> None:
    """Evenly spaced in the split, without empty ones and those too long for the student."""
    data = shutil.copytree(root / "data", tmp_path / "data")
    rows = [[4 + number % 16] * (70 if number == 9 else 1 + number % 5) for number in range(40)]
    rows[3] = []
    write_split(data, "valid", rows, "src")
    write_split(
        data, "valid", [row[:6] if number != 30 else [4] * 70 for number, row in enumerate(rows)], "tgt"
    )
    asked: list[list[int]] = []
    found = checks.translations
    monkeypatch.setattr(
        checks,
        "translations",
        lambda engine, sources: (
            asked.append([source.tolist() for source in sources]),
            found(engine, sources),
        )[1],
    )
    export(job(root, tmp_path / "all", data=data, sentences=0))
    kept = [number for number in range(40) if number not in (3, 9, 30)]
    assert asked[0] == [[*rows[number], 2] for number in kept]
    export(job(root, tmp_path / "some", data=data, sentences=4))
    assert asked[-1] == [[*rows[kept[place]], 2] for place in (0, 12, 24, 36)]


def test_translations_come_in_the_order_given() -> None:
    """Although batches hold the longest sentences first."""
    engine = FairseqEngine.of_model(
        trained_student("transformer"), LANGUAGES, SearchSettings(beam=1, max_len_b=12)
    )
    sources = [letters().encode_line(text, add_if_not_exist=False).long() for text in SENTENCES]
    alone = [engine.translate([0], [source], 1)[0][0].tokens.tolist() for source in sources]
    assert [tokens.tolist() for tokens in checks.translations(engine, sources)] == alone
    assert len({tuple(tokens) for tokens in alone}) == 4


@pytest.mark.parametrize("change", ["another", "noisy", "broken"])
def test_a_model_that_is_not_the_student_is_never_written(
    change: str, root: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Another model, one with slightly wrong weights, one with NaN."""
    convert = ctranslate2_convert.convert

    def wrong(model: BaseFairseqModel, *args: Any, **settings: Any) -> None:
        model = (
            build_student("transformer", seed=5).eval()
            if change == "another"
            else trained_student("transformer")
        )
        if change != "another":
            model.decoder.layers[0].fc1.weight.data *= 1.01 if change == "noisy" else float("nan")
        convert(model, *args, **settings)

    monkeypatch.setattr(ctranslate2_convert, "convert", wrong)
    message = refusal(root, tmp_path / "out")
    assert message.startswith("the exported student is not the student: a log-probability differs by")
    assert "nothing was written" in message


def test_translations_that_differ_without_a_tie_are_noticed(
    root: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Its log-probabilities are right, but it may search by other rules."""
    found = checks.translations
    monkeypatch.setattr(
        checks,
        "translations",
        lambda engine, sources: [
            tokens if isinstance(engine, FairseqEngine) else tokens.flip(0)
            for tokens in found(engine, sources)
        ],
    )
    assert "greedy translations differ beyond ties" in refusal(root, tmp_path / "out")


def test_agreement_tells_ties_from_faults() -> None:
    """A difference between two equally probable tokens is not a fault."""

    class Scripted:
        def __init__(self, gap: float):
            self.gap = gap

        def score(self, sources: Any, targets: Any) -> list[torch.Tensor]:
            [target] = targets
            return [torch.where(target == 7, -1.0 - self.gap, torch.tensor(-1.0).expand(target.numel()))]

    theirs, own = torch.tensor([4, 5, 6, 2]), torch.tensor([4, 7, 2])
    sources = [torch.tensor([4, 2])] * 2
    for gap, faults in ((0.0, 0), (1e-4, 0), (3e-4, 1), (float("nan"), 1)):
        scripted: Any = Scripted(gap)
        agreed = checks.agreement([own, theirs], [theirs, theirs], scripted, sources=sources)
        assert agreed == checks.Agreement(sentences=2, identical=1, tokens=5 / 8, unexplained=faults)


class Worsened:
    """Replaces a share of the translations of a converted model by an empty line.

    Args:
        shares: share by quantisation; others keep theirs.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, shares: dict[str, float]):
        self.tried: list[str] = []
        convert, hypotheses = ctranslate2_convert.convert, checks.Scorer.score

        def converting(*args: Any, quantization: str) -> None:
            self.tried.append(quantization)
            convert(*args, quantization=quantization)

        def score(scorer: checks.Scorer, texts: list[str]) -> Bootstrap:
            lost = round(shares.get(self.tried[-1], 0.0) * len(texts))
            return hypotheses(scorer, ["z"] * lost + list(texts)[lost:])

        monkeypatch.setattr(ctranslate2_convert, "convert", converting)
        monkeypatch.setattr(checks.Scorer, "score", score)


@pytest.mark.parametrize(
    ("asked", "shares", "kept"),
    [
        ("int8", {}, "int8"),
        ("int8", {"int8": 1.0}, "float32"),
        ("int8_bfloat16", {"int8_bfloat16": 1.0}, "int8_float32"),
        ("float16", {"float16": 1.0}, "float32"),
    ],
)
@pytest.mark.parametrize("metric", ["bleu", "rouge-l", "ter", "exact"])
def test_a_quantisation_that_costs_too_much_is_refused(
    asked: str, shares: dict[str, float], kept: str, metric: str, root: Path, tmp_path: Path,
    monkeypatch: Any, capsys: Any,
) -> None:  # fmt: skip
    """What is fast on the device is written instead, in one line and with exit status 3."""
    Worsened(monkeypatch, shares)
    out = tmp_path / "out"
    flags = ["--data", root / "data", "--out", out, "--max-len-b", "12", "--quantization", asked]
    given = [str(each) for each in (root / "transformer.pt", *flags, "--metric", metric)]
    if not shares:
        command.main(given)
    else:
        with pytest.raises(SystemExit) as ended:
            command.main(given)
        assert ended.value.code == 3
    manifest = Bundle.read(out).manifest
    assert (manifest["quantization"], manifest["asked"]) == (kept, asked)
    assert manifest["checks"]["quantized"][asked]["refused"] == bool(shares)
    told = capsys.readouterr()
    title = {"bleu": "BLEU", "rouge-l": "ROUGE-L", "ter": "TER", "exact": "exact"}[metric]
    assert f"{title} on them: {manifest['checks']['float32']:.2f} in float32" in told.out
    warnings = [line for line in told.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == bool(shares)
    for line in warnings:
        assert re.fullmatch(
            rf"warning: --quantization {asked} loses [\d.]+ {title} \(95% interval [\d.]+ to [\d.]+\), "
            rf"more than --max-loss 0.5; wrote {kept} instead",
            line,
        )
        assert len(line) <= 200


def test_a_strict_export_writes_what_was_asked_or_nothing(
    root: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    Worsened(monkeypatch, {"int8": 1.0})
    said = refusal(root, tmp_path / "out", quantization="int8", strict=True)
    assert re.match(
        r"--quantization int8 loses [\d.]+ BLEU \(95% interval [\d.]+ to [\d.]+\), more than", said
    )
    assert said.endswith("nothing was written: raise it, or leave --strict out")


def test_a_loss_that_chance_explains_is_not_refused(
    root: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """One sentence of 59 is worse, so no bootstrap can tell, although the loss is above the limit."""
    Worsened(monkeypatch, {"int8": 1 / 59})
    given = job(root, tmp_path / "out", quantization="int8", max_loss=0.0)
    manifest = export(given)
    found = manifest["checks"]["quantized"]["int8"]
    assert manifest["quantization"] == "int8"
    assert found["loss"] > 0.0 >= found["low"]
    assert "which may be chance: more --sentences can tell" in command.report(manifest, given, 1.0)


@pytest.mark.parametrize(
    ("asked", "device", "expected"),
    [
        ("int8", "cpu", ["int8", "float32"]),  # int8_float32 is the same file
        ("int8_float16", "cpu", ["int8_float16", "int8_float32", "float32"]),
        ("float16", "cpu", ["float16", "float32"]),
        ("int16", "cpu", ["int16", "float32"]),
        ("int8", "cuda", ["int8", "float16", "float32"]),  # int8_float16 is coarser
        ("int8_float32", "cuda", ["int8_float32", "float16", "float32"]),
        ("int8_float16", "cuda", ["int8_float16", "float16", "float32"]),
        ("int8_bfloat16", "cuda", ["int8_bfloat16", "int8_float16", "float16", "float32"]),
        ("bfloat16", "cuda", ["bfloat16", "float16", "float32"]),
        ("float32", "cuda", ["float32"]),
    ],
)
def test_what_replaces_a_quantisation(asked: str, device: str, expected: list[str]) -> None:
    """Never float16 on a CPU, which computes it in float32, and never a coarser type than was asked for."""
    found = candidates(asked, device, ctranslate2_convert.QUANTIZATIONS)
    assert found[: found.index("float32") + 1] == expected


def test_recurrent_students_have_two_types() -> None:
    assert candidates("int8", "cpu", onnx_convert.QUANTIZATIONS) == ["int8", "float32"]


@pytest.mark.parametrize(
    ("checkpoint", "task", "metric"),
    [
        ({"best_checkpoint_metric": "rougeL"}, {}, "rouge-l"),
        ({"best_checkpoint_metric": "exact"}, {"eval_metrics": "exact"}, "exact"),
        ({"best_checkpoint_metric": "loss"}, {"eval_metrics": "chrf,rouge-l", "eval_bleu": True}, "chrf"),
        ({"best_checkpoint_metric": "loss"}, {"eval_bleu": True}, "bleu"),
        ({"best_checkpoint_metric": "loss"}, {"eval_metrics": "odd"}, "bleu"),
    ],
)
def test_the_score_is_that_of_the_training(
    checkpoint: dict[str, str], task: dict[str, Any], metric: str, root: Path, tmp_path: Path
) -> None:
    """The one that chose the checkpoint, else the first one of validation, else BLEU."""
    state = torch.load(root / "transformer.pt", weights_only=True)
    state["cfg"]["checkpoint"].update(checkpoint)
    state["cfg"]["task"].update(task)
    torch.save(state, tmp_path / "student.pt")
    manifest = export(job(root, tmp_path / "out", checkpoint=tmp_path / "student.pt", sentences=8))
    assert manifest["checks"]["metric"] == metric
    other = export(job(root, tmp_path / "ter", checkpoint=tmp_path / "student.pt", sentences=8, metric="ter"))
    assert other["checks"]["metric"] == "ter"


@pytest.mark.parametrize("quantization", ["float16", "int8_bfloat16"])
def test_the_engine_starts_without_warnings(
    quantization: str, root: Path, tmp_path: Path, capfd: Any
) -> None:
    """CTranslate2 warns at each start of a type that the device lacks; the export says it once instead."""
    given = job(root, tmp_path / "out", quantization=quantization, max_loss=100.0)
    manifest = export(given)
    Bundle.read(tmp_path / "out")
    assert "ctranslate2" not in capfd.readouterr().err
    computed = manifest["checks"]["quantized"][quantization]["computed_in"]
    said = command.report(manifest, given, 1.0)
    assert (f"this cpu computes {quantization} in {computed}" in said) == (computed != quantization)


def test_checkpoints_that_are_slim_compact_or_half(root: Path, tmp_path: Path) -> None:
    """Without the optimizer, packed by imitkd-prune --sparse, or in float16: the same translations."""
    state = torch.load(root / "transformer.pt", weights_only=True)
    changes = {
        "slim": {name: state[name] for name in ("cfg", "args", "model")},
        "compact": compact.packed_state(state),
        "half": {**state, "model": {name: values.half() for name, values in state["model"].items()}},
    }
    for name, changed in changes.items():
        torch.save(changed, tmp_path / f"{name}.pt")
        export(job(root, tmp_path / name, checkpoint=tmp_path / f"{name}.pt"))
        bundle = Bundle.read(tmp_path / name)
        found = [
            bundle.decode(tokens) for tokens in bundle.translate([bundle.encode(text) for text in SENTENCES])
        ]
        assert found == fairseqs_translations("transformer")


def test_what_is_refused_before_anything_is_read(root: Path, tmp_path: Path) -> None:
    """A folder that is in use, an unknown quantisation, numbers out of range."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    with pytest.raises(
        UsageError, match=r"--out '.*taken' exists and is not empty; use a new or empty folder"
    ):
        job(root, tmp_path / "taken")
    with pytest.raises(UsageError, match=r"--out '.*thesis.txt' exists and is not empty"):
        job(root, tmp_path / "taken" / "thesis.txt")
    for changes, message in (
        ({"quantization": "int4"}, "--quantization must be one of float32, int8, .*, but is int4"),
        ({"sentences": -1}, "--sentences must be 0 .all. or more, but is -1"),
        ({"max_loss": float("nan")}, "--max-loss must be in 0..100 points, but is nan"),
        (
            {"metric": "comet"},
            "--metric must be one of auto, bleu, chrf, ter, rouge-1, rouge-2, rouge-l, exact, but is comet",
        ),
        ({"device": "tpu"}, "--device must be one of cpu, cuda, but is tpu"),
        (
            {"search": SearchSettings(beam=1, max_len_b=2_000_000)},
            "--max-len-b must be at most 1000000, but is 2000000",
        ),
        ({"search": SearchSettings(beam=2000)}, "--beam must be at most 1000, but is 2000"),
        (
            {"search": SearchSettings(beam=1, no_repeat_ngram_size=10**9)},
            "--no-repeat-ngram-size must be at most 1000000, but is 1000000000",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            job(root, tmp_path / "out", **changes)
    assert (tmp_path / "taken" / "thesis.txt").read_text() == "mine"


def test_what_is_refused(root: Path, tmp_path: Path) -> None:
    """Checkpoints and data that don't fit together: one line each, and nothing is left behind."""
    out = tmp_path / "out"
    other = write_dictionaries(tmp_path / "other", "abcdefghijklmnoq", "abcdefghijklmnoq")
    small = write_dictionaries(tmp_path / "small", "abc", "abc")
    for folder in (other, small):
        for side in ("src", "tgt"):
            write_split(folder, "valid", [[4, 5], [5, 6]], side)
    assert "was trained with" in refusal(root, out, data=other)
    assert "which has 'p' at index 19, but --data has 'q'" in refusal(root, out, data=other)
    assert "its encoder has 20 symbols, but" in refusal(root, out, data=small)
    assert "use the --data that it was trained on" in refusal(root, out, data=small)
    assert "it translates src-tgt, but --data is read as tgt-src" in refusal(
        root, out, source_lang="tgt", target_lang="src"
    )
    state = torch.load(root / "transformer.pt", weights_only=True)
    state["cfg"]["task"].update(
        source_lang=None, target_lang=None
    )  # as of a training that read them off the files' names
    torch.save(state, tmp_path / "told.pt")
    other_way = {"checkpoint": tmp_path / "told.pt", "source_lang": "tgt", "target_lang": "src"}
    assert "it translates src-tgt, but --data is read as tgt-src" in refusal(root, out, **other_way)
    state["model"]["decoder.embed_tokens.weight"][7] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    assert "embed_tokens.weight holds numbers that are infinite or not a number; use another" in refusal(
        root, out, checkpoint=tmp_path / "nan.pt"
    )
    assert "--min-len must be below 64, the student's longest target, but is 64" in refusal(
        root, out, search=SearchSettings(beam=1, min_len=64)
    )
    assert "--gen-subset 'test2' is not in DATA" in refusal(root, out, split="test2")
    assert (
        "--quantization must be one of float32, int8 for this student, which is exported to onnx, but is "
        "int16" in refusal(root, out, checkpoint=root / "gru.pt", quantization="int16")
    )
    assert "is not a file" in refusal(root, out, checkpoint=root / "none.pt")
    moved = tmp_path / "moved"  # its own data folder is gone, but the dictionaries lie beside it
    write_dictionaries(moved, "abcdefghijklmnqp", "abcdefghijklmnqp")
    state = torch.load(root / "transformer.pt", weights_only=True)
    state["cfg"]["task"]["data"] = str(tmp_path / "gone")
    torch.save(state, moved / "student.pt")
    assert "which has 'q' at index 18, but --data has 'o'" in refusal(
        root, out, checkpoint=moved / "student.pt"
    )
    write_dictionaries(
        moved
    )  # those are --data's, but the folder that it names was another's before, or is now
    state["cfg"]["task"]["data"] = str(other)
    torch.save(state, moved / "student.pt")
    assert (
        f"it was trained with {other / 'dict.src.txt'}, which has 'q' at index 19, but --data has 'p'"
        in refusal(root, out, checkpoint=moved / "student.pt")
    )
    strange = shutil.copytree(root / "data", tmp_path / "strange")
    write_split(strange, "valid", [[4, 99], [5]], "src")
    write_split(strange, "valid", [[4], [5]], "tgt")
    assert "valid.src-tgt.src.bin holds symbol 99, but its dictionary has only 20" in refusal(
        root, out, data=strange
    )
    state = torch.load(root / "transformer.pt", weights_only=True)
    state["cfg"]["model"].arch = state["cfg"]["model"]._name = "mine"
    torch.save(state, tmp_path / "mine.pt")
    assert "its architecture 'mine' is unknown to fairseq and to this package" in refusal(
        root, out, checkpoint=tmp_path / "mine.pt"
    )
    state = torch.load(root / "transformer.pt", weights_only=True)
    state["cfg"]["model"].decoder_layers = "__import__('os').system('true')"
    torch.save(state, tmp_path / "evil.pt")
    assert "its setting model.decoder_layers holds an expression" in refusal(
        root, out, checkpoint=tmp_path / "evil.pt"
    )
    (tmp_path / "garbage.pt").write_bytes(b"garbage")
    assert "is damaged or not a checkpoint" in refusal(root, out, checkpoint=tmp_path / "garbage.pt")


def test_extreme_settings_can_be_read(root: Path, tmp_path: Path) -> None:
    """The largest ones that are accepted, and files of any name."""
    codes = tmp_path / "codes.v2 (copy)"
    codes.write_text("a b\n")
    search = SearchSettings(beam=1000, max_len_a=1e308, max_len_b=1_000_000, min_len=63)
    export(job(root, tmp_path / "out", text=TextSettings("subword_nmt", {"bpe_codes": codes}), search=search))
    bundle = Bundle.read(tmp_path / "out")
    assert bundle.engine.settings == search  # type: ignore[attr-defined]
    assert bundle.longest_word == 500
    endless = SimpleNamespace(max_positions=lambda: (2_000_000, 64))
    assert _Student(endless, "transformer", "ctranslate2", "bleu", None).longest == (1_000_000, 64)  # type: ignore[arg-type]


@pytest.mark.parametrize("language", ["c++", "de@informal", "d..e", "de."])
def test_languages_that_no_file_name_can_hold(language: str, root: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(root / "data", data)
    for path in data.iterdir():
        path.rename(path.with_name(path.name.replace("src", language)))
    given = {"data": data, "source_lang": language, "target_lang": "tgt"}
    assert refusal(root, tmp_path / "out", **given) == (
        "--source-lang must be of letters, digits, '_', '-' and single '.', but is "
        f"{language!r}; use data whose languages have such names"
    )


def test_a_folder_that_its_reader_refuses_is_never_written(
    root: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(exporter, "FORMAT", 2)
    said = refusal(root, tmp_path / "out", sentences=4)
    assert said.startswith("the exported student can't be read back: ")
    assert said.endswith("nothing was written. Please report it with the command's flags")


def test_words_that_look_like_special_symbols_are_unknown(exported: Path) -> None:
    """``</s>`` would end the sentence, and ``<pad>`` is not read."""
    bundle = Bundle.read(exported)
    assert torch.equal(bundle.encode("</s> a <pad> <s> b"), bundle.encode("<unk> a ? ? b"))
    assert bundle.encode("a </s>").tolist() == [*bundle.encode("a")[:-1].tolist(), letters().unk(), 2]
    assert bundle.encode("").tolist() == [2]


def test_a_student_that_no_engine_takes(root: Path, tmp_path: Path) -> None:
    """The reason is CTranslate2's."""
    state = torch.load(root / "transformer.pt", weights_only=True)
    state["cfg"]["model"].activation_fn = "tanh"
    torch.save(state, tmp_path / "tanh.pt")
    message = refusal(root, tmp_path / "out", checkpoint=tmp_path / "tanh.pt")
    assert (
        "can't be exported: CTranslate2 can't compute it because its --activation-fn is not relu" in message
    )


def test_a_checkpoint_that_changes_during_the_export(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """A training may replace it, and the hash would be that of another model."""
    path = shutil.copy(root / "transformer.pt", tmp_path / "student.pt")
    score = checks.Scorer.score
    monkeypatch.setattr(
        checks.Scorer, "score", lambda *texts: (shutil.copy(root / "gru.pt", path), score(*texts))[1]
    )
    assert "changed during the export; use one that no training writes" in refusal(
        root, tmp_path / "out", checkpoint=path
    )


def test_names_that_cannot_be_folders(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """The current folder, a link, a name that is too long."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for out, message in (
        (".", "must be the name of a new folder"),
        ("link", "must be the name of a new"),
        ("x" * 300, r"can't be written \(File name too long"),
    ):
        with pytest.raises(UsageError, match=message):
            job(root, Path(out))


def test_missing_references_are_refused(root: Path, tmp_path: Path) -> None:
    """The checks need them."""
    shutil.copytree(root / "data", tmp_path / "data")
    for path in tmp_path.glob("data/valid.*.tgt.*"):
        path.unlink()
    assert "--gen-subset valid has no target side" in refusal(root, tmp_path / "out", data=tmp_path / "data")


def test_a_run_that_was_killed(root: Path, tmp_path: Path) -> None:
    """The next run deletes what it left; until then the folder does not exist."""
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), output_folder(out).built():
        raise KeyboardInterrupt
    assert not out.exists()
    left = tmp_path / ".out.partial" / "bundle"
    left.mkdir(parents=True)
    (left / "half").write_text("")
    export(job(root, out))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (out / "half").exists()


def test_an_empty_folder_and_missing_parents_are_taken(root: Path, tmp_path: Path) -> None:
    """Parents are created."""
    (tmp_path / "empty").mkdir()
    export(job(root, tmp_path / "empty"))
    export(job(root, tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b" / "imitkd.json").is_file()


def test_subwords_go_along(root: Path, tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    """The folder holds the subword model, BLEU is on raw text, and wrong or missing subwords are noticed."""
    text = tmp_path / "text"
    text.write_text("abc def gab had bag cab\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "pieces"), vocab_size=19, model_type="bpe", minloglevel=2
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "pieces.model"))
    symbols = [pieces.id_to_piece(number) for number in range(3, 19)]
    data = shutil.copytree(root / "data", tmp_path / "data")
    write_dictionaries(data, symbols, symbols)
    lines = ["abc had a bag", "gab def", "cab abc", "had def"] * 10
    rows = [[symbols.index(piece) + 4 for piece in pieces.encode(line, out_type=str)] for line in lines]
    for side in ("src", "tgt"):
        write_split(data, "valid", rows, side)
    state = torch.load(root / "transformer.pt", weights_only=True)
    state["cfg"]["task"]["data"] = str(data)
    torch.save(state, tmp_path / "student.pt")
    scored: list[Any] = []
    score = checks.Scorer.score
    monkeypatch.setattr(
        checks.Scorer,
        "score",
        lambda scorer, texts: (scored.append((texts, scorer.references)), score(scorer, texts))[1],
    )
    settings = TextSettings("sentencepiece", {"sentencepiece_model": tmp_path / "pieces.model"})
    export(job(root, tmp_path / "out", checkpoint=tmp_path / "student.pt", data=data, text=settings))
    assert all("\u2581" not in line for texts in scored for side in texts for line in side)
    assert any(" " in line for line in scored[0][1])
    changed = {"checkpoint": tmp_path / "student.pt", "data": data}
    export(job(root, tmp_path / "plain", **changed))
    assert "the student's dictionary holds subwords, but --bpe is not given" in caplog.text
    (tmp_path / "text").write_text("xyz uvw\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "others"),
        vocab_size=12,
        model_type="bpe",
        minloglevel=2,
    )
    others = TextSettings("sentencepiece", {"sentencepiece_model": tmp_path / "others.model"})
    assert "of the symbols of raw text would be unknown to the model; use the --bpe" in refusal(
        root, tmp_path / "other", **changed, text=others
    )
    (tmp_path / "pieces.model").unlink()
    bundle = Bundle.read(tmp_path / "out")
    assert bundle.longest_word is None
    line = "abc had a bag"
    assert [symbols[number - 4] for number in bundle.encode(line).tolist()[:-1]] == pieces.encode(
        line, out_type=str
    )
    assert bundle.decode(bundle.encode(line)) == line


@pytest.mark.parametrize("kind", ["right", "tokenizer", "dropout", "unknown"])
def test_text_that_does_not_come_back_is_noticed(
    kind: str, root: Path, tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    """A tokeniser that the data never saw is refused; BPE dropout causes a warning."""
    lines = ["ab, cab. dab", "bad, ab", "dab. cab, ab", "cab"]
    (tmp_path / "text").write_text("\n".join([*lines, "a b c d , .", "ab ,", "cab ."] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "pieces"),
        vocab_size=19,
        model_type="bpe",
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "pieces.model"))
    symbols = [pieces.id_to_piece(number) for number in range(3, 19)]
    data = shutil.copytree(root / "data", tmp_path / "data")
    write_dictionaries(data, symbols, symbols)
    rows = [[symbols.index(piece) + 4 for piece in pieces.encode(line, out_type=str)] for line in lines]
    if kind == "dropout":
        rows[0] = [symbols.index(piece) + 4 for piece in ("\u2581", *lines[0].replace(" ", "\u2581"))]
    if kind == "unknown":
        rows[0][0] = letters().unk()
    for side in ("src", "tgt"):
        write_split(data, "valid", rows, side)
    state = torch.load(root / "transformer.pt", weights_only=True)
    state["cfg"]["task"]["data"] = str(data)
    torch.save(state, tmp_path / "student.pt")
    settings = TextSettings(
        "sentencepiece",
        {"sentencepiece_model": tmp_path / "pieces.model"},
        "moses" if kind == "tokenizer" else None,
    )
    changed = {"checkpoint": tmp_path / "student.pt", "data": data, "text": settings}
    if kind == "tokenizer":
        assert refusal(root, tmp_path / "out", **changed) == (
            "75.0% of the sentences of 'valid' change their words when decoded and "
            "encoded again; use the --tokenizer that the data was made with, or none"
        )
        return
    manifest = export(job(root, tmp_path / "out", **changed))
    assert manifest["checks"]["encoded_otherwise"] == (0.25 if kind == "dropout" else 0.0)
    warned = "25.0% of the sentences of 'valid' change their symbols when decoded and encoded"
    assert (warned in caplog.text) == (kind == "dropout")


def test_a_training_and_its_checkpoint_must_be_exported_first(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoint_best.pt"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    for path in (checkpoint, checkpoint.parent):
        with pytest.raises(UsageError) as refused:
            Bundle.read(path)
        assert str(refused.value) == (
            f"DIR '{path}' is not an exported student; make one first: imitkd-export '{checkpoint}' --data "
            "DATA --out NEW"
        )


def test_a_misspelt_folder_is_told_with_the_one_beside_it(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "exported")
    with pytest.raises(UsageError, match=r"exportd' does not exist: did you mean .*/exported\?$"):
        Bundle.read(tmp_path / "exportd")
    shutil.rmtree(tmp_path / "exported")
    with pytest.raises(UsageError, match=r"exportd' does not exist; use a folder that imitkd-export made$"):
        Bundle.read(tmp_path / "exportd")


def test_a_folder_without_permission_is_not_a_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Path.is_file raises there, up to Python 3.13."""
    (tmp_path / "imitkd.json").write_text("{}")
    hide(monkeypatch, tmp_path)
    with pytest.raises(UsageError, match=r"DIR '.*' is not an exported student: it has no imitkd.json"):
        Bundle.read(tmp_path)


def test_subwords_are_the_folders_own(exported: Path, tmp_path: Path) -> None:
    """Whatever path a manifest names, no file outside is read."""
    (tmp_path / "outside.model").write_text("")
    said = {
        "bpe": "sentencepiece",
        "tokenizer": None,
        "files": {"sentencepiece_model": "../../outside.model"},
    }
    assert text_settings(exported, said).files == {
        "sentencepiece_model": exported / "subwords" / "outside.model"
    }


def test_damaged_folders_are_refused(exported: Path, tmp_path: Path) -> None:
    """One line names the file."""
    with pytest.raises(UsageError, match=r"DIR '.*' is not an exported student: it has no imitkd.json"):
        Bundle.read(tmp_path)

    def damaged(change: Any) -> str:
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(exported, folder)
        change(folder)
        with pytest.raises(UsageError) as error:
            Bundle.read(folder)
        assert "\n" not in str(error.value)
        return str(error.value)

    def manifest(**changes: Any) -> Any:
        def change(folder: Path) -> None:
            said = {**json.loads((folder / "imitkd.json").read_text()), **changes}
            (folder / "imitkd.json").write_text(json.dumps(said))

        return change

    assert "model.bin is not the file that imitkd.json describes" in damaged(
        lambda f: (f / "model/model.bin").write_bytes(b"x")
    )
    assert "dict.src.txt is not the file that" in damaged(lambda f: (f / "dict.src.txt").unlink())
    assert "can't be read" in damaged(lambda f: (f / "imitkd.json").write_text("{"))
    assert "can't be read" in damaged(lambda f: (f / "imitkd.json").write_text("[" * 100_000))
    assert "is damaged" in damaged(lambda f: (f / "imitkd.json").write_text("[]"))
    assert "is of format 2, not 1; use the release that wrote it" in damaged(manifest(format=2))
    assert "is damaged" in damaged(manifest(form="pickle"))
    assert "is damaged" in damaged(manifest(decoding={"beam": "many"}))
    assert "is damaged" in damaged(manifest(text={"bpe": "evil", "tokenizer": None, "files": {}}))
    assert "is damaged" in damaged(manifest(longest_source=None))
    assert "its list of files is not that of an exported student" in damaged(manifest(files={}))
    said = json.loads((exported / "imitkd.json").read_text())
    for files in (
        {"dict.src.txt": said["files"]["dict.src.txt"]},
        {**said["files"], "../x": ""},
        {**said["files"], "/etc/x": ""},
    ):
        assert "its list of files is not that of an exported student" in damaged(manifest(files=files))
    for changes in (
        {"longest_target": 0},
        {"longest_source": 1e400},
        {"source_lang": None},
        {"source_lang": "a\nb"},
        {"files": []},
        *(
            {"decoding": {**said["decoding"], name: value}}
            for name, value in (
                ("beam", 1.5),
                ("beam", 10**6),
                ("min_len", 0.5),
                ("min_len", 64),
                ("max_len_b", 1e400),
                ("lenpen", "x"),
            )
        ),
    ):
        assert "is damaged" in damaged(manifest(**changes)), changes
    assert "vocab.txt is not the file that" in damaged(lambda f: (f / "model/vocab.txt").write_text("more"))
    said = json.loads((exported / "imitkd.json").read_text())["files"]
    junk = b"no model"

    def no_model(folder: Path) -> None:
        (folder / "model/model.bin").write_bytes(junk)
        manifest(files={**said, "model/model.bin": sha256(folder / "model/model.bin")})(folder)

    assert "can't be loaded" in damaged(no_model)
    assert "can't be loaded" in damaged(manifest(form="onnx"))  # whose errors are of a kind of their own


@pytest.mark.parametrize(
    ("flags", "engine", "blocking"),
    [
        (["--arch", "transformer"], "ctranslate2", ()),
        (["DATA", "--arch=transformer_imitkd_6_1", "--max-update", "10"], "ctranslate2", ()),
        (["--arch", "sru_2"], "onnx", ()),
        (["-a", "gru_3", "--criterion", "imitkd"], "onnx", ()),
        (["--arch", "bart_base", "--encoder-layers", "1", "--decoder-layers", "1"], "ctranslate2", ()),
        (["--arch", "lstm"], None, ()),
        (
            ["--arch", "transformer", "--quant-noise-pq", "0.1", "--dropout", "0.3"],
            None,
            ("--quant-noise-pq 0.1",),
        ),
        (
            ["--arch", "transformer", "--adaptive-softmax-cutoff", "5000"],
            None,
            ("--adaptive-softmax-cutoff 5000",),
        ),
        (
            [
                "data-bin",
                "--teacher-path",
                "t.pt",
                "--teacher-data",
                "teacher",
                "--criterion",
                "imitkd",
                "--arch",
                "transformer",
                "--eval-bleu",
                "--eval-bleu-args",
                '{"beam": 1}',
                "--prune-sparsity",
                "0.5",
                "--user-dir",
                PACKAGE,
            ],
            "ctranslate2",
            (),
        ),
        (
            ["--task", "translation", "--criterion", "cross_entropy", "--arch", "transformer"],
            "ctranslate2",
            (),
        ),
        ([*MULTILINGUAL, "DATA"], "ctranslate2", ()),
        ([*MULTILINGUAL, "--encoder-langtok", "tgt"], None, ("--encoder-langtok tgt",)),
        (
            [*MULTILINGUAL, "--encoder-langtok", "tgt", "--quant-noise-pq", "0.1"],
            None,
            ("--encoder-langtok tgt", "--quant-noise-pq 0.1"),
        ),
        ([*PAIRS], "ctranslate2", ()),
        (["DATA", *PAIRS, "--share-encoders", "--share-decoders"], "ctranslate2", ()),
        ([*PAIRS, "--decoder-langtok"], None, ("--decoder-langtok",)),
        (
            [*PAIRS, "--encoder-langtok", "tgt", "--activation-fn", "tanh"],
            None,
            ("--encoder-langtok tgt", "--activation-fn tanh"),
        ),
        (["--arch", "s2t_transformer_s", "--task", "speech_to_text_with_teacher"], None, ()),
        (["--arch", "roberta_base", "--task", "sentence_prediction_with_teacher"], None, ()),
        (["--arch", "transformer_lm", "--task", "language_modeling"], None, ()),
        (["--arch", "transformer", "--task", "translation_lev"], None, ("--task translation_lev",)),
        (
            ["--arch", "transformer", "--no-cross-attention", "--activation-fn", "tanh"],
            None,
            ("--no-cross-attention", "--activation-fn tanh"),
        ),
    ],
)
def test_architectures_are_judged_before_training(
    flags: list[str], engine: str | None, blocking: tuple[str, ...]
) -> None:
    """By the flags of the training; those that prevent the export are named."""
    verdict = judge(flags)
    assert (verdict.engine, verdict.blocking_flags) == (engine, blocking)
    assert verdict.any_one_suffices == (len(blocking) == 1)
    line = command.verdict_line(verdict)
    assert all(flag in line for flag in blocking)
    assert ("can be exported" in line) == (engine is not None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--check needs the student's --arch"),
        (["--arch", "transformr"], "--arch transformr is unknown: did you mean transformer"),
        (
            ["--arch", "transformer", "--encoder-layrs", "2"],
            "are not fairseq-train's: unrecognized arguments: --encoder-layrs",
        ),
        (["--arch", "transformer", "--encoder-layers", "many"], "invalid int value: 'many'"),
        (["--arch", "transformer", "--encoder-embed-dim", "10"], "do not describe a student"),
        (["--arch", "sru_2", "--user-dir", "nowhere"], "--user-dir 'nowhere' can't be imported"),
        (["--arch", "sru_2", "--dropout", "2"], "--dropout must be at least 0 and below 1"),
        (
            [*PAIRS[:2]],
            "--arch multilingual_transformer needs --task multilingual_translation with --lang-pairs, but "
            "--task is not given; add both, or use another --arch",
        ),
        ([*PAIRS[:2], *PAIRS[4:]], "but --task is not given; add both, or use another --arch"),
        (
            [*PAIRS[:2], *MULTILINGUAL[2:]],
            "but --task is translation_multi_simple_epoch_with_teacher; add both, or use another --arch",
        ),
        (
            [*PAIRS[:4]],
            "--task multilingual_translation needs --lang-pairs; add them, such as --lang-pairs de-en,en-de",
        ),
        (
            [*PAIRS[:4], "--lang-pairs", "de-en,fr"],
            "--lang-pairs must be pairs such as de-en,en-de, but is 'de-en,fr'",
        ),
        (
            ["--arch", "transformer", *PAIRS[2:]],
            "--task multilingual_translation needs an --arch such as multilingual_transformer, but --arch is "
            "transformer; use one, or another --task",
        ),
        (
            ["--arch", "lstm_lm"],
            "--arch lstm_lm does not make a translation model ('TranslationTask' object has no attribute "
            "'dictionary'); use another, such as transformer",
        ),
    ],
)
def test_flags_that_do_not_describe_a_student(flags: list[str], message: str) -> None:
    """One short line without fairseq's usage text."""
    with pytest.raises(UsageError) as error:
        judge(flags)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) <= 200


def test_errors_without_a_message_do_not_stand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An assertion's name would not say what to do."""

    def build_model(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(ARCH_MODEL_REGISTRY["transformer"], "build_model", build_model)
    with pytest.raises(UsageError) as error:
        judge(["--arch", "transformer"])
    assert str(error.value) == (
        "--arch transformer does not make a translation model (AssertionError); use another, such as "
        "transformer"
    )


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (
            [*MULTILINGUAL, "--encoder-langtok", "tgt"],
            "it needs the language tags __TARGET__ in the source; ",
        ),
        (
            ["--arch", "s2t_transformer_s", "--task", "speech_to_text_with_teacher"],
            "it is not a translation model, because of --task speech_to_text_with_teacher",
        ),
        (
            ["--arch", "roberta_base", "--task", "sentence_prediction_with_teacher"],
            "it is not a translation model, because of --task sentence_prediction_with_teacher",
        ),
    ],
)
def test_a_task_whose_students_are_not_exported(flags: list[str], reason: str) -> None:
    """The export would refuse them after training."""
    assert judge(flags).reason.startswith(reason)


def test_help_after_check_is_not_an_error(capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--check", "--arch", "transformer", "--help"])
    assert not isinstance(ended.value, UsageError)
    assert not ended.value.code
    assert "usage:" in capsys.readouterr().out


def test_command_lines(root: Path, tmp_path: Path, capsys: Any) -> None:
    """From flags to a folder and a report; ``--check`` also tells by its exit status."""
    given = [str(root / "transformer.pt"), "--data", str(root / "data"), "--out", str(tmp_path / "out")]
    command.main(
        [*given, "--quantization", "float32", "--max-len-b", "12", "--beam", "2", "--sentences", "10"]
    )
    said = capsys.readouterr().out
    assert "CTranslate2, float32" in said
    assert "on 10 sentences of valid: log-probabilities within" in said
    assert Bundle.read(tmp_path / "out").manifest["decoding"]["max_len_b"] == 12
    for flags, message in (
        (["--bpe", "sentencepiece"], "--bpe sentencepiece needs --sentencepiece-model; add it"),
        (["--bpe-codes", "x"], "--bpe-codes changes nothing without --bpe fastbpe or subword_nmt"),
        (
            ["--bpe", "gpt2", "--gpt2-encoder-json", str(root / "transformer.pt")],
            "--bpe gpt2 needs --gpt2-vocab-bpe",
        ),
        (["--beam", "0"], "--beam must be 1 or more, but is 0"),
    ):
        with pytest.raises(UsageError, match=message):
            command.main([*given[:-1], str(tmp_path / "other"), *flags])
    for arch, status in (("transformer", 0), ("lstm", 1)):
        with pytest.raises(SystemExit) as ended:
            command.main(["--check", "--arch", arch])
        assert ended.value.code == status


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("exported", "does not exist"),
        ("smal/exported", "does not exist"),
        ("small", "is not an exported student"),
        (".", "is not an exported student"),
    ],
)
def test_a_wrong_folder_names_the_exported_student_near_it(
    given: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small" / "exported").mkdir(parents=True)
    (tmp_path / "small" / "exported" / "imitkd.json").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=rf"{said}: did you mean small/exported\?$"):
        read_manifest(Path(given))


def test_the_exported_student_of_the_most_similar_name_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most three are named, and a folder's own one alone."""
    for name in ("a", "b", "c", "d", "small"):
        (tmp_path / name / "exported").mkdir(parents=True)
        (tmp_path / name / "exported" / "imitkd.json").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"did you mean small/exported or ./exported or ./exported\?$"):
        read_manifest(Path("smal/exported"))
    with pytest.raises(UsageError, match=r"did you mean small/exported\?$"):
        read_manifest(Path("small"))
    with pytest.raises(UsageError, match=r"did you mean small/exported\?$"):
        read_manifest(Path("small/exported/imitkd.json"))


def test_folders_that_cannot_be_searched_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> Any:
        raise PermissionError("no")

    monkeypatch.setattr(Path, "glob", refused)
    with pytest.raises(UsageError, match=r"it has no imitkd\.json"):
        read_manifest(tmp_path)

"""A rehearsal runs every step of a recipe in minutes."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairseq_imitkd.cli import distill
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.pipeline import sentencepieces
from fairseq_imitkd.pipeline.folder import Given, check, keep, with_folder
from fairseq_imitkd.pipeline.plan import Plan
from fairseq_imitkd.pipeline.reading import last_value
from fairseq_imitkd.pipeline.recipe_file import parse
from tests.helpers import scripts
from tests.helpers.scripts import EXAMPLES
from tests.pipeline.recipes import TRAINING, recipe
from tests.pipeline.test_plan import DIGESTS, HERE


def rehearsed(**changes: Any) -> Plan:
    return Plan(parse(recipe(HERE, rehearsal=True, **changes), HERE), DIGESTS)


def test_little_text_is_read() -> None:
    whole, made = Plan(parse(recipe(HERE), HERE), DIGESTS), rehearsed(sentencepiece={"vocabulary": 4000})
    assert [command.lines for command in made.step("encode-train").commands] == [300, 300]
    assert [command.lines for command in made.step("encode-test").commands] == [30, 30]
    assert made.step("subwords").commands[0].words[-3:] == (str(HERE / "train.tgt"), "--lines", "300")
    assert [command.lines for command in whole.step("encode-train").commands] == [None, None]
    assert made.step("encode-train").key != whole.step("encode-train").key
    assert rehearsed(text={"made_up": {"train": 9, "valid": 99, "test": 99}}).recipe.text.made_up.sizes == {
        "train": 9, "valid": 30, "test": 30,
    }  # fmt: skip


def test_models_are_tiny_if_the_teacher_is_trained() -> None:
    """Whatever their architecture. Flags that an architecture lacks are left out."""
    student = {"arch": "sru_2", "flags": "--lr 1"}
    made = rehearsed(student=student, methods=["none", {"criterion": "gkd", "flags": "--max-update 9000"}])
    teacher, scratch, taught = (
        made.step(f"train-{name}").commands[0].words for name in ("teacher", "none-seed1", "gkd-seed1")
    )
    assert last_value(teacher, "--encoder-embed-dim") == last_value(taught, "--encoder-embed-dim") == "16"
    assert last_value(teacher, "--max-update") == "200"
    assert last_value(taught, "--max-update") == last_value(scratch, "--max-update") == "4"
    assert last_value(taught, "--encoder-hidden-size") == "8"
    assert last_value(taught, "--encoder-ffn-embed-dim") == ""
    assert "--teacher-allow-poor" in taught
    assert "--teacher-allow-poor" not in scratch
    distill.check(made)


def test_the_flags_of_further_text_are_accepted_before_it_is_split() -> None:
    """imitkd-seqkd would refuse a file that is not there."""
    text = recipe(HERE)["text"] | {"mono": str(HERE / "more.src")}
    digests = {**DIGESTS, str(HERE / "more.src"): ""}
    made = Plan(parse(recipe(HERE, text=text, methods=["seqkd"]), HERE), digests)
    assert "--source-text" in made.step("seqkd-mono").commands[0].words
    distill.check(made)


def test_a_teacher_that_is_given_must_know_the_text_as_in_the_run() -> None:
    """A rehearsal that lets any teacher pass would say that all steps work."""
    made = rehearsed(teacher="t.pt", methods=["seqkd", "gkd"])
    words = [word for step in made.steps for command in step.commands for word in command.words]
    assert "--teacher-allow-poor" not in words


def test_a_teacher_of_hugging_face_s_format_is_rehearsed() -> None:
    """Its subwords are not there yet when the flags are checked. One format has no loss to limit."""
    made = rehearsed(teacher={"huggingface": "/opus"}, export=None)
    assert made.step("export").commands[0].words[-4:] == ("--sentences", "20", "--max-loss", "100")
    distill.check(made)
    made = rehearsed(teacher={"huggingface": "/opus"}, export={"format": "huggingface"})
    assert made.step("export").commands[0].words[-2:] == ("--sentences", "20")
    distill.check(made)


def test_students_that_transformers_lacks_are_refused_before_a_training() -> None:
    """The export would fail after all trainings."""
    made = rehearsed(export={"format": "huggingface"}, student={"arch": "gru_2"}, methods=["none"])
    with pytest.raises(UsageError, match=r"^export can't work with none's student: .*; change its flags"):
        distill.check(made)


def test_flags_of_an_export_in_hugging_face_s_format_are_checked() -> None:
    made = rehearsed(
        teacher={"huggingface": "/opus"}, export={"format": "huggingface", "flags": "--tokenizer moses"}
    )
    with pytest.raises(UsageError, match="--subwords and --bpe or --tokenizer both say how text is split"):
        distill.check(made)


def test_other_ends_of_a_training_do_not_count() -> None:
    flags = "--max-epoch 2 --patience 3 --validate-after-updates 500"
    made = rehearsed(training=flags, methods=["none"])
    for step in ("train-teacher", "train-none-seed1"):
        words = made.step(step).commands[0].words
        assert (last_value(words, "--max-epoch"), last_value(words, "--patience")) == ("0", "-1")
        assert last_value(words, "--validate-after-updates") == "0"


def test_models_of_a_given_teacher_keep_their_sizes() -> None:
    before = parse(recipe(HERE, teacher={"checkpoint": "/t.pt"}), HERE)
    made = rehearsed(teacher={"checkpoint": "/t.pt"})
    assert last_value(made.flags(made.recipe.methods[0]), "--encoder-embed-dim") == last_value(
        before.student, "--encoder-embed-dim"
    )
    assert last_value(made.flags(made.recipe.methods[0]), "--max-update") == "4"


def test_a_run_and_its_rehearsal_do_not_mix(tmp_path: Path) -> None:
    """The kept recipe of a rehearsal is one of a rehearsal."""
    file, text = tmp_path / "r.yaml", yaml.safe_dump(recipe(HERE))
    file.write_text(text)
    whole = Given(with_folder(text, tmp_path), file)
    short = Given(with_folder(text, tmp_path, rehearses=True), file, rehearses=True)
    assert yaml.safe_load(short.text)["rehearsal"] is True
    for name, one, other in (("a", whole, short), ("b", short, whole)):
        keep(tmp_path / name, one)
        check(tmp_path / name, one)
        with pytest.raises(
            UsageError, match=r"is the run of '\.\./r\.yaml(, rehearsed)?'; use another --out"
        ):
            check(tmp_path / name, other)
    args = distill.parser().parse_args([str(file), "--rehearse"])
    assert distill._out(args) == tmp_path / "r-rehearsal"
    args = distill.parser().parse_args([str(file), "--rehearse", "--out", "some/small"])
    assert distill._out(args) == Path("some/small-rehearsal")
    args = distill.parser().parse_args([str(file), "--rehearse", "--out", "."])
    assert distill._out(args) == Path(f"{os.getcwd()}-rehearsal")


def test_scores_of_all_sentences_are_left_out() -> None:
    flags = "--curriculum 2 --curriculum-scores scores.txt"
    methods = [{"criterion": "none", "flags": "--curriculum-scores=other --dropout 0.2"}]
    made = parse(recipe(HERE, training=f"{TRAINING} {flags}", methods=methods, rehearsal=True), HERE)
    words = (*made.training, *made.methods[0].flags)
    assert not any("scores" in word for word in words)
    assert "--curriculum" in words
    assert last_value(words, "--dropout") == "0.2"


def test_subwords_of_few_lines(tmp_path: Path) -> None:
    """Their number fits the lines, up to what was asked for."""
    text, model = tmp_path / "text", tmp_path / "model"
    text.write_text("ein kleiner satz mit vielen worten\nund noch ein anderer satz\n" * 20)
    import sentencepiece

    for asked, symbols in (("4000", None), ("30", 30)):
        sentencepieces.main(["train", str(model), asked, str(text), "--lines", "30"])
        size = sentencepiece.SentencePieceProcessor(model_file=str(model)).vocab_size()
        assert size == symbols or 30 < size < 130


# Not wmt16_en_de, whose teacher is given: its students keep their sizes, which takes a CPU too long.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["multi30k", "tatoeba", "reuters_headlines", "iwslt14_de_en", "cnn_dm"])
def test_the_recipes_of_the_package(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With made-up text, every step of each runs."""
    text = tmp_path / "made"
    done = scripts.call(EXAMPLES / name / "prepare.sh", env=scripts.environment(text, SMOKE="1"))
    assert done.returncode == 0, done.stderr[-2000:]
    monkeypatch.chdir(tmp_path)
    distill.main([name, "--text", str(text / "raw"), "--rehearse"])
    assert (tmp_path / f"{name}-rehearsal" / "table.md").exists()
    assert (tmp_path / f"{name}-rehearsal" / "exported" / "imitkd.json").exists()

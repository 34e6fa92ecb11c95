"""The steps of a recipe, what they need, and what changes their keys."""

from pathlib import Path
from typing import Any

import pytest

from fairseq_imitkd.pipeline.plan import Plan, last_value
from fairseq_imitkd.pipeline.recipe_file import parse
from fairseq_imitkd.pipeline.runner import Engine
from tests.pipeline.recipes import TRAINING, recipe

HERE = Path("/text")
DIGESTS = {
    str(HERE / f"{split}.{side}"): f"{split}{side}"
    for split in ("train", "valid", "test")
    for side in ("src", "tgt")
}


def plan(digests: dict[str, str] = DIGESTS, **changes: Any) -> Plan:
    return Plan(parse(recipe(HERE, **changes), HERE), digests)


def keys(made: Plan) -> dict[str, str]:
    return {step.name: step.key for step in made.steps}


def test_every_step_comes_after_those_that_it_needs() -> None:
    made = plan(
        methods=["none", "seqkd", {"criterion": "gkd", "data": "seqkd", "start": "seqkd"}],
        seeds=[1, 2],
        sentencepiece={"vocabulary": 50},
    )
    names = [step.name for step in made.steps]
    for step in made.steps:
        assert set(step.needs) <= set(names[: names.index(step.name)]), step.name
    assert names == [
        "subwords", "encode-train", "encode-valid", "encode-test", "binarise", "train-teacher", "seqkd",
        "train-none-seed1", "train-none-seed2", "train-seqkd-seed1", "train-seqkd-seed2", "train-gkd-seed1",
        "train-gkd-seed2", "export", "evaluate", "report",
    ]  # fmt: skip
    last = made.step("train-gkd-seed2")
    assert set(last.needs) == {"binarise", "seqkd", "train-teacher", "train-seqkd-seed2"}
    [command] = last.commands
    assert command.words[1] == "seqkd/data-bin"
    assert command.words[-1] == "models/seqkd-seed2/checkpoint_best.pt"
    assert last.updates == 8


def test_a_method_s_own_student_teacher_and_seeds() -> None:
    """An assistant of another size teaches with its student of the first seed, over the same dictionaries."""
    wide = {"arch": "transformer_iwslt_de_en", "flags": "--dropout 0.2"}
    made = plan(
        methods=[
            {"criterion": "none", "seeds": [5]},
            {"criterion": "gkd", "name": "assistant", "student": wide, "seeds": [7, 8]},
            {"criterion": "imitkd", "teacher": "assistant"},
        ],
        seeds=[1, 2],
        distillation="--teacher-topk 8",
    )
    names = [name for name, _, _ in made.students()]
    assert names == ["none-seed5", "assistant-seed7", "assistant-seed8", "imitkd-seed1", "imitkd-seed2"]
    [assistant] = made.step("train-assistant-seed8").commands
    assert last_value(assistant.words, "--arch") == "transformer_iwslt_de_en"
    assert last_value(assistant.words, "--dropout") == "0.2"
    assert last_value(assistant.words, "--teacher-path") == "teacher/checkpoint_best.pt"
    taught = made.step("train-imitkd-seed2")
    [command] = taught.commands
    assert last_value(command.words, "--teacher-path") == "models/assistant-seed7/checkpoint_best.pt"
    assert last_value(command.words, "--teacher-data") == "data-bin"
    assert last_value(command.words, "--arch") == "transformer"
    assert taught.needs == ("binarise", "train-assistant-seed7")
    [evaluated] = made.step("evaluate").commands
    assert last_value(evaluated.words, "--baseline") == "none-seed5"
    [exported] = made.step("export").commands
    assert exported.words[1] == "models/imitkd-seed1/checkpoint_best.pt"


@pytest.mark.parametrize(
    ("changes", "rerun"),
    [
        (
            {"methods": ["none", {"criterion": "imitkd_full", "flags": "--dropout 0.2"}]},
            {"train-imitkd_full-seed1", "export", "evaluate", "report"},
        ),
        ({"export": "float32"}, {"export", "evaluate", "report"}),
        ({"evaluate": "--quick"}, {"evaluate", "report"}),
        ({"threads": 2}, {"evaluate", "report"}),
        (
            {"training": f"{TRAINING} --max-update 9"},
            {"train-teacher", "train-none-seed1", "train-imitkd_full-seed1", "export", "evaluate", "report"},
        ),
        ({"seeds": [1, 2]}, {"evaluate", "report"}),
        ({"methods": ["none", "gkd", "imitkd_full"]}, {"evaluate", "report"}),
    ],
)
def test_a_change_changes_the_keys_of_what_depends_on_it_alone(
    changes: dict[str, Any], rerun: set[str]
) -> None:
    before, after = keys(plan()), keys(plan(**changes))
    assert {name for name in before if after[name] != before[name]} == rerun


def test_text_counts_by_its_content() -> None:
    """Other training text changes all that is made of it, and not the other splits' text."""
    moved = {path.replace("/text", "/elsewhere"): digest for path, digest in DIGESTS.items()}
    elsewhere = Plan(parse(recipe(Path("/elsewhere")), HERE), moved)
    assert keys(elsewhere) == keys(plan())
    other = keys(plan({**DIGESTS, "/text/train.src": "other"}))
    same = {name for name, key in keys(plan()).items() if other[name] == key}
    assert same == {"encode-valid", "encode-test"}


def test_a_teacher_counts_by_its_content() -> None:
    moved = [
        Plan(parse(recipe(HERE, teacher={"checkpoint": f"/{place}/t.pt"}), HERE), {**DIGESTS, **own})
        for place in ("a", "b")
        for own in [
            {f"/{place}/t.pt": "t", f"/{place}": "d", **{f"/{place}/dict.{s}.txt": s for s in ("src", "tgt")}}
        ]
    ]
    assert keys(moved[0]) == keys(moved[1])


@pytest.mark.parametrize(
    "flags", ["--model old={}", "--model=old={}", "--comet-model={}", "--comet-model {}"]
)
def test_a_file_in_flags_counts_by_its_content(flags: str) -> None:
    made = [
        plan({**DIGESTS, path: digest}, evaluate=flags.format(path))
        for path, digest in (("/a/m=1", "1"), ("/b", "1"), ("/b", "2"))
    ]
    first, copied, changed = (each.step("evaluate").key for each in made)
    assert first == copied != changed


def test_flags_of_distillation_come_before_a_methods_own() -> None:
    changes = {"training": f"{TRAINING} --dropout 0.1", "distillation": "--dropout 0.2"}
    methods = ["none", "gkd", {"criterion": "imitkd", "flags": "--dropout 0.3"}]
    made = plan(methods=methods, **changes)
    words = {name: made.step(f"train-{name}-seed1").commands[0].words for name in ("none", "gkd", "imitkd")}
    assert [last_value(each, "--dropout") for each in words.values()] == ["0.1", "0.2", "0.3"]


def test_a_teacher_from_hugging_face_is_imported_and_its_subwords_are_used() -> None:
    made = plan(teacher={"huggingface": "/opus"})
    assert made.steps[0].commands[0].words[:2] == ("imitkd-import", "/opus")
    assert made.step("encode-valid").commands[1].words == ("imitkd-encode", "teacher", "--side", "target")
    assert "teacher/dict.src.txt" in made.step("binarise").commands[0].words
    assert "teacher/model.pt" in made.step("train-imitkd_full-seed1").commands[0].words
    for step in ("export", "evaluate"):
        words = made.step(step).commands[0].words
        assert last_value(words, "--subwords") == "teacher"
        assert "--sentencepiece-model" not in words
    assert last_value(made.step("export").commands[0].words, "--quantization") == "int8"
    assert "exported=exported" in made.step("evaluate").commands[0].words


def test_an_export_in_hugging_face_s_format_is_not_compared() -> None:
    """imitkd-evaluate reads what imitkd-serve serves."""
    made = plan(export={"format": "huggingface"})
    words = made.step("export").commands[0].words
    assert last_value(words, "--format") == "huggingface"
    assert "--quantization" not in words
    assert "exported=exported" not in made.step("evaluate").commands[0].words


def test_a_checkpoint_teacher_gives_its_dictionaries() -> None:
    made = plan(teacher={"checkpoint": "/t/teacher.pt", "dictionaries": "/d"}, device="cuda")
    assert {"--srcdict", "/d/dict.src.txt"} <= set(made.step("binarise").commands[0].words)
    student = made.step("train-imitkd_full-seed1")
    assert {"--teacher-path", "/t/teacher.pt", "--teacher-data", "/d"} <= set(student.commands[0].words)
    assert student.gpus == 1
    assert "--cpu" not in student.commands[0].words
    assert made.step("export").gpus == 0


def test_shards_share_a_folder_that_the_first_step_makes() -> None:
    """Another number of shards continues in the same folder; other flags begin with an empty one."""
    made = plan(methods=["seqkd"], seqkd={"flags": "--beam 2", "shards": 2})
    begin, one, two, end = (made.step(f"seqkd{part}") for part in ("-begin", "-shard1", "-shard2", ""))
    assert (begin.results, one.results, end.results) == (("seqkd",), (), ())
    assert one.needs == two.needs == ("seqkd-begin",)
    assert end.needs == ("seqkd-shard1", "seqkd-shard2")
    assert two.commands[0].words[-4:] == ("--num-shards", "2", "--shard-id", "1")
    assert "--shard-id" not in end.commands[0].words
    more = plan(methods=["seqkd"], seqkd={"flags": "--beam 2", "shards": 3})
    other = plan(methods=["seqkd"], seqkd={"flags": "--beam 3", "shards": 2})
    assert more.step("seqkd-begin").key == begin.key != other.step("seqkd-begin").key
    checkpoint = {"teacher": {"checkpoint": "/t.pt"}, "methods": ["seqkd"], "seqkd": {"shards": 2}}
    old, new = (plan({**DIGESTS, "/t.pt": digest}, **checkpoint) for digest in ("1", "2"))
    assert old.step("seqkd-begin").key != new.step("seqkd-begin").key, "another teacher begins anew"
    assert more.step("train-seqkd-seed1").key != made.step("train-seqkd-seed1").key


def test_source_text_is_translated_and_read() -> None:
    text = {**recipe(HERE)["text"], "mono": "/text/more.src"}
    made = plan(
        {**DIGESTS, "/text/more.src": "m"}, text=text, methods=["seqkd", {"criterion": "gkd", "mono": 0.3}]
    )
    assert "seqkd/data-bin:seqkd-mono/data-bin" in made.step("train-seqkd-seed1").commands[0].words
    assert {"--source-text", "text/mono.src"} <= set(made.step("seqkd-mono").commands[0].words)
    words = made.step("train-gkd-seed1").commands[0].words
    assert {"--mono-source-data", "mono-bin", "--mono-source-share", "0.3"} <= set(words)
    assert "binarise-mono" in made.step("train-gkd-seed1").needs
    assert made.step("encode-mono").results == ("text/mono.src",)


def test_further_translations_are_data_of_methods() -> None:
    """Those that references select have none of the text without references."""
    best = {"criterion": "none", "name": "inter", "start": "seqkd", "data": "best"}
    more = {"criterion": "none", "name": "mbr", "data": "mbr"}
    made = plan(
        {**DIGESTS, "/text/more.src": "m"},
        text={**recipe(HERE)["text"], "mono": "/text/more.src"},
        methods=["seqkd", best, more],
        translations={"best": "--select best --nbest 9", "mbr": {"flags": "--select mbr", "shards": 2}},
    )
    assert made.step("train-inter-seed1").commands[0].words[1] == "best/data-bin"
    assert made.step("train-mbr-seed1").commands[0].words[1] == "mbr/data-bin:mbr-mono/data-bin"
    assert set(made.step("train-inter-seed1").needs) == {"binarise", "best", "train-seqkd-seed1"}
    assert {"--select", "best", "--out"} <= set(made.step("best").commands[0].words)
    assert "--source-text" in made.step("mbr-mono-shard2").commands[0].words
    assert not any(step.name == "best-mono" for step in made.steps)


def test_several_processes_take_a_gpu_or_threads_each() -> None:
    one, on_cpus, on_gpus = (
        plan(**changes).step("train-none-seed1")
        for changes in ({}, {"processes": 2, "threads": 3}, {"processes": 2, "device": "cuda"})
    )
    assert (one.gpus, one.threads, one.commands[0].processes) == (0, 1, 1)
    assert (on_cpus.gpus, on_cpus.threads, on_cpus.commands[0].processes) == (0, 6, 2)
    assert (on_gpus.gpus, on_gpus.threads) == (2, 2)
    assert last_value(on_cpus.commands[0].words, "--distributed-world-size") == "2"
    assert "gloo" in on_cpus.commands[0].words
    assert "gloo" not in on_gpus.commands[0].words


def test_made_up_text_is_the_first_step() -> None:
    made = plan(text={"made_up": {"train": 9, "valid": 8, "test": 7}}, dictionaries="separate")
    assert made.steps[0].name == "text"
    assert made.steps[0].commands[0].words[4:] == (
        "--train",
        "9",
        "--valid",
        "8",
        "--test",
        "7",
        "--seed",
        "1",
    )
    assert made.step("encode-train").commands[0].given == "raw/train.src"
    assert "--joined-dictionary" not in made.step("binarise").commands[0].words
    assert last_value(made.step("evaluate").commands[0].words, "--references") == "raw/test.all"


def test_a_loss_without_a_teacher_can_be_another_one() -> None:
    made = plan(methods=[{"criterion": "none", "flags": "--criterion cross_entropy"}])
    [command] = made.step("train-none-seed1").commands
    assert "--label-smoothing" not in command.words


def test_the_last_value_of_a_flag_counts() -> None:
    assert last_value(["--a", "1", "--a=2", "--b"], "--a") == "2"
    assert last_value(["--b"], "--b") == ""


def test_another_path_of_python_runs_nothing_again() -> None:
    """Snakemake has it as a parameter, so parameters must not decide."""
    words = Engine().words(Path("run"))
    assert words[words.index("--rerun-triggers") + 1] == "software-env"

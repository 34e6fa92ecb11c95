"""A wrong recipe ends in one line that names the key, the value and the remedy."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.pipeline import packaged
from fairseq_imitkd.pipeline.reading import last_value
from fairseq_imitkd.pipeline.recipe import Method, Pair
from fairseq_imitkd.pipeline.recipe_file import TRAINING, methods_for, parse, read
from fairseq_imitkd.quick import recipe_words
from tests.helpers.digit_corpus import REPO
from tests.pipeline.recipes import recipe

HERE = Path("/text")
TEXT: dict[str, Any] = {split: [f"{split}.src", f"{split}.tgt"] for split in ("train", "valid", "test")}
SHORT = "--max-update 8"
MADE_UP = {"train": 9, "valid": 9, "test": 9}


def test_a_recipe_is_read_with_paths_from_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(
        "languages: de-en\n"
        "text: {train: [a.de, a.en], valid: [v.de, v.en], test: [t.de, /t.en]}\n"
        "teacher: big/teacher.pt\n"
        "sentencepiece: spm.model\n"
        "training: --max-update 9 --adam-betas '(0.9, 0.98)'\n"
        "methods: [seqkd, {criterion: imitkd_full, name: two_steps, data: seqkd, start: seqkd}]\n"
        "seeds: [1, 2]\n"
    )
    made = read(file)
    assert (made.source, made.target) == ("de", "en")
    assert made.text.pairs["test"] == Pair(tmp_path / "t.de", Path("/t.en"))
    assert made.teacher.dictionaries == tmp_path / "big"
    assert made.training == ("--max-update", "9", "--adam-betas", "(0.9, 0.98)")
    assert made.methods == (
        Method("seqkd", None, "seqkd"),
        Method("two_steps", "imitkd_full", "seqkd", "seqkd"),
    )
    assert made.exported == made.methods[1]
    assert made.baseline == made.methods[0]


def test_merged_keys_and_another_folder(tmp_path: Path) -> None:
    """A mapping's own keys come before merged ones, wherever those are read first."""
    file = tmp_path / "small.yaml"
    file.write_text(
        "languages: de-en\nfolder: deep\n"
        "text: {train: [a.de, a.en], valid: [v.de, v.en], test: [t.de, t.en]}\n"
        "teacher: t.pt\n"
        "methods:\n- &one {criterion: gkd, flags: '--x {folder}'}\n"
        "- &two {<<: *one, name: two, data: seqkd}\n- {<<: *two, name: three}\n"
    )
    made = read(file)
    assert [(method.name, method.data) for method in made.methods] == [
        ("gkd", "text"), ("two", "seqkd"), ("three", "seqkd"),
    ]  # fmt: skip
    assert made.methods[2].flags[-1] == str(tmp_path / "deep")
    assert made.teacher.checkpoint == tmp_path / "deep" / "t.pt"


def test_the_recipe_of_the_documentation_is_one() -> None:
    """docs/distil.md shows every kind of method."""
    page = (REPO / "docs" / "distil.md").read_text(encoding="utf-8")
    shown = page.partition("```yaml\n")[2].partition("```")[0]
    made = parse(yaml.safe_load(shown), HERE)
    assert [method.name for method in made.methods] == [
        "none", "seqkd", "imitkd_full", "gkd_after_seqkd", "assistant", "by_assistant",
    ]  # fmt: skip
    defaults = parse({key: yaml.safe_load(shown)[key] for key in ("languages", "text", "teacher")}, HERE)
    assert set(made.training) <= set(defaults.training)
    assert [method.name for method in defaults.methods] == ["seqkd", "then_imitkd"]
    assert made.methods[3].start == defaults.methods[1].start == "seqkd"
    assert made.student == defaults.student


@pytest.mark.parametrize(
    ("training", "flags"),
    [
        (TRAINING, "--lr 0.00021 --warmup-updates 2500 --validate-interval-updates 2000 "
         "--save-interval-updates 2000 --max-update 25000"),
        ("--lr 1e-3,5e-4 --max-update 400 --warmup-updates 300", "--warmup-updates 10 --max-update 100"),
        ("--lr 1e-3 --max-epoch 9 --validate-interval-updates 50", "--lr 0.0003"),
    ],
)  # fmt: skip
def test_the_default_s_second_training_is_shorter(training: str, flags: str) -> None:
    seqkd, then = methods_for(shlex.split(training))
    assert seqkd == "seqkd"
    assert then["flags"] == f"--student-share constant:1 {flags}"
    assert (then["criterion"], then["start"], then["data"]) == ("imitkd", "seqkd", "seqkd")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, "seed is not a key of a recipe: did you mean seeds?"),
        ({"languages": None}, "languages is not given; add it to the recipe"),
        ({"languages": "de"}, "languages must be two names, such as de-en or [deu_Latn, eng_Latn], but is"),
        ({"languages": "de-de"}, "languages must be two names"),
        ({"text": {"train": ["a", "b"], "valid": ["a", "b"]}}, "text.test is not given"),
        ({"text": {"trian": []}}, "text.trian is not a key of text: did you mean train?"),
        ({"text": {"train": "a.de"}}, "text.train must be two files, such as [train.de, train.en]"),
        ({"text": {"train": [1, 2]}}, "text.train must name files, but has 1"),
        ({"teacher": {}}, "teacher must have one of checkpoint, huggingface and arch, but has none of them"),
        ({"teacher": {"arch": "a", "checkpoint": "b"}}, "but has checkpoint and arch"),
        ({"teacher": {"checkpoint": "b", "flags": "--lr 1"}}, "flags changes nothing without teacher.arch"),
        ({"student": "my_arch"}, "student must have keys, but is 'my_arch'; write student: {arch: my_arch}"),
        ({"teacher": 3}, "teacher must have keys (checkpoint, dictionaries, huggingface, arch, …), but is 3"),
        ({"teacher": "t.pt", "sentencepiece": {"vocabulary": 100}}, "teacher.checkpoint has its own"),
        ({"teacher": {"huggingface": "m"}, "sentencepiece": "s"}, "changes nothing with teacher.huggingface"),
        ({"sentencepiece": {"vocabulary": 3}}, "vocabulary must be a whole number from 10 to 1,000,000"),
        ({"sentencepiece": {"vocabulary": 10**9}}, "number from 10 to 1,000,000, but is 1000000000"),
        ({"sentencepiece": {}}, "sentencepiece must have either model"),
        ({"training": 3}, "training must be flags, such as --dropout 0.1, but is 3"),
        ({"training": "--a '(1"}, "training can't be read as flags: No closing quotation"),
        ({"methods": []}, "methods must be a list, such as [seqkd, imitkd_full], but is []"),
        ({"seeds": 0}, "seeds must be a list, such as [1, 2, 3], but is 0"),
        ({"methods": "gkd"}, "methods must be a list, such as [seqkd, imitkd_full], but is 'gkd'"),
        ({"methods": ["gkd", "gkd"]}, "methods[2].name 'gkd' is taken; give the method another name"),
        ({"methods": [{"name": "a"}]}, "methods[1].criterion is not given"),
        ({"methods": [{"criterion": "gkd", "name": "../a"}]}, "methods[1].name must consist of letters"),
        ({"methods": [{"criterion": "seqkd", "data": "text"}]}, "data must be seqkd with criterion seqkd"),
        ({"training": "--lr 1 --seed 3"}, "training has --seed, which imitkd-distill sets itself; use seeds"),
        ({"training": "--lr 1 --no-save"}, "training has --no-save, so a training would leave no checkpoint"),
        ({"methods": [{"criterion": "gkd", "flags": "--checkpoint-suffix=x"}]}, "[1].flags has --checkpoint"),
        ({"teacher": {"arch": "a", "flags": "--disable-validation"}}, "teacher.flags has --disable-validat"),
        (
            {"training": f"{SHORT} --validate-after-updates 9"},
            "the training of teacher has --validate-after-updates 9, above its --max-update 8, so it would",
        ),
        (
            {"training": "--max-epoch 5 --save-interval 2", "methods": [{"criterion": "gkd",
             "flags": "--validate-interval 3"}]},
            "the training of methods[1] has --max-epoch 5, but would save what it has validated after 6 epo",
        ),
        (
            {"export": {"format": "huggingface", "quantization": "int8"}},
            "export.quantization changes nothing with export.format huggingface, which has float32 alone",
        ),
        ({"export": {"format": "hf"}}, "export.format must be one of auto, huggingface, but is 'hf'"),
        (
            {"teacher": {"huggingface": "m"}, "export": {"flags": "--subwords x"}},
            "export has --subwords, which teacher.huggingface sets itself; leave it out",
        ),
        ({"export": {"flags": "--format huggingface"}}, "export has --format, which imitkd-distill sets its"),
        ({"evaluate": "--references /r"}, "evaluate has --references, which imitkd-distill sets itself; use"),
        ({"training": "--criterion gkd"}, "training has --criterion, which imitkd-distill sets itself; name"),
        ({"student": {"arch": "a", "flags": "--save-dir=x"}}, "student.flags has --save-dir, which"),
        ({"methods": [{"criterion": "none", "flags": "--user-dir x"}]}, "methods[1].flags has --user-dir"),
        ({"methods": [{"criterion": "gkd", "flags": "--criterion imitkd"}]}, "; use methods[1].criterion"),
        ({"seqkd": "--out x"}, "seqkd has --out, which imitkd-distill sets itself; leave it out"),
        ({"methods": [{"criterion": "gkd", "data": "seqdk"}]}, "methods[1].data must be one of text, seqkd"),
        ({"methods": ["seqkd", {"criterion": "gkd", "start": "sekd"}]}, "did you mean seqkd?"),
        ({"methods": [{"criterion": "gkd", "start": "none"}, "none"]}, "list that method before this one"),
        ({"methods": ["none", {"criterion": "gkd", "teacher": "non"}]}, "methods[2].teacher 'non' is not a"),
        ({"methods": ["gkd", {"criterion": "seqkd", "teacher": "gkd"}]}, "teacher changes nothing without a"),
        ({"methods": [{"criterion": "gkd", "seeds": [1, 1]}]}, "methods[1].seeds must be different whole"),
        ({"methods": [{"criterion": "gkd", "student": {"flags": "-"}}]}, "methods[1].student.arch is not"),
        ({"methods": [{"criterion": "gkd", "student": "a"}]}, "methods[1].student must have keys (arch"),
        (
            {"methods": [{"criterion": "gkd", "student": {"arch": "a", "flags": "--criterion b"}}]},
            "methods[1].student.flags has --criterion, which imitkd-distill sets itself",
        ),
        (
            {"methods": ["none", {"criterion": "gkd", "start": "none", "student": {"arch": "a"}}]},
            "methods[2].start 'none' has another student; give both the same key student",
        ),
        (
            {"methods": ["none", {"criterion": "gkd", "start": "none", "seeds": [2]}]},
            "methods[2].start 'none' has no student of seed 2; add it to that method's seeds",
        ),
        ({"seeds": [1, 1]}, "seeds must be different whole numbers of 0 or more, such as [1, 2, 3]"),
        ({"seeds": [True]}, "seeds must be different whole numbers"),
        ({"evaluate": {"baseline": "imitkd_ful"}}, "is not one of the methods: did you mean imitkd_full?"),
        ({"export": "int9"}, "export is 'int9': did you mean int8?"),
        ({"export": {"method": "gkd"}}, "export.method 'gkd' is not one of the methods: use one of none"),
        ({"processes": 0}, "processes must be a whole number from 1 to 1,024, but is 0"),
        ({"seqkd": {"shard": 2}}, "seqkd.shard is not a key of seqkd: did you mean shards?"),
        ({"seqkd": {"shards": 0}}, "seqkd.shards must be a whole number from 1 to 1,000, but is 0"),
        ({"seqkd": {"shards": 10**9}}, "seqkd.shards must be a whole number from 1 to 1,000, but is 1000"),
        ({"training": "--lr 1 --arch sru"}, "training has --arch, which imitkd-distill sets itself"),
        ({"student": {"arch": "a", "flags": "--arch=b"}}, "student.flags has --arch, which imitkd-distill"),
        ({"teacher": {"arch": "a", "flags": "--arch b"}}, "sets itself; use teacher.arch"),
        ({"translations": {"best": "--beam 9"}}, "translations.best changes nothing: no method has data"),
        ({"translations": {"text": "--beam 9"}}, "translations.text must be another name"),
        ({"translations": {"binarise": "--beam 9"}}, "translations.binarise must be another name"),
        ({"translations": "--beam 9"}, "translations must have names as its keys, but is '--beam 9'"),
        ({"dictionaries": "joint"}, "dictionaries must be one of joined, separate, but is 'joint'"),
        ({"teacher": "t.pt", "dictionaries": "joined"}, "dictionaries changes nothing with this teacher"),
        ({"text": {"made_up": {"train": 9}}}, "text.made_up.valid is not given"),
        ({"text": {"made_up": MADE_UP, "mono": "m"}}, "text.mono changes nothing with text.made_up"),
        ({"text": {**TEXT, "mono": "m.src"}}, "text.mono changes nothing: add the method seqkd"),
        ({"methods": [{"criterion": "gkd", "mono": 0.5}]}, "mono is 0.5, but text.mono is not given"),
        ({"text": {**TEXT, "mono": "m"}, "methods": [{"criterion": "gkd", "mono": 1}]}, "above 0 and below"),
        (
            {"text": {**TEXT, "mono": "m"}, "methods": [{"criterion": "none", "mono": 0.5}]},
            "methods[1].mono needs a method with a teacher, but its criterion is none",
        ),
        ({"device": "gpu"}, "device must be one of auto, cpu, cuda, but is 'gpu'"),
        ({"threads": 0}, "threads must be a whole number from 1 to 1,024, but is 0"),
        ({"threads": 5000}, "threads must be a whole number from 1 to 1,024, but is 5000"),
        ({"training": "--lr 1 -a sru"}, "training has -a, which imitkd-distill sets itself; use student"),
        ({"student": {"arch": "a", "flags": "-asru"}}, "student.flags has -asru, which imitkd-distill sets"),
        ({"teacher": {"arch": "a", "flags": "-a=sru"}}, "sets itself; use teacher.arch"),
        ({"evaluate": "-sde"}, "evaluate has -sde, which imitkd-distill sets itself; use languages"),
        ({"training": "--lr 1 --help"}, "training has --help, which prints a help text and ends; leave it"),
        ({"evaluate": "-h"}, "evaluate has -h, which prints a help text and ends; leave it out"),
        (
            {"methods": ["seqkd"], "seqkd": "--translations=/more.tsv"},
            "seqkd has --translations, but in a recipe the teacher translates; leave it out, or name",
        ),
        ({"methods": [{"criterion": "gkd", "name": "a" * 101}]}, "methods[1].name must have at most 100 b"),
        ({"methods": ["\u00e9" * 51]}, "methods[1].criterion must have at most 100 bytes, but is"),
        ({"languages": ["a" * 101, "b"]}, "languages must have at most 100 bytes, but is 'aaaa"),
        ({"translations": {"a" * 300: "--beam 9"}}, "translations must have at most 100 bytes, but is 'aaa"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_names_the_key_and_the_remedy(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(recipe(HERE, **changes), HERE)
    assert message in str(error.value)
    assert len(str(error.value)) <= 200


@pytest.mark.parametrize(
    ("words", "flag", "value"),
    [
        ("--beam 3 --beam=4", "--beam", "4"),
        ("--beam=4 --beam", "--beam", "4"),
        ("--arch a -a b", "--arch", "b"),
        ("-ab", "--arch", "b"),
        ("-a=b --adam-eps 1", "--arch", "b"),
        ("--max-sentences 8", "--batch-size", "8"),
        ("--max-sentences=8 --batch-size 9", "--batch-size", "9"),
    ],
)
def test_a_flag_is_found_by_each_of_its_names(words: str, flag: str, value: str) -> None:
    assert last_value(words.split(), flag) == value


@pytest.mark.parametrize(
    "training",
    [
        f"{SHORT} --validate-after-updates 8",
        f"{SHORT} --max-epoch 5 --save-interval 9",
        "--max-epoch 6 --save-interval 2 --validate-interval 3",
        "--max-epoch 5 --save-interval 9 --save-interval-updates 100",
    ],
)
def test_a_training_that_leaves_its_best_checkpoint_is_accepted(training: str) -> None:
    parse(recipe(HERE, training=training), HERE)


def test_an_empty_key_has_its_default() -> None:
    optional = ("export", "evaluate", "translations", "seeds", "seqkd", "distillation", "student", "training")
    optional += ("device", "threads", "user_dir", "about", "rehearsal")
    left_out = recipe(HERE, **dict.fromkeys(optional))
    assert parse({**left_out, **dict.fromkeys(optional)}, HERE) == parse(left_out, HERE)
    assert parse(recipe(HERE, export=False), HERE).export is None


def test_recipes_of_the_package_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = packaged.names()
    assert names[0] == "quickstart"
    for name in names:
        path = recipe_words.packaged(Path(name))
        assert path is not None
        assert read(path, tmp_path).about, name
    said = recipe_words.unknown(Path("multi30")) or ""
    assert "is neither a file nor a recipe of the package: did you mean multi30k?" in said
    (tmp_path / "multi30k").mkdir()
    assert recipe_words.packaged(Path("multi30k")) == packaged.path_of("multi30k"), "a folder is not a recipe"
    (tmp_path / "multi30").touch()
    assert recipe_words.packaged(Path("multi30")) is None
    assert recipe_words.unknown(Path("multi30")) is None
    assert recipe_words.packaged(Path("small.yaml")) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "line 1 of recipe '{}' is not YAML: "),
        ("a: 1\nseeds: [1]\nseeds: [2]", "line 3 of recipe '{}' is not YAML: the key 'seeds' is given twice"),
        ("- a", "recipe '{}' has no keys; begin with languages, text and teacher"),
        ("", "recipe '{}' is empty; begin with languages, text and teacher"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_a_file_that_is_not_a_recipe_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UsageError, match="") as error:
        read(tmp_path / "r.yaml")
    assert message.format(tmp_path / "r.yaml") in str(error.value)

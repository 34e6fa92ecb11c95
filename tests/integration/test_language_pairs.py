"""One student of several language pairs by the real commands: training, a resumed run, decoding, refusals."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fairseq_imitkd.checkpoints.translation import load_student
from fairseq_imitkd.data.corpus import Languages, dataset_builder
from fairseq_imitkd.data.pair_flags import check_pair_splits, check_pairs
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.tasks.translation_multi import TranslationMultiWithTeacherConfig
from fairseq_imitkd.training.language_pairs import settings_of
from tests.distributed.test_two_ranks import free_port, run_together
from tests.helpers import digit_corpus, in_process, warm_commands
from tests.helpers.fairseq_models import letters
from tests.helpers.language_models import sentences
from tests.helpers.language_pairs import PAIRS, TAGS, TASK, dictionary
from tests.integration.test_resume_epochs import differences, end, train

MODEL = (
    "--arch", "transformer", "--encoder-layers", 1, "--decoder-layers", 1, "--encoder-embed-dim", 16,
    "--decoder-embed-dim", 16, "--encoder-ffn-embed-dim", 16, "--decoder-ffn-embed-dim", 16,
    "--encoder-attention-heads", 2, "--decoder-attention-heads", 2, "--share-all-embeddings",
)  # fmt: skip
TAGGED = ("--lang-pairs", PAIRS, "--encoder-langtok", "src", "--decoder-langtok")
SETTINGS = ("--task", TASK, *TAGGED)
# Six batches an epoch.
FLAGS = (*MODEL, "--batch-size", 16, "--save-interval-updates", 4, "--validate-interval-updates", 10**6)
SAMPLED = ("--sampling-method", "temperature", "--sampling-temperature", 3)
CASES = {
    "gkd": ("--criterion", "gkd", *SAMPLED),
    "virtual": ("--criterion", "gkd", *SAMPLED, "--virtual-data-size", 90, "--virtual-epoch-size", 50),
    "replay": ("--criterion", "distillm", "--student-share", "0.7", "--rollout-replay-share", "0.6"),
    "samples": ("--criterion", "f_distill", "--teacher-samples", "--rollout-pool-updates", 3),
    "speculative": ("--criterion", "speculative_kd", "--sampling-method", "uniform"),
    "reward": ("--criterion", "gkd", "--reward", "chrf", "--reward-baseline", "running"),
    "replacing": ("--criterion", "imitkd_full", "--lang-tok-replacing-bos-eos"),
}


@dataclass(frozen=True)
class Pairs:
    """A data directory of three pairs of letters, and a teacher of them by fairseq's own task."""

    data: Path
    teacher: Path


def write_pair(root: Path, pair: str, counts: dict[str, int]) -> None:
    """Write random sentences as sources; their targets are the same letters in reverse order, or the same."""
    source, target = pair.split("-")
    for split, count in counts.items():
        sides = {side: root / f"{split}.{pair}.{side}" for side in (source, target)}
        with (
            dataset_builder(sides[source], len(letters())) as sources,
            dataset_builder(sides[target], len(letters())) as targets,
        ):
            for sentence in sentences(count, len(split) + ord(source[0]), 6):
                sources.add_item(sentence)
                words = sentence[:-1].flip(0) if target == "yy" else sentence[:-1]
                targets.add_item(torch.cat([words, sentence[-1:]]))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    root = tmp_path_factory.mktemp("pairs")
    for language in ("xx", "yy", "zz"):
        dictionary().save(str(root / f"dict.{language}.txt"))
    for pair, count in zip(PAIRS.split(","), (48, 24, 18), strict=True):
        write_pair(root, pair, {"train": count, "valid": 6, "test": 6})
    stock = ("--task", "translation_multi_simple_epoch", "--criterion", "cross_entropy", *TAGGED)
    in_process.train(root, root / "teacher", *MODEL, *stock, "--max-update", 12, "--disable-validation")
    return Pairs(root, root / "teacher" / "checkpoint_last.pt")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "gkd")) for name in CASES]
)
def test_resumed_run_ends_like_the_run_that_was_not_stopped(name: str, pairs: Pairs, tmp_path: Path) -> None:
    """In every bit. It is cut within an epoch of this task's own iterator, and goes on beyond it."""
    teacher = pairs.teacher
    flags = (*SETTINGS, *FLAGS, *CASES[name], "--disable-validation", "--teacher-allow-poor")
    if name == "replacing":
        stock = ("--task", "translation_multi_simple_epoch", "--criterion", "cross_entropy", *TAGGED)
        in_process.train(
            pairs.data, tmp_path / "teacher", *MODEL, *stock, CASES[name][-1], "--max-update", 4,
            "--disable-validation",
        )  # fmt: skip
        teacher = tmp_path / "teacher" / "checkpoint_last.pt"
    flags = (*flags, "--teacher-path", teacher, "--teacher-data", pairs.data, "--max-update", 8)
    whole = train(pairs.data, tmp_path / "whole", *flags)
    folder = tmp_path / "cut"
    folder.mkdir()
    [cut] = (tmp_path / "whole").glob("checkpoint_*_4.pt")
    shutil.copy(cut, folder / "checkpoint_last.pt")
    again = train(pairs.data, folder, *flags)
    assert again["optimizer_history"][-1]["num_updates"] == 8
    assert differences(end(again), end(whole)) == []
    own = [state["extra_state"].get("TranslationMultiWithTeacherTask") for state in (again, whole)]
    assert differences(*own) == []


@pytest.fixture(scope="module")
def student(pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a student that was trained by ``imitkd-train`` and validated on each pair."""
    folder = tmp_path_factory.mktemp("student")
    digit_corpus.train(
        pairs.data, folder, *SETTINGS, *MODEL, "--criterion", "imitkd_full", "--teacher-path", pairs.teacher,
        "--teacher-allow-poor", "--max-update", 10, "--eval-bleu", "--eval-bleu-args", '{"beam": 1}',
        "--valid-subset", "valid,valid:xx-yy,valid:xx-zz", *SAMPLED,
    )  # fmt: skip
    return folder


def test_pairs_are_validated_and_decoded_in_this_process(pairs: Pairs, tmp_path: Path) -> None:
    """Each with the tag of its target language, which is not printed. The weights are a plain model's."""
    training = in_process.train(
        pairs.data, tmp_path, *SETTINGS, *MODEL, "--criterion", "imitkd_full", "--teacher-path",
        pairs.teacher, "--teacher-data", pairs.data, "--teacher-allow-poor", "--max-update", 2,
        "--eval-bleu", "--eval-bleu-args", '{"beam": 1}', "--valid-subset", "valid,valid:xx-yy",
    )  # fmt: skip
    assert all({"loss", "bleu"} <= line.keys() for line in training.metrics["valid"])
    student = tmp_path / "checkpoint_last.pt"
    theirs, own = (torch.load(path, weights_only=True)["model"] for path in (pairs.teacher, student))
    assert theirs.keys() == own.keys()
    decode = (*SETTINGS, "--source-lang", "xx", "--target-lang", "zz", "--beam", 2, "--max-len-b", 5)
    found = in_process.generate(pairs.data, student, tmp_path, *decode)
    assert len(found) == 6
    assert not set(" ".join(found).split()) & set(TAGS)


@pytest.mark.slow
def test_each_pair_is_validated_and_decoded(pairs: Pairs, student: Path) -> None:
    """Greedily and by beam search, with the tag of its target language, which is not printed."""
    lines = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
    valid = {line["tag"]: line for line in lines if line["tag"].startswith("valid")}
    assert valid.keys() == {"valid", "valid:xx-yy", "valid:xx-zz"}
    assert all({"loss", "bleu"} <= line.keys() for line in valid.values())
    theirs, own = (
        torch.load(path, weights_only=True)["model"]
        for path in (pairs.teacher, student / "checkpoint_best.pt")
    )
    assert theirs.keys() == own.keys()
    decode = (*SETTINGS, "-s", "xx", "-t", "zz", "--path", student / "checkpoint_best.pt", "--cpu")
    for beam in (1, 3):
        done = digit_corpus.run("imitkd-generate", pairs.data, *decode, "--beam", beam, "--max-len-b", 5)
        found = in_process.hypotheses(done.stdout)
        assert len(found) == 6
        assert not set(" ".join(found).split()) & set(TAGS)
    other = (*SETTINGS[:4], "--encoder-langtok", "tgt", *decode[len(SETTINGS) :])
    done = digit_corpus.run("imitkd-generate", pairs.data, *other, check=False)
    assert "it reads __xx__ in the source and __zz__ in the target, but the flags give __zz__" in done.stderr


def test_a_list_of_languages_of_another_machine(pairs: Pairs, tmp_path: Path) -> None:
    """A checkpoint names its file by a path. Only a small file is read, from there or from the data."""
    data = Path(shutil.copytree(pairs.data, tmp_path / "data"))
    state = torch.load(pairs.teacher, weights_only=False)

    def load(named: object) -> None:
        task = state["cfg"]["task"]
        task.langs, task.lang_dict = None, str(named)
        torch.save(state, tmp_path / "model.pt")
        load_student(str(tmp_path / "model.pt"), Languages.of(data, "xx", "yy"))

    for path in ("/elsewhere/langs.txt", "/dev/zero"):
        with pytest.raises(
            UsageError, match=rf"list of languages, {Path(path).name}, is not in '.*'; copy it"
        ):
            load(path)
    (data / "langs.txt").write_text("xx\nyy\nzz\n")
    load("/elsewhere/langs.txt")
    load(data / "langs.txt")


@pytest.mark.slow
def test_a_pair_is_evaluated(pairs: Pairs, student: Path, tmp_path: Path) -> None:
    """The student's tags are read from its checkpoint."""
    digit_corpus.run(
        "imitkd-evaluate", "--model", f"student={student / 'checkpoint_best.pt'}", "--data", pairs.data,
        "--source-lang", "xx", "--target-lang", "zz", "--out", tmp_path / "evaluation", "--quick",
    )  # fmt: skip
    evaluation = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert evaluation["data"]["target_lang"] == "zz"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"lang_pairs": None}, "--lang-pairs must be language pairs such as de-en,en-de, but has ''"),
        ({"lang_pairs": "xx-yy,yyzz"}, "such as de-en,en-de, but has 'yyzz'"),
        ({"lang_pairs": "xx-yy,xx-yy"}, "names a pair twice"),
        ({"lang_pairs": "xx-yy,xx-qq"}, "dict.qq.txt"),
        ({"langs": "xx,yy"}, "language zz is not one of --langs: xx,yy"),
        ({"langs": "xx", "lang_dict": "x"}, "--langs and --lang-dict can't be used together"),
        ({"lang_dict": "nosuch"}, "--lang-dict 'nosuch' can't be read"),
        ({"source_lang": "xx"}, "must both be given, to decode one pair"),
        ({"sampling_weights": '{"main:xx-yy": 1}'}, "must give each pair a weight above 0"),
        ({"sampling_weights_from_file": "nosuch"}, "--sampling-weights-from-file 'nosuch' can't be read"),
        ({"sampling_temperature": 0.0}, "--sampling-temperature must be above 0, but is 0.0"),
        ({"encoder_langtok": "src", "decoder_langtok": False}, "no tag tells the model which language"),
        ({"source_dict": "nosuch"}, "--source-dict 'nosuch' is not a file"),
        ({"data": ""}, "DATA is not given"),
        ({"virtual_epoch_size": 0}, "--virtual-epoch-size must be 1 or more, but is 0"),
        ({"virtual_data_size": -3}, "--virtual-data-size must be 1 or more, but is -3"),
        ({"langs": "xx,xx,yy,zz"}, "--langs xx,xx,yy,zz names a language twice"),
        ({"lang_pairs": "/proc/self/mem"}, "--lang-pairs '/proc/self/mem' can't be read"),
    ],
)  # fmt: skip
def test_flags_of_pairs_that_cannot_be_used(flags: dict, message: str, pairs: Pairs) -> None:
    """Before data is read, in one line."""
    given = {"data": str(pairs.data), "lang_pairs": "xx-yy,xx-zz,yy-zz", "encoder_langtok": "tgt"}
    cfg = TranslationMultiWithTeacherConfig(**{**given, **flags})
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        check_pairs(cfg) or settings_of(cfg)
    assert len(str(raised.value).replace(str(pairs.data), "DATA")) <= 200


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("nosuch", "has no 'nosuch' of xx-yy, a pair of --lang-pairs: binarise it"),
        ("valid:zz-xx", "--valid-subset 'valid:zz-xx' must end in a pair of --lang-pairs: xx-yy"),
    ],
)
def test_splits_that_are_not_there(split: str, message: str, pairs: Pairs) -> None:
    cfg = TranslationMultiWithTeacherConfig(data=str(pairs.data), lang_pairs="xx-yy")
    with pytest.raises(UsageError, match=message):
        check_pair_splits(cfg, [("--valid-subset", "valid:xx-yy"), ("--valid-subset", split)])


def test_sides_with_several_dictionaries(pairs: Pairs, tmp_path: Path) -> None:
    for language in ("xx", "yy", "zz"):
        shutil.copy(pairs.data / f"dict.{language}.txt", tmp_path)
    letters().save(str(tmp_path / "dict.zz.txt"))
    cfg = TranslationMultiWithTeacherConfig(
        data=str(tmp_path), lang_pairs="xx-yy,xx-zz", encoder_langtok="tgt"
    )
    with pytest.raises(UsageError, match="all languages of a side must share one dictionary"):
        check_pairs(cfg)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--encoder-langtok", "tgt"), "the teacher has __xx__ in the source and __yy__ in the"),
        pytest.param(
            ("--lang-pairs", "xx-yy,zz-yy"),
            "the teacher was trained on xx-yy,xx-zz,yy-zz, but not on zz-yy",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_mistakes_are_one_line(flags: tuple, message: str, pairs: Pairs, tmp_path: Path) -> None:
    """Before data is read."""
    done = digit_corpus.train(
        pairs.data, tmp_path, *SETTINGS, *MODEL, "--criterion", "gkd", "--teacher-path", pairs.teacher,
        "--max-update", 1, *flags, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert message in last
    assert len(last) <= 200


@pytest.mark.slow
def test_two_processes_train_as_one_on_double_batches(pairs: Pairs, tmp_path: Path) -> None:
    """Rollouts with tags of each row, by gloo; the batches of the epoch's end are uneven."""

    def command(name: str, *flags: object) -> list[str]:
        given = (
            warm_commands.folder() / "imitkd-train", pairs.data, "--save-dir", tmp_path / name, "--cpu",
            *SETTINGS, *MODEL, "--dropout", 0, "--criterion", "imitkd_full", "--student-share", 0.5,
            "--teacher-path", pairs.teacher, "--teacher-allow-poor", "--optimizer", "sgd", "--lr", 0.5,
            "--batch-size", 16, "--max-update", 6, "--disable-validation", "--num-workers", 0, *flags,
        )  # fmt: skip
        return list(map(str, given))

    meeting = f"tcp://127.0.0.1:{free_port()}"
    two = [
        command(
            "two", "--distributed-init-method", meeting, "--distributed-rank", rank,
            "--distributed-world-size", 2, "--distributed-no-spawn", "--distributed-backend", "gloo",
            "--ddp-backend", "legacy_ddp",
        )
        for rank in range(2)
    ]  # fmt: skip
    run_together([*two, command("one", "--update-freq", 2)], tmp_path)
    models = [
        torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=True)["model"]
        for name in ("two", "one")
    ]
    torch.testing.assert_close(models[0], models[1], rtol=1e-5, atol=1e-5)

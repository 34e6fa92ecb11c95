"""A language model with a teacher by the real commands: training, decoding, a resumed run, and refusals."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fairseq_imitkd.data.corpus import dataset_builder
from tests.helpers import digit_corpus, in_process
from tests.helpers.fairseq_models import letters
from tests.helpers.language_models import sentences
from tests.integration.test_resume_epochs import differences, end, train

MODEL = (
    "--arch", "transformer_lm", "--tokens-per-sample", 24, "--decoder-layers", 1, "--decoder-embed-dim", 16,
    "--decoder-input-dim", 16, "--decoder-output-dim", 16, "--decoder-ffn-embed-dim", 16,
    "--decoder-attention-heads", 2,
)  # fmt: skip
TASK = ("--task", "language_modeling_with_teacher")
# Six batches an epoch.
FLAGS = (*MODEL, "--batch-size", 16, "--save-interval-updates", 4, "--validate-interval-updates", 10**6)
CASES = {
    "gkd": ("--criterion", "gkd"),
    "replay": ("--criterion", "distillm", "--student-share", "0.7", "--rollout-replay-share", "0.6"),
    "samples": ("--criterion", "f_distill", "--teacher-samples", "--rollout-pool-updates", 3),
    "speculative": ("--criterion", "speculative_kd"),
    "reward": ("--criterion", "gkd", "--reward", "chrf", "--reward-baseline", "running"),
}


@dataclass(frozen=True)
class Model:
    """A data directory of letters, in which every sentence holds an ``a``, and a teacher of it."""

    data: Path
    teacher: Path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The teacher is trained by fairseq's own task, on blocks of text: with numpy 2 it can't divide text at
    EOS.
    """
    root = tmp_path_factory.mktemp("lm")
    letters().save(str(root / "dict.txt"))
    first = letters().index("a")
    for split, count, seed in (("train", 88, 1), ("valid", 16, 2), ("test", 16, 3)):
        with dataset_builder(root / split, len(letters())) as builder:
            for number, sentence in enumerate(sentences(count, seed)):
                place = number % len(sentence)
                builder.add_item(torch.cat([sentence[:place], torch.tensor([first]), sentence[place:]]))
    stock = ("--task", "language_modeling", "--criterion", "cross_entropy")
    in_process.train(root, root / "teacher", *MODEL, *stock, "--max-update", 12, "--disable-validation")
    return Model(root, root / "teacher" / "checkpoint_last.pt")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "gkd")) for name in CASES]
)
def test_resumed_run_ends_like_the_run_that_was_not_stopped(name: str, model: Model, tmp_path: Path) -> None:
    """In every bit. It is cut within an epoch, and goes on beyond it."""
    flags = (*TASK, *FLAGS, *CASES[name], "--prompt-symbol", "a", "--teacher-path", model.teacher)
    flags = (*flags, "--disable-validation", "--teacher-allow-poor", "--max-update", 8)
    whole = train(model.data, tmp_path / "whole", *flags)
    folder = tmp_path / "cut"
    folder.mkdir()
    shutil.copy(tmp_path / "whole" / "checkpoint_1_4.pt", folder / "checkpoint_last.pt")
    again = train(model.data, folder, *flags)
    assert again["optimizer_history"][-1]["num_updates"] == 8
    assert differences(end(again), end(whole)) == []
    own = [state["extra_state"].get("LanguageModelingWithTeacherTask") for state in (again, whole)]
    assert differences(*own) == []


@pytest.fixture(scope="module")
def student(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a student that was trained by ``imitkd-train``, with scores of its validation."""
    folder = tmp_path_factory.mktemp("student")
    digit_corpus.train(
        model.data, folder, *TASK, *MODEL, "--criterion", "gkd", "--prompt-symbol", "a", "--teacher-path",
        model.teacher, "--teacher-allow-poor", "--max-update", 10, "--eval-metrics", "exact,chrf",
        "--eval-bleu-args", '{"beam": 1}', "--log-rollouts", 2,
    )  # fmt: skip
    return folder


def test_a_student_is_trained_and_continues_prompts(model: Model, student: Path, tmp_path: Path) -> None:
    """Greedily and by beam search. The checkpoint has the weights of a ``transformer_lm``."""
    lines = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
    assert [line["student_share"] for line in lines if line["tag"] == "train_inner"] == [1.0, 1.0]
    assert all({"exact", "chrf"} <= line.keys() for line in lines if line["tag"] == "valid")
    [theirs, own] = (
        torch.load(path, weights_only=True)["model"]
        for path in (model.teacher, student / "checkpoint_best.pt")
    )
    assert theirs.keys() == own.keys()
    decode = (*TASK, "--prompt-symbol", "a", "--path", student / "checkpoint_best.pt", "--cpu")
    for beam in (1, 3):
        done = digit_corpus.run("imitkd-generate", model.data, *decode, "--beam", beam, "--max-len-b", 5)
        prompts = [line.split("\t")[1] for line in done.stdout.splitlines() if line.startswith("S-")]
        assert len(in_process.hypotheses(done.stdout)) == len(prompts) == 16
        assert all(prompt.endswith("a") for prompt in prompts)


@pytest.mark.slow
def test_typed_prompts_are_continued(model: Model, student: Path, tmp_path: Path) -> None:
    (tmp_path / "typed").write_text("b c a\na\n")
    done = digit_corpus.run(
        "imitkd-interactive", model.data, *TASK, "--prompt-symbol", "a", "--path",
        student / "checkpoint_best.pt", "--cpu", "--input", tmp_path / "typed",
    )  # fmt: skip
    assert len(in_process.hypotheses(done.stdout)) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--prompt-symbol", "z"), "--prompt-symbol z is not a symbol of a sentence: name one of"),
        (("--prompt-symbol", "</s>"), "--prompt-symbol </s> is not a symbol of a sentence: name one of"),
        ((), "--prompt-symbol or --prompt-length must be given, and not both"),
        (("--prompt-length", 1, "--train-subset", "nosuch"), "--train-subset 'nosuch' is not in DATA"),
        (
            ("--prompt-length", 1, "--teacher-cache", "x"),
            "--teacher-cache can't be used here: it is a flag of --task tr",
        ),
    ],
)
def test_mistakes_are_one_line(flags: tuple, message: str, model: Model, tmp_path: Path) -> None:
    """Before data is read."""
    done = digit_corpus.train(
        model.data, tmp_path, *TASK, *MODEL, "--criterion", "gkd", "--teacher-path", model.teacher,
        "--max-update", 1, *flags, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert message in last
    assert len(last) <= 200

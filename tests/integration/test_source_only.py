"""Trainings on sentences without references."""

import random
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fairseq_imitkd.mixing.mixer
from fairseq_imitkd.errors import UsageError
from tests.helpers import digit_corpus, in_process

FLAGS = (
    "--task", "translation_with_teacher", "--batch-size", 16, "--save-interval", 100, "--seed", 3,
    "--dropout", "0.2",
)  # fmt: skip


@pytest.fixture(scope="module")
def source_only(digits, tmp_path_factory) -> Path:
    """The digit corpus without the target side of its training split."""
    folder = tmp_path_factory.mktemp("source-only") / "data"
    shutil.copytree(digits.data, folder)
    for path in folder.glob("train.*.tgt.*"):
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def random_targets(digits, tmp_path_factory) -> Path:
    """The same sources with meaningless targets of the same lengths, so that the batches are the same."""
    root = tmp_path_factory.mktemp("random-targets")
    generator = random.Random(1)
    for split in ("train", "valid", "test"):
        shutil.copy(digits.text / f"{split}.src", root)
        lines = (digits.text / f"{split}.tgt").read_text().splitlines()
        noise = (" ".join(generator.choice(["one", "two", "six"]) for _ in line.split()) for line in lines)
        (root / f"{split}.tgt").write_text("".join(f"{line}\n" for line in noise))
    dictionaries = ("--srcdict", str(digits.data / "dict.src.txt"), "--tgtdict", digits.data / "dict.tgt.txt")
    digit_corpus.binarise(root, root / "data", *map(str, dictionaries))
    return root / "data"


@pytest.mark.parametrize(
    "flags",
    [
        ("--criterion", "imitkd_full", "--student-share", "1"),
        ("--criterion", "gkd", "--student-share", "1", "--rollout-pool-updates", 2),
        ("--criterion", "speculative_kd"),
        ("--criterion", "word_kd", "--teacher-samples"),
        ("--criterion", "imitkd", "--student-share", "0.5", "--gold-weight", "0", "--teacher-samples"),
    ],
    ids=["greedy", "sampling-pool", "speculative", "teacher-samples", "both"],
)
def test_equals_a_training_with_meaningless_references(
    flags: tuple[object, ...], source_only: Path, random_targets: Path, teacher: Path, tmp_path: Path
) -> None:
    """Losses and weights are equal in every bit, so nothing of a reference is read."""
    flags = (*FLAGS, *flags, "--teacher-path", teacher, "--max-update", 8, "--disable-validation")
    one = in_process.train(source_only, tmp_path / "one", *flags)
    # The teacher does not know the noise.
    other = in_process.train(random_targets, tmp_path / "other", *flags, "--teacher-allow-poor")
    losses = [[update["loss"] for update in each.metrics["train_inner"]] for each in (one, other)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 8
    torch.testing.assert_close(one.weights(), other.weights(), rtol=0, atol=0)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list:
    """Record the batches of a training with their rollouts."""
    found: list = []
    roll_out = fairseq_imitkd.mixing.mixer.Mixer.roll_out

    def watched(self, draw, writers):
        batch = roll_out(self, draw, writers)
        found.append((draw, batch))
        return batch

    monkeypatch.setattr(fairseq_imitkd.mixing.mixer.Mixer, "roll_out", watched)
    return found


def test_mixed_batches(digits, source_only: Path, teacher: Path, tmp_path: Path, batches: list) -> None:
    """The student writes the targets of all sources that have no reference, from the first update on. Of the
    others it writes the share that the schedule says.
    """
    in_process.train(
        digits.data, tmp_path / "mixed", *FLAGS, "--criterion", "imitkd", "--student-share", "linear:0",
        "--mono-source-data", source_only, "--mono-source-share", "0.25", "--teacher-path", teacher,
        "--max-update", 6, "--disable-validation",
    )  # fmt: skip
    first = 3000  # the number of parallel sentences
    for draw, batch in batches:
        is_other = batch.sample["id"] >= first
        assert 3 <= is_other.sum() <= 5
        assert batch.is_rollout[is_other].all()
        assert batch.sample["target"].ne(1).any(dim=-1).all()
        assert draw.sample["target"][is_other].eq(1).all()
    assert not batches[0][1].is_rollout[batches[0][1].sample["id"] < first].any()
    written = [batch.is_rollout[batch.sample["id"] < first].float().mean() for _, batch in batches]
    assert written[-1] > 0.5


def test_without_memory_for_rollouts_the_sources_do_not_count(
    digits, source_only: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*args, **settings):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(fairseq_imitkd.mixing.mixer, "decode", no_memory)
    training = in_process.train(
        digits.data, tmp_path / "mixed", *FLAGS, "--criterion", "imitkd", "--student-share", "0.5",
        "--mono-source-data", source_only, "--teacher-path", teacher, "--max-update", 2,
        "--disable-validation",
    )  # fmt: skip
    for interval in training.metrics["train_inner"]:
        assert interval["rollout_out_of_memory"] >= 1
        assert 0 < interval["tokens_data"] <= 8 * 7
        assert interval["loss"] < 50
    alone = in_process.train(
        source_only, tmp_path / "alone", *FLAGS, "--criterion", "imitkd_full", "--student-share", "1",
        "--teacher-path", teacher, "--max-update", 2, "--disable-validation",
    )  # fmt: skip
    assert all(weights.isfinite().all() for weights in alone.weights().values())


def test_validation_on_the_students_own_translations(
    source_only: Path, teacher: Path, tmp_path: Path
) -> None:
    """Its loss is the method's divergence at the student's greedy translations, and chooses the best."""
    data = tmp_path / "data"
    shutil.copytree(source_only, data)
    for path in data.glob("valid.*.tgt.*"):
        path.unlink()
    training = in_process.train(
        data, tmp_path / "run", *FLAGS, "--criterion", "gkd", "--divergence", "forward-kl", "--student-share",
        "1", "--teacher-path", teacher, "--max-update", 30, "--validate-interval-updates", 10, "--batch-size",
        32, "--teacher-encoder-cache", "10MB",
    )  # fmt: skip
    losses = [interval["loss"] for interval in training.metrics["valid"]]
    assert losses[-1] < losses[0]
    assert (tmp_path / "run" / "checkpoint_best.pt").exists()
    assert training.metrics["valid"][-1]["student_share"] == 1.0

    task, student = training.trainer.task, training.trainer.get_model().eval()
    expert = task.distiller_of(training.trainer.get_criterion()).teacher.models[0]
    total, count = 0.0, 0
    generator = task.build_generator([student], in_process.greedy())
    for number in range(len(task.dataset("valid"))):
        sample = task.dataset("valid").collater([task.dataset("valid")[number]])
        [[best]] = task.inference_step(generator, [student], sample)
        inputs = torch.cat([torch.tensor([2]), best["tokens"][:-1]]).unsqueeze(0)
        net_input = {**sample["net_input"], "prev_output_tokens": inputs}
        with torch.no_grad():
            own, theirs = (model(**net_input)[0].double().log_softmax(-1) for model in (student, expert))
        total += float(F.kl_div(own, theirs, log_target=True, reduction="sum"))
        count += best["tokens"].numel()
    assert losses[-1] == pytest.approx(total / count / 0.6931471805599453, abs=2e-3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--criterion", "word_kd"),
            "'train' of DATA has no references, which --criterion word_kd trains",
        ),
        (("--criterion", "imitkd"), "--student-share exponential:0.005 asks for: add --student-share 1"),
        (
            ("--criterion", "gkd", "--student-share", "1", "--reward", "chrf"),
            "--reward chrf compares rollouts with: leave it out",
        ),
        (
            ("--criterion", "imitkd_full", "--student-share", "1", "--load-alignments"),
            "--load-alignments aligns: leave it out",
        ),
        (
            ("--criterion", "imitkd_full", "--mono-source-share", "0.2"),
            "without --mono-source-data: leave",
        ),
        (("--criterion", "cross_entropy"), "has no target side, which --criterion cross_entropy needs"),
        (("--criterion", "imitkd_full", "--mono-source-data", "nowhere"), "'nowhere' is not a directory"),
        (("--criterion", "imitkd_full", "--mono-source-data", "."), "'.' has no 'train' of src-tgt; make it"),
        (
            ("--criterion", "imitkd_full", "--mono-source-data", ".", "--mono-source-share", "1"),
            "--mono-source-share must be above 0 and below 1, but is 1.0",
        ),
    ],
)
def test_refusals(
    flags: tuple[str, ...], message: str, source_only: Path, teacher: Path, tmp_path: Path
) -> None:
    """One line, before any data is read."""
    given = () if "cross_entropy" in flags else ("--teacher-path", teacher)
    with pytest.raises(UsageError) as error:
        in_process.train(source_only, tmp_path / "run", *FLAGS, *flags, *given, "--max-update", 2)
    assert message in str(error.value)
    assert len(str(error.value)) <= 200


def test_refuses_scores_of_a_validation_set_without_references(
    source_only: Path, teacher: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(source_only, data)
    for path in data.glob("valid.*.tgt.*"):
        path.unlink()
    flags = (*FLAGS, "--criterion", "imitkd_full", "--student-share", "1", "--teacher-path", teacher)
    with pytest.raises(UsageError, match=r"^--eval-bleu needs references, but --valid-subset 'valid' has no"):
        in_process.train(data, tmp_path / "run", *flags, "--max-update", 1, "--eval-bleu")


def test_a_cache_does_not_know_the_students_own_translations(digits, teacher: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(digits.data, data)
    for path in data.glob("valid.*.tgt.*"):
        path.unlink()
    flags = (*FLAGS, "--criterion", "word_kd", "--teacher-cache", tmp_path / "cache", "--max-update", 1)
    with pytest.raises(UsageError, match=r"^--teacher-cache has no answers about the student's own") as error:
        in_process.train(data, tmp_path / "run", *flags)
    assert len(str(error.value)) <= 200


@pytest.mark.parametrize(
    ("flags", "warns"),
    [
        (("--student-share", "1"), True),
        (("--student-share", "1", "--finetune-from-model", "TEACHER"), False),
        (("--student-share", "1", "--init-from-teacher", "embeddings"), False),
        (("--student-share", "0", "--teacher-samples"), False),
    ],
)
def test_a_student_with_random_weights_that_writes_most_targets_is_warned_of(
    flags: tuple[str, ...], warns: bool, source_only: Path, teacher: Path, tmp_path: Path, caplog
) -> None:
    own = (str(teacher) if flag == "TEACHER" else flag for flag in flags)
    in_process.train(
        source_only, tmp_path / "run", *FLAGS, "--criterion", "imitkd_full", *own, "--teacher-path", teacher,
        "--max-update", 1, "--disable-validation", "--no-save",
    )  # fmt: skip
    assert ("starts from random weights and writes most targets" in caplog.text) == warns


def test_validation_with_sentence_vectors(digits, teacher: Path, tmp_path: Path) -> None:
    """Their distance is a part of the loss; a criterion with weights of its own may be wrapped; the time of a
    validation is not the next update's.
    """
    data = tmp_path / "data"
    shutil.copytree(digits.data, data)
    for path in data.glob("valid.*.tgt.*"):
        path.unlink()
    flags = (*FLAGS, "--criterion", "word_kd", "--teacher-path", teacher, "--max-update", 4)
    flags += ("--validate-interval-updates", 2, "--hidden-match", 1, "--hidden-match-only")
    training = in_process.train(data, tmp_path / "run", *flags)
    losses = [interval["loss"] for interval in training.metrics["valid"]]
    assert 0 < losses[-1] < losses[0]
    task, criterion = training.trainer.task, training.trainer.get_criterion()
    assert task.distiller_of(criterion).timer.read("teacher_seconds") == {"teacher_seconds": 0.0}
    student = training.trainer.get_model().eval()
    sample = task.dataset("valid").collater([task.dataset("valid")[number] for number in range(4)])
    loss, count, _ = task.valid_step(sample, student, criterion.eval())
    wrapped = torch.nn.Module()
    wrapped.module = criterion
    wrapped.forward = criterion.forward
    assert task.valid_step(sample, student, wrapped)[:2] == (loss, count)
    assert float(loss) > 0


def test_refuses_sources_of_another_dictionary(digits, teacher: Path, source_only, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(source_only, other)
    with open(other / "dict.src.txt", "a") as file:
        file.write("10 1\n")
    flags = (*FLAGS, "--criterion", "imitkd", "--teacher-path", teacher, "--mono-source-data", other)
    with pytest.raises(UsageError, match="with which DATA was binarised; make --mono-source-data with"):
        in_process.train(digits.data, tmp_path / "run", *flags, "--max-update", 1)

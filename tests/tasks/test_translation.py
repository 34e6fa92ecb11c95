"""A training step of the translation task: which rows are rolled out, what is trained on, and what does not
change.
"""

import argparse
import contextlib
import copy
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.data import LanguagePairDataset, ListDataset
from fairseq.models import ARCH_CONFIG_REGISTRY
from omegaconf import OmegaConf
from torch import Tensor, nn

from fairseq_imitkd.criterion import DISTILLATION, Distillation
from fairseq_imitkd.data.source_only import fill_in
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.methods import METHODS
from fairseq_imitkd.mixing import mixer
from fairseq_imitkd.rollout import RandomKey, RolloutPolicy
from fairseq_imitkd.tasks.translation import TranslationWithTeacherTask
from fairseq_imitkd.teacher.encoder_cache import EncoderCache
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.training import distiller as distiller_module
from tests.helpers.fairseq_models import (
    POSITIONS,
    TOKENWISE,
    WIDTHS,
    build_student,
    give_teacher,
    letters,
    make_batch,
    reversed_pairs,
    roll_out,
    tiny_criterion,
    tiny_task,
    written,
)

UPDATE = 40


class Optimizer:
    """The part of fairseq's optimizer that a training step calls."""

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients."""
        loss.backward()


class Recorder:
    """Records the batches that a criterion gets."""

    def __init__(self, criterion: Any, monkeypatch: pytest.MonkeyPatch):
        self.samples: list[dict[str, Any]] = []
        forward = type(criterion).forward

        def noted(own: Any, model: nn.Module, sample: dict[str, Any], reduce: bool = True) -> Any:
            self.samples.append(sample)
            return forward(own, model, sample, reduce)

        monkeypatch.setattr(type(criterion), "forward", noted)


@pytest.fixture
def task() -> TranslationWithTeacherTask:
    """A task whose teacher is in memory."""
    task = tiny_task()
    give_teacher(task, Teacher([build_student(seed=9)]))
    return task


@pytest.fixture
def student() -> nn.Module:
    """An untrained student, whose rollouts differ from the references."""
    return build_student(seed=1)


def short_rollouts(name: str = "imitkd", **settings: Any) -> Any:
    """Return a criterion whose rollouts have at most six tokens."""
    caps = {} if settings.get("student_share") == "0" else {"rollout_max_len_a": 0.0, "rollout_max_len_b": 6}
    return tiny_criterion(name, tiny_task(), **caps, **settings)


def step(
    task: Any, student: nn.Module, criterion: Any, sample: dict[str, Any], **settings: Any
) -> tuple[Tensor, int, dict[str, Any]]:
    """Run a training step at update 40."""
    return task.train_step(sample, student, criterion, Optimizer(), UPDATE, **settings)


def test_drawn_rows_become_the_students_own_text(task, student, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sentence is drawn by its own random number. The others keep their references. Order and
    ids stay.
    """
    criterion = short_rollouts(student_share="constant:0.5")
    recorder, sample = Recorder(criterion, monkeypatch), make_batch(reversed_pairs(12, seed=1))
    _, sample_size, logs = step(task, student, criterion, sample)
    [seen] = recorder.samples
    drawn = RandomKey(criterion.method.seed, UPDATE).uniforms(sample["id"]) < 0.5
    assert 2 <= int(drawn.sum()) <= 10
    assert seen[DISTILLATION].is_rollout.equal(drawn)
    own = roll_out(student, sample, RolloutPolicy(max_len_a=0.0, max_len_b=6))
    for row, target in enumerate(seen["target"]):
        expected = (
            written(own)[row] if drawn[row] else sample["target"][row][sample["target"][row].ne(1)].tolist()
        )
        assert target[target.ne(1)].tolist() == expected
    assert seen["id"].equal(sample["id"])
    assert sample_size == int(seen["target"].ne(1).sum()) == seen["ntokens"]
    assert int(logs["rollouts"]) == int(drawn.sum())
    assert logs["rollouts_truncated"] == int(own.truncated[drawn].sum())


def test_teacher_scores_the_batch_that_is_trained_on(task, student, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher's logits are those at the new prefixes, which include the student's."""
    criterion = short_rollouts(student_share="1")
    recorder = Recorder(criterion, monkeypatch)
    step(task, student, criterion, make_batch(reversed_pairs(6, seed=2)))
    [seen] = recorder.samples
    with torch.no_grad():
        expected = task.given_teacher.models[0](**seen["net_input"])[0]
    assert seen[DISTILLATION].teacher.logits(slice(None)).equal(expected.flatten(0, 1))


@pytest.mark.parametrize(("share", "rollouts"), [("0", 0), ("1", 7), ("linear:0", None)])
def test_share_is_the_schedules_at_this_update(task, student, share: str, rollouts: int | None) -> None:
    """No row, every row, or the linear schedule's share at update 40 of 100."""
    criterion, sample = short_rollouts(student_share=share), make_batch(reversed_pairs(7, seed=3))
    expected = (
        rollouts if rollouts is not None else int((RandomKey(1, UPDATE).uniforms(sample["id"]) < 0.4).sum())
    )
    assert int(step(task, student, criterion, sample)[2]["rollouts"]) == expected


def test_sampled_rollouts_are_keyed_by_seed_and_update(
    task, student, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampling uses the same seed and update as the draw, in another stream."""
    criterion = short_rollouts(student_share="1", rollout_policy="sampling", seed=5)
    recorder, sample = Recorder(criterion, monkeypatch), make_batch(reversed_pairs(6, seed=4))
    step(task, student, criterion, sample)
    policy = RolloutPolicy("sampling", max_len_a=0.0, max_len_b=6)
    own = roll_out(student, sample, policy, RandomKey(5, UPDATE))
    assert [row[row.ne(1)].tolist() for row in recorder.samples[0]["target"]] == written(own)


def test_given_batch_is_not_changed(task, student) -> None:
    """On the CPU it belongs to the data iterator, and may be fairseq's dummy batch."""
    sample = make_batch(reversed_pairs(6, seed=5))
    before = copy.deepcopy(sample)
    step(task, student, short_rollouts(student_share="1"), sample)
    assert sample.keys() == before.keys()
    assert sample["net_input"].keys() == before["net_input"].keys()
    assert sample["target"].equal(before["target"])
    assert sample["ntokens"] == before["ntokens"]
    assert all(sample["net_input"][key].equal(before["net_input"][key]) for key in before["net_input"])


def test_only_the_student_gets_a_gradient(task, student) -> None:
    """All of the student's parameters get one, and none of the teacher's. The student stays in
    training mode.
    """
    step(task, student, short_rollouts(student_share="constant:0.5"), make_batch(reversed_pairs(6, seed=6)))
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in task.given_teacher.models[0].parameters())
    assert student.training


def test_filler_batch_is_neither_rolled_out_nor_scored(
    task, student, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fairseq's filler for uneven shards causes no work and a gradient of 0. Its log has the same keys."""
    sample, criterion = make_batch(reversed_pairs(6, seed=7)), short_rollouts(student_share="1")
    keys = list(step(task, student, criterion, sample)[2])
    monkeypatch.setattr(mixer, "decode", None)
    monkeypatch.setattr(task.given_teacher, "score", None)
    student.zero_grad(set_to_none=True)
    loss, _, logs = step(task, student, criterion, sample, ignore_grad=True)
    assert float(loss) == 0.0
    assert all(parameter.grad.abs().max() == 0.0 for parameter in student.parameters())
    assert list(logs) == keys


def test_rollout_that_does_not_fit_keeps_the_references(
    task, student, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If decoding runs out of memory, the batch trains on its references, and the log counts it.

    No error is raised: fairseq's own recovery would skip this process's backward pass, and the others would
    wait for it.
    """

    def fails(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no memory is left")

    monkeypatch.setattr(mixer, "decode", fails)
    criterion, sample = short_rollouts(student_share="1"), make_batch(reversed_pairs(6, seed=8))
    recorder = Recorder(criterion, monkeypatch)
    _, sample_size, logs = step(task, student, criterion, sample)
    [seen] = recorder.samples
    assert seen["target"].equal(sample["target"])
    assert isinstance(seen[DISTILLATION], Distillation)
    assert not seen[DISTILLATION].is_rollout.any()
    assert sample_size == sample["ntokens"]
    assert logs["rollout_out_of_memory"] == 1
    assert int(logs["rollouts"]) == logs["rollouts_truncated"] == 0
    assert student.training


def test_other_errors_of_a_rollout_are_raised(task, student, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a lack of memory has a fallback, because a bug must not switch distillation off."""

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(mixer, "decode", fails)
    with pytest.raises(RuntimeError, match="a bug"):
        step(task, student, short_rollouts(student_share="1"), make_batch(reversed_pairs(6, seed=8)))


def test_teachers_positions_bound_rollouts(student) -> None:
    """The student writes no sentence that is too long for the teacher, even if its own cap is larger."""
    task, criterion = tiny_task(), short_rollouts(student_share="1")
    give_teacher(task, Teacher([build_student(seed=9, max_source_positions=30, max_target_positions=5)]))
    sample = make_batch(reversed_pairs(6, seed=11))
    own = roll_out(student, sample, criterion.method.rollout_policy)
    assert own.truncated.any()
    logs = step(task, student, criterion, sample)[2]
    assert int(logs["tokens_rollout"]) == sum(
        len(row) if len(row) <= 5 and row[-1] == 2 else 4 for row in written(own)
    )


def test_stage_times_are_logged(task, student) -> None:
    """Each stage takes a part of the step's time. Without rollouts their time is 0."""
    criterion, sample = short_rollouts(student_share="1"), make_batch(reversed_pairs(6, seed=9))
    logs = step(task, student, criterion, sample)[2]
    assert 0.0 < logs["rollout_seconds"] < logs["step_seconds"]
    assert 0.0 < logs["teacher_seconds"] < logs["step_seconds"]
    assert step(task, student, short_rollouts(student_share="0"), sample)[2]["rollout_seconds"] == 0.0


def test_another_criterion_trains_without_a_teacher(student) -> None:
    """With a criterion that does not distil, the task is fairseq's translation task."""
    task, sample = tiny_task(), make_batch(reversed_pairs(4, seed=10))
    loss, sample_size, logs = step(task, student, CrossEntropyCriterion(task, sentence_avg=False), sample)
    assert float(loss) > 0.0
    assert sample_size == sample["ntokens"]
    assert "rollouts" not in logs


@pytest.mark.parametrize("flag", ["teacher_path", "teacher_cache"])
def test_a_teacher_without_a_method_is_refused(flag: str) -> None:
    """The whole training would be one by cross-entropy. Its parameters may be copied, though."""
    cfg = argparse.Namespace(_name="label_smoothed_cross_entropy", label_smoothing=0.1, sentence_avg=False)
    settings = {flag: "teacher.pt"}
    name = flag.replace("_", "-")
    with pytest.raises(UsageError, match=f"--{name} is not used, because --criterion label_smoothed_cross"):
        tiny_task(**settings).build_criterion(cfg)
    tiny_task(**settings).build_criterion(cfg, from_checkpoint=True)
    tiny_task().build_criterion(cfg)


def criterion_config(name: str = "imitkd") -> Any:
    """Return a method's settings as the trainer passes them."""
    cfg = METHODS[name](
        seed=1,
        max_update=100,
        max_epoch=0,
        ddp_backend="legacy_ddp",
        find_unused_parameters=False,
        disable_validation=False,
        sentence_avg=False,
    )
    cfg._name = name
    return OmegaConf.create(vars(cfg))


@pytest.mark.parametrize(
    ("path", "expected"),
    [(None, "--teacher-path is not given"), ("missing.pt", "'missing.pt' is not a file")],
)
def test_teachers_file_is_asked_for_when_training_begins(path: str | None, expected: str) -> None:
    """It is checked when the criterion is built, before any data is read."""
    task = tiny_task(teacher_path=path)
    with pytest.raises(UsageError, match=expected):
        task.build_criterion(criterion_config())


def test_teachers_file_is_not_asked_for_when_decoding() -> None:
    """A task rebuilt from a checkpoint validates and generates without its teacher."""
    task = tiny_task(teacher_path="missing.pt")
    task.for_training = False
    assert task.build_criterion(criterion_config()) is not None
    assert tiny_task(teacher_path="missing.pt").build_model(build_args()) is not None


def build_args() -> Any:
    """Return the settings of a tiny transformer."""
    args = Namespace(
        arch="transformer", max_source_positions=POSITIONS, max_target_positions=POSITIONS, **WIDTHS
    )
    ARCH_CONFIG_REGISTRY["transformer"](args)
    return args


def test_adaptive_softmax_student_is_refused(tmp_path: Path) -> None:
    """It has no logits over the whole vocabulary. The message names the flag."""
    teacher = tmp_path / "teacher.pt"
    teacher.write_bytes(b"")
    task, args = tiny_task(teacher_path=str(teacher)), build_args()
    args.adaptive_softmax_cutoff = "8"
    args.share_decoder_input_output_embed = False
    task.build_model(args)
    with pytest.raises(UsageError, match="--adaptive-softmax-cutoff"):
        task.build_criterion(criterion_config())


def test_left_padded_targets_are_refused(tmp_path: Path) -> None:
    """Rollouts are padded on the right."""
    teacher = tmp_path / "teacher.pt"
    teacher.write_bytes(b"")
    with pytest.raises(UsageError, match="--left-pad-target"):
        tiny_task(teacher_path=str(teacher), left_pad_target=True).build_criterion(criterion_config())


def test_logs_have_the_same_keys_and_types_in_every_step(
    task, student, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes add them up by position. This holds with all, some or no rollouts, without memory, and for
    the filler.
    """
    sample = make_batch(reversed_pairs(6, seed=12))
    steps = {
        "rollouts": step(task, student, short_rollouts(student_share="1"), sample)[2],
        "some rollouts": step(task, student, short_rollouts(student_share="constant:0.5"), sample)[2],
        "data only": step(task, student, short_rollouts(student_share="0"), sample)[2],
        "none drawn": step(task, student, short_rollouts(student_share="constant:1e-9"), sample)[2],
        "filler": step(task, student, short_rollouts(student_share="1"), sample, ignore_grad=True)[2],
    }

    def fails(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no memory is left")

    monkeypatch.setattr(mixer, "decode", fails)
    steps["out of memory"] = step(task, student, short_rollouts(student_share="1"), sample)[2]
    shapes = {
        name: [
            (key, type(value), getattr(value, "dtype", None), getattr(value, "shape", None))
            for key, value in logs.items()
        ]
        for name, logs in steps.items()
    }
    for name, shape in shapes.items():
        assert shape == shapes["rollouts"], name
    assert all(isinstance(logs["rollouts_truncated"], Tensor) for logs in steps.values())
    assert [int(logs["rollouts"]) for logs in steps.values()][2:] == [0, 0, 0, 0]


def pair_dataset(lengths: list[tuple[int, int]]) -> LanguagePairDataset:
    """Return sentence pairs of these lengths in tokens, including EOS."""
    dictionary = letters()

    def side(counts: list[int]) -> ListDataset:
        rows = [torch.tensor([dictionary.nspecial] * (count - 1) + [dictionary.eos()]) for count in counts]
        return ListDataset(rows, counts)

    sources, targets = ([pair[number] for pair in lengths] for number in (0, 1))
    return LanguagePairDataset(
        side(sources),
        sources,
        dictionary,
        side(targets),
        targets,
        dictionary,
        left_pad_target=False,
        shuffle=False,
    )


def batched(task: Any, split: str, **settings: Any) -> list[int]:
    """Return the numbers of the sentences in a split's batches."""
    batches = task.get_batch_iterator(task.datasets[split], max_sentences=2, **settings).frozen_batches
    return sorted(int(number) for batch in batches for number in batch)


LENGTHS = [(3, 3), (30, 5), (31, 5), (5, 20), (5, 21), (40, 40), (29, 19)]
FIT_THE_TEACHER = [0, 1, 3, 6]


def task_with_data() -> Any:
    """Return a task with equal training and validation sets. Its teacher has 30 source and 20 target
    positions.
    """
    task = tiny_task(train_subset="train")
    task.datasets = {"train": pair_dataset(LENGTHS), "valid": pair_dataset(LENGTHS)}
    give_teacher(task, Teacher([build_student(max_source_positions=30, max_target_positions=20)]))
    task.distiller_of(tiny_criterion("imitkd", task))
    return task


def test_sentences_too_long_for_the_teacher_are_not_trained_on() -> None:
    """Source and target have a limit each. The last position is still used."""
    settings = {"max_positions": (POSITIONS, POSITIONS), "ignore_invalid_inputs": True}
    assert batched(task_with_data(), "train", **settings) == FIT_THE_TEACHER
    assert (
        batched(task_with_data(), "train", max_positions=None, ignore_invalid_inputs=True) == FIT_THE_TEACHER
    )


def test_sentences_too_long_for_the_student_are_left_out() -> None:
    """The lower of the two limits applies."""
    assert batched(task_with_data(), "train", max_positions=(10, POSITIONS), ignore_invalid_inputs=True) == [
        0,
        3,
    ]


def test_a_validation_on_the_students_translations_asks_the_teacher() -> None:
    """So sources that are too long for it are left out of a validation set without references."""
    task = task_with_data()
    dataset = task.datasets["valid"]
    fill_in(dataset)
    settings = {"max_positions": (POSITIONS, POSITIONS), "ignore_invalid_inputs": True}
    assert batched(task, "valid", **settings) == [0, 1, 3, 4, 6]


def test_validation_batches_are_fairseqs_own() -> None:
    """Validation does not ask the teacher. Its loss must be over the same sentences in all runs."""
    everything = list(range(len(LENGTHS)))
    assert batched(task_with_data(), "valid", max_positions=(POSITIONS, POSITIONS)) == everything
    assert batched(task_with_data(), "valid", max_positions=None) == everything


def test_training_without_a_teacher_has_fairseqs_own_batches() -> None:
    """A criterion that does not distil loads no teacher."""
    task = task_with_data()
    task._distiller = None
    assert batched(task, "train", max_positions=(POSITIONS, POSITIONS)) == list(range(len(LENGTHS)))


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("nonautoregressive_transformer", {}),
        ("levenshtein_transformer", {}),
        ("cmlm_transformer", {}),
        (
            "iterative_nonautoregressive_transformer",
            {"train_step": 1, "dae_ratio": 0.5, "stochastic_approx": False},
        ),
    ],
)
def test_student_that_does_not_write_from_left_to_right_is_refused(
    tmp_path: Path, architecture: str, settings: dict[str, Any]
) -> None:
    """Its decoder is an incremental one by class, but not by behaviour. It is refused before the teacher is
    loaded.
    """
    teacher = tmp_path / "teacher.pt"
    teacher.write_bytes(b"")
    task, args = (
        tiny_task(teacher_path=str(teacher)),
        Namespace(max_source_positions=POSITIONS, **WIDTHS, **settings),
    )
    args.arch, args.max_target_positions = architecture, POSITIONS
    ARCH_CONFIG_REGISTRY[architecture](args)
    name = type(task.build_model(args)).__name__
    with pytest.raises(UsageError) as refusal:
        task.build_criterion(criterion_config())
    message = str(refusal.value)
    assert f"--arch builds a {name}, which does not decode from left to right" in message
    assert "\n" not in message


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", TOKENWISE)
def test_parts_of_similar_length_add_up_to_the_whole(
    task, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, count, gradients and logs are the same, except for the number of padding positions."""
    student = build_student(seed=1, dropout=0.0)
    criterion = tiny_criterion(
        name, tiny_task(), rollout_max_len_a=0.0, rollout_max_len_b=9, student_share="constant:0.5"
    )
    sample = make_batch(reversed_pairs(12, seed=13))
    found = {}
    for cost in (None, 0):
        monkeypatch.setattr(distiller_module, "PART_COST", {} if cost is None else {"cpu": cost})
        recorder = Recorder(criterion, monkeypatch)
        student.zero_grad(set_to_none=True)
        loss, sample_size, logs = step(task, student, criterion, sample)
        found[cost] = (loss, sample_size, logs, gradients(student), len(recorder.samples))
        monkeypatch.undo()
    whole, parts = found[None], found[0]
    assert whole[4] == 1
    assert parts[4] > 3
    assert parts[1] == whole[1]
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-5, atol=1e-5)
    for key, gradient in whole[3].items():
        torch.testing.assert_close(parts[3][key], gradient, rtol=1e-4, atol=1e-5)
    for key, value in whole[2].items():
        if not key.endswith("_seconds") and key != "positions":
            assert float(parts[2][key]) == pytest.approx(float(value), rel=1e-5), key
    assert parts[2]["positions"] == parts[2]["ntokens"] < whole[2]["positions"]
    assert list(parts[2]) == list(whole[2])


@pytest.mark.parametrize("name", ["atkd", "selective_kd"])
def test_batch_whose_tokens_are_compared_stays_whole(
    task, student, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """ATKD divides tokens into easy and hard ones by the batch's median; selective KD selects the hardest."""
    monkeypatch.setattr(distiller_module, "PART_COST", {"cpu": 0})
    criterion, sample = tiny_criterion(name, tiny_task()), make_batch(reversed_pairs(12, seed=13))
    recorder = Recorder(criterion, monkeypatch)
    step(task, student, criterion, sample)
    assert len(recorder.samples) == 1


def test_processes_exchange_gradients_once(task, student, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are synchronised in the last part's backward pass alone."""
    monkeypatch.setattr(distiller_module, "PART_COST", {"cpu": 0})
    held_back: list[bool] = []

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = student
            self.synchronises = True

        def set_num_updates(self, _: int) -> None:
            """Accept fairseq's call."""

        @contextlib.contextmanager
        def no_sync(self) -> Any:
            self.synchronises = False
            yield
            self.synchronises = True

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            held_back.append(not self.synchronises)
            return self.module(*args, **kwargs)

    step(
        task, Wrapper(), short_rollouts(student_share="constant:0.5"), make_batch(reversed_pairs(12, seed=14))
    )
    assert len(held_back) > 2
    assert held_back == [True] * (len(held_back) - 1) + [False]


def test_work_is_counted(task, student) -> None:
    """The log counts the decoder's rows over all steps, and the target positions with padding."""
    criterion, sample = short_rollouts(student_share="1"), make_batch(reversed_pairs(12, seed=15))
    logs = step(task, student, criterion, sample)[2]
    own = roll_out(student, sample, criterion.method.rollout_policy)
    assert logs["rollout_rows_computed"] == own.rows_computed
    # Each row has a step for each token, and another one if the cap cut it.
    written_tokens = sum(map(len, written(own)))
    assert own.rows_computed >= written_tokens + int(own.truncated.sum())
    assert logs["positions"] >= logs["ntokens"] == written_tokens


@pytest.mark.parametrize("room", [0, 1 << 20])
def test_teacher_encodes_a_batch_once(task, student, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds for any number of parts. With ``--teacher-encoder-cache`` it is encoded once for all
    updates.
    """
    monkeypatch.setattr(distiller_module, "PART_COST", {"cpu": 0})
    give_teacher(task, Teacher([build_student(seed=9)], cache=EncoderCache(room) if room else None))
    encoder, encoded = task.given_teacher.models[0].encoder, []
    forward = encoder.forward
    monkeypatch.setattr(
        encoder, "forward", lambda *args, **kwargs: encoded.append(1) or forward(*args, **kwargs)
    )
    for _ in range(3):
        step(
            task,
            student,
            short_rollouts(student_share="constant:0.5"),
            make_batch(reversed_pairs(12, seed=14)),
        )
    assert len(encoded) == (1 if room else 3)


def test_cache_size_is_read_before_the_teacher(tmp_path: Path) -> None:
    """A mistake ends the run before any slow work."""
    teacher = tmp_path / "teacher.pt"
    teacher.write_bytes(b"")
    with pytest.raises(UsageError, match="--teacher-encoder-cache must be a size"):
        tiny_task(teacher_path=str(teacher), teacher_encoder_cache="much").build_criterion(criterion_config())


@pytest.mark.parametrize(
    ("flag", "task_settings", "settings"),
    [
        ("--teacher-samples", {}, {"teacher_samples": True}),
        ("--rollout-policy speculative", {}, {"rollout_policy": "speculative", "student_share": "0.5"}),
        ("--teacher-selection agreement", {"teacher_selection": "agreement"}, {}),
    ],
)
def test_a_teacher_on_another_device_only_scores(
    flag: str, task_settings: dict[str, Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher.pt"
    teacher.write_bytes(b"")
    task = tiny_task(teacher_path=f"{teacher}:{teacher}", teacher_device="cpu", **task_settings)
    with pytest.raises(UsageError, match=f"--teacher-device cpu can't be used with {flag}, which needs"):
        task.build_criterion(OmegaConf.merge(criterion_config(), settings))

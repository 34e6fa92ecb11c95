"""The classifying teacher: its logits, its ensemble, and which checkpoints are refused."""

import shutil
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import tasks
from fairseq.models.bart import BARTModel, bart_base_architecture
from fairseq.tasks.sentence_prediction import SentencePredictionTask

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.models.encoding import encoder_width
from fairseq_imitkd.teacher.classifier import ClassifyingTeacher, load_classifier
from fairseq_imitkd.teacher.source import TeacherSource
from fairseq_imitkd.training.checks import widths_to_match
from tests.helpers.classifiers import (
    CLASSES,
    HEAD,
    POSITIONS,
    STOCK,
    build_classifier,
    config,
    dictionary_with_mask,
    sentences,
    stock_task,
    write_classifier,
    write_dictionaries,
)
from tests.helpers.fairseq_models import (
    LETTERS,
    build_student,
    checkpoint_state,
    tiny_method,
    training_config,
)

SIDES = ("source_dictionary", "target_dictionary")


def logits(teacher: ClassifyingTeacher, sample: dict[str, Any], **settings: Any) -> torch.Tensor:
    return teacher.score(sample, teacher.encode(sample), **settings).logits(slice(None))


def test_scores_are_the_models_logits() -> None:
    """In evaluation mode, frozen, in the precision of the student."""
    model, sample = build_classifier(seed=5).train(), sentences()
    teacher = ClassifyingTeacher([model], HEAD)
    teacher.place(torch.device("cpu"), torch.float64)
    found = logits(teacher, sample)
    double = build_classifier(seed=5).double().eval()
    expected = double(**sample["net_input"], features_only=True, classification_head_name=HEAD)[0]
    assert found.shape == (7, CLASSES)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected.detach())
    assert not found.requires_grad
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_an_ensemble_averages_probabilities_or_logits_by_weight() -> None:
    """By the teacher's weights, which are alike by default, or by the sentence's."""
    models, sample = [build_classifier(seed).eval() for seed in (5, 6)], sentences()
    with torch.no_grad():
        first, second = (
            model(**sample["net_input"], features_only=True, classification_head_name=HEAD)[0]
            for model in models
        )
    p, q = first.softmax(-1), second.softmax(-1)
    assert float((p - q).abs().max()) > 0.05
    weighed = ClassifyingTeacher(models, HEAD, weights=[0.25, 0.75])
    torch.testing.assert_close(logits(weighed, sample).exp(), 0.25 * p + 0.75 * q)
    torch.testing.assert_close(logits(ClassifyingTeacher(models, HEAD), sample).exp(), (p + q) / 2)
    torch.testing.assert_close(logits(weighed, sample, average_logits=True), 0.25 * first + 0.75 * second)
    own = torch.rand(7, 2, generator=torch.Generator().manual_seed(1))
    own /= own.sum(dim=-1, keepdim=True)
    expected = own[:, :1] * p + own[:, 1:] * q
    torch.testing.assert_close(logits(weighed, sample, log_weights=own.log()).exp(), expected)


def test_its_own_precision_is_not_autocast_s() -> None:
    """``--teacher-dtype`` holds under ``--amp`` too."""
    teacher, sample = ClassifyingTeacher([build_classifier(seed=5)], HEAD, dtype="fp32"), sentences()
    teacher.place(torch.device("cpu"), torch.float32)
    expected = logits(teacher, sample)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert logits(teacher, sample).equal(expected)


def test_limits_and_writer() -> None:
    """The smallest member decides; a class is one position; nothing is written."""
    short = build_classifier(task=stock_task(max_positions=9))
    teacher = ClassifyingTeacher([build_classifier(), short], HEAD)
    assert teacher.max_positions == (9, 1)
    assert len(teacher.writer.models) == 0
    assert teacher.encode(sentences(), cacheable=False) == []


def test_a_classifier_has_no_vectors_to_match() -> None:
    """BART has an encoder, but a classifier does not run it alone."""
    sizes = {"layers": 1, "embed_dim": 16, "ffn_embed_dim": 16, "attention_heads": 2}
    sides = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()}
    args = Namespace(**sides, max_source_positions=32, max_target_positions=32)
    bart_base_architecture(args)
    bart = BARTModel.build_model(args, SimpleNamespace(**dict.fromkeys(SIDES, dictionary_with_mask(LETTERS))))
    bart.register_classification_head(HEAD, num_classes=CLASSES)
    assert encoder_width(bart)
    with pytest.raises(UsageError, match="the model of --teacher-path, a BARTModel, has none to compare"):
        widths_to_match(bart, ClassifyingTeacher([bart], HEAD), tiny_method("word_kd", hidden_match=0.5))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dictionaries(tmp_path_factory.mktemp("classes") / "data")


@pytest.fixture(scope="module")
def checkpoint(data: Path) -> Path:
    return write_classifier(data / "teacher.pt", data)


def student(data: Path, **settings: Any) -> SentencePredictionTask:
    """The student's task over these dictionaries."""
    cfg = config(data, *STOCK).task
    for name, value in settings.items():
        cfg[name] = value
    return tasks.setup_task(cfg)


def refusal(data: Path, path: Path, *, teacher_data: Path | None = None, **settings: Any) -> str:
    """The one line that loading ends with."""
    source = TeacherSource(str(path), data=str(teacher_data) if teacher_data else None)
    with pytest.raises(UsageError) as caught:
        load_classifier(source, student(data, **settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_loaded_classifier_is_the_model_that_was_saved(data: Path, checkpoint: Path) -> None:
    """Its weights, in evaluation mode; an ensemble with weights."""
    state = torch.load(checkpoint, weights_only=True)
    source = TeacherSource(f"{checkpoint}:{checkpoint}", dtype="fp32", weights=[0.2, 0.8])
    teacher = load_classifier(source, student(data))
    assert len(teacher.models) == 2
    assert (teacher.head, teacher.dtype) == (HEAD, "fp32")
    torch.testing.assert_close(teacher.log_weights.exp(), torch.tensor([0.2, 0.8]))
    for model in teacher.models:
        assert not model.training
        for name, value in model.state_dict().items():
            assert value.equal(state["model"][name])


def test_other_models_are_refused(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Other classes, no head (fairseq would use random weights), a translation model, no model, no file."""

    def message(path: Path) -> str:
        text = refusal(data, path)
        assert f"--teacher-path '{path}'" in text
        return text

    assert "is not a file" in message(tmp_path / "missing.pt")
    three = write_dictionaries(tmp_path / "three", labels="012")
    other = write_classifier(tmp_path / "three.pt", three, "--num-classes", 3)
    assert "has 3 classes, but the student 2 (--num-classes)" in message(other)

    state = torch.load(checkpoint, weights_only=True)
    weights = {
        name: value for name, value in state["model"].items() if not name.startswith("classification_heads.")
    }
    headless = tmp_path / "headless.pt"
    torch.save({**state, "model": weights}, headless)
    remedy = "use a teacher that was trained with --task sentence_prediction"
    assert f"has no classification head '{HEAD}'; {remedy}" in message(headless)

    translator = tmp_path / "translator.pt"
    cfg = training_config(data, "--task", "translation", "--criterion", "cross_entropy")
    torch.save(checkpoint_state(build_student(), cfg), translator)
    assert remedy in message(translator)

    bare = tmp_path / "bare.pt"
    torch.save(state["model"], bare)
    assert "is not a fairseq checkpoint: it lacks 'model'" in message(bare)

    half = tmp_path / "half.pt"
    weights = {name: value for name, value in state["model"].items() if "layers.0.fc1" not in name}
    torch.save({**state, "model": weights}, half)
    assert "can't be used" in message(half)
    assert "fc1" in message(half)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"classification_head_name": "topic"},
            "has no classification head 'topic'; --classification-head-name must name one that it has: "
            f"{HEAD}",
        ),
        ({"init_token": 2}, "was trained with 0; add --init-token 0"),
        ({"init_token": None}, "was trained with 0; add --init-token 0"),
        ({"separator_token": 2}, "was trained with None; leave --separator-token out"),
        ({"add_prev_output_tokens": True}, "was trained with False; leave --add-prev-output-tokens out"),
        (
            {"max_positions": POSITIONS + 1},
            f"can read; use --max-positions {POSITIONS}, with --shorten-method truncate",
        ),
    ],
    ids=str,
)
def test_other_settings_are_refused(
    settings: dict[str, Any], expected: str, data: Path, checkpoint: Path
) -> None:
    """The message names the flag and the remedy."""
    assert expected in refusal(data, checkpoint, **settings)


def test_other_dictionaries_are_refused(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Of the text and of the labels: two symbols may have changed places."""
    swapped = write_dictionaries(tmp_path / "swapped", symbols="ba" + LETTERS[2:])
    expected = (
        f"{data / 'input0' / 'dict.txt'} differs from the student's at index 4: teacher 'a', student 'b'"
    )
    assert expected in refusal(swapped, checkpoint)
    turned = write_dictionaries(tmp_path / "turned", labels="10")
    expected = (
        f"{data / 'label' / 'dict.txt'} differs from the student's at index 4: teacher '0', student '1'"
    )
    assert expected in refusal(turned, checkpoint)
    assert "teacher '1', student '0'" in refusal(data, checkpoint, teacher_data=turned)
    beside = Path(shutil.copy(checkpoint, turned / "teacher.pt"))
    names = [folder / "label" / "dict.txt" for folder in (turned, data)]
    assert f"lies beside {names[0]}, but names {names[1]}, and they differ" in refusal(turned, beside)
    (turned / "label" / "dict.txt").unlink()
    missing = refusal(data, checkpoint, teacher_data=turned)
    assert "--teacher-data must name" in missing
    assert str(turned) in missing

"""Models that do not translate as this package reads them are refused by every reader, in one line."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.models import BaseFairseqModel

from fairseq_imitkd.checkpoints.kinds import check_kind, check_model
from fairseq_imitkd.checkpoints.tags import language_tags
from fairseq_imitkd.checkpoints.translation import load_student
from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.errors import UsageError
from tests.helpers.fairseq_models import build_student, tiny_task
from tests.helpers.teacher_checkpoints import STUDENT_SIDE, load, saved, state_with, untrained


def by_stock(path: str) -> Any:
    """Read a checkpoint as ``imitkd-generate`` and ``imitkd-interactive`` do."""
    return checkpoint_utils.load_model_ensemble([path], task=tiny_task())


READERS: dict[str, Callable[[str], Any]] = {
    "teacher": load,  # of a training, imitkd-seqkd and imitkd-cache
    "student": lambda path: load_student(path, Languages.of(Path(path).parent, "src", "tgt")),
    "stock": by_stock,
}


def refusals(folder: Path, state: dict[str, Any]) -> dict[str, str]:
    """Return the message with which each reader refuses a checkpoint."""
    path, found = saved(folder, state), {}
    for name, read in READERS.items():
        with pytest.raises(UsageError) as refused:
            read(path)
        found[name] = str(refused.value)
        assert path in found[name]
        assert "\n" not in found[name]
    return found


@pytest.mark.parametrize("task", ["translation_lev", "translation"])
@pytest.mark.parametrize(
    "architecture",
    [
        "levenshtein_transformer", "nonautoregressive_transformer", "cmlm_transformer",
        "iterative_nonautoregressive_transformer", "insertion_transformer", "nacrf_transformer",
    ],
)  # fmt: skip
def test_models_that_write_all_tokens_at_once_are_refused(folder: Path, architecture: str, task: str) -> None:
    """Whatever task they name: the file's author chooses it."""
    state = untrained(folder, "translation_lev", "--arch", architecture)
    state["cfg"]["task"]["_name"] = state["cfg"]["task"]["task"] = task
    for message in refusals(folder, state).values():
        assert "does not write from left to right" in message


def test_logits_that_read_ahead_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a class that is known to write from left to right."""
    model = build_student()
    check_model(model, STUDENT_SIDE)
    monkeypatch.setattr(
        type(model.decoder), "buffered_future_mask", lambda _, tensor: torch.zeros([tensor.size(0)] * 2)
    )
    with pytest.raises(ValueError, match="a TransformerModel does not write from left to right"):
        check_model(model, STUDENT_SIDE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits: logits[..., :-1], r"its logits have the shape \(2, 6, 19\), but must be over the 20"),
        (lambda logits: logits * float("nan"), "its logits are infinite or not a number"),
    ],
)
def test_logits_that_are_none_are_refused(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    model = build_student()
    stock = model.decoder.output_layer
    monkeypatch.setattr(model.decoder, "output_layer", lambda features: change(stock(features)))
    with pytest.raises(ValueError, match=message):
        check_model(model, STUDENT_SIDE)


def test_other_models_of_translation_tasks_are_refused(folder: Path) -> None:
    """An adaptive softmax has no logits over all symbols, and a multilingual model has its language pairs."""
    adaptive = untrained(folder, "translation", "--arch", "transformer", "--adaptive-softmax-cutoff", "8")
    several = untrained(
        folder, "multilingual_translation", "--arch", "multilingual_transformer", "--lang-pairs", "tgt-src",
    )  # fmt: skip
    for state, said in (
        (adaptive, "an adaptive softmax, which gives no logits over the whole vocabulary"),
        (several, "it was trained on tgt-src, but not on src-tgt; use a model of that pair"),
    ):
        path = saved(folder, state)
        for name in ("teacher", "student"):
            with pytest.raises(UsageError, match=said):
                READERS[name](path)


MULTILINGUAL = "translation_multi_simple_epoch"
TAGS: dict[str, tuple[dict[str, Any], str]] = {
    "source": (
        {"_name": MULTILINGUAL, "encoder_langtok": "src", "decoder_langtok": False}, "__src__ in the source"
    ),
    "target-in-source": (
        {"_name": MULTILINGUAL, "encoder_langtok": "tgt", "decoder_langtok": False}, "__tgt__ in the source"
    ),
    "both": (
        {"_name": MULTILINGUAL, "encoder_langtok": "src", "decoder_langtok": True},
        "__src__ in the source and __tgt__ in the target",
    ),
    "mbart-style": (
        {"_name": MULTILINGUAL, "decoder_langtok": True, "lang_tok_style": "mbart"}, "[tgt] in the target"
    ),
    "langtoks": (
        {"_name": MULTILINGUAL, "langtoks": {"main": ("tgt", None)}, "decoder_langtok": True},
        "__tgt__ in the source",
    ),
    "multilingual": (
        {"_name": "multilingual_translation", "encoder_langtok": "tgt"}, "__tgt__ in the source"
    ),
    "mbart": (
        {"_name": "translation_from_pretrained_bart", "langs": "src,tgt"},
        "[src] in the source and [tgt] in the target",
    ),
    "back-translation": (
        {"_name": "online_backtranslation"}, "__src__ in the source and __tgt__ in the target"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "tags"), TAGS.values(), ids=TAGS)
def test_fairseqs_commands_need_the_task_that_adds_tags(
    folder: Path, cfg: Any, model: BaseFairseqModel, settings: dict[str, Any], tags: str
) -> None:
    """The line names the tags and the task; a teacher and an evaluated model get the tags here."""
    path = saved(folder, state_with(model, cfg, "task", **settings))
    with pytest.raises(UsageError) as refused:
        by_stock(path)
    assert f"was trained by --task {settings['_name']} with the language tags {tags}" in str(refused.value)
    assert str(language_tags(Namespace(**settings), ("src", "tgt"))) == tags


def test_back_translation_is_refused(folder: Path, cfg: Any, model: BaseFairseqModel) -> None:
    """Its task trains on sentences that it makes."""
    state = state_with(model, cfg, "task", _name="online_backtranslation")
    for message in refusals(folder, state).values():
        assert "with the language tags __src__ in the source and __tgt__ in the target" in message


@pytest.mark.parametrize(
    "stored",
    [3, "[]", "{", '{"source_before": ["a"]}', '{"source_before": [], "source_end": [], "target_start": []}',
     '{"source_before": [1], "source_end": ["</s>"], "target_start": ["</s>"]}'],
)  # fmt: skip
def test_damaged_tags_are_refused(stored: Any) -> None:
    """The settings of a file are its author's."""
    with pytest.raises(ValueError, match=r"^its language_tags are damaged; import the model again$"):
        language_tags(Namespace(_name="translation", language_tags=stored))


@pytest.mark.parametrize(
    "settings",
    [
        {"_name": "translation"},
        {"_name": MULTILINGUAL, "encoder_langtok": None, "decoder_langtok": False},
        {"_name": MULTILINGUAL, "langtoks": {"main": (None, None)}, "encoder_langtok": "src"},
        {"_name": "multilingual_translation", "lang_pairs": ["a-b"]},
        {"_name": 3},
    ],
    ids=str,
)
def test_models_without_tags_have_none(settings: dict[str, Any]) -> None:
    assert not language_tags(Namespace(**settings))
    assert str(language_tags(Namespace(**settings))) == ""


@pytest.mark.parametrize(
    ("settings", "tags"),
    [
        ({"lang_pairs": ["de-en"]}, "__de__ in the source"),
        ({"lang_pairs": "de-en"}, "__de__ in the source"),
        ({"lang_pairs": "de-en,en-de"}, "__SOURCE__ in the source"),
        ({"source_lang": "fr", "lang_pairs": ["de-en"]}, "__fr__ in the source"),
    ],
)
def test_languages_of_tags_come_from_the_settings(settings: dict[str, Any], tags: str) -> None:
    task = Namespace(_name=MULTILINGUAL, encoder_langtok="src", **settings)
    assert str(language_tags(task)) == tags


@pytest.mark.parametrize("task", ["language_modeling", "masked_lm", "sentence_prediction", "denoising"])
def test_tasks_that_do_not_translate_are_refused(task: str) -> None:
    cfg = Namespace(model=Namespace(arch="transformer"), task=Namespace(_name=task))
    with pytest.raises(ValueError, match=f"it was trained by --task {task}, which is not translation"):
        check_kind(cfg)

"""Scores in validation: settings that are accepted or refused, the sums of a batch, and the signatures at the
end.
"""

import gc
import logging
import os
from types import SimpleNamespace
from typing import Any

import pytest
import sacrebleu
import torch
from fairseq.logging import metrics
from fairseq.tasks import FairseqTask
from fairseq.tasks.translation import TranslationTask

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.tasks.translation import TranslationWithTeacherTask
from fairseq_imitkd.training.validation import (
    ValidationScores,
    _log_signatures,
    check_validation,
    log_signatures,
    score_names,
)
from tests.helpers.fairseq_models import build_student, letters, make_batch, tiny_criterion, tiny_task

MAXIMIZE = {"maximize_best_checkpoint_metric": True}


def check(**settings: Any) -> None:
    """Check a task's settings, changed by ``settings``."""
    defaults = {
        "eval_metrics": None, "eval_bleu": False, "best_checkpoint_metric": "loss",
        "disable_validation": False, "maximize_best_checkpoint_metric": False,
    }  # fmt: skip
    check_validation(SimpleNamespace(**{**defaults, **settings}))


@pytest.mark.parametrize(
    ("given", "eval_bleu", "expected"),
    [
        (None, False, []),
        (None, True, ["bleu"]),
        ("chrf,rouge-l", False, ["chrf", "rouge-l"]),
        ("chrf,bleu", True, ["bleu", "chrf"]),
        ("bleu,bleu,ter", False, ["bleu", "ter"]),
    ],
)
def test_scores_of_the_flags(given: str | None, eval_bleu: bool, expected: list[str]) -> None:
    """Each score is computed once. ``--eval-bleu`` adds BLEU."""
    assert score_names(given, eval_bleu) == expected


@pytest.mark.parametrize("given", ["", "rougeL", "chrf, bleu", "chrf,", "meteor", "CHRF"])
def test_unknown_score_is_refused(given: str) -> None:
    """When the task is built, one line names the flag, the value and the choices."""
    with pytest.raises(UsageError) as caught:
        tiny_task(eval_metrics=given)
    assert str(caught.value) == (
        "--eval-metrics must be some of bleu, chrf, ter, rouge-1, rouge-2, rouge-l, exact, joined by "
        f"commas, but is '{given}'"
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"best_checkpoint_metric": "nll_loss"},
        {"best_checkpoint_metric": "accuracy", **MAXIMIZE},
        {"disable_validation": True, "eval_bleu": True},
        {"eval_bleu": True, "best_checkpoint_metric": "bleu", **MAXIMIZE},
        {"eval_metrics": "bleu", "best_checkpoint_metric": "bleu", **MAXIMIZE},
        {"eval_metrics": "ter,chrf", "best_checkpoint_metric": "chrf", **MAXIMIZE},
        {"eval_metrics": "ter,chrf", "best_checkpoint_metric": "ter"},
        {"eval_metrics": "rouge-l,rouge-1", "best_checkpoint_metric": "rougeL", **MAXIMIZE},
    ],
)
def test_accepted_checkpoint_metrics(settings: dict[str, Any]) -> None:
    """Scores that are computed are accepted, and names that the task does not know, because a criterion may
    log them.
    """
    check(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"best_checkpoint_metric": "chrf", **MAXIMIZE},
            "--best-checkpoint-metric chrf is not computed: add --eval-metrics chrf",
        ),
        (
            {"best_checkpoint_metric": "rougeL", "eval_metrics": "rouge-1,bleu", **MAXIMIZE},
            "--best-checkpoint-metric rougeL is not computed: add --eval-metrics rouge-l",
        ),
        (
            {"best_checkpoint_metric": "bleu", "eval_metrics": "chrf", **MAXIMIZE},
            "--best-checkpoint-metric bleu is not computed: add --eval-metrics bleu or --eval-bleu",
        ),
        (
            {"best_checkpoint_metric": "rouge_l", "eval_metrics": "rouge-l", **MAXIMIZE},
            "--best-checkpoint-metric must be rougeL, as the log calls it, but is rouge_l",
        ),
        (
            {"best_checkpoint_metric": "chrf", "eval_metrics": "chrf"},
            "--best-checkpoint-metric chrf would keep the worst checkpoint: add "
            "--maximize-best-checkpoint-metric",
        ),
        (
            {"best_checkpoint_metric": "accuracy"},
            "--best-checkpoint-metric accuracy would keep the worst checkpoint: add "
            "--maximize-best-checkpoint-metric",
        ),
        (
            {"best_checkpoint_metric": "bleu", "eval_bleu": True},
            "--best-checkpoint-metric bleu would keep the worst checkpoint: add "
            "--maximize-best-checkpoint-metric",
        ),
        *(
            (
                {"best_checkpoint_metric": name, "eval_metrics": "ter", **MAXIMIZE},
                "--maximize-best-checkpoint-metric would keep the worst checkpoint by "
                f"--best-checkpoint-metric {name}: leave it "
                "out, or name a metric that is better when it is higher",
            )
            for name in ("ter", "loss", "nll_loss")
        ),
        (
            {"eval_metrics": "chrf", "disable_validation": True},
            "--eval-metrics chrf changes nothing with --disable-validation: leave one of them out",
        ),
    ],
)
def test_refused_checkpoint_metrics(settings: dict[str, Any], message: str) -> None:
    """fairseq would fail after the first validation, or not at all."""
    with pytest.raises(UsageError) as caught:
        check(**settings)
    assert str(caught.value) == message


def scores(*names: str, **settings: Any) -> ValidationScores:
    """Return validation scores over the letters."""
    return ValidationScores(
        names, letters(), **{"remove_bpe": None, "tokenized_bleu": False, "print_samples": False, **settings}
    )


def logged(*updates: list[dict[str, float]], of: ValidationScores) -> dict[str, float]:
    """Return what fairseq shows of a validation. Each update holds the logs of several processes."""
    with metrics.aggregate(new_root=True) as aggregator:
        for update in updates:
            of.log(update)
    return aggregator.get_smoothed_values()


class Joined:
    """A detokeniser that removes blanks."""

    def decode(self, line: str) -> str:
        return line.replace(" ", "")


def test_lines_of_a_batch() -> None:
    """Padding and EOS are removed, unknown words match nothing, and the detokeniser is called. The sums are
    those of these lines.
    """
    sample = make_batch([([1, 2, 3], [1, 2, 3, 4]), ([4], [5])])
    sample["target"][0, 1] = letters().unk()
    written = [torch.tensor([5, letters().unk(), 7, 2]), torch.tensor([9, 2])]
    for detokenizer, hypotheses, references in (
        (None, ["b ZJZJZ d", "f"], ["b QXQXQ d e", "f"]),
        (Joined(), ["bZJZJZd", "f"], ["bQXQXQde", "f"]),
    ):
        own = scores("chrf", "bleu")
        found = logged([own.batch_sums(written, sample["target"], detokenizer)], of=own)
        assert found == {
            "chrf": round(sacrebleu.corpus_chrf(hypotheses, [references]).score, 2),
            "bleu": round(sacrebleu.corpus_bleu(hypotheses, [references]).score, 2),
        }


def test_subword_marks_are_undone() -> None:
    """They are undone as fairseq undoes them for BLEU."""
    own = ValidationScores(
        ["chrf"], letters(["a@@", "b", "c"]), remove_bpe="@@ ", tokenized_bleu=False, print_samples=False
    )
    found = logged([own.batch_sums([torch.tensor([4, 5, 2])], torch.tensor([[4, 5, 6, 2]]), None)], of=own)
    assert found == {"chrf": round(sacrebleu.corpus_chrf(["ab"], [["ab c"]]).score, 2)}


def test_samples_are_printed(caplog: pytest.LogCaptureFixture) -> None:
    """``--eval-bleu-print-samples`` prints one sample for each batch."""
    batch = ([torch.tensor([4, 2]), torch.tensor([5, 2])], torch.tensor([[6, 2], [7, 2]]), None)
    with caplog.at_level(logging.INFO, "fairseq_imitkd.training.validation"):
        scores("chrf").batch_sums(*batch)
        assert caplog.messages == []
        scores("chrf", print_samples=True).batch_sums(*batch)
    assert caplog.messages == ["example hypothesis: a", "example reference: c"]


def test_batches_and_processes_add_up() -> None:
    """A process without sentences logs zeros. A training step logs no score."""
    lines = [("a b c", "a b d"), ("e", "e f g h"), ("a a a a", "b b"), ("c d e f g", "c d e f g")]
    own = scores("rouge-l", "chrf")

    def sums(hypothesis: str, reference: str) -> dict[str, float]:
        encoded = [
            torch.tensor([letters().index(word) for word in text.split()] + [2])
            for text in (hypothesis, reference)
        ]
        return own.batch_sums([encoded[0]], encoded[1][None], None)

    parts = [sums(*pair) for pair in lines]
    idle = dict.fromkeys(parts[0], 0.0)
    expected = logged(parts, of=own)
    hypotheses, references = map(list, zip(*lines, strict=True))
    assert expected["chrf"] == round(sacrebleu.corpus_chrf(hypotheses, [references]).score, 2)
    assert logged([parts[0], parts[1]], [parts[2], idle], [parts[3], idle], of=own) == expected
    assert logged([{"loss": 1.0}], of=own) == {}


@pytest.mark.parametrize("tokenized", [False, True])
@pytest.mark.parametrize(
    "settings", [{"eval_bleu": True}, {"eval_bleu": True, "eval_metrics": "rouge-2,chrf"}]
)
def test_bleu_is_fairseqs_with_unknown_words(settings: dict[str, Any], tokenized: bool) -> None:
    """The counts are fairseq's. The batch is decoded once, whatever other scores are computed."""
    task = tiny_task(eval_tokenized_bleu=tokenized, **settings)
    model, criterion = build_student(), tiny_criterion("word_kd", task).eval()
    sample = make_batch([([1] * 6, [3, 2, 1, 5, 6, 7]), ([4, 5], [5, 4])])
    unknown = letters().unk()
    sample["target"][0, 4], sample["target"][1, 1] = unknown, unknown
    written, decoded = [[7, 6, 5, 9, unknown, 11, 2], [9, unknown, 2]], []

    def inference_step(*args: Any, **kwargs: Any) -> list[list[dict[str, Any]]]:
        decoded.append(1)
        return [[{"tokens": torch.tensor(tokens)}] for tokens in written]

    task.inference_step, task.tokenizer, task.sequence_generator = inference_step, None, None
    found = []
    for kind in (TranslationTask, TranslationWithTeacherTask):
        _, _, log = kind.valid_step(task, sample, model, criterion)
        with metrics.aggregate(new_root=True) as aggregator:
            kind.reduce_metrics(task, [log, log], criterion)
        found.append(aggregator.get_smoothed_values())
    assert len(decoded) == 2
    assert found[1]["bleu"] == found[0]["bleu"]
    assert 10 < found[1]["bleu"] < 90
    assert ("chrf" in found[1]) == ("eval_metrics" in settings)


def signed(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the signatures that were logged so far."""
    gc.collect()
    return [message for message in caplog.messages if message.startswith("signature")]


def test_signatures_are_logged_once_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """They are logged when the scores are deleted, not at each validation. Scores that were never computed
    have none.
    """
    caplog.set_level(logging.INFO, "fairseq_imitkd.training.validation")
    idle, own = scores("ter"), scores("chrf", "rouge-l")
    sums = own.batch_sums([torch.tensor([4, 2])], torch.tensor([[4, 2]]), None)
    for _ in range(3):
        logged([sums], [sums], of=own)
    expected = [f"signature of {name}: {signature}" for name, signature in own.corpus.signatures().items()]
    assert signed(caplog) == []
    del idle, own
    assert signed(caplog) == expected
    assert "nc:6" in expected[0]
    assert "rouge-score|F1" in expected[1]


def test_signatures_at_the_end_of_a_training(caplog: pytest.LogCaptureFixture) -> None:
    """Asked for, they come before the scores are deleted, and not again."""
    log_signatures()  # those of other tests
    caplog.set_level(logging.INFO, "fairseq_imitkd.training.validation")
    own = scores("chrf")
    logged([own.batch_sums([torch.tensor([4, 2])], torch.tensor([[4, 2]]), None)], [], of=own)
    log_signatures()
    assert len(signed(caplog)) == 1
    log_signatures()
    del own
    assert len(signed(caplog)) == 1


def test_copy_of_a_process_signs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A data loader's process may delete a copy of the scores."""
    caplog.set_level(logging.INFO, "fairseq_imitkd.training.validation")
    _log_signatures({"chrf": "nrefs:1"}, os.getpid() + 1)
    assert caplog.messages == []


@pytest.mark.parametrize("settings", [{"eval_bleu": True}, {"eval_metrics": "chrf"}])
def test_detokeniser_is_of_the_datas_languages(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in imitkd-evaluate; ``--eval-bleu-detok-args`` names others. fairseq's own would be English."""
    student = build_student()
    monkeypatch.setattr(FairseqTask, "build_model", lambda *_: student)
    for given, languages in (("{}", ("src", "tgt")), ('{"target_lang": "fr"}', ("src", "fr"))):
        task = tiny_task(eval_bleu_detok="moses", eval_bleu_detok_args=given, **settings)
        task.build_model(None)
        assert (task.tokenizer.cfg.source_lang, task.tokenizer.cfg.target_lang) == languages

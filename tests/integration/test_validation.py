"""Checkpoints chosen by scores of the validation set's translations, in whole trainings."""

import re

import pytest
import sacrebleu
import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq_cli import validate as fairseq_validate
from rouge_score.rouge_scorer import RougeScorer

from fairseq_imitkd.errors import UsageError
from tests.helpers import digit_corpus, in_process

SEARCH = ("--eval-bleu-args", '{"beam": 1, "max_len_a": 0, "max_len_b": 12}')
UNSCORED = (
    "--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1", "--max-update", 40,
    "--lr", "1e-2", "--validate-interval-updates", 20,
)  # fmt: skip
PLAIN = (*UNSCORED, *SEARCH)


@pytest.fixture(scope="module")
def summariser(digits, tmp_path_factory):
    """A model without a teacher, by ``fairseq-train`` and a stock criterion: its folder and the output."""
    folder = tmp_path_factory.mktemp("summariser")
    done = digit_corpus.train(
        digits.data, folder, "--user-dir", digit_corpus.REPO / "fairseq_imitkd",
        "--task", "translation_with_teacher", *PLAIN, "--eval-bleu", "--eval-metrics", "chrf,rouge-1,rouge-l",
        "--best-checkpoint-metric", "rougeL", "--maximize-best-checkpoint-metric", *digit_corpus.TINY,
        command="fairseq-train",
    )  # fmt: skip
    return folder, done.stdout


def validated(output: str) -> list[dict[str, float]]:
    return in_process.read_metrics(output)["valid"]


def test_best_checkpoint_is_the_one_of_best_rouge(summariser):
    """``--best-checkpoint-metric rougeL`` works without a teacher and with a stock criterion."""
    folder, output = summariser
    scores = {int(metrics["num_updates"]): metrics["rougeL"] for metrics in validated(output)}
    best = torch.load(folder / "checkpoint_best.pt", weights_only=True)
    assert len(set(scores.values())) >= 3
    assert best["optimizer_history"][-1]["num_updates"] == max(scores, key=scores.get)
    assert best["extra_state"]["best"] == best["extra_state"]["val_loss"] == max(scores.values())


def test_scores_are_those_of_the_decoded_lines(summariser, digits):
    """sacreBLEU and rouge-score give the same scores for the output of ``fairseq-generate`` with the last
    checkpoint.
    """
    folder, output = summariser
    lines = in_process.generate(
        digits.data, folder / "checkpoint_last.pt", folder, "--gen-subset", "valid", "--beam", 1,
        "--max-len-b", 12
    )  # fmt: skip
    references = (digits.text / "valid.tgt").read_text().splitlines()
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    rouge = [scorer.score(*pair) for pair in zip(references, lines, strict=True)]
    last = validated(output)[-1]
    assert last["bleu"] == round(sacrebleu.corpus_bleu(lines, [references]).score, 2)
    assert last["chrf"] == round(sacrebleu.corpus_chrf(lines, [references]).score, 2)
    for kind in ("rouge1", "rougeL"):
        assert last[kind] == round(sum(each[kind].fmeasure for each in rouge) / len(rouge), 4)


def test_bleu_is_fairseqs(summariser, digits, tmp_path):
    """At every validation, BLEU beside other scores equals the stock task's BLEU to the last digit."""
    stock = in_process.train(
        digits.data, tmp_path, "--task", "translation", *PLAIN, "--eval-bleu", "--no-save"
    ).metrics["valid"]
    ours = validated(summariser[1])
    for name in ("bleu", "loss", "num_updates"):
        assert [metrics[name] for metrics in ours] == [metrics[name] for metrics in stock]
    assert stock[-1]["bleu"] > 1


def test_signatures_are_the_last_lines(summariser):
    """Each score has one, after fairseq's last line."""
    lines = summariser[1].splitlines()
    found = [line.split(" | ")[-1] for line in lines if "signature of" in line]
    assert found == [line.split(" | ")[-1] for line in lines[-4:]]
    assert [line.split(":")[0] for line in found] == [
        f"signature of {name}" for name in ("bleu", "chrf", "rouge1", "rougeL")
    ]
    assert "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:" in found[0]
    assert re.search("done training", lines[-5])


def test_fairseq_validate_scores_a_checkpoint(summariser, digits):
    """It uses the settings of the training. It asks neither for the teacher nor for a best checkpoint."""
    folder, output = summariser
    arguments = [
        digits.data,
        "--path",
        folder / "checkpoint_last.pt",
        "--task",
        "translation_with_teacher",
        "--cpu",
    ]
    arguments += ["--max-tokens", 400, "--valid-subset", "valid", "--num-workers", 0, "--log-format", "json"]
    given = list(map(str, arguments))
    cfg = options.parse_args_and_arch(options.get_validation_parser(), given)
    override = options.parse_args_and_arch(options.get_validation_parser(), given, suppress_defaults=True)
    metrics: dict[str, list[dict[str, float]]] = {"valid": []}
    with in_process.logged(metrics):
        fairseq_validate.main(convert_namespace_to_omegaconf(cfg), override)
    last = validated(output)[-1]
    for name in ("bleu", "chrf", "rouge1", "rougeL"):
        assert metrics["valid"][-1][name] == last[name]


def test_patience_by_chrf(digits, teacher, tmp_path):
    """The criterion distils. With a learning rate near 0, chrF never rises."""
    training = in_process.train(
        digits.data, tmp_path, "--task", "translation_with_teacher", "--teacher-path", teacher,
        "--criterion", "imitkd", "--student-share", "constant:0.5", "--max-update", 50, "--lr", "1e-12",
        "--validate-interval-updates", 2, "--patience", 2, *SEARCH, "--eval-metrics", "chrf",
        "--best-checkpoint-metric", "chrf", "--maximize-best-checkpoint-metric",
    )  # fmt: skip
    assert training.trainer.get_num_updates() == 6
    scores = [metrics["chrf"] for metrics in training.metrics["valid"]]
    assert len(set(scores)) == 1
    assert "bleu" not in training.metrics["valid"][0]
    assert (tmp_path / "checkpoint_best.pt").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--best-checkpoint-metric", "chrf"),
            "--best-checkpoint-metric chrf is not computed: add --eval-metrics chrf",
        ),
        (("--eval-metrics", "chrf,f1"), "--eval-metrics must be some of bleu, chrf"),
        (
            ("--eval-metrics", "chrf", "--best-checkpoint-metric", "chrf"),
            "--best-checkpoint-metric chrf would keep the worst checkpoint: add "
            "--maximize-best-checkpoint-metric",
        ),
        (
            ("--eval-metrics", "chrf", "--disable-validation"),
            "--eval-metrics chrf changes nothing with --disable-validation",
        ),
        (
            ("--maximize-best-checkpoint-metric",),
            "--maximize-best-checkpoint-metric would keep the worst checkpoint",
        ),
    ],
)
def test_mistakes_end_the_run_before_the_data(flags, message, digits, tmp_path):
    """There are dictionaries alone, so reading data would fail with another error."""
    languages = ("--source-lang", "src", "--target-lang", "tgt")
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        in_process.train(
            digits.dictionaries, tmp_path, "--task", "translation_with_teacher", *languages, *UNSCORED, *flags
        )
    assert "\n" not in str(caught.value)

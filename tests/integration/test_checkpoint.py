"""A student's checkpoint is a stock fairseq checkpoint. Every command decodes it without the teacher."""

import pytest
import torch

from tests.helpers import digit_corpus, in_process

PLUGIN = digit_corpus.REPO / "fairseq_imitkd"


def test_checkpoint_has_the_contents_of_a_stock_one(digits, student, tmp_path):
    """Keys, shapes and size are those of a cross_entropy checkpoint of this model. The optimizer holds the
    student alone.
    """
    flags = (
        "--task",
        "translation",
        "--criterion",
        "cross_entropy",
        "--max-update",
        2,
        "--disable-validation",
    )
    stock_run = in_process.train(digits.data, tmp_path, *flags)
    stock_file = tmp_path / "checkpoint_last.pt"
    ours, stock = (torch.load(file, weights_only=True) for file in (student.checkpoint, stock_file))
    assert ours.keys() == stock.keys()
    assert {name: value.shape for name, value in ours["model"].items()} == {
        name: value.shape for name, value in stock["model"].items()
    }
    assert ours["extra_state"]["train_iterator"].keys() == stock["extra_state"]["train_iterator"].keys()
    assert not [
        key for key in [*ours["model"], *ours["task_state"], *ours["extra_state"]] if "teacher" in key
    ]
    assert ours["criterion"] is None

    parameters = list(stock_run.trainer.get_model().parameters())
    moments = ours["last_optimizer_state"]["state"].values()
    assert len(moments) == len(parameters)
    assert sum(moment["exp_avg"].numel() for moment in moments) == sum(
        weight.numel() for weight in parameters
    )

    def size_without_metrics(state) -> int:
        kept = tmp_path / "kept.pt"
        # The meters' history depends on how often a run validated, not on the plugin.
        torch.save({**state, "extra_state": None}, kept)
        return kept.stat().st_size

    assert size_without_metrics(ours) == pytest.approx(size_without_metrics(stock), rel=0.02)


@pytest.fixture(scope="module")
def expected(digits, student, tmp_path_factory) -> list[str]:
    """The student's greedy hypotheses."""
    found = in_process.generate(
        digits.data, student.checkpoint, tmp_path_factory.mktemp("decoded"), "--beam", 1
    )
    assert len(found) == len(digits.references())
    assert len(set(found)) > 5, (
        "a student that always writes the same would not tell one command from another"
    )
    assert not student.teacher.exists()
    assert str(student.teacher) in str(torch.load(student.checkpoint, weights_only=True)["cfg"]["task"])
    return found


DECODE = (*in_process.DECODE, "--beam", 1)


def test_imitkd_generate(digits, student, expected):
    done = digit_corpus.run("imitkd-generate", digits.data, "--path", student.checkpoint, *DECODE, real=True)
    assert in_process.hypotheses(done.stdout) == expected


def test_fairseq_generate_with_user_dir(digits, student, expected):
    """It uses the plugin's task. The checkpoint still names the teacher."""
    done = digit_corpus.run(
        "fairseq-generate", digits.data, "--user-dir", PLUGIN, "--task", "translation_with_teacher", "--path",
        student.checkpoint, *DECODE, real=True,
    )  # fmt: skip
    assert in_process.hypotheses(done.stdout) == expected


def test_fairseq_generate_without_the_plugin(digits, student, expected, tmp_path):
    """A student is a plain fairseq model. With torch 2.6 or later, stock fairseq needs a setting to load its
    own checkpoints.
    """
    environment = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", "PYTHONPATH": ""}
    done = digit_corpus.run(
        "fairseq-generate",
        digits.data,
        "--path",
        student.checkpoint,
        *DECODE,
        env=environment,
        cwd=tmp_path,
        real=True,
    )
    assert in_process.hypotheses(done.stdout) == expected


def test_imitkd_interactive(digits, student, expected):
    """It reads sentences from standard input."""
    done = digit_corpus.run(
        "imitkd-interactive", digits.data, "--path", student.checkpoint, *DECODE, "--buffer-size", 100,
        "--source-lang", "src", "--target-lang", "tgt", input=(digits.text / "test.src").read_text(),
        real=True,
    )  # fmt: skip
    assert in_process.hypotheses(done.stdout) == expected


def test_fairseq_validate(digits, student):
    """It rebuilds task and criterion without the teacher, and gives the loss of the training."""
    done = digit_corpus.run(
        "fairseq-validate", digits.data, "--user-dir", PLUGIN, "--task", "translation_with_teacher", "--path",
        student.checkpoint, "--cpu", "--max-tokens", 400, "--log-format", "json", real=True,
    )  # fmt: skip
    (metrics,) = in_process.read_metrics(done.stdout)["valid"]
    assert metrics["loss"] == pytest.approx(student.metrics()["valid"][-1]["loss"], abs=0.001)

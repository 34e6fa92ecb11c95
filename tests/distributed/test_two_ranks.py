"""Two processes train as one does on the same sentences, whatever the lengths of each one's rollouts."""

import contextlib
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import options, tasks
from fairseq_cli import preprocess

from fairseq_imitkd.models.pruning import Weight, weights_of_model
from tests.distributed import two_ranks
from tests.helpers.digit_corpus import BIN, ENVIRONMENT, REPO, write_text
from tests.helpers.fairseq_models import TINY_TRANSFORMER_FLAGS, checkpoint_state, training_config

TIMEOUT = 600  # seconds; a loaded machine is slow, a hang is for ever


def run_together(commands: list[list[str]], folder: Path) -> list[str]:
    """Their outputs. A failure shows them, and a process that hangs is ended with the others."""
    with contextlib.ExitStack() as stack:
        outputs = [
            stack.enter_context(open(folder / f"output-{number}.txt", "w+"))
            for number in range(len(commands))
        ]
        processes = [
            subprocess.Popen(command, cwd=REPO, env=ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT)
            for command, output in zip(commands, outputs, strict=True)
        ]
        try:
            codes = [process.wait(timeout=TIMEOUT) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
    texts = [(folder / f"output-{number}.txt").read_text() for number in range(len(commands))]
    assert codes == [0] * len(commands), "\n".join(text[-3000:] for text in texts)
    return texts


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two ranks saw."""
    folder = tmp_path_factory.mktemp("ranks")
    run_together(
        [[sys.executable, "-m", "tests.distributed.two_ranks", str(rank), str(folder)] for rank in range(2)],
        folder,
    )
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """One process on both ranks' sentences: summed gradients, and each batch's count and log."""
    model, task, criterion = two_ranks.student(), two_ranks.task(), two_ranks.criterion()
    counts, figures = [], []
    for sample in two_ranks.sentences():
        _, count, log = task.train_step(sample, model, criterion, two_ranks.Optimizer(), two_ranks.UPDATE)
        counts.append(count)
        figures.append(two_ranks.plain(log))
    return {"gradients": two_ranks.gradients(model), "counts": counts, "figures": figures}


def test_the_case_is_uneven(alone: dict[str, Any]) -> None:
    """Both ranks roll out, not all of their sentences, and to different lengths: else nothing is shown below."""
    counts = [log["rollouts"] for log in alone["figures"]]
    assert all(0 < count < log["nsentences"] for count, log in zip(counts, alone["figures"], strict=True))
    lengths = [log["tokens_rollout"] / log["rollouts"] for log in alone["figures"]]
    assert abs(lengths[0] - lengths[1]) > 2


@pytest.mark.parametrize("case", ["even", "chunks"])
@pytest.mark.parametrize("backend", two_ranks.BACKENDS)
def test_gradients_of_two_ranks_are_one_processes(
    ranks: list[dict[str, Any]], alone: dict[str, Any], backend: str, case: str
) -> None:
    """The wrappers average over ranks: twice their gradient is the sum over all sentences, the same on both.

    In chunks the output matrix has its gradient from outside the wrapped forward pass.
    """
    results = [rank[f"{backend}-{case}"] for rank in ranks]
    for result in results:
        summed = {name: 2.0 * gradient for name, gradient in result["gradients"].items()}
        torch.testing.assert_close(summed, alone["gradients"], rtol=1e-4, atol=1e-5)
    assert [result["count"] for result in results] == alone["counts"]
    assert max(float(gradient.abs().max()) for gradient in alone["gradients"].values()) > 0.1


@pytest.mark.parametrize("backend", two_ranks.BACKENDS)
def test_logs_of_two_ranks_are_one_processes(
    ranks: list[dict[str, Any]], alone: dict[str, Any], backend: str
) -> None:
    """A sentence is rolled out or not, and to the same text, whichever rank holds it."""
    for rank, expected in zip(ranks, alone["figures"], strict=True):
        assert rank[f"{backend}-even"]["figures"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("backend", two_ranks.BACKENDS)
def test_filler_batch_adds_nothing(ranks: list[dict[str, Any]], backend: str) -> None:
    """The second rank's shard has run out: no one waits for a rollout, and the gradient is the first rank's alone."""
    model = two_ranks.student()
    two_ranks.task().train_step(
        two_ranks.sentences()[0], model, two_ranks.criterion(), two_ranks.Optimizer(), two_ranks.UPDATE
    )
    for rank in ranks:
        summed = {name: 2.0 * gradient for name, gradient in rank[f"{backend}-filler"]["gradients"].items()}
        torch.testing.assert_close(summed, two_ranks.gradients(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", two_ranks.BACKENDS)
def test_both_ranks_log_the_same_keys_in_the_same_order(ranks: list[dict[str, Any]], backend: str) -> None:
    """fairseq adds the values up by position, the filler's too."""
    keys = [rank[f"{backend}-{case}"]["keys"] for rank in ranks for case in ("even", "filler")]
    assert keys[1:] == keys[:1] * 3


def test_trainer_updates_both_ranks_alike(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    """fairseq's trainer divides the sum over both ranks by the tokens that both trained on, once."""
    first, second = (rank["trainer"] for rank in ranks)
    for moment in ("after_one", "after_two"):
        torch.testing.assert_close(first[moment], second[moment], rtol=0, atol=0)
    assert first["logs"] == second["logs"]


def test_trainers_division_is_by_rollout_tokens(ranks: list[dict[str, Any]]) -> None:
    """One plain gradient step of the summed loss over the tokens counted, as one process would do it at update 0."""
    model, task, criterion = two_ranks.student(), two_ranks.task(), two_ranks.criterion()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    count = sum(
        task.train_step(sample, model, criterion, two_ranks.Optimizer(), 0)[1]
        for sample in two_ranks.sentences()
    )
    gradients = two_ranks.gradients(model)
    expected = {name: before[name] - 0.5 * gradients[name] / count for name in before}
    torch.testing.assert_close(ranks[0]["trainer"]["after_one"], expected, rtol=1e-4, atol=1e-5)


def test_trainer_goes_on_when_a_shard_has_run_out(ranks: list[dict[str, Any]]) -> None:
    """The update with a filler on the second rank is one process's update on the first rank's batch."""
    after_one, after_two = ranks[0]["trainer"]["after_one"], ranks[0]["trainer"]["after_two"]
    model, task, criterion = two_ranks.student(), two_ranks.task(), two_ranks.criterion()
    model.load_state_dict(dict(after_one), strict=False)  # fairseq adds to the mapping that it is given
    _, count, _ = task.train_step(two_ranks.sentences()[0], model, criterion, two_ranks.Optimizer(), 1)
    gradients = two_ranks.gradients(model)
    expected = {name: after_one[name] - 0.5 * gradients[name] / count for name in after_one}
    torch.testing.assert_close(after_two, expected, rtol=1e-4, atol=1e-5)


def digit_data(folder: Path) -> Path:
    """The digit corpus, binarised in this process, with an untrained teacher beside its dictionaries."""
    for split, sentences in (("train", 300), ("valid", 10)):
        write_text(folder, split, sentences, seed=sentences)
    data = folder / "data-bin"
    arguments = ["--source-lang", "src", "--target-lang", "tgt", "--destdir", str(data)]
    arguments += ["--trainpref", str(folder / "train"), "--validpref", str(folder / "valid")]
    preprocess.main(options.get_preprocessing_parser().parse_args(arguments))
    cfg = training_config(data, "--task", "translation")
    torch.manual_seed(6)
    torch.save(checkpoint_state(tasks.setup_task(cfg.task).build_model(cfg.model), cfg), data / "teacher.pt")
    return data


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_commands_train_as_one_command_on_double_batches(tmp_path: Path) -> None:
    """Real commands, one a rank: six updates of ImitKD end in the weights of one process with two batches an update.

    Sentences are rolled out by their ids, so the same ones on either side, and plain gradient descent keeps roundings small.
    The scores of the validation set are one process's too: ten sentences by fours, so the second rank's shard runs out.
    """
    data = digit_data(tmp_path)

    def command(name: str, *flags: object) -> list[str]:
        common = (
            "--cpu", "--source-lang", "src", "--target-lang", "tgt", *TINY_TRANSFORMER_FLAGS, "--dropout", "0",
            "--criterion", "imitkd", "--teacher-path", data / "teacher.pt", "--student-share", "0.5",
            "--rollout-max-len-b", "2", "--optimizer", "sgd", "--lr", "0.5", "--max-tokens", "160", "--max-update", "6",
            "--eval-bleu", "--eval-metrics", "chrf,rouge-l", "--eval-bleu-args", '{"beam": 1, "max_len_b": 6}',
            "--best-checkpoint-metric", "chrf", "--maximize-best-checkpoint-metric", "--batch-size-valid", "4",
            "--required-batch-size-multiple", "1", "--no-epoch-checkpoints", "--log-format", "json", "--log-interval", "1",
            "--num-workers", "0",
        )  # fmt: skip
        return list(map(str, (BIN / "imitkd-train", data, "--save-dir", tmp_path / name, *common, *flags)))

    meeting = f"tcp://127.0.0.1:{free_port()}"
    two = [
        command(
            "two", "--distributed-init-method", meeting, "--distributed-rank", rank, "--distributed-world-size", 2,
            "--distributed-no-spawn", "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp",
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = run_together([*two, command("one", "--update-freq", 2)], tmp_path)

    logs, scores = [
        [
            [json.loads(line[line.index("{") :]) for line in text.splitlines() if f'"{figure}"' in line]
            for text in outputs
        ]
        for figure in ("rollout_len", "valid_chrf")
    ]
    updates = [[log for log in lines if "num_updates" in log] for lines in (logs[0], logs[2])]
    assert [log["num_updates"] for log in updates[0]] == [str(update) for update in range(1, 7)]
    for key in (
        "loss",
        "student_share",
        "rollout_len",
        "truncated",
        "agreement",
        "tokens_data",
        "tokens_rollout",
    ):
        assert [float(log[key]) for log in updates[0]] == pytest.approx(
            [float(log[key]) for log in updates[1]], abs=2e-3
        ), key
    [two], none, [one] = scores  # the second rank prints nothing
    assert none == []
    for name in ("valid_bleu", "valid_chrf", "valid_rougeL"):
        assert two[name] == one[name]
    assert float(one["valid_chrf"]) > 0
    models = [torch.load(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("two", "one")]
    torch.testing.assert_close(models[0], models[1], rtol=1e-5, atol=1e-5)


def test_policy_over_teachers_is_one(ranks: list[dict[str, Any]]) -> None:
    """Both ranks add up what their own sentences gained, also when one of them has none."""
    first, second = (rank["policy"] for rank in ranks)
    assert first == second
    assert first[2] != 1.0


@pytest.mark.parametrize("backend", two_ranks.BACKENDS)
def test_pruning_is_one(ranks: list[dict[str, Any]], backend: str) -> None:
    """Inside either wrapper, both ranks prune the same weights, as many as the schedule says, without a word between them."""
    first, second = (rank[f"{backend}-pruned"] for rank in ranks)
    weights = weights_of_model(two_ranks.student(share_all_embeddings=True))
    count = sum(weight.count for weight in weights.values())
    shares = []
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
        shares.append(
            sum(int(Weight(one[name], own.padding).zeros().sum()) for name, own in weights.items()) / count
        )
    assert shares == pytest.approx([0.0, 0.0, 0.7 * (1 - 0.5**3), 0.7 * (1 - 0.5**3), 0.7, 0.7], abs=1e-4)

"""Two processes train like one process on the same sentences, whatever the lengths of their rollouts."""

import contextlib
import json
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import options, tasks
from fairseq_cli import preprocess

from fairseq_imitkd.models.pruning import Weight, weights_of_model
from tests.distributed import two_ranks
from tests.helpers import language_models, warm_commands
from tests.helpers.digit_corpus import ENVIRONMENT, REPO, write_text
from tests.helpers.fairseq_models import TINY_TRANSFORMER_FLAGS, checkpoint_state, training_config

TIMEOUT = 600  # seconds; a loaded machine may be slow, but a hang never ends


def run_together(commands: list[list[str]], folder: Path) -> list[str]:
    """Run commands at the same time and return their outputs. A failure shows the outputs and ends all
    processes.
    """
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
    """The results of both ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    run_together(
        [
            [
                str(warm_commands.folder() / "python"),
                "-m",
                "tests.distributed.two_ranks",
                str(rank),
                str(folder),
            ]
            for rank in range(2)
        ],
        folder,
    )
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def one_process() -> dict[str, Any]:
    """The results of one process on both ranks' sentences: summed gradients, and each batch's count
    and log.
    """
    model, task, criterion = two_ranks.student(), two_ranks.task(), two_ranks.criterion()
    counts, metrics = [], []
    for sample in two_ranks.sentences():
        _, count, log = task.train_step(sample, model, criterion, two_ranks.Optimizer(), two_ranks.UPDATE)
        counts.append(count)
        metrics.append(two_ranks.plain(log))
    return {"gradients": two_ranks.gradients(model), "counts": counts, "metrics": metrics}


def test_the_case_is_uneven(one_process: dict[str, Any]) -> None:
    """Both ranks roll out some sentences, to different lengths. Without this the tests below would show
    nothing.
    """
    counts = [log["rollouts"] for log in one_process["metrics"]]
    assert all(
        0 < count < log["nsentences"] for count, log in zip(counts, one_process["metrics"], strict=True)
    )
    lengths = [log["tokens_rollout"] / log["rollouts"] for log in one_process["metrics"]]
    assert abs(lengths[0] - lengths[1]) > 2


@pytest.mark.parametrize("case", ["even", "chunks", "without-memory"])
@pytest.mark.parametrize("backend", two_ranks.BACKENDS)
def test_gradients_of_two_ranks_are_one_processes(
    ranks: list[dict[str, Any]], one_process: dict[str, Any], backend: str, case: str
) -> None:
    """The wrappers average over ranks, so twice their gradient is the sum over all sentences.

    In chunks, the output matrix gets its gradient outside the wrapped forward pass. Without memory, rank 1
    repeats its forward pass when the memory of graphs is free.
    """
    results = [rank[f"{backend}-{case}"] for rank in ranks]
    for result in results:
        summed = {name: 2.0 * gradient for name, gradient in result["gradients"].items()}
        torch.testing.assert_close(summed, one_process["gradients"], rtol=1e-4, atol=1e-5)
    assert [result["count"] for result in results] == one_process["counts"]
    assert max(float(gradient.abs().max()) for gradient in one_process["gradients"].values()) > 0.1


@pytest.mark.parametrize("backend", two_ranks.BACKENDS)
def test_a_language_model_on_two_ranks(ranks: list[dict[str, Any]], backend: str) -> None:
    """Its gradients are those of one process, too."""
    model = language_models.build(seed=1, dropout=0.0)
    counts = [two_ranks.continuations(model, rank) for rank in range(2)]
    assert [rank[f"{backend}-continuations"]["count"] for rank in ranks] == counts
    for rank in ranks:
        found = rank[f"{backend}-continuations"]["gradients"]
        summed = {name: 2.0 * gradient for name, gradient in found.items()}
        torch.testing.assert_close(summed, two_ranks.gradients(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["even", "filler"])
@pytest.mark.parametrize("backend", two_ranks.BACKENDS)
def test_matching_of_sentence_vectors_on_two_ranks(
    ranks: list[dict[str, Any]], backend: str, case: str
) -> None:
    """The projection, too, has the gradient of one process. A rank without a batch adds nothing."""
    model, method = two_ranks.student(), two_ranks.matching()
    for rank in range(2 if case == "even" else 1):
        two_ranks.matched(model, method, rank)
    expected = {**two_ranks.gradients(model), **two_ranks.gradients(method)}
    assert expected["hidden_match.projection.weight"].abs().max() > 0.01
    for rank in ranks:
        summed = {name: 2.0 * each for name, each in rank[f"{backend}-matching-{case}"].items()}
        torch.testing.assert_close(summed, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", two_ranks.BACKENDS)
def test_weights_of_tokens_on_two_ranks(ranks: list[dict[str, Any]], backend: str) -> None:
    """Each rank selects the hardest tokens among its own recent ones."""
    model = two_ranks.student()
    for sample in two_ranks.sentences():
        criterion = two_ranks.criterion(**two_ranks.WEIGHTED)
        two_ranks.task().train_step(sample, model, criterion, two_ranks.Optimizer(), two_ranks.UPDATE)
    for rank in ranks:
        summed = {name: 2.0 * each for name, each in rank[f"{backend}-weighted"]["gradients"].items()}
        torch.testing.assert_close(summed, two_ranks.gradients(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", two_ranks.BACKENDS)
def test_logs_of_two_ranks_are_one_processes(
    ranks: list[dict[str, Any]], one_process: dict[str, Any], backend: str
) -> None:
    """The draw and the text of a sentence do not depend on its rank."""
    for rank, expected in zip(ranks, one_process["metrics"], strict=True):
        assert rank[f"{backend}-even"]["metrics"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("backend", two_ranks.BACKENDS)
def test_filler_batch_adds_nothing(ranks: list[dict[str, Any]], backend: str) -> None:
    """When the second rank has no batch left, no rank waits, and the gradient is the first rank's alone."""
    model = two_ranks.student()
    two_ranks.task().train_step(
        two_ranks.sentences()[0], model, two_ranks.criterion(), two_ranks.Optimizer(), two_ranks.UPDATE
    )
    for rank in ranks:
        summed = {name: 2.0 * gradient for name, gradient in rank[f"{backend}-filler"]["gradients"].items()}
        torch.testing.assert_close(summed, two_ranks.gradients(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", two_ranks.BACKENDS)
def test_both_ranks_log_the_same_keys_in_the_same_order(ranks: list[dict[str, Any]], backend: str) -> None:
    """fairseq adds the values up by position, also the filler's."""
    keys = [rank[f"{backend}-{case}"]["keys"] for rank in ranks for case in ("even", "filler")]
    assert keys[1:] == keys[:1] * 3


def test_trainer_updates_both_ranks_alike(ranks: list[dict[str, Any]], one_process: dict[str, Any]) -> None:
    """fairseq's trainer divides the sum over both ranks by the number of tokens that both trained on."""
    first, second = (rank["trainer"] for rank in ranks)
    for moment in ("after_one", "after_two"):
        torch.testing.assert_close(first[moment], second[moment], rtol=0, atol=0)
    assert first["logs"] == second["logs"]


def test_trainers_division_is_by_rollout_tokens(ranks: list[dict[str, Any]]) -> None:
    """The update is a plain gradient step of the summed loss over the counted tokens, as in one process."""
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
    """The update with a filler on the second rank equals one process's update on the first rank's batch."""
    after_one, after_two = ranks[0]["trainer"]["after_one"], ranks[0]["trainer"]["after_two"]
    model, task, criterion = two_ranks.student(), two_ranks.task(), two_ranks.criterion()
    model.load_state_dict(dict(after_one), strict=False)  # fairseq changes the mapping that it gets
    _, count, _ = task.train_step(two_ranks.sentences()[0], model, criterion, two_ranks.Optimizer(), 1)
    gradients = two_ranks.gradients(model)
    expected = {name: after_one[name] - 0.5 * gradients[name] / count for name in after_one}
    torch.testing.assert_close(after_two, expected, rtol=1e-4, atol=1e-5)


def digit_data(folder: Path) -> Path:
    """The digit corpus, binarised in this process, and an untrained teacher."""
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
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_commands_train_as_one_command_on_double_batches(tmp_path: Path) -> None:
    """Six updates of ImitKD with a command for each rank give the weights of one process with two batches in
    an update.

    Rollouts are drawn by sentence ids, so both sides choose the same ones. Plain gradient descent keeps
    rounding errors small. The validation scores are one process's too: the set has ten sentences in batches
    of four, so the second rank's shard runs out.
    """
    data = digit_data(tmp_path)

    def command(name: str, *flags: object) -> list[str]:
        common = (
            "--cpu", "--source-lang", "src", "--target-lang", "tgt", *TINY_TRANSFORMER_FLAGS, "--dropout",
            "0", "--criterion", "imitkd", "--teacher-path", data / "teacher.pt", "--teacher-allow-poor",
            "--student-share", "0.5",
            "--rollout-max-len-b", "2", "--optimizer", "sgd", "--lr", "0.5", "--max-tokens", "160",
            "--max-update", "6", "--eval-bleu", "--eval-metrics", "chrf,rouge-l", "--eval-bleu-args",
            '{"beam": 1, "max_len_b": 6}', "--best-checkpoint-metric", "chrf",
            "--maximize-best-checkpoint-metric", "--batch-size-valid", "4", "--required-batch-size-multiple",
            "1", "--no-epoch-checkpoints", "--log-format", "json", "--log-interval", "1", "--num-workers",
            "0",
        )  # fmt: skip
        return list(
            map(
                str,
                (
                    warm_commands.folder() / "imitkd-train",
                    data,
                    "--save-dir",
                    tmp_path / name,
                    *common,
                    *flags,
                ),
            )
        )

    meeting = f"tcp://127.0.0.1:{free_port()}"
    two = [
        command(
            "two", "--distributed-init-method", meeting, "--distributed-rank", rank,
            "--distributed-world-size", 2, "--distributed-no-spawn", "--distributed-backend", "gloo",
            "--ddp-backend", "legacy_ddp",
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = run_together([*two, command("one", "--update-freq", 2)], tmp_path)

    logs, scores = [
        [
            [json.loads(line[line.index("{") :]) for line in text.splitlines() if f'"{name}"' in line]
            for text in outputs
        ]
        for name in ("rollout_len", "valid_chrf")
    ]
    updates = [[log for log in lines if "num_updates" in log] for lines in (logs[0], logs[2])]
    assert [log["num_updates"] for log in updates[0]] == [str(update) for update in range(1, 7)]
    for key in (
        "loss",
        "student_share",
        "rollout_len",
        "truncated",
        "empty",
        "repetition",
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


def test_policy_over_teachers_is_the_same_on_both_ranks(ranks: list[dict[str, Any]]) -> None:
    """The ranks add up the gains of their sentences, even if one of them has no batch."""
    first, second = (rank["policy"] for rank in ranks)
    assert first == second
    assert first[2] != 1.0


@pytest.mark.parametrize("backend", two_ranks.BACKENDS)
def test_pruning_is_the_same_on_both_ranks(ranks: list[dict[str, Any]], backend: str) -> None:
    """In either wrapper both ranks prune the same weights on schedule, without communication."""
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

"""Tests of ``make bench-check``: the expected work, the detection of 5% more, and the counting rules."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import work_check
from benchmarks.work_check import VARIANTS, Work, WorkCounter
from fairseq_imitkd.losses.divergences import DIVERGENCES
from fairseq_imitkd.rollout.fast_transformer import TransformerSteps

CONSTRAINTS = Path(__file__).parent.parent.parent / "constraints.txt"


@pytest.fixture(scope="module")
def expected() -> dict[str, Work]:
    """The expected totals. They hold for one version of torch, because others run other operators."""
    if f"torch=={work_check.versions()['torch']}" not in CONSTRAINTS.read_text().splitlines():
        pytest.skip(f"the expected work is for constraints.txt's torch, but {torch.__version__} is installed")
    return work_check.read_expected()


@pytest.fixture(scope="module")
def counted() -> dict[str, WorkCounter]:
    """The work of the current tree."""
    return work_check.measure(VARIANTS)


def test_this_tree_does_no_more_than_the_expected_work(counted, expected) -> None:
    """If this fails, run python benchmarks/work_check.py for details."""
    above, _ = work_check.outside({name: counter.total() for name, counter in counted.items()}, expected)
    assert above == []


def test_the_count_is_the_same_again(counted) -> None:
    """The counts agree for each operator, not only in total."""
    name = "imitkd_share_1_sampling"
    assert work_check.measure([name])[name].by_operator == counted[name].by_operator


def test_backward_passes_and_the_optimizer_are_counted(counted) -> None:
    """Backward passes in another thread would not be counted."""
    for name in work_check.UPDATES:
        calls = {operator: work.operators for operator, work in counted[name].by_operator.items()}
        for operator in (
            "_log_softmax_backward_data",
            "native_layer_norm_backward",
            "embedding_dense_backward",
            "addcdiv_",
        ):
            assert calls[f"aten::{operator}"] > 0
    assert "aten::native_layer_norm_backward" not in counted[work_check.GENERATE].by_operator


def plant_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the divergence compute the student's distribution and its maximum for nothing."""
    divergence = DIVERGENCES["teacher-argmax"]

    def slow(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        student_logits.detach().softmax(dim=-1).argmax(dim=-1)
        return divergence(student_logits, teacher_logits)

    monkeypatch.setitem(DIVERGENCES, "teacher-argmax", slow)


def plant_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do every fifth decoding step of a rollout twice."""
    logits = TransformerSteps.logits

    def slow(steps: TransformerSteps, tokens: Tensor) -> Tensor:
        if tokens.size(1) % 5 == 0:
            logits(steps, tokens)
            steps.filled -= 1
        return logits(steps, tokens)

    monkeypatch.setattr(TransformerSteps, "logits", slow)


@pytest.mark.parametrize(("plant", "figure"), [(plant_softmax, "elements"), (plant_steps, "operators")])
def test_a_twentieth_more_work_is_caught(
    plant: Callable[..., None], figure: str, counted, monkeypatch
) -> None:
    """Each change adds about 5% to one total, and never so much that any check would notice."""
    name = "imitkd_share_1"
    before = {name: counted[name].total()}
    plant(monkeypatch)
    after = {name: work_check.measure([name])[name].total()}
    shares = {
        each: work_check.change(getattr(after[name], each), getattr(before[name], each))
        for each in work_check.FIGURES
    }
    assert 0.03 < shares[figure] < 0.08, shares
    assert max(shares.values()) < 0.08, shares
    above, _ = work_check.outside(after, before)
    assert any(line.startswith(f"{name}: +") and work_check.FIGURES[figure] in line for line in above)


def test_the_student_writes_what_it_is_told(tmp_path) -> None:
    """The margin is wide, so rounding on other machines does not change the work of a rollout."""
    for language in ("src", "tgt"):
        work_check.dictionary().save(str(tmp_path / f"dict.{language}.txt"))
    trainer = work_check.build_trainer(
        tmp_path, "--task", "translation", "--criterion", "cross_entropy", *work_check.STUDENT
    )
    student, batch = trainer.get_model().eval(), work_check.make_batch(work_check.COUNTED_BATCH)
    work_check.script(student)
    eos, pad = work_check.dictionary().eos(), work_check.dictionary().pad()
    countdowns = [
        torch.arange(work_check.tokens_written(number) - 1, -1, -1) + eos for number in batch["id"].tolist()
    ]
    target = torch.nn.utils.rnn.pad_sequence(countdowns, batch_first=True, padding_value=pad)
    inputs = torch.cat(
        [torch.full_like(target[:, :1], eos), target[:, :-1].masked_fill(target[:, 1:].eq(pad), pad)], dim=1
    )
    with torch.no_grad():
        logits = student(**{**batch["net_input"], "prev_output_tokens": inputs})[0]
    best, second = logits.topk(2, dim=-1).values.unbind(-1)
    wanted = target.ne(pad)
    assert logits.argmax(dim=-1)[wanted].equal(target[wanted])
    assert (best - second)[wanted].min() > 10.0


def work_of(function: Callable[[], Any]) -> Work:
    with WorkCounter() as counter:
        function()
    return counter.total()


MATRIX, OTHER = torch.ones(2, 3), torch.ones(3, 5)
TABLE, PLACES = torch.ones(100, 4), torch.tensor([7, 9])


@pytest.mark.parametrize(
    ("function", "expected_work"),
    [
        (lambda: MATRIX + MATRIX, Work(1, 0, 18)),
        (lambda: MATRIX @ OTHER, Work(1, 2 * 2 * 3 * 5, 6 + 15 + 10)),
        (lambda: torch.cat([MATRIX, MATRIX]), Work(1, 0, 24)),
        (lambda: MATRIX.t(), Work(1, 0, 0)),
        (lambda: MATRIX.split(1), Work(1, 0, 0)),
        (lambda: torch.empty(9), Work(1, 0, 0)),
        (lambda: torch.zeros(9), Work(1, 0, 9)),
        (lambda: F.embedding(PLACES, TABLE), Work(1, 0, 2 + 8)),
        (lambda: TABLE.index_put_((PLACES,), torch.ones(())), Work(2, 0, 1 + 2 + 1)),
    ],
)
def test_what_counts_as_work(function: Callable[[], Any], expected_work: Work) -> None:
    """Views and allocations touch nothing, and an index touches only the selected elements."""
    assert work_of(function) == expected_work


def test_attention_counts_as_matrix_products() -> None:
    """torch has no formula for its CPU operators."""
    query, keys = torch.ones(2, 4, 1, 16, requires_grad=True), torch.ones(2, 4, 7, 16, requires_grad=True)
    products = 2 * 4 * 2 * 1 * 7 * 16  # one batched matrix product
    assert work_of(lambda: F.scaled_dot_product_attention(query, keys, keys)).flop == 2 * products
    attended = F.scaled_dot_product_attention(query, keys, keys).sum()
    assert work_of(attended.backward).flop >= 4 * products


def test_inference_mode_does_the_same_work() -> None:
    """In inference mode a linear layer is one operator, which has no formula of its own."""
    layer = torch.nn.Linear(3, 5)
    with torch.no_grad():
        outside = work_of(lambda: layer(MATRIX))
    with torch.inference_mode():
        assert work_of(lambda: layer(MATRIX)) == outside
    assert outside.flop == 60


USUAL = {name: Work(1000, 1000, 1000) for name in VARIANTS}


@pytest.fixture
def canned(tmp_path, monkeypatch) -> Callable[[Work], None]:
    """Expect 1,000 everywhere; return a function that sets the work counted for ``word_kd``."""
    monkeypatch.setattr(work_check, "EXPECTED", tmp_path / "expected_work.json")
    work_check.write_expected(USUAL)

    def measured(work: Work) -> None:
        counters = {name: WorkCounter() for name in VARIANTS}
        for name, counter in counters.items():
            counter.by_operator["aten::mm"] = work if name == "word_kd" else USUAL[name]
        monkeypatch.setattr(work_check, "measure", lambda names: {name: counters[name] for name in names})

    return measured


@pytest.mark.parametrize(
    ("work", "status", "lines"),
    [
        (Work(1020, 1000, 980), 0, []),
        (
            Work(1021, 1000, 1000),
            1,
            ["MORE WORK: word_kd: +2.1% operator calls, 1,021 instead of 1,000"],
        ),
        (
            Work(1000, 1050, 1100),
            1,
            ["MORE WORK: word_kd: +5.0% floating", "MORE WORK: word_kd: +10.0% elements"],
        ),
        (Work(1000, 1000, 900), 0, ["less work: word_kd: -10.0% elements touched"]),
        (
            Work(900, 1000, 1100),
            1,
            ["less work: word_kd: -10.0% operator calls", "MORE WORK: word_kd: +10.0% elements"],
        ),
    ],
)
def test_the_check_fails_above_two_percent_only(
    work: Work, status: int, lines: list[str], canned, capsys
) -> None:
    """Each total has one line; less work is reported and passes."""
    canned(work)
    assert work_check.main([]) == status
    printed = capsys.readouterr().out.splitlines()
    told = [line for line in printed if "WORK:" in line.upper()]
    assert len(told) == len(lines)
    assert all(line.startswith(start) for line, start in zip(told, lines, strict=True))
    assert len([line for line in printed if line.startswith("|")]) == 2 + len(VARIANTS)


def test_update_writes_what_is_counted(canned) -> None:
    """No other file is left behind."""
    canned(Work(1500, 1500, 1500))
    assert work_check.main([]) == 1
    assert work_check.main(["--update"]) == 0
    assert work_check.main([]) == 0
    assert work_check.read_expected() == {**USUAL, "word_kd": Work(1500, 1500, 1500)}
    assert [path.name for path in work_check.EXPECTED.parent.iterdir()] == ["expected_work.json"]


def test_profile_names_the_operators(canned, capsys) -> None:
    """The operators with the most elements come first."""
    canned(Work(10, 2_000_000_000, 3_000_000))
    assert work_check.main(["--profile", "word_kd"]) == 0
    assert "| aten::mm | 10 | 2.000 | 3.00 | 100.0% |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["--profile", "nothing"], ["--profile"], ["--update", "--profile", "word_kd"], ["what"]]
)
def test_wrong_arguments_are_reported_in_one_line(arguments: list[str], capsys) -> None:
    """Nothing is counted before."""
    with pytest.raises(SystemExit) as ended:
        work_check.main(arguments)
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


@pytest.mark.parametrize("content", [None, "", "{}", '{"work": {}, "versions": {}}', '{"work": []}'])
def test_unreadable_expected_totals_are_reported_in_one_line(content: str | None, canned) -> None:
    """The file is missing, truncated, or has other variants."""
    work_check.EXPECTED.unlink()
    if content is not None:
        work_check.EXPECTED.write_text(content)
    with pytest.raises(SystemExit, match=r"can't be used \(.*\); write it with --update$"):
        work_check.main([])


def test_another_torch_is_not_compared(canned) -> None:
    """Another torch has other operators."""
    content = json.loads(work_check.EXPECTED.read_text())
    content["versions"]["torch"] = "1.0"
    work_check.EXPECTED.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=r"was counted with .*1.0.*make install, or renew it with --update$"):
        work_check.main([])

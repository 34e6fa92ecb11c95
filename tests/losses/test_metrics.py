"""The metrics of a training: logged sums, the meters that fairseq makes of them, and what is left out."""

import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.logging import metrics as fairseq_metrics
from torch import Tensor

from fairseq_imitkd.losses import metrics
from tests.helpers.fairseq_models import make_batch

BITS = 1.0 / math.log(2)
PAD = 1

TRAINING: dict[str, Any] = {
    "loss": 60.0, "nll_loss": 20.0, "loss_data": 24.0, "loss_rollout": 36.0, "ntokens": 30, "nsentences": 6,
    "sample_size": 30, "positions": 33, "tokens_data": 10, "tokens_rollout": 20, "distilled_tokens": 30,
    "teacher_tokens": 30, "rollouts_may_be_stale": 1, "teacher_agrees": 12, "rollouts": 4,
    "rollouts_truncated": 1, "rollouts_empty": 2, "tokens_repeated": 3,
}  # fmt: skip
EVERYTHING: dict[str, Any] = {
    **TRAINING, "correct": 21, "rollout_rows_computed": 22, "rollout_tokens_written": 10,
    "rollout_staleness": 6, "rollouts_replayed": 1, "rollout_out_of_memory": 2, "rewarded": 4, "reward": 2.0,
    "reward_squared": 1.25, "rollout_seconds": 1.0,
    "teacher_seconds": 2.0, "step_seconds": 8.0, "graph_blocks": 40, "graph_blocks_replayed": 38,
    "graph_reports": 2, "graphs": 10, "graph_megabytes": 6.0,
}  # fmt: skip


def shown(*updates: dict[str, Any] | list[dict[str, Any]]) -> dict[str, float]:
    """Return what fairseq shows of an interval with these updates' logs."""
    with fairseq_metrics.aggregate(new_root=True) as aggregator:
        for update in updates:
            metrics.log(update if isinstance(update, list) else [update])
    return aggregator.get_smoothed_values()


def test_totals_are_sums_of_numbers_and_tensors() -> None:
    """Types may be mixed. The totals are plain numbers, and whole numbers are exact."""
    logs = [
        {"a": 1, "b": torch.tensor(0.5), "c": torch.tensor(3), "d": 0.25, "e": 7},
        {
            "a": 2,
            "b": torch.tensor(0.25),
            "c": torch.tensor(2**40),
            "d": torch.tensor(0.5),
            "e": torch.tensor(1.5),
        },
    ]
    total = metrics.totals(logs)
    assert total == {"a": 3, "b": 0.75, "c": 2**40 + 3, "d": 0.75, "e": 8.5}
    assert not any(isinstance(value, Tensor) for value in total.values())


def test_totals_of_logs_without_tensors() -> None:
    """A distributed sum gives such logs. A key that a later log lacks counts as 0 there."""
    assert metrics.totals([{"a": 1, "b": 2.5}]) == {"a": 1, "b": 2.5}
    assert metrics.totals([{"a": 1, "b": 2.5}, {"a": 4}, {"a": 2, "b": 1}]) == {"a": 7, "b": 3.5}


def test_totals_do_not_change_the_logs() -> None:
    """fairseq reduces the same logs several times."""
    logs = [{"a": torch.tensor(1.0)}, {"a": torch.tensor(2.0)}]
    metrics.totals(logs)
    assert metrics.totals(logs) == {"a": 3.0}
    assert [float(log["a"]) for log in logs] == [1.0, 2.0]


def test_every_metric_follows_its_definition() -> None:
    """Each metric is a ratio of sums."""
    expected = {
        "loss": 2.0 * BITS, "nll_loss": 2.0 * BITS, "ppl": 2 ** (2.0 * BITS), "accuracy": 70.0,
        "loss_data": 2.4 * BITS, "loss_rollout": 1.8 * BITS, "student_share": 4 / 6, "rollout_len": 5.0,
        "truncated": 0.25, "empty": 0.5, "repetition": 0.15,
        "agreement": 0.4, "padding": 1.1, "rollout_work": 2.2, "rollout_staleness": 1.5,
        "rollouts_replayed": 0.25, "reward": 0.5, "reward_spread": 0.25, "tokens_data": 10,
        "tokens_rollout": 20, "rollout_out_of_memory": 2, "rollout_time": 0.125, "teacher_time": 0.25,
        "graph_hits": 0.95, "graphs": 5.0, "graph_memory": 3.0,
    }  # fmt: skip
    found = shown(EVERYTHING)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-2 if name == "ppl" else 1e-3), name


def test_nothing_is_logged_twice(monkeypatch) -> None:
    """A second value of an update would enter its mean."""
    names: Counter[str] = Counter()
    for function in ("log_scalar", "log_scalar_sum", "log_derived"):
        monkeypatch.setattr(metrics.metrics, function, lambda name, *_, **__: names.update([name]))
    metrics.log([EVERYTHING])
    assert len(names) > 15
    assert set(names.values()) == {1}


@pytest.mark.parametrize(
    ("absent", "gone"),
    [
        (["rewarded", "reward", "reward_squared"], {"reward", "reward_spread"}),
        (["correct"], {"accuracy"}),
        (["rollout_rows_computed"], set()),
        (["rollout_staleness"], {"rollout_staleness"}),
        (["rollouts_replayed"], {"rollouts_replayed"}),
        (["rollout_out_of_memory"], {"rollout_out_of_memory"}),
        (["rollout_seconds", "teacher_seconds", "step_seconds"], {"rollout_time", "teacher_time"}),
        (["positions"], set()),
    ],
)
def test_sums_may_be_missing(absent: list[str], gone: set[str]) -> None:
    """Logs of another task or of an older checkpoint may lack them. All other metrics stay the same."""
    without = {name: value for name, value in EVERYTHING.items() if name not in absent}
    whole, found = shown(EVERYTHING), shown(without)
    assert whole.keys() - found.keys() == gone
    changed = (
        {"rollout_work"}
        if "rollout_rows_computed" in absent
        else {"padding"}
        if "positions" in absent
        else set()
    )
    for name in found.keys() - changed:
        assert found[name] == whole[name], name


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("rewarded", "reward"), ("rollouts_may_be_stale", "rollout_staleness"),
        ("rollouts_may_be_stale", "rollouts_replayed"), ("rollout_out_of_memory", "rollout_out_of_memory"),
    ],
)  # fmt: skip
def test_metrics_without_a_value_are_left_out(key: str, name: str) -> None:
    """A method without rewards, pool or replay does not show them."""
    assert name in shown(EVERYTHING)
    assert name not in shown({**EVERYTHING, key: 0})


def test_validation_of_a_classifier() -> None:
    """It shows accuracy in per cent and the loss, but nothing of teacher or rollouts."""
    log = dict.fromkeys(EVERYTHING, 0)
    log.update(
        loss=14.0,
        nll_loss=14.0,
        loss_data=14.0,
        ntokens=8,
        sample_size=8,
        nsentences=8,
        tokens_data=8,
        correct=6,
    )
    found = shown(log)
    assert found.pop("accuracy") == 75.0
    assert found.pop("ppl") == pytest.approx(2 ** (1.75 * BITS), abs=0.01)
    assert found == pytest.approx({"loss": 1.75 * BITS, "nll_loss": 1.75 * BITS}, abs=1e-3)


def test_losses_are_per_token_even_if_sentences_are_counted() -> None:
    """``sample_size`` is the divisor of gradients. The log has the same meaning for every
    ``--loss-average``.
    """
    assert shown({**EVERYTHING, "sample_size": 6}) == shown(EVERYTHING)


@pytest.mark.parametrize(("by_sentence", "expected"), [(True, 3), (False, 9)])
def test_sample_size_is_of_sentences_or_tokens(by_sentence: bool, expected: int) -> None:
    """A batch of three sentences is counted in both ways. All other sums stay the same."""
    sample = make_batch([([1, 2, 3], [1, 2, 3]), ([4, 5], [4, 5]), ([6], [6])])
    counted = sample["target"].ne(PAD).flatten()
    rows = torch.arange(3).repeat_interleave(sample["target"].size(1))
    is_rollout = (rows == 1) & counted
    values = torch.arange(counted.numel(), dtype=torch.float32)
    found = {
        "loss": values.masked_fill(~counted, 0.0),
        "nll": values,
        "agrees": (values > 4) & counted,
        "compared": counted,
    }
    distillation = SimpleNamespace(
        teacher=object(),
        is_rollout=torch.tensor([False, True, False]),
        truncated=torch.tensor([False, False, False]),
        now=SimpleNamespace(student_writes=True),
    )
    log = metrics.batch_sums(
        sample,
        found,
        counted=counted,
        tokens=int(counted.sum()),
        is_rollout=is_rollout,
        distillation=distillation,
        by_sentence=by_sentence,
        pad=PAD,
    )
    assert log["sample_size"] == expected
    numbers = [(number, row) for number, row in enumerate(rows.tolist()) if counted[number]]
    sums = {
        "loss": sum(number for number, _ in numbers),
        "loss_data": sum(number for number, row in numbers if row != 1),
        "loss_rollout": sum(number for number, row in numbers if row == 1),
        "nll_loss": sum(number for number, row in numbers if row != 1),
        "ntokens": 9, "nsentences": 3, "positions": 12, "tokens_data": 6, "tokens_rollout": 3,
        "distilled_tokens": 9, "teacher_tokens": 9, "rollouts": 1, "rollouts_truncated": 0,
        "rollouts_empty": 0, "tokens_repeated": 0,
        "teacher_agrees": sum(number > 4 for number, _ in numbers),
    }  # fmt: skip
    assert {name: float(value) for name, value in log.items() if name != "sample_size"} == sums


@pytest.mark.parametrize("rewards", [[0.1, 0.9, 0.4], [0.5, 0.5], [0.25], [0.0, 1.0, 1.0, 1.0]])
def test_reward_is_a_mean_with_its_spread(rewards: list[float]) -> None:
    """The spread is the standard deviation of an update's rewards, computed from sums. It is 0 if all are
    equal.
    """
    mean = sum(rewards) / len(rewards)
    spread = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    sums = {
        "rewarded": len(rewards),
        "reward": sum(rewards),
        "reward_squared": sum(reward**2 for reward in rewards),
    }
    found = shown({**TRAINING, **sums})
    assert found["reward"] == pytest.approx(mean, abs=1e-4)
    assert found["reward_spread"] == pytest.approx(spread, abs=1e-4)


def test_equal_rewards_have_no_spread_despite_rounding() -> None:
    """The difference of the sums may be below 0 by its last bit."""
    reward = 0.1
    sums = {"rewarded": 3, "reward": reward + reward + reward, "reward_squared": 3 * reward**2 * (1 - 1e-15)}
    assert shown({**TRAINING, **sums})["reward_spread"] == 0.0


def test_updates_are_weighted_by_the_metrics_denominators() -> None:
    """Losses are weighted by tokens, shares by sentences, and lengths and rewards by rollouts."""
    small = {
        **EVERYTHING, "loss": 30.0, "ntokens": 6, "rollouts": 1, "tokens_rollout": 2, "nsentences": 1,
        "rewarded": 1, "reward": 1.0, "reward_squared": 1.0,
    }  # fmt: skip
    found = shown(EVERYTHING, small)
    assert found["loss"] == pytest.approx(90.0 / 36 * BITS, abs=1e-3)
    assert found["student_share"] == pytest.approx(5 / 7, abs=1e-3)
    assert found["rollout_len"] == pytest.approx(22 / 5, abs=0.1)
    assert found["reward"] == pytest.approx(3.0 / 5, abs=1e-4)
    assert found["tokens_rollout"] == pytest.approx(11.0), "these two are of an update"
    assert found["rollout_out_of_memory"] == 4, "and this is of the interval"


def test_metrics_of_processes_are_those_of_their_sum() -> None:
    """They are not means of ratios."""
    other = {
        **EVERYTHING,
        "loss": 3.0,
        "ntokens": 2,
        "rollouts": 0,
        "rewarded": 0,
        "reward": 0.0,
        "reward_squared": 0.0,
    }
    assert shown([EVERYTHING, other]) == shown({name: EVERYTHING[name] + other[name] for name in EVERYTHING})


@pytest.mark.parametrize("name", ["rollout_staleness", "rollouts_replayed"])
def test_updates_without_old_rollouts_count_in_the_interval(name: str) -> None:
    """Two updates have four rollouts each. Only the second one's are an update old, or replayed, so the mean
    is 1/2.
    """
    fresh, old = {**EVERYTHING, name: 0}, {**EVERYTHING, name: 4}
    assert shown(old)[name] == 1.0
    assert shown(old, fresh)[name] == pytest.approx(0.5)
    assert shown(fresh, old)[name] == pytest.approx(0.5)

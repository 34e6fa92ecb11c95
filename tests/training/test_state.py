"""The state of a training beside the weights: logs update it, checkpoints keep it."""

import io
from typing import Any

import pytest
import torch

from fairseq_imitkd.method.schedules import AdaptiveShare
from fairseq_imitkd.mixing.replay import PastRollout, ReplayBuffer
from fairseq_imitkd.text.rewards import RunningMean
from fairseq_imitkd.training.rollout_watch import RolloutWatch
from fairseq_imitkd.training.state import TrainingState


def validate(state: TrainingState, *batches: tuple[float, int]) -> None:
    """Log a validation whose batches have these summed losses and token counts."""
    state.validation_begins()
    for loss, tokens in batches:
        state.logged({"loss": loss, "ntokens": tokens}, training=False)


def update(state: TrainingState, micro_batches: int = 1, **logs: float) -> None:
    """Log an update."""
    for _ in range(micro_batches):
        state.update_begins()
    state.logged({"loss": 500.0, "ntokens": 10, **logs}, training=True)


def shares_after(*losses: float, start: float = 0.0) -> list[float]:
    """Return the share after validations of one batch each, with an update after each of them."""
    share, found = AdaptiveShare(start), []
    state = TrainingState(share)
    for loss in losses:
        validate(state, (10.0 * loss, 10))
        update(state)
        found.append(share(0))
    return found


@pytest.mark.parametrize(
    ("losses", "shares"),
    [
        ([9.0], [0.2]),
        ([2.0, 3.0], [0.2, 0.3]),
        ([3.0, 2.0], [0.2, 0.2]),
        ([2.0, 2.0], [0.2, 0.2]),
        ([2.0, 3.0, 2.5, 2.6, 2.6], [0.2, 0.3, 0.3, 0.3, 0.3]),
        ([1.0, 3.0, 2.0, 1.5, 3.2], [0.2, 0.3, 0.3, 0.3, 0.4]),
        ([2.0, 2.05, 2.09, 2.125, 2.2, 2.25], [0.2, 0.2, 0.2, 0.3, 0.3, 0.4]),
    ],
)
def test_share_grows_when_the_validation_loss_rises(losses: list[float], shares: list[float]) -> None:
    """It grows by 0.1 when the loss is 0.1 above that of the last validation that counted. The first one sets
    the level alone.
    """
    assert shares_after(*losses, start=0.2) == pytest.approx(shares)


def test_share_ends_at_one() -> None:
    """The share stays at 1 when the loss rises again."""
    shares = shares_after(*map(float, range(1, 15)), start=0.35)
    assert shares[:8] == pytest.approx([0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95, 1.0])
    assert shares[7:] == [1.0] * 7


def test_validation_loss_is_the_mean_over_all_its_tokens() -> None:
    """A short batch has less weight. The mean of the batches' ratios would fall from 1.5 to 1.4."""
    share = AdaptiveShare(0.0)
    state = TrainingState(share)
    validate(state, (100.0, 100), (20.0, 10))  # 120 / 110
    update(state)
    validate(state, (130.0, 100), (15.0, 10))  # 145 / 110
    update(state)
    assert share(0) == pytest.approx(0.1)
    assert share.level == pytest.approx(145 / 110)


def test_validation_counts_once_and_at_the_next_update() -> None:
    """The share does not change during the validation. Micro-batches and later updates do not count
    it again.
    """
    share = AdaptiveShare(0.0)
    state = TrainingState(share)
    validate(state, (10.0, 10))
    update(state)
    validate(state, (30.0, 10))
    assert share(0) == 0.0
    update(state, micro_batches=4)
    assert state.saved()["validation"] == [0.0, 0.0]
    update(state)
    assert share(0) == pytest.approx(0.1)
    assert share.level == pytest.approx(3.0)


def test_training_logs_are_not_a_validation() -> None:
    """Updates alone never change the share, nor the last validation's loss."""
    share = AdaptiveShare(0.3)
    state = TrainingState(share)
    for loss in (10.0, 20.0, 30.0):
        update(state, loss=loss)
    assert share(0) == 0.3
    assert share.level is None
    validate(state, (10.0, 10))
    state.logged({"loss": 9999.0, "ntokens": 1}, training=True)
    update(state)
    assert share.level == pytest.approx(1.0)


def test_only_the_first_validation_set_moves_the_share() -> None:
    """Other sets of --valid-subset may be test sets. fairseq's best checkpoint depends on the first set alone
    too.
    """
    share = AdaptiveShare(0.0)
    state = TrainingState(share)
    for first, second in ((3.0, 1.0), (2.0, 9.0)):
        validate(state, (first, 1))
        state.validated()
        state.logged({"loss": second, "ntokens": 1}, training=False)
        state.validated()
        update(state)
    assert (share.share, share.level) == (0.0, 3.0)


def test_validation_begins_with_empty_sums() -> None:
    """Sums of an earlier validation, which no update followed, are not added."""
    share = AdaptiveShare(0.0)
    state = TrainingState(share)
    validate(state, (90.0, 10))
    validate(state, (20.0, 10))
    update(state)
    assert share.level == pytest.approx(2.0)


def test_empty_validation_is_ignored() -> None:
    """Without tokens, no loss can be compared."""
    share = AdaptiveShare(0.0)
    state = TrainingState(share)
    validate(state, (10.0, 10))
    update(state)
    validate(state)
    update(state)
    assert share.level == pytest.approx(1.0)
    assert share(0) == 0.0


def test_baseline_follows_the_mean_reward_of_each_update() -> None:
    """Rewards are summed over processes and micro-batches first. Updates without rollouts and validations do
    not change the baseline.
    """
    baseline = RunningMean(memory=0.9)
    state = TrainingState(baseline=baseline)
    update(state, rewarded=4, reward=3.0)
    assert baseline.mean == pytest.approx(0.75)
    update(state, rewarded=0, reward=0.0)
    update(state)
    state.logged({"rewarded": 4, "reward": 0.0, "loss": 1.0, "ntokens": 1}, training=False)
    assert baseline.mean == pytest.approx(0.75)
    update(state, rewarded=10, reward=2.5)
    assert baseline.mean == pytest.approx((0.9 * 0.75 + 0.25) / 1.9)


def rollout(number: int) -> PastRollout:
    """Return a rollout of sentence ``number``."""
    return PastRollout(number, 3, False, torch.tensor([4, 2]), torch.tensor([2, 5]), torch.tensor([5, 2]))


def full_state() -> TrainingState:
    """Return a state that has all three parts and some history."""
    state = TrainingState(AdaptiveShare(0.2), RunningMean(), ReplayBuffer(4))
    assert state.replay is not None
    for number in range(6):
        state.replay.add(rollout(number))
    validate(state, (10.0, 10))
    update(state, rewarded=2, reward=1.5)
    validate(state, (20.0, 10))
    update(state, rewarded=2, reward=0.5)
    return state


def saved_and_loaded(state: TrainingState) -> Any:
    """Return a state after a checkpoint was saved and loaded."""
    file = io.BytesIO()
    torch.save(state.saved(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def memory(state: TrainingState) -> tuple[Any, ...]:
    """Return the contents of all parts."""
    assert state.share is not None
    assert state.baseline is not None
    assert state.replay is not None
    kept = [old.sentence_id for old in state.replay.fitting(10**9, 10**3)]
    return state.share(0), state.share.level, state.baseline.mean, kept


def test_restored_state_equals_the_saved_one() -> None:
    """It survives torch's safe loader. Later logs change both states alike."""
    one, other = full_state(), TrainingState(AdaptiveShare(0.9), RunningMean(), ReplayBuffer(4))
    other.restore(saved_and_loaded(one))
    assert memory(other) == memory(one)
    assert memory(one)[0] == pytest.approx(0.3)
    assert memory(one)[3] == [2, 3, 4, 5]
    for state in (one, other):
        validate(state, (40.0, 10))
        update(state, rewarded=1, reward=0.1)
    assert memory(other) == memory(one)
    assert memory(one)[0] == pytest.approx(0.4)


def test_checkpoint_between_a_validation_and_the_next_update() -> None:
    """fairseq saves at this point. The checkpoint holds the validation, and the resumed run counts
    it once.
    """
    one, other = full_state(), TrainingState(AdaptiveShare(0.9), RunningMean(), ReplayBuffer(4))
    validate(one, (30.0, 10), (50.0, 10))
    before = memory(one)
    other.restore(saved_and_loaded(one))
    assert memory(one) == memory(other) == before, "to save is not to take in"
    for state in (one, other):
        update(state)
        update(state)
    assert memory(other) == memory(one)
    assert memory(one)[:2] == pytest.approx((0.4, 4.0))


def test_checkpoint_during_a_validation() -> None:
    """Later batches of the validation are added to the saved sums."""
    one, other = full_state(), TrainingState(AdaptiveShare(0.9), RunningMean(), ReplayBuffer(4))
    validate(one, (30.0, 10))
    other.restore(saved_and_loaded(one))
    for state in (one, other):
        state.logged({"loss": 50.0, "ntokens": 10}, training=False)
        update(state)
    assert memory(other) == memory(one)
    assert memory(other)[1] == pytest.approx(4.0)


def test_most_methods_save_nothing() -> None:
    """A state without parts saves nothing, whatever is logged."""
    state = TrainingState()
    validate(state, (10.0, 10))
    update(state, rewarded=2, reward=1.0)
    validate(state, (20.0, 10))
    assert state.saved() == {}
    state.restore({})


@pytest.mark.parametrize("part", ["share", "baseline", "replay", "watch"])
def test_each_part_is_saved_by_itself(part: str) -> None:
    """A method with one part saves that part alone."""
    parts: dict[str, Any] = {
        "share": AdaptiveShare(0.5),
        "baseline": RunningMean(),
        "replay": ReplayBuffer(2),
        "watch": RolloutWatch(),
    }
    name = "processes" if part == "replay" else part
    assert TrainingState(**{part: parts[part]}).saved().keys() == {name, "validation"}


def test_checkpoints_of_the_first_process_alone_are_read() -> None:
    """Older versions saved the first process's replay buffer beside the other parts."""
    buffer, other = ReplayBuffer(4), ReplayBuffer(4)
    buffer.add(rollout(7))
    TrainingState(replay=other).restore({"replay": buffer.state(), "validation": [0.0, 0.0]})
    assert [past.sentence_id for past in other.fitting(10**9, 10**3)] == [7]


@pytest.mark.parametrize(("rank", "found"), [(0, 10), (1, 11), (2, 10)])
def test_each_process_continues_with_its_own_rollouts(
    rank: int, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that the checkpoint does not know continues with those of another one."""
    processes = []
    for number in (10, 11):
        buffer = ReplayBuffer(4)
        buffer.add(rollout(number))
        processes.append({"replay": buffer.state()})
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    own = ReplayBuffer(4)
    TrainingState(replay=own).restore({"processes": processes})
    assert [past.sentence_id for past in own.fitting(10**9, 10**3)] == [found]


def test_parts_that_a_checkpoint_lacks_stay_as_they_are() -> None:
    """A run that is resumed with another method starts the parts that it adds, and ignores the others."""
    saved = saved_and_loaded(full_state())
    baseline, fresh = RunningMean(), AdaptiveShare(0.7)
    TrainingState(baseline=baseline).restore(saved)
    assert baseline.mean > 0.0
    TrainingState(fresh).restore({"baseline": saved["baseline"]})
    assert fresh(0) == 0.7
    assert fresh.level is None


def test_saved_state_is_a_copy() -> None:
    """Later logs do not change it."""
    state = full_state()
    validate(state, (30.0, 10))
    saved = state.saved()
    state.logged({"loss": 5000.0, "ntokens": 10}, training=False)
    update(state, rewarded=1, reward=1.0)
    other = TrainingState(AdaptiveShare(0.9), RunningMean(), ReplayBuffer(4))
    other.restore(saved)
    update(other)
    assert other.share is not None
    assert other.share.level == pytest.approx(3.0)

"""Schedules of the student's share: their formulas, and the one-line refusal of what is no schedule."""

import math

import pytest

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.method.schedules import AdaptiveShare, parse_schedule, parse_share
from tests.helpers.fairseq_models import tiny_criterion, tiny_task

UPDATES = 1000


@pytest.mark.parametrize("update", [0, 1, 250, 500, 999, 1000])
@pytest.mark.parametrize("final", [0.005, 0.1, 0.5, 1.0])
def test_exponential(update: int, final: float) -> None:
    """The data share is ``final^(i/I)`` (Lin et al. 2020): all data first, ``final`` last."""
    data_share = math.exp(math.log(final) * update / UPDATES)
    assert parse_schedule(f"exponential:{final}", UPDATES)(update) == pytest.approx(1.0 - data_share)


@pytest.mark.parametrize(("update", "share"), [(0, 0.0), (250, 0.2), (500, 0.4), (1000, 0.8)])
def test_linear(update: int, share: float) -> None:
    """A straight line from no share to one minus the final data share."""
    assert parse_schedule("linear:0.2", UPDATES)(update) == pytest.approx(share)


@pytest.mark.parametrize(
    ("update", "data_share"), [(0, 1 / (1 + math.exp(-10))), (500, 0.5), (750, 1 / (1 + math.exp(5)))]
)
def test_reverse_sigmoid(update: int, data_share: float) -> None:
    """The data share is ``1 / (1 + exp(20 (i/I - 1/2)))``."""
    assert parse_schedule("reverse-sigmoid", UPDATES)(update) == pytest.approx(1.0 - data_share)


@pytest.mark.parametrize("text", ["constant:0.3", "0.3", ".3", "3e-1", " constant:0.3 "])
def test_constant(text: str) -> None:
    """The same at every update, also without an end of training; a bare number means it too."""
    for max_update in (0, UPDATES):
        schedule = parse_schedule(text, max_update)
        assert [schedule(update) for update in (0, 1, 999, 5000)] == [0.3] * 4


@pytest.mark.parametrize("text", ["0", "1", "constant:0", "constant:1"])
def test_constant_reaches_both_ends(text: str) -> None:
    """No rollouts at all, and nothing but rollouts, are shares too."""
    assert parse_schedule(text, 0)(7) == float(text[-1])


@pytest.mark.parametrize("text", ["exponential:0.005", "linear:0", "reverse-sigmoid", "constant:0.7"])
@pytest.mark.parametrize("warmup", ["", ",warmup=0.25", ",warmup=1"])
def test_share_rises_and_stays_a_share(text: str, warmup: str) -> None:
    """Never falling, never outside 0..1, also beyond the last update."""
    schedule = parse_schedule(text + warmup, UPDATES)
    shares = [schedule(update) for update in range(0, 1500, 10)]
    assert shares == sorted(shares)
    assert all(0.0 <= share <= 1.0 for share in shares)


@pytest.mark.parametrize("text", ["exponential:0.005", "linear:0", "reverse-sigmoid"])
def test_moving_share_stays_at_its_end(text: str) -> None:
    """Beyond ``--max-update`` the share no longer moves."""
    schedule = parse_schedule(text, UPDATES)
    assert schedule(5000) == schedule(1000) > 0.9


@pytest.mark.parametrize(
    "text", ["exponential:0.005", "linear:0.5", "reverse-sigmoid", "constant:0.7", "0.7"]
)
def test_warmup_delays_the_form(text: str) -> None:
    """Only data for the first fraction of the updates; then the form from its own beginning, at its own speed."""
    plain, delayed = parse_schedule(text, UPDATES), parse_schedule(f"{text},warmup=0.25", UPDATES)
    assert [delayed(update) for update in (0, 100, 249)] == [0.0] * 3
    for update in (250, 251, 600, 1000):
        assert delayed(update) == pytest.approx(plain(update - 250))


MALFORMED = [
    "", "foo", "foo:0.5", "constant", "constant:", "constant:1.5", "constant:x", "-0.1", "1.1", "nan", "inf", "constant:nan",
    "linear", "linear:2", "linear:-1", "exponential", "exponential:0", "exponential:-0.1", "exponential:1.1",
    "exponential:0.005,warmup=2", "exponential:0.005,warmup=-1", "exponential:0.005,warmup=", "exponential:0.005,warmup",
    "exponential:0.005,foo=1", "exponential:0.005,warmup=0.1,warmup=0.1", "exponential:0.005,", "exponential:0.005:1",
    "reverse-sigmoid:3", "reverse-sigmoid:0.5", "0.5:0.5", "exponential=0.005",
]  # fmt: skip


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_text_is_refused(text: str) -> None:
    """One line that names the flag and what was written."""
    with pytest.raises(UsageError) as refusal:
        parse_schedule(text, UPDATES, flag="--some-flag")
    message = str(refusal.value)
    assert "--some-flag" in message
    assert f"'{text}'" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "text", ["exponential:0.1", "linear:0", "reverse-sigmoid", "constant:0.5,warmup=0.1", "0.5,warmup=0.1"]
)
def test_what_moves_needs_an_end_of_training(text: str) -> None:
    """Without ``--max-update`` there is no fraction done; the message says which flag is missing."""
    with pytest.raises(UsageError, match="--max-update") as refusal:
        parse_schedule(text, 0)
    assert "--student-share" in str(refusal.value)
    assert text in str(refusal.value)


@pytest.mark.parametrize(
    "text", ["exponential:0.1", "linear:0", "reverse-sigmoid", "constant:0.5,warmup=0.1"]
)
def test_schedule_by_epochs_needs_their_number(text: str) -> None:
    """The message names the flag that is missing, not ``--max-update``."""
    with pytest.raises(UsageError, match=r"needs --max-epoch, ") as refusal:
        parse_share(text, 0, "--student-share", "--max-epoch")
    assert "--max-update" not in str(refusal.value)
    assert str(refusal.value).startswith(f"--student-share '{text}'")
    with pytest.raises(UsageError, match=r"--max-epoch"):
        tiny_criterion("imitkd", tiny_task(), student_share=text, schedule_by="epoch", max_update=100)


@pytest.mark.parametrize(
    ("text", "start"), [("adaptive:0", 0.0), ("adaptive:0.3", 0.3), (" adaptive:1 ", 1.0)]
)
def test_adaptive_share_starts_where_it_is_told(text: str, start: float) -> None:
    """It needs no end of training, and time alone never moves it."""
    share = parse_share(text, 0)
    assert isinstance(share, AdaptiveShare)
    assert [share(now) for now in (0, 1, 10**6)] == [start] * 3
    share.validated(2.0)
    share.validated(3.0)
    assert share(0) == pytest.approx(min(1.0, start + 0.1))


def test_each_adaptive_share_is_its_own() -> None:
    """Two of the same text do not move each other."""
    one, other = parse_share("adaptive:0.3", 0), parse_share("adaptive:0.3", 0)
    assert isinstance(one, AdaptiveShare)
    one.validated(1.0)
    one.validated(2.0)
    assert (one(0), other(0)) == pytest.approx((0.4, 0.3))


@pytest.mark.parametrize(
    "text",
    ["adaptive", "adaptive:", "adaptive:x", "adaptive:-0.1", "adaptive:1.1", "adaptive:nan", "adaptive:0.5,warmup=0.1",
     "adaptive:0.5:1", "adaptive=0.5"],
)  # fmt: skip
def test_malformed_adaptive_share_is_refused(text: str) -> None:
    """One line that names the flag and what was written."""
    with pytest.raises(UsageError) as refusal:
        parse_share(text, UPDATES, flag="--some-flag")
    message = str(refusal.value)
    assert message.startswith("--some-flag ")
    assert f"'{text}'" in message
    assert "\n" not in message


def test_refusal_names_every_form() -> None:
    """The adaptive one too, but only where it can be used; it has no warm-up, and all others have."""
    messages = []
    for parse in (parse_share, parse_schedule):
        with pytest.raises(UsageError) as refusal:
            parse("foo", UPDATES, flag="--some-flag")
        messages.append(str(refusal.value))
        for form in ("constant:", "exponential:", "linear:", "reverse-sigmoid", ",warmup="):
            assert form in messages[-1]
    assert "adaptive:" in messages[0]
    assert "adaptive:" not in messages[1]


@pytest.mark.parametrize(
    "text", ["constant:0.3", "exponential:0.005", "linear:0.2,warmup=0.1", "reverse-sigmoid", "0.7"]
)
def test_other_shares_are_schedules(text: str) -> None:
    """The same numbers as without the adaptive form."""
    share, schedule = parse_share(text, UPDATES), parse_schedule(text, UPDATES)
    assert [share(update) for update in range(0, 1200, 50)] == [
        schedule(update) for update in range(0, 1200, 50)
    ]


def test_only_the_share_of_sentences_can_adapt() -> None:
    """Nothing moves a gold weight of that form."""
    with pytest.raises(UsageError, match=r"^--gold-weight must be a number in 0\.\.1.*but is 'adaptive:0'"):
        parse_schedule("adaptive:0", UPDATES, flag="--gold-weight")


@pytest.mark.parametrize(
    ("highest", "end"), [(2, 1.0), (3, 1.0), (5, 1.0), (10, 1.0), (5, 0.5), (10, 0.2), (7, 0.7)]
)
def test_annealing_temperatures_have_equal_times(highest: int, end: float) -> None:
    """``1 - (T - 1) / T_max`` with ``T`` from its highest to 1, each for as many updates; at the end, and after it, 1."""
    updates = 100 * highest
    criterion = tiny_criterion(
        "annealing_kd",
        tiny_task(),
        annealing_temperature=highest,
        annealing_end=end,
        gold_weight="0",
        max_update=updates,
    )
    each = round(100 * end)
    for temperature in range(highest, 0, -1):
        begins = (highest - temperature) * each
        for update in (begins, begins + each // 2, begins + each - 1):
            assert criterion.annealing(update) == pytest.approx(1.0 - (temperature - 1) / highest), (
                temperature,
                update,
            )
    for update in (highest * each, updates, 2 * updates):
        assert criterion.annealing(update) == 1.0


@pytest.mark.parametrize("updates", [7, 30, 49, 90, 110, 1000])
@pytest.mark.parametrize("highest", [3, 7, 10])
def test_annealing_in_whole_numbers(updates: int, highest: int) -> None:
    """No temperature lasts an update longer because a fraction was rounded."""
    settings = {"annealing_temperature": highest, "annealing_end": 1.0, "gold_weight": "0"}
    criterion = tiny_criterion("annealing_kd", tiny_task(), max_update=updates, **settings)
    for update in range(updates):
        temperature = highest - update * highest // updates
        assert criterion.annealing(update) == pytest.approx(1.0 - (temperature - 1) / highest), update


def test_annealing_begins_above_nothing() -> None:
    """``1 / T_max`` of the teacher's logits are learnt at first (Jafari et al. 2021, equation 7), and it never falls."""
    criterion = tiny_criterion("annealing_kd", tiny_task(), max_update=300)
    factors = [criterion.annealing(update) for update in range(400)]
    assert factors[0] == pytest.approx(0.1)
    assert factors == sorted(factors)
    assert sorted(set(factors)) == pytest.approx([number / 10 for number in range(1, 11)])
    assert factors[200:] == [1.0] * 200


def test_annealing_by_epochs() -> None:
    """One temperature an epoch, whatever the update's number; the first epoch is 1."""
    settings = {"annealing_temperature": 4, "annealing_end": 1.0, "gold_weight": "0", "schedule_by": "epoch"}
    criterion = tiny_criterion("annealing_kd", tiny_task(), max_epoch=8, max_update=50, **settings)
    found = []
    for epoch in range(1, 11):
        criterion.epoch = epoch
        factors = {criterion.annealing(update) for update in (0, 7, 49, 1000)}
        assert len(factors) == 1
        found += factors
    assert found == pytest.approx([0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0, 1.0, 1.0])


def test_shares_and_weights_by_epochs() -> None:
    """A schedule is at its beginning throughout the first epoch, and moves with nothing else."""
    settings = {
        "student_share": "linear:0",
        "gold_weight": "linear:0.5",
        "schedule_by": "epoch",
        "max_epoch": 4,
    }
    criterion = tiny_criterion("imitkd", tiny_task(), **settings, rollout_replay=5)
    for epoch, done in ((1, 0.0), (2, 0.25), (3, 0.5), (4, 0.75)):
        criterion.epoch = epoch
        for update in (0, 99):
            assert criterion.student_share(update) == pytest.approx(done)
            assert criterion.gold_weight(update) == pytest.approx(done / 2)
            assert criterion.replay_share(update) == pytest.approx(done)


def test_annealing_kd_has_two_stages() -> None:
    """No reference until two thirds of the training, then nothing else: the teacher is asked in stage I alone."""
    criterion = tiny_criterion("annealing_kd", tiny_task(), max_update=3000)
    first, second = range(0, 2000, 50), range(2001, 3000, 50)
    assert {criterion.gold_weight(update) for update in first} == {0.0}
    assert {criterion.gold_weight(update) for update in second} == {1.0}
    assert {criterion.needs_teacher(update) for update in first} == {True}
    assert {criterion.needs_teacher(update) for update in second} == {False}
    assert criterion.annealing(1999) == 1.0


@pytest.mark.parametrize("epochs", [3, 6, 15, 30])
def test_stages_by_epochs(epochs: int) -> None:
    """References in the last third of the epochs; before, each temperature in as many epochs, to the epoch."""
    criterion = tiny_criterion("annealing_kd", tiny_task(), schedule_by="epoch", max_epoch=epochs)
    first, gold, factors = 2 * epochs // 3, [], []
    for epoch in range(1, epochs + 1):
        criterion.epoch = epoch
        gold.append((criterion.gold_weight(0), criterion.needs_teacher(0)))
        factors.append(criterion.annealing(0))
    assert gold == [(0.0, True)] * first + [(1.0, False)] * (epochs - first)
    if first % 10 == 0:
        expected = [number / 10 for number in range(1, 11) for _ in range(first // 10)]
        assert factors[:first] == pytest.approx(expected)


def test_students_sentences_need_the_teacher_whatever_the_gold_weight() -> None:
    """They have no reference."""
    criterion = tiny_criterion(
        "imitkd", tiny_task(), gold_weight="1", student_share="constant:0.5,warmup=0.5"
    )
    assert [criterion.needs_teacher(update) for update in (0, 49, 50, 99)] == [False, False, True, True]


def test_continuation_kd_moves_to_the_references_linearly() -> None:
    """Their weight is the fraction of the training that is done, while the teacher's logits grow to their full size."""
    criterion = tiny_criterion("continuation_kd", tiny_task(), max_update=200)
    for update in range(0, 200, 10):
        assert criterion.gold_weight(update) == pytest.approx(update / 200)
        assert criterion.needs_teacher(update)
        assert criterion.annealing(update) == pytest.approx((update // 20 + 1) / 10)
    assert criterion.gold_weight(200) == 1.0


@pytest.mark.parametrize("share", ["linear:0", "0.4", "reverse-sigmoid"])
def test_replay_share_is_a_schedule_of_its_own(share: str) -> None:
    """Without a buffer it is 0, whatever the default."""
    with_buffer = tiny_criterion("distillm", tiny_task(), rollout_replay_share=share)
    schedule = parse_schedule(share, 100)
    assert [with_buffer.replay_share(update) for update in (0, 30, 99)] == [
        schedule(update) for update in (0, 30, 99)
    ]
    without = tiny_criterion("distillm", tiny_task(), rollout_replay=0)
    assert [without.replay_share(update) for update in (0, 30, 99)] == [0.0] * 3

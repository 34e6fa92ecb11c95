"""Schedules of the student's share: their formulas, and the messages that refuse malformed ones."""

import math
import random
from collections.abc import Sequence

import pytest

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.method.schedules import AdaptiveShare, parse_schedule, parse_share
from tests.helpers.fairseq_models import tiny_criterion, tiny_method, tiny_task

UPDATES = 1000


@pytest.mark.parametrize("update", [0, 1, 250, 500, 999, 1000])
@pytest.mark.parametrize("final", [0.005, 0.1, 0.5, 1.0])
def test_exponential(update: int, final: float) -> None:
    """The data share is ``final^(i/I)`` (Lin et al. 2020): 1 at first, ``final`` at the end."""
    data_share = math.exp(math.log(final) * update / UPDATES)
    assert parse_schedule(f"exponential:{final}", UPDATES)(update) == pytest.approx(1.0 - data_share)


@pytest.mark.parametrize(("update", "share"), [(0, 0.0), (250, 0.2), (500, 0.4), (1000, 0.8)])
def test_linear(update: int, share: float) -> None:
    """The share rises linearly from 0 to 1 minus the final data share."""
    assert parse_schedule("linear:0.2", UPDATES)(update) == pytest.approx(share)


@pytest.mark.parametrize(
    ("update", "data_share"), [(0, 1 / (1 + math.exp(-10))), (500, 0.5), (750, 1 / (1 + math.exp(5)))]
)
def test_reverse_sigmoid(update: int, data_share: float) -> None:
    """The data share is ``1 / (1 + exp(20 (i/I - 1/2)))``."""
    assert parse_schedule("reverse-sigmoid", UPDATES)(update) == pytest.approx(1.0 - data_share)


@pytest.mark.parametrize("text", ["constant:0.3", "0.3", ".3", "3e-1", " constant:0.3 "])
def test_constant(text: str) -> None:
    """The share is the same at every update, also without an end of training. A bare number is
    constant too.
    """
    for max_update in (0, UPDATES):
        schedule = parse_schedule(text, max_update)
        assert [schedule(update) for update in (0, 1, 999, 5000)] == [0.3] * 4


@pytest.mark.parametrize("text", ["0", "1", "constant:0", "constant:1"])
def test_constant_reaches_both_ends(text: str) -> None:
    """0 (no rollouts) and 1 (rollouts alone) are valid shares."""
    assert parse_schedule(text, 0)(7) == float(text[-1])


@pytest.mark.parametrize("text", ["exponential:0.005", "linear:0", "reverse-sigmoid", "constant:0.7"])
@pytest.mark.parametrize("warmup", ["", ",warmup=0.25", ",warmup=1"])
def test_share_rises_and_stays_a_share(text: str, warmup: str) -> None:
    """The share never falls and stays in 0..1, also after the last update."""
    schedule = parse_schedule(text + warmup, UPDATES)
    shares = [schedule(update) for update in range(0, 1500, 10)]
    assert shares == sorted(shares)
    assert all(0.0 <= share <= 1.0 for share in shares)


@pytest.mark.parametrize("text", ["exponential:0.005", "linear:0", "reverse-sigmoid"])
def test_moving_share_stays_at_its_end(text: str) -> None:
    """After ``--max-update`` the share stays constant."""
    schedule = parse_schedule(text, UPDATES)
    assert schedule(5000) == schedule(1000) > 0.9


@pytest.mark.parametrize(
    "text", ["exponential:0.005", "linear:0.5", "reverse-sigmoid", "constant:0.7", "0.7"]
)
def test_warmup_delays_the_form(text: str) -> None:
    """The share is 0 during the warm-up. Then the schedule starts from its beginning, at its usual speed."""
    plain, delayed = parse_schedule(text, UPDATES), parse_schedule(f"{text},warmup=0.25", UPDATES)
    assert [delayed(update) for update in (0, 100, 249)] == [0.0] * 3
    for update in (250, 251, 600, 1000):
        assert delayed(update) == pytest.approx(plain(update - 250))


MALFORMED = [
    "", "foo", "foo:0.5", "constant", "constant:", "constant:1.5", "constant:x", "-0.1", "1.1", "nan", "inf",
    "constant:nan", "linear", "linear:2", "linear:-1", "exponential", "exponential:0", "exponential:-0.1",
    "exponential:1.1", "exponential:0.005,warmup=2", "exponential:0.005,warmup=-1",
    "exponential:0.005,warmup=", "exponential:0.005,warmup", "exponential:0.005,foo=1",
    "exponential:0.005,warmup=0.1,warmup=0.1", "exponential:0.005,", "exponential:0.005:1",
    "reverse-sigmoid:3", "reverse-sigmoid:0.5", "0.5:0.5", "exponential=0.005",
]  # fmt: skip


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_text_is_refused(text: str) -> None:
    """The message is one line with the flag and its value."""
    with pytest.raises(UsageError) as refusal:
        parse_schedule(text, UPDATES, flag="--some-flag")
    message = str(refusal.value)
    assert "--some-flag" in message
    assert f"'{text}'" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "text", ["exponential:0.1", "linear:0", "reverse-sigmoid", "constant:0.5,warmup=0.1", "0.5,warmup=0.1"]
)
def test_schedule_that_moves_needs_an_end_of_training(text: str) -> None:
    """Without ``--max-update`` the progress is unknown. The message names the missing flag."""
    with pytest.raises(UsageError, match="--max-update") as refusal:
        parse_schedule(text, 0)
    assert "--student-share" in str(refusal.value)
    assert text in str(refusal.value)


@pytest.mark.parametrize(
    "text", ["exponential:0.1", "linear:0", "reverse-sigmoid", "constant:0.5,warmup=0.1"]
)
def test_schedule_by_epochs_needs_their_number(text: str) -> None:
    """The message names ``--max-epoch``, not ``--max-update``."""
    with pytest.raises(UsageError, match=r"needs --max-epoch, ") as refusal:
        parse_share(text, 0, end_flag="--max-epoch")
    assert "--max-update" not in str(refusal.value)
    assert str(refusal.value).startswith(f"--student-share '{text}'")
    with pytest.raises(UsageError, match=r"--max-epoch"):
        tiny_criterion("imitkd", tiny_task(), student_share=text, schedule_by="epoch", max_update=100)


@pytest.mark.parametrize(
    ("text", "start"), [("adaptive:0", 0.0), ("adaptive:0.3", 0.3), (" adaptive:1 ", 1.0)]
)
def test_adaptive_share_starts_at_its_value(text: str, start: float) -> None:
    """It needs no end of training. The update number never changes it."""
    share = parse_share(text, 0)
    assert isinstance(share, AdaptiveShare)
    assert [share(now) for now in (0, 1, 10**6)] == [start] * 3
    share.validated(2.0)
    share.validated(3.0)
    assert share(0) == pytest.approx(min(1.0, start + 0.1))


def test_adaptive_shares_are_independent() -> None:
    """Two shares of the same text do not change each other."""
    one, other = parse_share("adaptive:0.3", 0), parse_share("adaptive:0.3", 0)
    assert isinstance(one, AdaptiveShare)
    one.validated(1.0)
    one.validated(2.0)
    assert (one(0), other(0)) == pytest.approx((0.4, 0.3))


@pytest.mark.parametrize(
    "text",
    ["adaptive", "adaptive:", "adaptive:x", "adaptive:-0.1", "adaptive:1.1", "adaptive:nan",
     "adaptive:0.5,warmup=0.1", "adaptive:0.5:1", "adaptive=0.5"],
)  # fmt: skip
def test_malformed_adaptive_share_is_refused(text: str) -> None:
    """The message is one line with the flag and its value."""
    with pytest.raises(UsageError) as refusal:
        parse_share(text, UPDATES, flag="--some-flag")
    message = str(refusal.value)
    assert message.startswith("--some-flag ")
    assert f"'{text}'" in message
    assert "\n" not in message


def test_refusal_names_every_form() -> None:
    """The message names the adaptive form only where it can be used. That form has no warm-up."""
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
    """``parse_share`` gives the same numbers as ``parse_schedule``."""
    share, schedule = parse_share(text, UPDATES), parse_schedule(text, UPDATES)
    assert [share(update) for update in range(0, 1200, 50)] == [
        schedule(update) for update in range(0, 1200, 50)
    ]


def test_only_the_share_of_sentences_can_adapt() -> None:
    """A gold weight can't be adaptive."""
    with pytest.raises(UsageError, match=r"^--gold-weight must be a number in 0\.\.1.*but is 'adaptive:0'"):
        parse_schedule("adaptive:0", UPDATES, flag="--gold-weight")


@pytest.mark.parametrize(
    ("highest", "end"), [(2, 1.0), (3, 1.0), (5, 1.0), (10, 1.0), (5, 0.5), (10, 0.2), (7, 0.7)]
)
def test_annealing_temperatures_have_equal_times(highest: int, end: float) -> None:
    """The factor is ``1 - (T - 1) / T_max``. ``T`` falls from its highest value to 1, with as many updates at
    each value. From the end on, the factor is 1.
    """
    updates = 100 * highest
    method = tiny_method(
        "annealing_kd",
        annealing_temperature=highest,
        annealing_end=end,
        gold_weight="0",
        max_update=updates,
    )
    each = round(100 * end)
    for temperature in range(highest, 0, -1):
        begins = (highest - temperature) * each
        for update in (begins, begins + each // 2, begins + each - 1):
            assert method.at(update).annealing == pytest.approx(1.0 - (temperature - 1) / highest), (
                temperature,
                update,
            )
    for update in (highest * each, updates, 2 * updates):
        assert method.at(update).annealing == 1.0


@pytest.mark.parametrize("updates", [7, 30, 49, 90, 110, 1000])
@pytest.mark.parametrize("highest", [3, 7, 10])
def test_annealing_in_whole_numbers(updates: int, highest: int) -> None:
    """Rounding never makes a temperature last an update longer."""
    settings = {"annealing_temperature": highest, "annealing_end": 1.0, "gold_weight": "0"}
    method = tiny_method("annealing_kd", max_update=updates, **settings)
    for update in range(updates):
        temperature = highest - update * highest // updates
        assert method.at(update).annealing == pytest.approx(1.0 - (temperature - 1) / highest), update


def test_annealing_begins_at_the_highest_temperature() -> None:
    """At first the student learns ``1 / T_max`` of the teacher's logits (Jafari et al. 2021, equation 7). The
    factor never falls.
    """
    method = tiny_method("annealing_kd", max_update=300)
    factors = [method.at(update).annealing for update in range(400)]
    assert factors[0] == pytest.approx(0.1)
    assert factors == sorted(factors)
    assert sorted(set(factors)) == pytest.approx([number / 10 for number in range(1, 11)])
    assert factors[200:] == [1.0] * 200


def test_annealing_by_epochs() -> None:
    """Each epoch has one temperature, whatever the update number. Epochs count from 1."""
    settings = {"annealing_temperature": 4, "annealing_end": 1.0, "gold_weight": "0", "schedule_by": "epoch"}
    method = tiny_method("annealing_kd", max_epoch=8, max_update=50, **settings)
    found = []
    for epoch in range(1, 11):
        factors = {method.at(update, epoch).annealing for update in (0, 7, 49, 1000)}
        assert len(factors) == 1
        found += factors
    assert found == pytest.approx([0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0, 1.0, 1.0])


def test_shares_and_weights_by_epochs() -> None:
    """A schedule has its first value during the whole first epoch. The update number does not change it."""
    settings = {
        "student_share": "linear:0",
        "gold_weight": "linear:0.5",
        "schedule_by": "epoch",
        "max_epoch": 4,
    }
    method = tiny_method("imitkd", **settings, rollout_replay=5)
    for epoch, done in ((1, 0.0), (2, 0.25), (3, 0.5), (4, 0.75)):
        for update in (0, 99):
            assert method.at(update, epoch).student_share == pytest.approx(done)
            assert method.at(update, epoch).gold_weight == pytest.approx(done / 2)
            assert method.at(update, epoch).replay_share == pytest.approx(done)


def test_annealing_kd_has_two_stages() -> None:
    """Stage I trains on the teacher alone for two thirds of the updates. Stage II trains on references alone
    and does not ask the teacher.
    """
    method = tiny_method("annealing_kd", max_update=3000)
    first, second = range(0, 2000, 50), range(2001, 3000, 50)
    assert {method.at(update).gold_weight for update in first} == {0.0}
    assert {method.at(update).gold_weight for update in second} == {1.0}
    assert {method.at(update).needs_teacher for update in first} == {True}
    assert {method.at(update).needs_teacher for update in second} == {False}
    assert method.at(1999).annealing == 1.0


@pytest.mark.parametrize("epochs", [3, 6, 15, 30])
def test_stages_by_epochs(epochs: int) -> None:
    """References are trained on in the last third of the epochs. Before that, each temperature has the same
    number of epochs.
    """
    method = tiny_method("annealing_kd", schedule_by="epoch", max_epoch=epochs)
    first, gold, factors = 2 * epochs // 3, [], []
    for epoch in range(1, epochs + 1):
        gold.append((method.at(0, epoch).gold_weight, method.at(0, epoch).needs_teacher))
        factors.append(method.at(0, epoch).annealing)
    assert gold == [(0.0, True)] * first + [(1.0, False)] * (epochs - first)
    if first % 10 == 0:
        expected = [number / 10 for number in range(1, 11) for _ in range(first // 10)]
        assert factors[:first] == pytest.approx(expected)


def test_students_sentences_need_the_teacher_whatever_the_gold_weight() -> None:
    """Rollouts have no reference."""
    method = tiny_method("imitkd", gold_weight="1", student_share="constant:0.5,warmup=0.5")
    assert [method.at(update).needs_teacher for update in (0, 49, 50, 99)] == [False, False, True, True]


def test_continuation_kd_moves_to_the_references_linearly() -> None:
    """The references' weight is the fraction of the training that is done. Meanwhile the teacher's logits
    grow to their full size.
    """
    method = tiny_method("continuation_kd", max_update=200)
    for update in range(0, 200, 10):
        assert method.at(update).gold_weight == pytest.approx(update / 200)
        assert method.at(update).needs_teacher
        assert method.at(update).annealing == pytest.approx((update // 20 + 1) / 10)
    assert method.at(200).gold_weight == 1.0


@pytest.mark.parametrize("share", ["linear:0", "0.4", "reverse-sigmoid"])
def test_replay_share_is_a_schedule_of_its_own(share: str) -> None:
    """Without a buffer it is 0, whatever its default is."""
    with_buffer = tiny_method("distillm", rollout_replay_share=share)
    schedule = parse_schedule(share, 100)
    assert [with_buffer.at(update).replay_share for update in (0, 30, 99)] == [
        schedule(update) for update in (0, 30, 99)
    ]
    without = tiny_method("distillm", rollout_replay=0)
    assert [without.at(update).replay_share for update in (0, 30, 99)] == [0.0] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("linear", "--f 'linear': linear takes a number, as in linear:0.5"),
        ("constant:", "--f 'constant:': constant takes a number, as in constant:0.5"),
        ("reverse-sigmoid:3", "--f 'reverse-sigmoid:3': reverse-sigmoid takes no number"),
        (
            "exponential:0",
            "--f 'exponential:0': the final data share of exponential must be above 0, "
            "as in exponential:0.005",
        ),
        ("0.5,warmup=2", "--f '0.5,warmup=2': '2' must be a number in 0..1"),
        ("0.5,warmup=0.1=2", "--f '0.5,warmup=0.1=2': '0.1=2' must be a number in 0..1"),
        ("0.5,foo=1", "--f '0.5,foo=1': the only option is ,warmup=FRACTION, once"),
        ("adaptive:0.5:1", "--f 'adaptive:0.5:1': '0.5:1' must be a number in 0..1"),
    ],
)
def test_whole_message_of_a_refused_schedule(text: str, message: str) -> None:
    """The message names the wrong part and gives an example."""
    with pytest.raises(UsageError) as refusal:
        parse_share(text, 100, flag="--f")
    assert str(refusal.value) == message


def test_adaptive_is_the_last_form_that_a_message_names() -> None:
    """Only the student's share may be adaptive."""
    with pytest.raises(UsageError, match=r"an optional ,warmup=FRACTION; or adaptive:START, but is 'foo'$"):
        parse_share("foo", 100)


@pytest.mark.parametrize("text", ["linear:0", "exponential:0.5", "linear:0,warmup=0.5"])
def test_schedule_of_a_single_update(text: str) -> None:
    """A training of one update is long enough for a schedule."""
    assert parse_schedule(text, 1)(0) == 0.0
    assert parse_schedule(text, 1)(1) > 0.0


def test_warmup_of_a_single_update() -> None:
    """The share is 0 until the warmup's fraction is reached."""
    schedule = parse_schedule("0.5,warmup=1", 1)
    assert (schedule(0), schedule(1)) == (0.0, 0.5)


def test_equal_losses_leave_an_adaptive_share() -> None:
    """The share grows only if the loss rises."""
    share = AdaptiveShare(0.2)
    for _ in range(3):
        share.validated(1.5)
    assert share(0) == 0.2


def authors_shares(losses: Sequence[float], start: float, loss_eps: float) -> list[float]:
    """The rule of DistiLLM's code, line by line: ``finetune.py``, lines 265, 266 and 411 to 417."""
    adaptive_threshold, prev_avg_loss, found = start, losses[0], [start]
    for curr_avg_loss in losses[1:]:
        if curr_avg_loss >= prev_avg_loss + loss_eps:
            adaptive_threshold += 0.1
            adaptive_threshold = min(adaptive_threshold, 1.0)
            prev_avg_loss = curr_avg_loss
        found.append(adaptive_threshold)
    return found


def curves() -> dict[str, list[float]]:
    """Losses of 60 validations."""
    draw, count = random.Random(3), 60
    noise = [draw.gauss(0.0, 0.03) for _ in range(count)]
    return {
        "plateau": [2.0] * count,
        "noise": [2.0 + each for each in noise],
        "falling": [2.0 + 3.0 * 0.9**n + each for n, each in enumerate(noise)],
        "rising": [2.0 + 0.03 * n + each for n, each in enumerate(noise)],
        "falls, then rises": [2.0 + 0.002 * (n - 25) ** 2 + each for n, each in enumerate(noise)],
        "jumps": [draw.choice([1.5, 2.0, 2.5, 3.0]) for _ in range(count)],
    }


@pytest.mark.parametrize(("curve", "end"), [
    ("plateau", 0.0), ("noise", 0.0), ("falling", 0.0), ("rising", 1.0), ("falls, then rises", 0.5),
    ("jumps", 0.2),
])  # fmt: skip
@pytest.mark.parametrize("tolerance", [None, 0.2, 0.0])
def test_adaptive_share_is_the_authors(curve: str, end: float, tolerance: float | None) -> None:
    """After every validation, also of a run that is resumed in the middle. It does not grow on noise."""
    losses, text = (
        curves()[curve],
        "adaptive:0" + (f",tolerance={tolerance}" if tolerance is not None else ""),
    )
    share, found = parse_share(text, 0), []
    for number, loss in enumerate(losses):
        if number == len(losses) // 2:
            state, share = share.state(), parse_share(text, 0)
            share.restore(state)
        share.validated(loss)
        found.append(share(0))
    assert found == authors_shares(losses, 0.0, 0.1 if tolerance is None else tolerance)
    if tolerance is None:
        assert found[-1] == pytest.approx(end)


def test_state_of_earlier_versions_is_restored() -> None:
    """It held the loss of the last validation, which is the level from now on."""
    share = AdaptiveShare(0.9)
    share.restore([0.4, 2.0])
    share.validated(2.05)
    assert share.state() == [0.4, 2.0]
    share.validated(2.1)
    assert share.state() == [0.5, 2.1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adaptive:0,warmup=1", "the only option of adaptive is ,tolerance=NATS, once"),
        ("adaptive:0,tolerance=1,tolerance=1", "the only option of adaptive is ,tolerance=NATS, once"),
        ("adaptive:0,tolerance=-1", "'-1' must be a number, 0 or more"),
        ("adaptive:0,tolerance=nan", "'nan' must be a number, 0 or more"),
        ("adaptive:0,tolerance", "'' must be a number, 0 or more"),
    ],
)
def test_refused_tolerance(text: str, message: str) -> None:
    """The message names the wrong part."""
    with pytest.raises(UsageError) as refusal:
        parse_share(text, 100, flag="--f")
    assert str(refusal.value) == f"--f '{text}': {message}"


def test_restored_adaptive_share_without_a_loss() -> None:
    """The state without a loss holds the share alone. It also clears the last loss of the other object."""
    fresh, other = AdaptiveShare(0.3), AdaptiveShare(0.9)
    assert fresh.state() == [0.3]
    other.validated(1.0)
    assert other.state() == [0.9, 1.0]
    other.restore(fresh.state())
    assert (other(0), other.state()) == (0.3, [0.3])
    other.validated(5.0)
    assert other(0) == 0.3, "the first loss has none before it to compare with"

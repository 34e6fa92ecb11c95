"""Schedules of the student's share: their formulas, and the one-line refusal of what is no schedule."""

import math

import pytest

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.schedules import parse_schedule

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


@pytest.mark.parametrize(("update", "data_share"), [(0, 1 / (1 + math.exp(-10))), (500, 0.5), (750, 1 / (1 + math.exp(5)))])
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


@pytest.mark.parametrize("text", ["exponential:0.005", "linear:0.5", "reverse-sigmoid", "constant:0.7", "0.7"])
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

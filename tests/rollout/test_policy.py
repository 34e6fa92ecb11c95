"""How a rollout chooses tokens, and how long it may become."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.rollout import RolloutPolicy

LOGITS = torch.tensor([0.3, -1.0, 2.0, 0.9, -2.5, 1.4])
GRID = 20_000


def frequencies(policy: RolloutPolicy, logits: Tensor = LOGITS) -> Tensor:
    """How often each token is chosen for evenly spaced uniforms, exact to one in ``GRID``."""
    uniforms = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    chosen = policy.choose(logits.expand(GRID, -1), uniforms)
    return torch.bincount(chosen, minlength=logits.numel()).double() / GRID


def assert_frequencies(policy: RolloutPolicy, weights: Tensor, logits: Tensor = LOGITS) -> None:
    """Compare the frequencies with the normalised weights."""
    expected = weights.double() / weights.double().sum()
    torch.testing.assert_close(frequencies(policy, logits), expected, rtol=0.0, atol=2.0 / GRID)


def test_greedy_takes_the_most_probable() -> None:
    """Greedy choices need no random numbers."""
    assert RolloutPolicy().choose(torch.stack([LOGITS, -LOGITS]), None).tolist() == [2, 4]


def test_sampling_matches_softmax() -> None:
    """Plain sampling follows the student's distribution."""
    assert_frequencies(RolloutPolicy("sampling"), LOGITS.double().exp())


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    """``softmax(logits / temperature)``."""
    assert_frequencies(
        RolloutPolicy("sampling", temperature=temperature), (LOGITS.double() / temperature).exp()
    )


@pytest.mark.parametrize("topk", [1, 2, 4, 6, 100])
def test_topk_samples_only_the_k_best(topk: int) -> None:
    """Their probabilities keep their ratios. A k above the vocabulary size keeps all tokens."""
    best = LOGITS.argsort(descending=True)[:topk]
    weights = torch.zeros(6, dtype=torch.float64)
    weights[best] = LOGITS.double().exp()[best]
    assert_frequencies(RolloutPolicy("sampling", topk=topk), weights)


@pytest.mark.parametrize(
    ("topp", "kept"),
    [
        (0.05, [0]),
        (0.4, [0]),
        (0.41, [0, 3]),
        (0.7, [0, 3]),
        (0.71, [0, 3, 1]),
        (0.9, [0, 3, 1]),
        (0.95, [0, 3, 1, 2]),
        (0.999, [0, 3, 1, 2, 4]),
    ],
)
def test_topp_keeps_the_smallest_sufficient_set(topp: float, kept: list[int]) -> None:
    """The most probable tokens until their probability reaches ``topp``, always at least one."""
    probabilities = torch.tensor([0.4, 0.2, 0.06, 0.3, 0.04])
    weights = torch.zeros(5, dtype=torch.float64)
    weights[kept] = probabilities.double()[kept]
    # A small offset keeps the thresholds away from rounding errors of the sums above.
    policy = RolloutPolicy("sampling", topp=topp - 1e-4)
    assert_frequencies(policy, weights, probabilities.log())


def test_topp_works_within_topk() -> None:
    """The k best are renormalised first: of 0.4, 0.3 and 0.2, the first two have 0.78."""
    probabilities = torch.tensor([0.4, 0.2, 0.06, 0.3, 0.04])
    policy = RolloutPolicy("sampling", topk=3, topp=0.75)
    assert_frequencies(policy, torch.tensor([0.4, 0.0, 0.0, 0.3, 0.0]), probabilities.log())


def test_topp_works_on_the_tempered_distribution() -> None:
    """A higher temperature flattens the distribution first, which keeps more tokens."""
    logits = torch.tensor([0.6, 0.3, 0.1]).log()
    assert int((frequencies(RolloutPolicy("sampling", topp=0.55), logits) > 0).sum()) == 1
    assert int((frequencies(RolloutPolicy("sampling", topp=0.55, temperature=2.0), logits) > 0).sum()) == 2


@pytest.mark.parametrize(
    "policy",
    [RolloutPolicy("sampling"), RolloutPolicy("sampling", topk=4), RolloutPolicy("sampling", topp=0.9)],
)
@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0 - 2.0**-53])
@pytest.mark.parametrize("forbidden", [[0], [5], [0, 1, 4, 5], [0, 1, 2, 3, 4], [1, 2, 3, 4, 5]])
def test_forbidden_token_is_never_chosen(policy: RolloutPolicy, uniform: float, forbidden: list[int]) -> None:
    """A token with a logit of ``-inf`` is never chosen, also for extreme uniforms."""
    logits = LOGITS.clone()
    logits[forbidden] = -torch.inf
    chosen = int(policy.choose(logits.unsqueeze(0), torch.tensor([uniform], dtype=torch.float64)))
    assert chosen not in forbidden
    assert 0 <= chosen < 6


def test_rows_use_their_own_uniform() -> None:
    """Each row has its own number, so the same logits give different tokens."""
    logits = torch.zeros(4, 4)
    uniforms = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    assert RolloutPolicy("sampling").choose(logits, uniforms).tolist() == [0, 1, 2, 3]


def test_half_precision_logits_are_sampled_in_float32() -> None:
    """In half precision, the sum over 30000 equal tokens would not reach 1, nor a sample the last tokens."""
    logits = torch.zeros(1, 30_000, dtype=torch.float16)
    chosen = RolloutPolicy("sampling").choose(logits, torch.tensor([0.9999], dtype=torch.float64))
    assert abs(int(chosen) - 29_997) <= 30


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [(1.2, 10, [13, 16, 22]), (0.0, 7, [7, 7, 7]), (2.0, 0, [6, 10, 20]), (0.1, 0, [1, 1, 1])],
)
def test_max_lengths(a: float, b: int, expected: list[int]) -> None:
    """``a * source length + b``, rounded down, for each sentence's own source; at least one token."""
    policy = RolloutPolicy(max_len_a=a, max_len_b=b)
    lengths = policy.max_lengths(torch.tensor([3, 5, 10]), 1024)
    assert lengths.dtype == torch.int64
    assert lengths.tolist() == expected


@pytest.mark.parametrize("a", [number / 10 for number in range(31)] + [0.33, 1.15, 1 / 3, 1.0000001, 7.7])
def test_max_lengths_equal_pythons(a: float) -> None:
    """If ``a * length`` is nearly an integer, float32 would give another maximum than fairseq's generator."""
    lengths = range(1, 1025)
    for b in (0, 1, 10, 50, 200):
        if a == b == 0:
            continue
        expected = [max(1, int(a * length + b)) for length in lengths]
        assert (
            RolloutPolicy(max_len_a=a, max_len_b=b).max_lengths(torch.tensor(lengths), 100_000).tolist()
            == expected
        )


@pytest.mark.parametrize(
    ("a", "length", "dtype"), [(1.3, 90, torch.int64), (1.4, 165, torch.int64), (1.4, 165, torch.int32)]
)
def test_max_lengths_where_the_last_bit_decides(a: float, length: int, dtype: torch.dtype) -> None:
    """Single examples of the above, with lengths of several integer types."""
    policy = RolloutPolicy(max_len_a=a, max_len_b=0)
    assert policy.max_lengths(torch.tensor([length], dtype=dtype), 100_000).tolist() == [int(a * length)]


def test_max_lengths_leave_a_position_for_eos() -> None:
    """With 8 positions, a student writes at most 7 tokens before its EOS; with 1, it still writes one."""
    policy = RolloutPolicy(max_len_a=0.0, max_len_b=100)
    assert policy.max_lengths(torch.tensor([3]), 8).tolist() == [7]
    assert policy.max_lengths(torch.tensor([3]), 1).tolist() == [1]
    assert RolloutPolicy(max_len_a=1e30).max_lengths(torch.tensor([3]), 8).tolist() == [7]


@pytest.mark.parametrize(
    ("flag", "settings"),
    [
        ("--rollout-policy", {"name": "beam"}),
        ("--rollout-topk", {"topk": -1}),
        ("--rollout-topp", {"topp": 0.0}),
        ("--rollout-topp", {"topp": -0.5}),
        ("--rollout-topp", {"topp": 1.5}),
        ("--rollout-topp", {"topp": float("nan")}),
        ("--rollout-temperature", {"temperature": 0.0}),
        ("--rollout-temperature", {"temperature": -1.0}),
        ("--rollout-temperature", {"temperature": float("nan")}),
        ("--rollout-temperature", {"temperature": float("inf")}),
        ("--rollout-max-len-a", {"max_len_a": -0.1}),
        ("--rollout-max-len-a", {"max_len_a": float("nan")}),
        ("--rollout-max-len-a", {"max_len_a": float("inf")}),
        ("--rollout-max-len-b", {"max_len_b": -1}),
        ("--rollout-max-len-a", {"max_len_a": 0.0, "max_len_b": 0}),
    ],
)
def test_out_of_range_value_is_refused_by_name(flag: str, settings: dict) -> None:
    """One line names the flag and, if there is only one, its value."""
    with pytest.raises(UsageError) as refusal:
        RolloutPolicy(**{"name": "sampling", **settings})
    message = str(refusal.value)
    assert flag in message
    assert "\n" not in message
    if len(settings) == 1:
        assert str(next(iter(settings.values()))) in message


@pytest.mark.parametrize("settings", [{"topk": 5}, {"topp": 0.9}, {"temperature": 0.7}])
def test_greedy_policy_refuses_sampling_flags(settings: dict) -> None:
    """They would silently have no effect. The message names the remedy."""
    with pytest.raises(UsageError, match="add --rollout-policy sampling"):
        RolloutPolicy("greedy", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "beam"}, "--rollout-policy must be greedy, sampling or speculative, but is beam"),
        ({"topk": -1}, "--rollout-topk must be 0 (all tokens) or more, but is -1"),
        ({"topp": 0.0}, "--rollout-topp must be above 0 and at most 1 (all tokens), but is 0.0"),
        ({"topp": 1.25}, "--rollout-topp must be above 0 and at most 1 (all tokens), but is 1.25"),
        ({"temperature": 0.0}, "--rollout-temperature must be a finite number above 0, but is 0.0"),
        ({"teacher_topk": 0}, "--rollout-teacher-topk must be 1 or more, but is 0"),
        ({"max_len_a": -0.1}, "--rollout-max-len-a must be a finite number, 0 or more, but is -0.1"),
        ({"max_len_b": -1}, "--rollout-max-len-b must be 0 or more, but is -1"),
        (
            {"max_len_a": 0.0, "max_len_b": 0},
            "--rollout-max-len-a and --rollout-max-len-b must not both be 0: no rollout would hold a token; "
            "raise one of them",
        ),
    ],
)
def test_whole_message_of_a_refused_value(settings: dict[str, Any], message: str) -> None:
    """The message names the flag, the allowed values and the given value."""
    with pytest.raises(UsageError) as refusal:
        RolloutPolicy(**{"name": "sampling", **settings})
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    "settings",
    [
        {"topk": 1},
        {"topp": 1e-9},
        {"temperature": 1e-9},
        {"temperature": 1e9},
        {"teacher_topk": 1},
        {"max_len_a": 0.0, "max_len_b": 1},
        {"max_len_a": 1e-9, "max_len_b": 0},
        {"max_len_a": 0.5, "max_len_b": 0},
    ],
)
def test_extreme_values_are_accepted(settings: dict[str, Any]) -> None:
    """The ends of each range belong to it."""
    policy = RolloutPolicy("sampling", **settings)
    assert {name: getattr(policy, name) for name in settings} == settings


@pytest.mark.parametrize(
    ("name", "samples", "speculates"),
    [("greedy", False, False), ("sampling", True, False), ("speculative", True, True)],
)
def test_policy_says_what_it_needs(name: str, samples: bool, speculates: bool) -> None:
    """A policy needs random numbers if it samples, and a teacher if it speculates."""
    policy = RolloutPolicy(name)
    assert (policy.samples, policy.speculates) == (samples, speculates)


def test_teacher_corrects_tokens_outside_its_best() -> None:
    """A token among the teacher's best stays. Another is replaced by the sample of its uniform number."""
    teacher = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().expand(4, -1)
    uniforms = torch.tensor([0.05, 0.05, 0.05, 0.95], dtype=torch.float64)
    chosen = torch.tensor([1, 3, 2, 0])
    for topk, expected in ((1, [1, 0, 0, 3]), (2, [1, 3, 0, 3]), (9, [1, 3, 2, 0])):
        policy = RolloutPolicy("speculative", teacher_topk=topk)
        assert policy.corrected(chosen, teacher, uniforms).tolist() == expected


def test_topp_of_a_single_row() -> None:
    """The number of tokens kept depends on ``topp`` and not on the number of rows."""
    policy = RolloutPolicy("sampling", topp=0.99)
    uniforms = [torch.tensor([place / 10 + 0.05], dtype=torch.float64) for place in range(10)]
    assert sorted(int(policy.choose(torch.zeros(1, 10), uniform)) for uniform in uniforms) == list(range(10))


def test_topk_keeps_its_least_probable_token() -> None:
    """This also holds if the probabilities of the other tokens add up to 1 after rounding."""
    logits, uniform = torch.tensor([[0.0, -20.0, -30.0]]), torch.tensor([1.0 - 1e-12], dtype=torch.float64)
    assert RolloutPolicy("sampling", topk=2).choose(logits, uniform).tolist() == [1]


def test_topp_that_is_reached_exactly_excludes_the_next_token() -> None:
    """Of two tokens with probability 1/2, one alone reaches 1/2."""
    uniforms = torch.tensor([0.1, 0.9], dtype=torch.float64)
    chosen = RolloutPolicy("sampling", topp=0.5).choose(torch.zeros(2, 2), uniforms)
    assert chosen[0] == chosen[1]

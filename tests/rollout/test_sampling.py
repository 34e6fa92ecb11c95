"""Sampled rollouts follow the student's distribution and do not depend on the batch."""

import pytest
import torch
from torch import Tensor

from fairseq_imitkd.rollout import RandomKey, RolloutPolicy
from fairseq_imitkd.rollout.keyed_random import SAMPLING
from tests.helpers.fairseq_models import (
    build_student,
    letters,
    make_batch,
    reversed_pairs,
    roll_out,
    trained_student,
    written,
)

CAP = 10
SAMPLED = RolloutPolicy("sampling", max_len_a=0.0, max_len_b=CAP)
KEY = RandomKey(seed=3, update=17)


def next_probabilities(model, source: Tensor, prefix: list[int]) -> Tensor:
    """The student's next-token distribution after a prefix, without padding, in float64."""
    with torch.no_grad():
        logits = model(source.unsqueeze(0), torch.tensor([source.numel()]), torch.tensor([prefix]))[0][
            0, -1
        ].double()
    logits[letters().pad()] = -torch.inf
    return logits.softmax(-1)


@pytest.mark.parametrize("name", ["transformer", "lstm", "fconv"])
def test_each_token_inverts_the_distribution_at_its_sentences_uniform(name: str) -> None:
    """The reference decodes one sentence at a time without cache, and sums the distribution token by token.

    The number of a step depends only on (seed, update, sampling, step, sentence id).
    """
    model = trained_student(name)
    sample = make_batch(reversed_pairs(8, seed=21), ids=range(100, 108))
    expected = []
    for row in range(8):
        source = sample["net_input"]["src_tokens"][row]
        source = source[source.ne(letters().pad())]
        prefix = [letters().eos()]
        for step in range(CAP + 1):
            uniform = float(KEY.at(SAMPLING, step).uniforms(sample["id"][row : row + 1]))
            reached, token = 0.0, -1
            while reached <= uniform:
                token += 1
                reached += float(next_probabilities(model, source, prefix)[token])
            prefix.append(token)
            if token == letters().eos():
                break
        expected.append(prefix[1:] if prefix[-1] == letters().eos() else prefix[1 : CAP + 1])
    assert written(roll_out(model, sample, SAMPLED, KEY)) == expected
    greedy = RolloutPolicy("greedy", max_len_a=0.0, max_len_b=CAP)
    assert written(roll_out(model, sample, greedy)) != expected


def test_rollout_of_a_sentence_does_not_depend_on_its_batch() -> None:
    """A sentence has the same sampled text whatever the number and order of its neighbours."""
    model = trained_student("transformer")
    pairs = reversed_pairs(20, seed=22)
    rollouts = []
    for order in (range(20), range(19, -1, -1), range(3, 20, 4), [7]):
        sample = make_batch([pairs[number] for number in order], ids=order)
        rollouts.append(
            dict(zip(sample["id"].tolist(), written(roll_out(model, sample, SAMPLED, KEY)), strict=True))
        )
    for other in rollouts[1:]:
        assert other == {number: rollouts[0][number] for number in other}


def test_updates_and_sentences_have_their_own_samples() -> None:
    """The same source has other text under other ids and at other updates."""
    model = build_student().eval()
    sample = make_batch([([1, 2, 3], [1])] * 8)
    rows = {tuple(row) for row in written(roll_out(model, sample, SAMPLED, KEY))}
    later = {tuple(row) for row in written(roll_out(model, sample, SAMPLED, RandomKey(seed=3, update=18)))}
    assert len(rows) == 8
    assert len(later) == 8
    assert not rows & later


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_first_tokens_follow_the_students_distribution(temperature: float) -> None:
    """Chi-square over 3000 draws with fixed keys. Padding is never drawn.

    45 is the 0.999 quantile at 20 degrees of freedom.
    """
    model, draws = trained_student("lstm"), 3000
    sample = make_batch([([1, 2, 3], [1])] * draws)
    policy = RolloutPolicy("sampling", temperature=temperature, max_len_a=0.0, max_len_b=1)
    first = roll_out(model, sample, policy, KEY).tokens[:, 0]
    source = sample["net_input"]["src_tokens"][0]
    probabilities = next_probabilities(model, source, [letters().eos()]) ** (1.0 / temperature)
    expected = probabilities / probabilities.sum() * draws
    observed = torch.bincount(first, minlength=len(letters())).double()
    common = expected >= 5
    assert common.sum() >= 2
    assert observed[expected == 0].sum() == 0
    statistic = ((observed - expected) ** 2 / expected)[common].sum() + (
        (observed[~common].sum() - expected[~common].sum()) ** 2 / expected[~common].sum().clamp(min=1.0)
    )
    assert statistic < 45

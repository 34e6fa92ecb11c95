"""Rewards: the libraries' scores, the baselines, and the gradient of REINFORCE."""

import io
import itertools
import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fairseq_imitkd.criterion import DISTILLATION, Distillation
from fairseq_imitkd.mixing.batch import with_rollouts
from fairseq_imitkd.models.logits import WholeLogits
from fairseq_imitkd.rollout import Rollout
from fairseq_imitkd.text.rewards import (
    EQUAL_BEFORE_WARNING,
    NO_REWARDS,
    REWARDS,
    Rewarder,
    RunningMean,
    chrf,
    leave_one_out,
    rouge_l,
    sentence_bleu,
)
from tests.helpers.fairseq_models import (
    AtUpdate,
    build_student,
    letters,
    make_batch,
    reversed_pairs,
    tiny_criterion,
    tiny_task,
)

PAD, EOS = 1, 2
PAIRS = [
    ("the cat sat on the mat .", "the cat sat on the mat ."),
    ("the cat sat", "the cats were sitting on the mat ."),
    ("a dog", "the cat sat on the mat ."),
    ("", "the cat sat on the mat ."),
    ("the cat", ""),
    ("", ""),
    ("ein größeres Mädchen läuft", "ein größeres Mädchen rennt über die Straße"),
    ("猫が座った", "猫が座っていた"),
    ("Hello, world! 3.5%", "hello world 3.5 %"),
]


@pytest.mark.parametrize(("hypothesis", "reference"), PAIRS)
def test_sentence_bleu_is_sacrebleus_own(hypothesis: str, reference: str) -> None:
    """The library's score divided by 100."""
    import sacrebleu

    score = sentence_bleu(hypothesis, reference)
    assert score == pytest.approx(
        sacrebleu.sentence_bleu(hypothesis, [reference], use_effective_order=True).score / 100.0
    )


@pytest.mark.parametrize(("hypothesis", "reference"), PAIRS)
def test_chrf_is_sacrebleus_own(hypothesis: str, reference: str) -> None:
    """The library's score divided by 100."""
    import sacrebleu

    assert chrf(hypothesis, reference) == pytest.approx(
        sacrebleu.sentence_chrf(hypothesis, [reference]).score / 100.0
    )


@pytest.mark.parametrize(("hypothesis", "reference"), PAIRS)
def test_rouge_l_is_rouge_scores_own(hypothesis: str, reference: str) -> None:
    """F1 with stemming; the reference is the target."""
    from rouge_score.rouge_scorer import RougeScorer

    own = RougeScorer(["rougeL"], use_stemmer=True).score(reference, hypothesis)["rougeL"]
    assert rouge_l(hypothesis, reference) == own.fmeasure


def test_rouge_l_by_hand() -> None:
    """``cats`` and ``cat`` are one stem: two words of three and of four in common, in order."""
    precision, recall = 2 / 3, 2 / 4
    assert rouge_l("the cats ran", "the big cat sat") == pytest.approx(
        2 * precision * recall / (precision + recall)
    )


@pytest.mark.parametrize("name", REWARDS)
def test_score_is_a_share_and_orders_translations(name: str) -> None:
    """0 for an empty or a wrong sentence, 1 for the reference, and between them for a similar one."""
    reference = "the cat sat on the mat"
    nothing, wrong, near, same = (
        REWARDS[name](text, reference) for text in ("", "zzz", "the cat lay on the mat", reference)
    )
    assert nothing == wrong == 0.0
    assert 0.1 < near < 0.95
    assert same == pytest.approx(1.0)
    for pair in PAIRS:
        assert 0.0 <= REWARDS[name](*pair) <= 1.0 + 1e-9


@pytest.mark.parametrize("values", [[0.3, 0.7], [0.0, 0.5, 1.0], [0.2, 0.2, 0.9, 0.4, 0.1]])
def test_leave_one_out_by_definition(values: list[float]) -> None:
    """Each reward less the mean of the others. They sum to 0, and a constant added to all has no effect."""
    advantages = leave_one_out(torch.tensor(values, dtype=torch.float64))
    for place, value in enumerate(values):
        others = values[:place] + values[place + 1 :]
        assert float(advantages[place]) == pytest.approx(value - sum(others) / len(others))
    assert float(advantages.sum()) == pytest.approx(0.0, abs=1e-12)
    shifted = leave_one_out(torch.tensor(values, dtype=torch.float64) + 5.0)
    torch.testing.assert_close(shifted, advantages)


@pytest.mark.parametrize("values", [[], [0.7]])
def test_leave_one_out_of_one_or_none(values: list[float]) -> None:
    """A single reward has no others to be compared with."""
    assert leave_one_out(torch.tensor(values)).tolist() == [0.0] * len(values)


POLICY = torch.tensor([0.4, -1.0, 0.9, 0.1], dtype=torch.float64)
PRIZES = torch.tensor([0.1, 1.0, 0.3, 0.0], dtype=torch.float64)


def gradient_of_expected_prize() -> Tensor:
    """``d/dz_v sum_u q(u) r(u) = q(v) (r(v) - sum_u q(u) r(u))`` for ``q = softmax(z)``."""
    q = POLICY.softmax(-1)
    return q * (PRIZES - (q * PRIZES).sum())


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_leave_one_out_is_unbiased(samples: int) -> None:
    """The mean over all outcomes, by their probability, is the gradient of the expected reward."""
    q, mean = POLICY.softmax(-1), torch.zeros_like(POLICY)
    for outcome in itertools.product(range(len(POLICY)), repeat=samples):
        drawn = torch.tensor(outcome)
        advantages = leave_one_out(PRIZES[drawn])
        scores = torch.eye(len(POLICY), dtype=torch.float64)[drawn] - q  # d log q(y) / dz
        mean += q[drawn].prod() * (advantages.unsqueeze(-1) * scores).mean(dim=0)
    torch.testing.assert_close(mean, gradient_of_expected_prize())


def test_running_mean_by_definition() -> None:
    """A weighted mean whose weights fall by the memory with age; the first mean is the first value."""
    running, values = RunningMean(memory=0.9), [0.8, 0.1, 0.4, 0.4, 0.9]
    assert running.mean == 0.0
    for count, value in enumerate(values, start=1):
        running.add(value)
        weights = [0.9 ** (count - place) for place in range(1, count + 1)]
        expected = sum(weight * earlier for weight, earlier in zip(weights, values, strict=False)) / sum(
            weights
        )
        assert running.mean == pytest.approx(expected, rel=1e-12)
        if count == 1:
            assert running.mean == pytest.approx(0.8, rel=1e-12)


def test_running_mean_continues_from_its_state() -> None:
    """Through a file that torch's safe loader reads; also for a mean without values."""
    for values in ([], [0.3], [0.3, 0.8, 0.1]):
        one, other = RunningMean(), RunningMean()
        for value in values:
            one.add(value)
        other.add(0.77)
        other.restore(saved_and_loaded(one.state()))
        assert other.mean == one.mean
        one.add(0.6)
        other.add(0.6)
        assert other.mean == one.mean != 0.0


def saved_and_loaded(state: Any) -> Any:
    """A value after a checkpoint was written and read."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def rewarder_of(
    *symbols: str, remove_bpe: str | None = None, name: str = "chrf", baseline: RunningMean | None = None
) -> Rewarder:
    """A rewarder over a dictionary whose symbols have the numbers 4, 5, …"""
    return Rewarder(name, letters(symbols), remove_bpe=remove_bpe, baseline=baseline)


def texts_scored(
    rewarder: Rewarder, references: list[list[int]], written: list[list[int]]
) -> list[tuple[str, str]]:
    """The (hypothesis, reference) texts that a rewarder scores."""
    seen: list[tuple[str, str]] = []
    rewarder.score = lambda *pair: float(seen.append(pair) or 0.5)  # type: ignore[func-returns-value]
    rewarder.advantages(padded(references), padded(written), torch.ones(len(written), dtype=torch.bool))
    return seen


def padded(rows: list[list[int]]) -> Tensor:
    """Sentences as a batch has them."""
    width = max(map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


@pytest.mark.parametrize(
    ("remove_bpe", "symbols", "expected"),
    [
        (None, ("the", "ca@@", "t", "sat"), ("the ca@@ t sat", "sat the")),
        ("@@ ", ("the", "ca@@", "t", "sat"), ("the cat sat", "sat the")),
        ("subword_nmt", ("the", "ca@@", "t", "sat"), ("the cat sat", "sat the")),
        ("sentencepiece", ("▁the", "▁ca", "t", "▁sat"), ("the cat sat", "sat the")),
        (None, ("▁the", "▁ca", "t", "▁sat"), ("▁the ▁ca t ▁sat", "▁sat ▁the")),
    ],
)
def test_subword_marks_are_removed(
    remove_bpe: str | None, symbols: tuple[str, ...], expected: tuple[str, str]
) -> None:
    """On both sides, with fairseq's post-processing; the end-of-sentence symbol is not a word."""
    rewarder = rewarder_of(*symbols, remove_bpe=remove_bpe)
    assert texts_scored(rewarder, [[7, 4, EOS]], [[4, 5, 6, 7, EOS]]) == [expected]


def test_padding_is_not_a_word() -> None:
    """Sentences of a batch have several lengths; only their own words are scored, on both sides."""
    seen = texts_scored(rewarder_of("a", "b"), [[4, EOS], [4, 5, 4, 5, EOS]], [[5, 4, 5, EOS], [5, EOS]])
    assert seen == [("b a b", "a"), ("b", "a b a b")]


def test_padding_does_not_change_rewards() -> None:
    """A reward does not depend on which other sentences are in the batch."""
    for name in REWARDS:
        alone, among = (
            rewarder_of("one", "two", "three", name=name, baseline=RunningMean()) for _ in range(2)
        )
        [reward] = alone.advantages(padded([[4, EOS]]), padded([[5, EOS]]), torch.tensor([True]))[0].tolist()
        longer = [[4, 5, 6, 4, 5, 6, EOS]]
        rewards, _ = among.advantages(
            padded([[4, EOS], *longer]), padded([[5, EOS], *longer]), torch.tensor([True, True])
        )
        assert float(rewards[0]) == pytest.approx(reward), name


@pytest.mark.parametrize("name", REWARDS)
def test_unknown_word_is_not_the_references(name: str) -> None:
    """Two unknown words do not match, so a student gains nothing from writing them."""
    rewarder = rewarder_of("one", "two", name=name, baseline=RunningMean())
    unknown, sentence = rewarder.text.dictionary.unk(), [4, 5, 4, 5]
    both = padded([[unknown, EOS], [unknown, *sentence, EOS]])
    alone, beside = rewarder.advantages(both, both.clone(), torch.ones(2, dtype=torch.bool))[0].tolist()
    assert alone == 0.0
    assert 0.2 < beside < 0.95


def test_only_rollouts_have_advantages() -> None:
    """References are not scored and not part of the baseline."""
    rewarder = rewarder_of("the", "cat", "sat")
    sentences = [[4, 5, EOS], [5, 6, EOS], [6, 4, EOS], [4, 6, EOS]]
    written = [[4, 5, EOS], [5, 6, EOS], [6, 5, EOS], [5, 5, EOS]]
    is_rollout = torch.tensor([False, True, False, True])
    advantages, figures = rewarder.advantages(padded(sentences), padded(written), is_rollout)
    rewards = [chrf("cat sat", "cat sat"), chrf("cat cat", "the sat")]
    assert rewards[0] > rewards[1]
    expected = [0.0, rewards[0] - rewards[1], 0.0, rewards[1] - rewards[0]]
    assert advantages.tolist() == pytest.approx(expected, abs=1e-6)
    assert advantages.dtype == torch.float32
    assert figures["rewarded"] == 2
    assert figures["reward"] == pytest.approx(sum(rewards))
    assert figures["reward_squared"] == pytest.approx(sum(reward**2 for reward in rewards))
    assert figures.keys() == NO_REWARDS.keys()


def test_running_baseline_is_subtracted() -> None:
    """It is the mean of earlier updates. Advantages do not change it, since processes must agree on it."""
    baseline = RunningMean()
    rewarder = rewarder_of("the", "cat", baseline=baseline)
    batch = (
        padded([[4, 5, EOS], [4, 5, EOS]]),
        padded([[4, 5, EOS], [5, 5, EOS]]),
        torch.tensor([True, True]),
    )
    rewards = torch.tensor([1.0, chrf("cat cat", "the cat")])
    torch.testing.assert_close(rewarder.advantages(*batch)[0], rewards)
    assert baseline.mean == 0.0
    baseline.add(0.25)
    torch.testing.assert_close(rewarder.advantages(*batch)[0], rewards - 0.25)
    assert baseline.mean == pytest.approx(0.25)


@pytest.mark.parametrize("baseline", [None, RunningMean()])
def test_batch_without_rollouts_has_no_rewards(baseline: RunningMean | None) -> None:
    """This happens at a low share."""
    rewarder = rewarder_of("a", baseline=baseline)
    advantages, figures = rewarder.advantages(padded([[4, EOS]]), padded([[4, EOS]]), torch.tensor([False]))
    assert advantages.tolist() == [0.0]
    assert figures == NO_REWARDS


def rewarded(rewarder: Rewarder, *rows: list[int]) -> None:
    """One batch of rollouts whose references are all ``a b``."""
    written = [[*row, EOS] for row in rows]
    count = max(1, len(rows))
    references = padded([[4, 5, EOS]] * count)
    is_rollout = torch.full((count,), len(rows) > 0)
    rewarder.advantages(references, padded(written or [[4, 5, EOS]]), is_rollout)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings of the module."""
    return [record.getMessage() for record in caplog.records if record.name == "fairseq_imitkd.text.rewards"]


def test_equal_rewards_cause_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """At the twentieth batch in a row; the warning names the flag, its value and the reward."""
    rewarder = rewarder_of("a", "b", name="sentence-bleu")
    with caplog.at_level(logging.WARNING):
        for _ in range(EQUAL_BEFORE_WARNING - 1):
            rewarded(rewarder, [4, 5], [4, 5])
        assert warnings_of(caplog) == []
        for _ in range(2 * EQUAL_BEFORE_WARNING):
            rewarded(rewarder, [4, 5], [4, 5])
    [message] = warnings_of(caplog)
    assert EQUAL_BEFORE_WARNING == 20
    assert message.startswith("--reward sentence-bleu ")
    assert "20 batches" in message
    assert "1.0000" in message


def test_a_difference_restarts_the_count(caplog: pytest.LogCaptureFixture) -> None:
    """Twenty batches in a row, not twenty in all."""
    rewarder = rewarder_of("a", "b")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            for _ in range(EQUAL_BEFORE_WARNING - 1):
                rewarded(rewarder, [4, 5], [4, 5])
            rewarded(rewarder, [4, 5], [5, 5])
    assert warnings_of(caplog) == []


def test_batches_of_one_rollout_cause_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    """With a running mean, batches of one rollout do not show whether rewards differ."""
    rewarder = rewarder_of("a", "b", baseline=RunningMean())
    with caplog.at_level(logging.WARNING):
        for _ in range(2 * EQUAL_BEFORE_WARNING):
            rewarded(rewarder, [4, 5])
    assert warnings_of(caplog) == []


def test_batches_of_one_rollout_without_a_baseline_cause_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Without a running mean its advantage is always 0, so there is a warning."""
    rewarder = rewarder_of("a", "b")
    with caplog.at_level(logging.WARNING):
        for number in range(2 * EQUAL_BEFORE_WARNING):
            rewarded(rewarder, [4, 5] if number % 2 else [5, 5])
    assert len(warnings_of(caplog)) == 1


@pytest.mark.parametrize("rows", [[], [[4, 5]]])
def test_small_batches_after_the_warning_repeat_nothing(
    caplog: pytest.LogCaptureFixture, rows: list[list[int]]
) -> None:
    """A batch with one rollout, or with none, causes neither another warning nor an error."""
    rewarder = rewarder_of("a", "b")
    with caplog.at_level(logging.WARNING):
        for _ in range(EQUAL_BEFORE_WARNING):
            rewarded(rewarder, [4, 5], [4, 5])
        assert len(warnings_of(caplog)) == 1
        rewarded(rewarder, *rows)
    assert len(warnings_of(caplog)) == 1


def rewarded_batch(seed: int = 1) -> dict[str, Any]:
    """Five sentences, two of them rollouts with a good and a bad reward, and a teacher in float64."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.tensor([1, 3])
    rollout = Rollout(torch.tensor([[9, 8, 2, PAD], [7, 7, 7, 7]]), torch.tensor([False, True]))
    sample = with_rollouts(make_batch(reversed_pairs(5, seed)), rows, rollout, pad=PAD)
    batch, width = sample["target"].shape
    is_rollout = torch.zeros(batch, dtype=torch.bool)
    is_rollout[rows] = True
    advantages = torch.zeros(batch)
    advantages[rows] = torch.tensor([0.6, -0.35])
    teacher = 2.0 * torch.randn(batch, width, 20, generator=generator, dtype=torch.float64)
    truncated = torch.zeros_like(is_rollout)
    given = Distillation(WholeLogits(teacher.flatten(0, 1)), is_rollout, truncated, AtUpdate(), advantages)
    return {**sample, DISTILLATION: given}


def divergence_gradient(name: str, z: Tensor, p: Tensor) -> Tensor:
    """The derivative of a divergence by the student's logits ``z``, worked out by hand, ``(V,)``."""
    q = z.softmax(-1)
    if name == "forward-kl":
        return q - p
    by_q = {"reverse-kl": lambda: (q / p).log(), "jsd": lambda: 0.9 * (q / (0.1 * p + 0.9 * q)).log()}[name]()
    return q * (by_q - (q * by_q).sum())


@pytest.mark.parametrize("divergence", ["forward-kl", "reverse-kl", "jsd"])
@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("gold_weight", [0.0, 0.4])
@pytest.mark.parametrize("average", ["token", "sentence"])
def test_gradient_on_rollouts_is_reinforces(
    divergence: str, weight: float, gold_weight: float, average: str
) -> None:
    """By hand: ``weight * advantage * (q - 1[y]) + (1 - weight) * d divergence``, on rollouts alone.

    The divergence may be a mean over each sentence's tokens. The reward is of the whole sentence, whose
    log-probability is a sum, so its part is not (Agarwal et al. 2023, equation 4).
    """
    sample = rewarded_batch()
    settings = {
        "student_share": "0.5",
        "gold_weight": str(gold_weight),
        "loss_average": average,
        "divergence": divergence,
    }
    criterion = tiny_criterion("gkd", tiny_task(), reward="chrf", reward_weight=weight, **settings)
    target, given = sample["target"], sample[DISTILLATION]
    teacher = given.teacher.values.view(*target.shape, -1).clone()
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(*target.shape, 20, generator=generator, dtype=torch.float64, requires_grad=True)
    loss, _, _ = criterion(lambda **_: (logits,), sample)
    loss.backward()
    assert logits.grad is not None
    shares = (1.0 / target.ne(PAD).sum(dim=-1)).tolist()  # in float32, as the library has them
    for row, column in itertools.product(*map(range, target.shape)):
        share = shares[row] if average == "sentence" else 1.0
        gold = int(target[row, column])
        if gold == PAD:
            assert float(logits.grad[row, column].abs().max()) == 0.0
            continue
        z, p = logits.detach()[row, column], teacher[row, column].softmax(-1)
        of_likelihood = z.softmax(-1) - torch.nn.functional.one_hot(torch.tensor(gold), 20)
        of_divergence = divergence_gradient(divergence, z, p)
        if given.is_rollout[row]:
            advantage = float(given.advantages[row])
            expected = weight * advantage * of_likelihood + (1.0 - weight) * share * of_divergence
        else:
            expected = share * (gold_weight * of_likelihood + (1.0 - gold_weight) * of_divergence)
        torch.testing.assert_close(logits.grad[row, column], expected, rtol=1e-9, atol=1e-12)
    assert float(logits.grad[given.is_rollout].abs().max()) > 1e-2


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_rewards_are_learnt_in_chunks_alike(chunk: int) -> None:
    """Loss and every parameter's gradient, in float64."""
    sample, student = rewarded_batch(), build_student().eval().double()
    losses, gradients = [], []
    for size in (-1, chunk):
        criterion = tiny_criterion("gkd", tiny_task(), reward="chrf", loss_average="token", loss_chunk=size)
        student.zero_grad(set_to_none=True)
        loss, _, _ = criterion(student, sample)
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: parameter.grad.clone() for name, parameter in student.named_parameters()})
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-7, atol=1e-9)
    assert max(float(gradient.abs().max()) for gradient in gradients[0].values()) > 1e-3


@pytest.mark.parametrize("baseline", ["leave-one-out", "running"])
def test_gradient_of_many_samples_is_that_of_the_expected_reward(baseline: str) -> None:
    """With one-token sentences the criterion's gradient approaches minus that of the expected reward.

    Each component lies within five standard errors of a mean over so many samples.
    """
    samples, symbols = 40_000, len(POLICY)
    q = POLICY.softmax(-1)
    written = torch.multinomial(q, samples, replacement=True, generator=torch.Generator().manual_seed(1))
    prizes = PRIZES[written]
    advantages = leave_one_out(prizes) if baseline == "leave-one-out" else prizes - 0.3
    logits = torch.full((20,), -torch.inf, dtype=torch.float64)  # the policy writes its letters alone
    logits[4 : 4 + symbols] = POLICY
    logits.requires_grad_(True)
    everyone = torch.ones(samples, dtype=torch.bool)
    teacher = WholeLogits(torch.zeros(samples, 20, dtype=torch.float64))
    sample = {
        "id": torch.arange(samples),
        "target": (written + 4).unsqueeze(-1),
        "net_input": {},
        DISTILLATION: Distillation(teacher, everyone, ~everyone, AtUpdate(), advantages),
    }
    settings = {
        "reward": "chrf",
        "reward_weight": 1.0,
        "loss_average": "token",
        "divergence": "teacher-argmax",
    }
    criterion = tiny_criterion("gkd", tiny_task(), **settings)
    finite = logits.clamp(min=-700.0)
    loss, count, _ = criterion(lambda **_: (finite.expand(samples, 1, 20),), sample)
    (gradient,) = torch.autograd.grad(loss / count, logits)
    scores = torch.eye(symbols, dtype=torch.float64) - q
    spread = math.sqrt(
        float(max((q * (PRIZES - 0.3).square() * scores[:, v].square()).sum() for v in range(symbols)))
    )
    torch.testing.assert_close(
        -gradient[4 : 4 + symbols],
        gradient_of_expected_prize(),
        rtol=0.0,
        atol=5.0 * spread / math.sqrt(samples),
    )
    assert float(gradient_of_expected_prize().abs().max()) > 10.0 * spread / math.sqrt(samples)

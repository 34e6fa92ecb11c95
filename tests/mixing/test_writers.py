"""Who else writes sentences: ensembles, the teacher that corrects or samples, and the student of earlier
updates.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from fairseq_imitkd.mixing.mixer import MixedBatch, Mixer, Writers
from fairseq_imitkd.mixing.replay import ReplayBuffer
from fairseq_imitkd.rollout import (
    Corrector,
    Ensemble,
    Prompt,
    RandomKey,
    RolloutPolicy,
    SpecialSymbols,
    decode,
    sampling_uniforms,
)
from fairseq_imitkd.rollout.keyed_random import MIXING, TEACHER_SAMPLING
from tests.helpers.fairseq_models import (
    layout,
    letters,
    make_batch,
    reversed_pairs,
    tiny_method,
    trained_student,
    written,
)

PAD, EOS = letters().pad(), letters().eos()
SYMBOLS = SpecialSymbols(PAD, EOS)
LOGITS = torch.tensor([[0.3, -1.0, 2.0, 0.9, -2.5, 1.4]])
CAPS = {"rollout_max_len_a": 0.0, "rollout_max_len_b": 7}


def ensemble(*names: str, weights: list[float] | None = None) -> Ensemble:
    """Return an ensemble of trained models."""
    weights = weights or [1.0 / len(names)] * len(names)
    return Ensemble([trained_student(name) for name in names], torch.tensor(weights).log())


def decoded(author: Any, sample: dict[str, Any], policy: RolloutPolicy, **extra: Any) -> list[list[int]]:
    net_input = {key: value for key, value in sample["net_input"].items() if key != "prev_output_tokens"}
    count = sample["target"].size(0)
    prompt = Prompt(net_input, torch.full((count,), EOS), torch.full((count,), 9))
    uniforms = sampling_uniforms([(RandomKey(1, 0), sample["id"])])
    rollout = decode(author, prompt, policy, symbols=SYMBOLS, uniforms=uniforms, **extra)
    return written(rollout)


def mixed(
    sample: dict[str, Any], name: str, update_num: int = 3, mixer: Mixer | None = None, **settings: Any
) -> MixedBatch:
    """Return a batch that a method mixes with a trained student and another trained model as the teacher."""
    mixer = mixer or Mixer(tiny_method(name, **settings), layout())
    writers = Writers(trained_student("transformer"), ensemble("transformer-pre-norm"), max_target=20)
    return mixer.roll_out(mixer.draw(sample, mixer.method.at(update_num)), writers)


def references(sample: dict[str, Any]) -> list[list[int]]:
    return [row[row.ne(PAD)].tolist() for row in sample["target"]]


# Ensembles


def test_ensemble_of_one_writes_what_the_model_writes() -> None:
    """The tokens are identical."""
    sample = make_batch(reversed_pairs(8, seed=71))
    for policy in (RolloutPolicy(), RolloutPolicy("sampling")):
        assert decoded(ensemble("transformer"), sample, policy) == decoded(
            trained_student("transformer"), sample, policy
        )


def test_ensemble_writes_by_the_weighted_mean_of_probabilities() -> None:
    """At each step the members see the whole prefix. One of them has no fast decoder."""
    members, weights = ("transformer", "lstm"), [0.3, 0.7]
    sample = make_batch(reversed_pairs(6, seed=72))
    found = decoded(ensemble(*members, weights=weights), sample, RolloutPolicy())
    for row, text in enumerate(found):
        source = {
            "src_tokens": sample["net_input"]["src_tokens"][row : row + 1],
            "src_lengths": torch.tensor([6]),
        }
        source["src_tokens"] = source["src_tokens"][source["src_tokens"].ne(PAD)].unsqueeze(0)
        source["src_lengths"] = torch.tensor([source["src_tokens"].size(1)])
        for step, token in enumerate(text):
            prefix = torch.tensor([[EOS, *text[:step]]])
            with torch.no_grad():
                lprobs = [
                    trained_student(name)(**source, prev_output_tokens=prefix)[0][0, -1].softmax(-1)
                    for name in members
                ]
            mean = sum(weight * probs for weight, probs in zip(weights, lprobs, strict=True))
            mean[PAD] = 0.0
            assert token == int(mean.argmax())
    assert found != decoded(trained_student("transformer"), sample, RolloutPolicy())


def test_ensemble_keeps_its_members_modes() -> None:
    """A member in training mode returns to it after decoding."""
    author = ensemble("transformer", "lstm")
    author.models[1].train()
    try:
        decoded(author, make_batch(reversed_pairs(2, seed=73)), RolloutPolicy())
        assert [model.training for model in author.models] == [False, True]
    finally:
        author.models[1].eval()


# Speculative rollouts


@pytest.mark.parametrize(
    ("topk", "kept"), [(1, {2}), (2, {2, 5}), (4, {2, 5, 3, 0}), (6, {0, 1, 2, 3, 4, 5}), (99, set(range(6)))]
)
def test_token_among_the_teachers_best_is_accepted(topk: int, kept: set[int]) -> None:
    """Any other token is replaced by a sample from the teacher's whole distribution."""
    policy = RolloutPolicy("speculative", teacher_topk=topk)
    grid = 5_000
    uniforms = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    for token in range(6):
        chosen = policy.corrected(torch.full((grid,), token), LOGITS.expand(grid, -1), uniforms)
        if token in kept:
            assert (chosen == token).all()
        else:
            found = torch.bincount(chosen, minlength=6).double() / grid
            torch.testing.assert_close(found, LOGITS[0].double().softmax(-1), rtol=0, atol=2.0 / grid)


def speculated(
    topk: int, student: str = "transformer", teacher: Ensemble | None = None
) -> tuple[list[list[int]], dict[str, Any]]:
    sample = make_batch(reversed_pairs(12, seed=74))
    uniforms = sampling_uniforms([(RandomKey(1, 0), sample["id"])], stream=TEACHER_SAMPLING)
    corrector = Corrector(teacher or ensemble("transformer-pre-norm"), uniforms)
    policy = RolloutPolicy("speculative", teacher_topk=topk)
    return decoded(trained_student("transformer"), sample, policy, corrector=corrector), sample


def test_teacher_that_accepts_every_token_keeps_the_students_samples() -> None:
    """K = V is on-policy (Xu et al. 2025, section 3)."""
    found, sample = speculated(10**6)
    assert found == decoded(trained_student("transformer"), sample, RolloutPolicy("sampling"))


@pytest.mark.parametrize("teacher", ["transformer-pre-norm", "lstm"])
def test_every_token_is_among_the_teachers_best_or_its_own_sample(teacher: str) -> None:
    """With K = 1 a token is the teacher's argmax or the teacher's sample at the shared prefix."""
    author = ensemble(teacher)
    found, sample = speculated(1, teacher=author)
    plain = decoded(trained_student("transformer"), sample, RolloutPolicy("sampling"))
    assert found != plain
    net_input, stands, replaced = sample["net_input"], 0, 0
    width = max(map(len, found))
    prefixes = torch.tensor([[EOS, *text[:-1], *[PAD] * (width - len(text))] for text in found])
    with torch.no_grad():
        logits = author.models[0](net_input["src_tokens"], net_input["src_lengths"], prefixes)[0]
    logits[..., PAD] = -torch.inf
    draws = sampling_uniforms([(RandomKey(1, 0), sample["id"])], stream=TEACHER_SAMPLING)
    for row, text in enumerate(found):
        for step, token in enumerate(text):
            if token == int(logits[row, step].argmax()):
                stands += 1
            else:  # the inverse of the teacher's cumulative distribution function
                uniform = float(draws(step, torch.tensor([row])))
                reached = logits[row, step].double().softmax(-1).cumsum(-1)
                assert token == int((reached <= uniform).sum())
                replaced += 1
    assert stands > 10
    assert replaced > 3


def test_speculative_method_asks_its_teacher() -> None:
    """The mixer's text is that of the engine with this corrector."""
    sample = make_batch(reversed_pairs(8, seed=75))
    own = mixed(sample, "gkd", **CAPS).sample["target"]
    corrected = mixed(sample, "speculative_kd", rollout_teacher_topk=1, **CAPS).sample["target"]
    assert own.shape != corrected.shape or not own.equal(corrected)


# The teacher's samples


def test_teacher_samples_replace_the_references() -> None:
    """The student writes its share of the sentences and the teacher writes all others. Only the student's are
    rollouts.
    """
    sample = make_batch(reversed_pairs(12, seed=76))
    both = mixed(sample, "f_distill", teacher_samples=True, **CAPS)
    students = mixed(sample, "f_distill", **CAPS)
    assert both.is_rollout.equal(students.is_rollout)
    assert 2 < int(both.is_rollout.sum()) < 10
    key = RandomKey(1, 3)
    uniforms = sampling_uniforms([(key, sample["id"])], stream=TEACHER_SAMPLING)
    net_input = {name: value for name, value in sample["net_input"].items() if name != "prev_output_tokens"}
    prompt = Prompt(net_input, torch.full((12,), EOS), torch.full((12,), 7))
    teacher, policy = ensemble("transformer-pre-norm"), RolloutPolicy("sampling")
    teachers = written(decode(teacher, prompt, policy, symbols=SYMBOLS, uniforms=uniforms))
    for row, text in enumerate(references(both.sample)):
        assert text == (references(students.sample)[row] if both.is_rollout[row] else teachers[row])
    assert references(both.sample) != references(students.sample)
    assert both.sample["ntokens"] == int(both.sample["target"].ne(PAD).sum())


def test_teacher_samples_follow_its_distribution() -> None:
    """Over many updates, the first token's frequencies are the teacher's softmax, not its argmax."""
    sample = make_batch([([1, 2, 3], [4])] * 200, ids=range(200))
    tokens = torch.cat(
        [mixed(sample, "f_distill_kl", n, teacher_samples=True).sample["target"][:, 0] for n in range(4)]
    )
    found = torch.bincount(tokens, minlength=20).double() / tokens.numel()
    model = trained_student("transformer-pre-norm")
    with torch.no_grad():
        logits = model(**{**sample["net_input"], "prev_output_tokens": torch.full((200, 1), EOS)})[0][0, 0]
    logits[PAD] = -torch.inf
    torch.testing.assert_close(found, logits.double().softmax(-1), rtol=0, atol=0.06)


# A share by batch


def test_share_by_batch_takes_all_or_none() -> None:
    """All batches of an update have the same draw. Over updates the share is right."""
    samples = [make_batch(reversed_pairs(5, seed), ids=range(10 * seed, 10 * seed + 5)) for seed in (1, 2)]
    draws = []
    for update_num in range(60):
        one, other = (
            mixed(sample, "gkd", update_num, student_share="0.3", **CAPS).is_rollout for sample in samples
        )
        assert bool(one.all()) == bool(one.any()) == bool(other.all()) == bool(other.any())
        draws.append(float(one[0]))
    assert 0.15 < sum(draws) / len(draws) < 0.45
    uniforms = [
        float(RandomKey(1, n).at(MIXING).uniforms(torch.zeros(1, dtype=torch.int64))) for n in range(60)
    ]
    assert draws == [float(uniform < 0.3) for uniform in uniforms]


# Replay


REPLAY = {"student_share": "0.8", "rollout_replay": 50, "rollout_replay_share": "0.5", **CAPS}


def replaying(capacity: int = 50) -> Mixer:
    return Mixer(tiny_method("distillm", **REPLAY), layout(), replay=ReplayBuffer(capacity))


def pairs(sample: dict[str, Any], rows: Tensor) -> list[tuple[int, list[int], list[int]]]:
    """Return number, source and target of some rows."""
    sources = [row[row.ne(PAD)].tolist() for row in sample["net_input"]["src_tokens"]]
    return [
        (int(sample["id"][row]), sources[row], references(sample)[row])
        for row in rows.nonzero().squeeze(-1).tolist()
    ]


def test_replayed_sentences_are_earlier_rollouts_with_their_sources() -> None:
    """The first update replays none. Later updates replay about half of the student's sentences."""
    mixer, seen, replayed, fresh = replaying(), [], 0, 0
    for update_num in range(6):
        sample = make_batch(
            reversed_pairs(12, seed=80 + update_num), ids=range(100 * update_num, 100 * update_num + 12)
        )
        found = mixed(sample, "distillm", update_num, mixer, **REPLAY)
        new = [entry for entry in pairs(found.sample, found.is_rollout) if entry[0] // 100 == update_num]
        old = [entry for entry in pairs(found.sample, found.is_rollout) if entry[0] // 100 != update_num]
        assert found.work["rollouts_replayed"] == len(old)
        assert all(entry in seen for entry in old)
        staleness = sum(update_num - entry[0] // 100 for entry in old)
        assert found.work["rollout_staleness"] == staleness
        seen += new
        replayed, fresh = replayed + len(old), fresh + len(new)
        lengths = found.sample["net_input"]["src_lengths"]
        assert lengths.equal(lengths.sort(descending=True).values)
        assert len(mixer.replay) == min(50, len(seen))
        data = pairs(found.sample, ~found.is_rollout)
        assert all(entry in pairs(sample, torch.ones(12, dtype=torch.bool)) for entry in data)
        assert len(new) + len(old) + len(data) == 12
        if update_num == 0:
            assert old == []
    assert replayed > 10
    assert fresh > 10


def test_replay_is_reproducible() -> None:
    """A second run, and a run resumed from a saved buffer, draw the same rollouts."""
    batches = [
        make_batch(reversed_pairs(12, seed=90 + n), ids=range(100 * n, 100 * n + 12)) for n in range(4)
    ]
    whole = replaying()
    expected = [
        mixed(batch, "distillm", n, whole, **REPLAY).sample["target"] for n, batch in enumerate(batches)
    ]
    first, second = replaying(), replaying()
    found = [
        mixed(batch, "distillm", n, first, **REPLAY).sample["target"] for n, batch in enumerate(batches[:2])
    ]
    second.replay.restore(first.replay.state())
    found += [
        mixed(batch, "distillm", n, second, **REPLAY).sample["target"]
        for n, batch in enumerate(batches)
        if n >= 2
    ]
    assert all(one.equal(other) for one, other in zip(found, expected, strict=True))


def test_only_new_sentences_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replayed sentence costs no decoding."""
    from fairseq_imitkd.mixing import mixer

    counts, plain = [], mixer.decode

    def counted(writer: Any, prompt: Prompt, *args: Any, **kwargs: Any) -> Any:
        counts.append(prompt.net_input["src_tokens"].size(0))
        return plain(writer, prompt, *args, **kwargs)

    monkeypatch.setattr(mixer, "decode", counted)
    mixer = replaying()
    for update_num in range(4):
        sample = make_batch(reversed_pairs(12, seed=95), ids=range(12))
        found = mixed(sample, "distillm", update_num, mixer, **REPLAY)
        assert counts[-1] == int(found.is_rollout.sum()) - found.work["rollouts_replayed"]

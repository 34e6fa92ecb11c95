"""Several batches decoded together, and the fallbacks when they do not fit into memory or can't be joined."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from fairseq.data.iterators import CountingIterator

from fairseq_imitkd.method.method import Method
from fairseq_imitkd.mixing import mixer
from fairseq_imitkd.mixing.mixer import MixedBatch, Mixer, Writers
from fairseq_imitkd.mixing.pool import LookAheadIterator, RolloutPool
from fairseq_imitkd.mixing.replay import PastRollout, ReplayBuffer
from fairseq_imitkd.rollout import Ensemble, Prompt, RandomKey, RolloutPolicy
from fairseq_imitkd.rollout.keyed_random import MIXING, REPLAYING
from tests.helpers.fairseq_models import build_student, layout, make_batch, reversed_pairs, tiny_method

BATCHES = [make_batch(reversed_pairs(4, seed), ids=range(10 * seed, 10 * seed + 4)) for seed in (61, 62, 63)]


def pool_of(batches: list[dict[str, Any]]) -> RolloutPool:
    """Return a pool to which fairseq has handed these batches for one update."""
    pool = RolloutPool()

    class Epoch:
        def next_epoch_itr(self) -> CountingIterator:
            return CountingIterator(batches, start=0)

    for _ in (iterator := pool.watch(Epoch()).next_epoch_itr()):
        pass
    assert isinstance(iterator, LookAheadIterator)
    return pool


def method(share: str = "1") -> Method:
    """Return a method whose rollouts have at most five tokens."""
    caps = {"rollout_max_len_a": 0.0, "rollout_max_len_b": 5} if share != "0" else {}
    return tiny_method("imitkd", student_share=share, **caps)


def mixed(mixer: Mixer, batch: dict[str, Any], update: int = 3) -> MixedBatch:
    """Return the batch that the mixer builds at an update."""
    student = build_student().eval()
    writers = Writers(student, Ensemble([student], torch.zeros(1)), max_target=20)
    return mixer.roll_out(mixer.draw(batch, mixer.method.at(update)), writers)


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the number of sentences of each decoding."""
    calls: list[int] = []
    decode = mixer.decode

    def counted(student: Any, prompt: Prompt, *args: Any, **kwargs: Any) -> Any:
        calls.append(prompt.net_input["src_tokens"].size(0))
        return decode(student, prompt, *args, **kwargs)

    monkeypatch.setattr(mixer, "decode", counted)
    return calls


def assert_texts_are_those_of_single_batches(mixer: Mixer) -> None:
    """Every batch gets the text that the student writes for it alone."""
    for batch in BATCHES:
        found, expected = mixed(mixer, batch), mixed(Mixer(method(), layout()), batch)
        assert found.sample["target"].equal(expected.sample["target"])
        assert found.is_rollout.equal(expected.is_rollout)
        assert found.work["rollout_out_of_memory"] == 0


def test_pooled_batches_get_their_own_text(decodings: list[int]) -> None:
    """Three batches are decoded at once."""
    assert_texts_are_those_of_single_batches(Mixer(method(), layout(), pool_of(BATCHES)))
    assert decodings[0] == 12
    assert decodings[1:] == [4, 4, 4], "the three comparisons"


def test_pool_that_does_not_fit_is_decoded_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve sentences do not fit into memory, but four do. So no batch falls back to its references."""
    decode = mixer.decode

    def limited(student: Any, prompt: Prompt, *args: Any, **kwargs: Any) -> Any:
        if prompt.net_input["src_tokens"].size(0) > 4:
            raise torch.OutOfMemoryError
        return decode(student, prompt, *args, **kwargs)

    monkeypatch.setattr(mixer, "decode", limited)
    assert_texts_are_those_of_single_batches(Mixer(method(), layout(), pool_of(BATCHES)))


def test_batches_that_cannot_be_joined_are_decoded_one_by_one(
    monkeypatch: pytest.MonkeyPatch, decodings: list[int]
) -> None:
    """An unknown encoder argument can't be padded."""
    plain = mixer.encoder_inputs

    def more(*args: Any) -> dict[str, Any]:
        return {**plain(*args), "token_embeddings": None}

    monkeypatch.setattr(mixer, "encoder_inputs", more)
    assert_texts_are_those_of_single_batches(Mixer(method(), layout(), pool_of(BATCHES)))
    assert set(decodings) == {4}


def test_empty_batches_of_uneven_shards_are_ignored(decodings: list[int]) -> None:
    """fairseq fills the last group of a short shard with empty batches."""
    mixer = Mixer(method(), layout(), pool_of([BATCHES[0], {}, BATCHES[1]]))
    mixed(mixer, BATCHES[0])
    assert decodings == [8]


def test_batches_that_need_no_rollout_are_released() -> None:
    """The pool keeps no batch while the share is 0, or once its rollout is ready. Otherwise a whole epoch
    would stay in memory.
    """
    pool = pool_of(BATCHES)
    mixed(Mixer(method("0"), layout(), pool), BATCHES[0])
    assert pool._batches.handed_out == []
    pool = pool_of(BATCHES)
    mixer = Mixer(method(), layout(), pool)
    mixed(mixer, BATCHES[0])
    pool._batches.handed_out.extend(BATCHES[1:])
    mixed(mixer, BATCHES[1])
    assert pool._batches.handed_out == []


def test_pooled_batches_share_the_work_by_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work logged for the batches adds up to the work done, also if it can't be divided evenly."""
    decode = mixer.decode
    monkeypatch.setattr(
        mixer, "decode", lambda *args, **kwargs: replace(decode(*args, **kwargs), rows_computed=7)
    )
    pooling = Mixer(method(), layout(), pool_of(BATCHES))
    work = [int(mixed(pooling, batch).work["rollout_rows_computed"]) for batch in BATCHES]
    assert work == [2, 2, 3]


def test_sentences_to_replay_are_drawn_anew_for_each_update() -> None:
    """They have their own random numbers, which differ from those that choose the student's sentences."""
    replay = ReplayBuffer(20)
    tokens = torch.tensor([4, 2])
    for number in range(20):
        replay.add(PastRollout(number, 0, False, source=tokens, inputs=tokens.flip(0), target=tokens))
    replaying = tiny_method(
        "imitkd", student_share="0.7", rollout_replay=20, rollout_replay_share="0.5", seed=3
    )
    drawing = Mixer(replaying, layout(), replay=replay)
    for batch in BATCHES:
        for update in (3, 4, 50, 51):
            ids = batch["id"]
            is_students = RandomKey(3, update, MIXING).uniforms(ids) < 0.7
            is_past = is_students & (RandomKey(3, update, REPLAYING).uniforms(ids) < 0.5)
            drawn = drawing.draw(batch, replaying.at(update))
            assert drawn.past_rows.tolist() == is_past.nonzero().squeeze(-1).tolist()
            assert drawn.is_fresh.equal(is_students & ~is_past)


def test_replayed_rollouts_are_no_work() -> None:
    """Their tokens were written in an earlier update."""
    replaying = tiny_method(
        "imitkd", student_share="1", rollout_replay=20, rollout_replay_share="0.5", rollout_max_len_a=0.0,
        rollout_max_len_b=5, seed=3,
    )  # fmt: skip
    drawing = Mixer(replaying, layout(), replay=ReplayBuffer(20))
    first, second = mixed(drawing, BATCHES[0]), mixed(drawing, BATCHES[1], update=4)
    assert first.work["rollout_tokens_written"] == first.sample["ntokens"]
    past = second.work["rollouts_replayed"]
    assert 0 < past < 4
    everyone = mixed(Mixer(method(), layout()), BATCHES[1]).sample["target"].ne(1).sum(dim=-1)
    fresh = drawing.draw(BATCHES[1], replaying.at(4)).is_fresh
    assert second.work["rollout_tokens_written"] == int(everyone[fresh].sum())
    assert second.sample["ntokens"] > second.work["rollout_tokens_written"]


@pytest.mark.parametrize("graphs", [False, True])
def test_teacher_samples_use_cuda_graphs_if_rollouts_do(
    graphs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher samples at temperature 1, but the flag for CUDA graphs applies to it too."""
    decode, policies = mixer.decode, []

    def recording(writer: Any, prompt: Prompt, policy: RolloutPolicy, **kwargs: Any) -> Any:
        policies.append(policy)
        return decode(writer, prompt, policy, **kwargs)

    monkeypatch.setattr(mixer, "decode", recording)
    sampling = tiny_method(
        "imitkd",
        student_share="0",
        gold_weight="0",
        teacher_samples=True,
        rollout_cuda_graphs="auto" if graphs else "off",
    )
    mixed(Mixer(sampling, layout()), BATCHES[0])
    assert policies == [RolloutPolicy("sampling", cuda_graphs=graphs)]


def test_flags_decide_on_pool_and_replay_buffer() -> None:
    """Neither exists by default. A pool of one update still joins the update's micro-batches."""

    def mixer_of(**flags: Any) -> Mixer:
        return Mixer.from_method(tiny_method("imitkd", student_share="1", **flags), layout())

    plain = mixer_of()
    assert plain.pool is None
    assert plain.replay is None
    assert mixer_of(rollout_pool=True).pool.updates == 1
    assert mixer_of(rollout_pool_updates=3).pool.updates == 3
    assert mixer_of(rollout_replay=7, rollout_replay_share="0.5").replay.capacity == 7

"""Several batches decoded together: what happens when they do not fit, in memory or in kind."""

from typing import Any

import pytest
import torch
from fairseq.data.iterators import CountingIterator

from fairseq_imitkd.mixing import mixer
from fairseq_imitkd.mixing.mixer import Authors, Mixed, Mixer
from fairseq_imitkd.mixing.pool import LookAheadIterator, RolloutPool
from fairseq_imitkd.rollout import Ensemble
from tests.helpers.fairseq_models import build_student, make_batch, reversed_pairs, tiny_criterion, tiny_task

BATCHES = [make_batch(reversed_pairs(4, seed), ids=range(10 * seed, 10 * seed + 4)) for seed in (61, 62, 63)]


def pool_of(batches: list[dict[str, Any]]) -> RolloutPool:
    """A pool to which fairseq has handed these batches for one update."""
    pool = RolloutPool()

    class Epoch:
        def next_epoch_itr(self) -> CountingIterator:
            return CountingIterator(batches, start=0)

    for _ in (iterator := pool.watch(Epoch()).next_epoch_itr()):
        pass
    assert isinstance(iterator, LookAheadIterator)
    return pool


def mixed(mixer: Mixer, batch: dict[str, Any], share: str = "1") -> Mixed:
    caps = {"rollout_max_len_a": 0.0, "rollout_max_len_b": 5} if share != "0" else {}
    criterion = tiny_criterion("imitkd", tiny_task(), student_share=share, **caps)
    student = build_student().eval()
    return mixer.mix(
        batch, Authors(student, Ensemble([student], torch.zeros(1)), max_target=20), criterion, update_num=3
    )


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sentences each decoding was asked for."""
    calls: list[int] = []
    decode = mixer.decode

    def counted(student: Any, net_input: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        calls.append(net_input["src_tokens"].size(0))
        return decode(student, net_input, *args, **kwargs)

    monkeypatch.setattr(mixer, "decode", counted)
    return calls


def assert_as_alone(mixer: Mixer) -> None:
    """Every batch gets the text that its student writes for it alone."""
    for batch in BATCHES:
        found, expected = mixed(mixer, batch), mixed(Mixer(tiny_task()), batch)
        assert found.sample["target"].equal(expected.sample["target"])
        assert found.is_rollout.equal(expected.is_rollout)
        assert found.work["rollout_out_of_memory"] == 0


def test_pooled_batches_get_their_own_text(decodings: list[int]) -> None:
    """One decoding for three batches."""
    assert_as_alone(Mixer(tiny_task(), pool_of(BATCHES)))
    assert decodings[0] == 12
    assert decodings[1:] == [4, 4, 4], "the three comparisons"


def test_pool_that_does_not_fit_is_decoded_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory with twelve sentences, and not with four: no batch falls back to its references."""
    decode = mixer.decode

    def limited(student: Any, net_input: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if net_input["src_tokens"].size(0) > 4:
            raise torch.OutOfMemoryError
        return decode(student, net_input, *args, **kwargs)

    monkeypatch.setattr(mixer, "decode", limited)
    assert_as_alone(Mixer(tiny_task(), pool_of(BATCHES)))


def test_what_can_not_be_joined_is_decoded_batch_by_batch(
    monkeypatch: pytest.MonkeyPatch, decodings: list[int]
) -> None:
    """An encoder argument that nobody knows how to pad."""
    plain = mixer.encoder_inputs

    def more(*args: Any) -> dict[str, Any]:
        return {**plain(*args), "token_embeddings": None}

    monkeypatch.setattr(mixer, "encoder_inputs", more)
    assert_as_alone(Mixer(tiny_task(), pool_of(BATCHES)))
    assert set(decodings) == {4}


def test_empty_batches_of_uneven_shards_are_passed_over(decodings: list[int]) -> None:
    """fairseq fills up the last group of a short shard with them."""
    mixer = Mixer(tiny_task(), pool_of([BATCHES[0], {}, BATCHES[1]]))
    mixed(mixer, BATCHES[0])
    assert decodings == [8]


def test_batches_that_need_no_rollout_are_let_go() -> None:
    """While the share is 0, and once their rollouts wait: else an epoch's batches would stay in memory."""
    pool = pool_of(BATCHES)
    mixed(Mixer(tiny_task(), pool), BATCHES[0], share="0")
    assert pool._batches.handed_out == []
    pool = pool_of(BATCHES)
    mixer = Mixer(tiny_task(), pool)
    mixed(mixer, BATCHES[0])
    pool._batches.handed_out.extend(BATCHES[1:])
    mixed(mixer, BATCHES[1])
    assert pool._batches.handed_out == []

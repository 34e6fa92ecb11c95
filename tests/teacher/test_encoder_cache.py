"""The encoder cache: with separate or cached encoder outputs the logits stay the same."""

import pytest
import torch

from fairseq_imitkd.mixing.batch import take
from fairseq_imitkd.teacher.encoder_cache import EncoderCache
from fairseq_imitkd.teacher.teacher import Teacher
from tests.helpers.fairseq_models import (
    STUDENTS,
    build_student,
    layout,
    make_batch,
    reversed_pairs,
    teacher_logits,
)

ROOM = 1 << 20


def counted(teacher: Teacher) -> list[int]:
    """A list that receives the number of sentences of each call of the first member's encoder."""
    calls: list[int] = []
    encoder = teacher.models[0].encoder
    plain = encoder.forward

    def forward(*args, **kwargs):
        calls.append((args[0] if args else kwargs["src_tokens"]).size(0))
        return plain(*args, **kwargs)

    encoder.forward = forward
    return calls


@pytest.mark.parametrize("name", STUDENTS)
def test_separate_encoding_changes_no_logit(name: str) -> None:
    """Bitwise, for every architecture; a part of a batch to rounding."""
    teacher, sample = Teacher([build_student(name)]), make_batch(reversed_pairs(8, seed=51))
    with torch.no_grad():
        expected = teacher.models[0](**sample["net_input"])[0]
    encoded = teacher.encode(sample)
    assert teacher_logits(teacher, sample, encoded).equal(expected)
    assert teacher_logits(teacher, sample).equal(expected)
    rows = torch.tensor([1, 4, 6])
    part = take(sample, rows, layout=layout())
    width = part["target"].size(1)
    torch.testing.assert_close(
        teacher_logits(teacher, part, encoded, rows=rows), expected[rows, :width], rtol=1e-4, atol=1e-5
    )


def test_member_that_can_not_encode_separately_runs_its_forward_pass() -> None:
    """An overridden forward pass may do more than encode and decode."""

    class Shouting(type(build_student())):
        def forward(self, *args, **kwargs):
            logits, extra = super().forward(*args, **kwargs)
            return 2.0 * logits, extra

    model, sample = build_student(), make_batch(reversed_pairs(4, seed=52))
    model.__class__ = Shouting
    teacher = Teacher([model, build_student(seed=2)])
    encoded = teacher.encode(sample)
    assert encoded[0] is None
    assert encoded[1] is not None
    assert teacher_logits(teacher, sample, encoded).equal(teacher_logits(teacher, sample))
    separate = teacher_logits(Teacher([model]), sample, [None])
    with torch.no_grad():
        assert separate.equal(model(**sample["net_input"])[0])


def test_more_encoder_arguments_run_the_forward_pass() -> None:
    """Only the forward pass knows what another argument means."""
    sample = make_batch(reversed_pairs(4, seed=52))
    sample["net_input"]["token_embeddings"] = None
    assert Teacher([build_student()]).encode(sample) == [None]


@pytest.mark.parametrize("name", ["transformer", "lstm-bidirectional", "fconv"])
def test_cached_batch_is_not_encoded_again(name: str) -> None:
    """The logits are bitwise the same the second time; another batch is encoded."""
    plain = Teacher([build_student(name)])
    teacher = Teacher([build_student(name)], cache=EncoderCache(ROOM))
    samples = [make_batch(reversed_pairs(6, seed), ids=range(10 * seed, 10 * seed + 6)) for seed in (1, 2)]
    calls = counted(teacher)
    for sample in (*samples, *samples):
        assert teacher_logits(teacher, sample, teacher.encode(sample)).equal(teacher_logits(plain, sample))
    assert calls == [6, 6]


def test_same_numbers_of_another_data_set_are_encoded_anew() -> None:
    """Shards of a training set use the same numbers."""
    teacher = Teacher([build_student()], cache=EncoderCache(ROOM))
    calls = counted(teacher)
    one = make_batch([([1, 2, 3], [1]), ([4, 5], [1])])
    other = make_batch([([1, 2, 6], [1]), ([4, 5], [1])])
    for sample in (one, other):
        assert teacher_logits(teacher, sample, teacher.encode(sample)).equal(
            teacher_logits(Teacher([build_student()]), sample)
        )
    assert calls == [2, 2]


def test_cache_stays_in_its_room() -> None:
    """A batch that does not fit is not kept, and the cached batches stay."""
    sample = make_batch(reversed_pairs(6, seed=1), ids=range(6))
    whole = EncoderCache(ROOM)
    Teacher([build_student()], cache=whole).encode(sample)
    # 32 dimensions and the source of six sentences, in bytes; and their padding mask.
    source = sample["net_input"]["src_tokens"]
    assert source.numel() * (32 * 4 + 8 + 1) <= whole.used <= source.numel() * (32 * 4 + 8 + 1) + 1024
    cache = EncoderCache(whole.used)
    teacher = Teacher([build_student()], cache=cache)
    calls = counted(teacher)
    other = make_batch(reversed_pairs(6, seed=2), ids=range(6, 12))
    for batch in (sample, other, sample, other):
        teacher.encode(batch)
    assert calls == [6, 6, 6]
    assert cache.used == whole.used


def test_numbers_that_return_with_other_words_take_no_more_room() -> None:
    """With alternating shards the first batch stays, and its size is counted once."""
    cache = EncoderCache(ROOM)
    teacher = Teacher([build_student()], cache=cache)
    shards = [make_batch([([1, 2, word], [1])]) for word in (3, 4)]
    used = []
    for turn in range(6):
        teacher.encode(shards[turn % 2])
        used.append(cache.used)
    assert used == [used[0]] * 6


def test_batch_that_a_member_can_not_encode_separately_is_not_kept() -> None:
    """It would take room and save nothing."""
    cache, sample = EncoderCache(ROOM), make_batch(reversed_pairs(4, seed=53))
    sample["net_input"]["token_embeddings"] = None
    Teacher([build_student()], cache=cache).encode(sample)
    assert cache.used == 0
    assert cache.find(sample) is None

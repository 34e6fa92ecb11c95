"""The teacher's encoder, run once a batch or once a training: the logits stay the same."""

import pytest
import torch

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.mixing.batch import take
from fairseq_imitkd.teacher.encoder_cache import EncoderCache, parse_bytes
from fairseq_imitkd.teacher.teacher import Teacher
from tests.helpers.fairseq_models import STUDENTS, build_student, make_batch, reversed_pairs, teacher_logits

ROOM = 1 << 20


def counted(teacher: Teacher) -> list[int]:
    """How many sentences the first member encodes, call by call."""
    calls: list[int] = []
    encoder = teacher.models[0].encoder
    plain = encoder.forward

    def forward(*args, **kwargs):
        calls.append((args[0] if args else kwargs["src_tokens"]).size(0))
        return plain(*args, **kwargs)

    encoder.forward = forward
    return calls


@pytest.mark.parametrize("name", STUDENTS)
def test_encoding_apart_changes_no_logit(name: str) -> None:
    """Bitwise, for every architecture; parts of a batch as the whole of it, to rounding."""
    teacher, sample = Teacher([build_student(name)]), make_batch(reversed_pairs(8, seed=51))
    with torch.no_grad():
        expected = teacher.models[0](**sample["net_input"])[0]
    encoded = teacher.encode(sample)
    assert teacher_logits(teacher, sample, encoded).equal(expected)
    assert teacher_logits(teacher, sample).equal(expected)
    rows = torch.tensor([1, 4, 6])
    part = take(sample, rows, 1, 1)
    width = part["target"].size(1)
    torch.testing.assert_close(
        teacher_logits(teacher, part, encoded, rows), expected[rows, :width], rtol=1e-4, atol=1e-5
    )


def test_member_that_can_not_encode_apart_runs_whole() -> None:
    """Whoever overrides the forward pass may do more in it than encode and decode."""

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
    apart = teacher_logits(Teacher([model]), sample, [None])
    with torch.no_grad():
        assert apart.equal(model(**sample["net_input"])[0])


def test_more_encoder_arguments_run_whole() -> None:
    """An argument that only a forward pass knows what to do with."""
    sample = make_batch(reversed_pairs(4, seed=52))
    sample["net_input"]["token_embeddings"] = None
    assert Teacher([build_student()]).encode(sample) == [None]


@pytest.mark.parametrize("name", ["transformer", "lstm-bidirectional", "fconv"])
def test_cached_batch_is_not_encoded_again(name: str) -> None:
    """Bitwise the same logits the second time; another batch is encoded."""
    plain = Teacher([build_student(name)])
    teacher = Teacher([build_student(name)], cache=EncoderCache(ROOM))
    samples = [make_batch(reversed_pairs(6, seed), ids=range(10 * seed, 10 * seed + 6)) for seed in (1, 2)]
    calls = counted(teacher)
    for sample in (*samples, *samples):
        assert teacher_logits(teacher, sample, teacher.encode(sample)).equal(teacher_logits(plain, sample))
    assert calls == [6, 6]


def test_same_numbers_of_another_data_set_are_encoded_anew() -> None:
    """Shards of a training set number their sentences alike."""
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
    """What no longer fits is not kept, and what was kept stays."""
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


def test_numbers_that_come_back_with_other_words_take_no_more_room() -> None:
    """Shards by turns: the first one's batch stays, and the room that it takes is counted once."""
    cache = EncoderCache(ROOM)
    teacher = Teacher([build_student()], cache=cache)
    shards = [make_batch([([1, 2, word], [1])]) for word in (3, 4)]
    used = []
    for turn in range(6):
        teacher.encode(shards[turn % 2])
        used.append(cache.used)
    assert used == [used[0]] * 6


def test_batch_that_a_member_can_not_encode_apart_is_not_kept() -> None:
    """It would take room and save nothing."""
    cache, sample = EncoderCache(ROOM), make_batch(reversed_pairs(4, seed=53))
    sample["net_input"]["token_embeddings"] = None
    Teacher([build_student()], cache=cache).encode(sample)
    assert cache.used == 0
    assert cache.find(sample) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("1024", 1024), ("512MB", 512 << 20), ("2GB", 2 << 30), ("1.5g", 3 << 29), ("64 kb", 1 << 16)],
)
def test_sizes(text: str, expected: int) -> None:
    """Numbers alone are bytes."""
    assert parse_bytes(text, "--teacher-encoder-cache") == expected


@pytest.mark.parametrize("text", ["", "9" * 400, "much", "-1GB", "2XB", "GB", "1e3", "2GB2"])
def test_no_size_is_refused(text: str) -> None:
    """In one line that names the flag and the value."""
    with pytest.raises(
        UsageError, match=f"--teacher-encoder-cache must be a size such as 512MB or 2GB.*'{text}'"
    ):
        parse_bytes(text, "--teacher-encoder-cache")

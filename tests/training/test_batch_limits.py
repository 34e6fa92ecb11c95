"""Data sets that fairseq can't make batches of: what is left out, what is warned of, and what is refused."""

from typing import Any

import numpy as np
import pytest

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.training.batch_limits import Split, fitting

TRAIN, VALID = Split("--train-subset", "train", True), Split("--valid-subset", "valid", False)
TYPED = Split("", "", False)


class Lengths:
    """A data set that is known by the lengths of its sentences, as fairseq's are."""

    def __init__(self, *lengths: int, vectors: bool = True):
        self.lengths, self.vectors = np.array(lengths, dtype=np.int64), vectors

    def __len__(self) -> int:
        return len(self.lengths)

    def filter_indices_by_size(self, indices: np.ndarray, limits: tuple[int, int]) -> Any:
        fits = self.lengths[indices] <= min(limits)
        return indices[fits], indices[~fits].tolist()

    def num_tokens(self, index: int) -> int:
        return int(self.lengths[index])

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        if not self.vectors:
            raise NotImplementedError
        return self.lengths[indices]


def test_sets_that_fit_are_passed_on() -> None:
    arguments = {"max_positions": (9, 9), "max_tokens": 9, "required_batch_size_multiple": 2, "seed": 1}
    assert fitting(Lengths(3, 9, 4), TRAIN, arguments) is arguments


def test_every_sentence_is_validated_and_translated() -> None:
    """fairseq drops the last ``N % multiple``."""
    arguments = {"required_batch_size_multiple": 8}
    for split in (VALID, TYPED):
        assert fitting(Lengths(*[3] * 11), split, arguments) == {"required_batch_size_multiple": 1}
    assert fitting(Lengths(*[3] * 11), TRAIN, arguments) == arguments


def test_long_sentences_are_left_out_of_a_validation(caplog: Any) -> None:
    """fairseq ends at the first one. From a training set it leaves them out itself, and says so."""
    data, arguments = Lengths(3, 12, *[20] * 7), {"max_positions": (9, 9)}
    assert fitting(data, VALID, arguments) == {**arguments, "ignore_invalid_inputs": True}
    assert caplog.messages == [
        "8 of the sentences of --valid-subset 'valid' have more than 9/9 tokens (source, target) and are "
        "left out: 1, 2, 3, 4, 5, …"
    ]


def test_a_training_set_that_loses_sentences(caplog: Any) -> None:
    """A few are left out without a word of ours; many with a warning; nearly all are refused."""
    arguments = {"max_positions": (9, 9)}
    assert fitting(Lengths(12, *[3] * 9), TRAIN, arguments) == arguments
    assert not caplog.messages
    assert fitting(Lengths(12, 12, *[3] * 8), TRAIN, arguments) == arguments
    [line] = caplog.messages
    assert line.startswith("2 of the 10 sentences of --train-subset 'train' have more than 9/9 tokens")
    with pytest.raises(UsageError, match=r"^19 of the 20 sentences .* raise --max-tokens, "):
        fitting(Lengths(3, *[12] * 19), TRAIN, arguments)


def test_a_long_line_is_not_translated(caplog: Any) -> None:
    """Others are, whatever forbids it. fairseq would end, and with an empty input it has nothing to do."""
    assert fitting(Lengths(3, 12), TYPED, {"max_positions": (9, 9)})["ignore_invalid_inputs"]
    later = Split("", "", False, lines_before=40)
    found = fitting(Lengths(3, 8, 12), later, {"max_positions": (9, 9), "max_tokens": 7})
    assert found == {"max_positions": (7, 7), "max_tokens": 7, "ignore_invalid_inputs": True}
    assert caplog.messages == [
        f"line {line} is not translated, because it has {tokens} tokens, more than the {limit} that "
        "--max-tokens and the model allow: shorten it"
        for line, tokens, limit in ((2, 12, 9), (42, 8, 7), (43, 12, 7))
    ]
    assert fitting(Lengths(12), TYPED, {"max_positions": (9, 9)})["ignore_invalid_inputs"]
    assert fitting(Lengths(), TYPED, {}) == {}


@pytest.mark.parametrize("split", [TRAIN, VALID])
def test_sets_without_a_sentence_are_refused(split: Split) -> None:
    for data, what in (
        (Lengths(12), "no sentence of at most 9/9 tokens"),
        (Lengths(), "no sentence (source"),
    ):
        with pytest.raises(UsageError) as refused:
            fitting(data, split, {"max_positions": (9, 9)})
        assert str(refused.value).startswith(f"{split.flag} '{split.name}' holds {what}")
        assert "raise --max-tokens, --max-source-positions and --max-target-positions" in str(refused.value)


@pytest.mark.parametrize("vectors", [True, False])
def test_max_tokens_below_a_sentence(vectors: bool) -> None:
    """In training the trainer counts ``--max-tokens`` among the positions."""
    data = Lengths(3, 8, 20, vectors=vectors)
    arguments = {"max_positions": (9, 9), "max_tokens": 7}
    split = Split("--valid-subset", "valid", False, "--max-tokens-valid")
    with pytest.raises(UsageError) as refused:
        fitting(data, split, arguments)
    assert str(refused.value) == (
        "--max-tokens-valid 7 is below the longest sentence of --valid-subset 'valid', which has 8 tokens: "
        "raise it"
    )
    assert fitting(data, split, {**arguments, "max_tokens": 8})["max_tokens"] == 8
    fitting(data, TRAIN, arguments)


def test_fewer_sentences_than_the_multiple_of_a_batch(caplog: Any) -> None:
    """They are one batch. fairseq would drop it, and train or validate on nothing."""
    arguments = {"required_batch_size_multiple": 8}
    for split in (TRAIN, VALID):
        assert fitting(Lengths(3, 4), split, arguments) == {"required_batch_size_multiple": 1}
    assert caplog.messages[0] == (
        "--train-subset 'train' has 2 sentences, fewer than --required-batch-size-multiple 8, which is not "
        "used for it"
    )
    assert fitting(Lengths(*[3] * 8), TRAIN, arguments) == arguments

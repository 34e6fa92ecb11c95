"""Does a teacher know the data? Its likelihoods of the first references, against their definition."""

import logging
import math
import random
from collections import Counter
from typing import Any

import pytest
import torch
from fairseq.data import LanguagePairDataset

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.teacher.likelihood import (
    COUNTED,
    LEAST,
    SENTENCES,
    Likelihood,
    check_likelihood,
    likelihoods,
)
from fairseq_imitkd.teacher.teacher import Teacher
from tests.helpers.fairseq_models import build_student, letters, reversed_pairs, trained_student

PAD, SYMBOLS = letters().pad(), len(letters())


def sentences(pairs: list[tuple[list[int], list[int]]]) -> LanguagePairDataset:
    """Return fairseq's data set of these letters."""
    dictionary = letters()
    sides = [
        [
            torch.tensor([number + dictionary.nspecial for number in pair[side]] + [dictionary.eos()])
            for pair in pairs
        ]
        for side in (0, 1)
    ]
    lengths = [[row.numel() for row in side] for side in sides]
    return LanguagePairDataset(
        sides[0], lengths[0], dictionary, sides[1], lengths[1], dictionary, left_pad_source=True
    )


def permuted(pairs: list[tuple[list[int], list[int]]], side: int) -> list[tuple[list[int], list[int]]]:
    """Return the sentences as a permuted dictionary would number the letters of one side."""
    order = list(range(len(letters()) - letters().nspecial))
    random.Random(5).shuffle(order)
    rows = [
        tuple([order[n] for n in row] if k == side else row for k, row in enumerate(pair)) for pair in pairs
    ]
    return rows  # type: ignore[return-value]


def check(teacher: Teacher, dataset: Any, **settings: Any) -> None:
    check_likelihood(teacher, dataset, paths=["t.pt"], pad=PAD, symbols=SYMBOLS, **settings)


def plain_loss(model: Any, dataset: LanguagePairDataset, sources: list[int]) -> tuple[float, int]:
    """Return the summed negative log-probability and the number of tokens, each alone in float64."""
    total, tokens = 0.0, 0
    for number, source in enumerate(sources):
        row = dict(dataset[number], source=dataset[source]["source"])
        sample = dataset.collater([row])
        with torch.no_grad():
            logits = model(**sample["net_input"])[0].double()
        total -= float(logits.log_softmax(-1).gather(-1, sample["target"].unsqueeze(-1)).sum())
        tokens += sample["target"].numel()
    return total, tokens


def test_likelihoods_equal_their_definition() -> None:
    """Own sources, those of the sentences half a batch away, and absolutely discounted frequencies."""
    dataset = sentences(reversed_pairs(80, seed=3))
    models = [trained_student("transformer"), build_student(seed=7).eval()]
    found = likelihoods(Teacher(models), dataset, pad=PAD, symbols=SYMBOLS)
    first = [dataset.collater([dataset[number] for number in range(SENTENCES)])["id"].tolist()][0]
    others = dict(zip(first, [first[k - SENTENCES // 2] for k in range(SENTENCES)], strict=True))
    for likelihood, model in zip(found, models, strict=True):
        own, tokens = plain_loss(model, dataset, list(range(SENTENCES)))
        assert likelihood.sentences == SENTENCES
        assert likelihood.own == pytest.approx(own / tokens, rel=1e-5)
        change = moved = 0.0
        for target, source in ((number, others[number]) for number in range(SENTENCES)):
            if dataset[target]["source"].equal(dataset[source]["source"]):
                continue
            pair = sentences(reversed_pairs(80, seed=3))
            pair.src = [dataset[target]["source"], dataset[source]["source"]]
            pair.tgt = [dataset[target]["target"]] * 2
            pair.src_sizes = pair.tgt_sizes = [1, 1]
            change += plain_loss(model, pair, [0])[0] * -1 + plain_loss(model, pair, [1])[0]
            moved += dataset[target]["target"].numel()
        assert likelihood.other == pytest.approx(own / tokens + change / moved, rel=1e-4)
    rows = [dataset[number]["target"].tolist() for number in range(min(COUNTED, len(dataset)))]
    counts = Counter(symbol for row in rows for symbol in row)
    size, rest = sum(counts.values()), 0.75 * len(counts) / SYMBOLS
    losses = [
        -math.log((max(counts[symbol] - 0.75, 0) + rest) / size) for row in rows[:SENTENCES] for symbol in row
    ]
    assert found[0].frequencies == pytest.approx(sum(losses) / len(losses), rel=1e-9)


@pytest.mark.parametrize(
    ("own", "other", "sentences", "problem"),
    [
        (1.0, 3.0, 64, ""),
        (3.2, 3.2, 64, ""),  # hardly trained: as good as the frequencies
        (3.3, 5.0, 64, "symbol frequencies 3.00"),
        (math.nan, math.nan, 64, "symbol frequencies 3.00"),
        (math.inf, math.inf, 64, "symbol frequencies 3.00"),
        (1.0, 1.1, 64, "with other sources"),
        (1.0, math.nan, 64, ""),  # all sentences have one source
        (9.0, 9.0, LEAST - 1, ""),  # too few to tell
    ],
)
def test_what_shows_that_a_teacher_does_not_know_the_data(
    own: float, other: float, sentences: int, problem: str
) -> None:
    """The frequencies alone give 3.0 nats."""
    found = Likelihood(own, other, 3.0, sentences).problem
    assert problem in found
    assert bool(found) == bool(problem)


@pytest.mark.parametrize(
    ("own", "frequencies", "sentences", "judged"),
    [
        (1.4, 5.93, 64, "knows this data"),
        (5.3, 5.93, 64, "knows this data"),
        (5.77, 5.93, 64, "weak: little better than symbol frequencies"),  # 0.5 BLEU
        (6.1, 5.93, 64, "weak: little better than symbol frequencies"),
        (6.3, 5.93, 64, "does not know this data"),
        (1.4, 5.93, LEAST - 1, "too few to judge"),
    ],
)
def test_a_teacher_is_good_if_it_is_clearly_better(
    own: float, frequencies: float, sentences: int, judged: str
) -> None:
    """A weak one is not refused: it has hardly been trained."""
    likelihood = Likelihood(own, own + 3.0, frequencies, sentences)
    assert str(likelihood).endswith(f" {frequencies:.2f} by symbol frequencies: {judged}")
    assert bool(likelihood.problem) == (judged == "does not know this data")


@pytest.mark.parametrize(("side", "why"), [(0, "symbol frequencies"), (1, "symbol frequencies")])
def test_a_teacher_of_another_dictionary_is_refused(
    side: int, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A permuted source dictionary, and a permuted target dictionary; ``--teacher-allow-poor`` only warns."""
    caplog.set_level(logging.INFO)
    pairs = reversed_pairs(200, seed=9)
    teacher = Teacher([trained_student("transformer")])
    check(teacher, sentences(pairs))
    assert "nats a token of the first 64 references (less is better)" in caplog.text
    assert "by symbol frequencies: knows this data" in caplog.text
    with pytest.raises(UsageError, match=r"--teacher-path 't\.pt' does not know this data") as refused:
        check(teacher, sentences(permuted(pairs, side)))
    assert why in str(refused.value)
    assert "--teacher-allow-poor" in str(refused.value)
    caplog.clear()
    check(teacher, sentences(permuted(pairs, side)), allow_poor=True)
    assert why in caplog.text


def test_each_member_must_know_the_data_unless_one_is_chosen_for_each_sentence() -> None:
    """``--teacher-selection`` needs one member for each sentence."""
    dataset = sentences(reversed_pairs(200, seed=9))
    stranger = build_student(seed=3).eval()
    for parameter in stranger.parameters():
        parameter.data *= 30  # confident and wrong
    members = Teacher([trained_student("transformer"), stranger])
    with pytest.raises(UsageError, match=r"'b\.pt' does not know this data"):
        check_likelihood(members, dataset, paths=["a.pt", "b.pt"], pad=PAD, symbols=SYMBOLS)
    check_likelihood(members, dataset, paths=["a.pt", "b.pt"], pad=PAD, symbols=SYMBOLS, selects=True)


def test_no_random_number_is_drawn() -> None:
    """LayerDrop draws in evaluation mode too; the training's numbers stay the same."""
    teacher = Teacher([build_student(encoder_layerdrop=0.5, decoder_layerdrop=0.5).eval()])
    before = torch.get_rng_state()
    check(teacher, sentences(reversed_pairs(200, seed=9)), allow_poor=True)
    assert torch.get_rng_state().equal(before)


def test_a_symbol_beyond_the_dictionary_is_named() -> None:
    """The data was binarised with a larger dictionary than the one beside it."""
    dataset = sentences(reversed_pairs(200, seed=9))
    dataset.tgt[3][0] = SYMBOLS
    with pytest.raises(
        UsageError, match=f"sentence 3 of DATA holds symbol {SYMBOLS}, but its target dictionary"
    ):
        check(Teacher([trained_student("transformer")]), dataset)

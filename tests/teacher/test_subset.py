"""A teacher with more symbols than the student: exact, its mass on the others logged, or refused."""

import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary, LanguagePairDataset
from fairseq.models import ARCH_CONFIG_REGISTRY, BaseFairseqModel

from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.teacher.likelihood import check_likelihood
from fairseq_imitkd.teacher.loading import load_teacher
from fairseq_imitkd.teacher.source import TeacherSource
from fairseq_imitkd.teacher.teacher import Teacher
from tests.helpers.fairseq_models import (
    POSITIONS,
    STUDENTS,
    checkpoint_state,
    letters,
    trained_student,
    training_config,
    write_dictionaries,
)
from tests.helpers.teacher_checkpoints import saved

SOURCE, TARGET = "pacegikmo", "bdfahjln"  # in another order than the teacher's


def dictionary(symbols: str) -> Dictionary:
    made = Dictionary()
    for symbol in symbols:
        made.add_symbol(symbol)
    return made


def opened(path: str, source: str = SOURCE, target: str = TARGET) -> Teacher:
    pair = LanguagePair("src", "tgt", dictionary(source), dictionary(target))
    teacher = load_teacher(TeacherSource(path, dtype="fp32"), pair)
    teacher.place(torch.device("cpu"), torch.float32)
    return teacher


def checkpoint(folder: Path, model: BaseFairseqModel, kind: str) -> str:
    """Save a teacher over all letters."""
    write_dictionaries(folder)
    state = checkpoint_state(model, training_config(folder, "--task", "translation"))
    arch, settings = STUDENTS[kind]
    positions = {"max_source_positions": POSITIONS, "max_target_positions": POSITIONS}
    args = Namespace(arch=arch, _name=arch, criterion="", **{**positions, **settings})
    ARCH_CONFIG_REGISTRY[arch](args)
    state["cfg"]["model"] = args
    return str(saved(folder, state))


def rows(count: int, symbols: str) -> list[torch.Tensor]:
    """Sentences of random symbols, with an EOS."""
    generator = torch.Generator().manual_seed(count)
    return [
        torch.cat(
            [torch.randint(4, 4 + len(symbols), (5 + number % 4,), generator=generator), torch.tensor([2])]
        )
        for number in range(count)
    ]


def data(source: str = SOURCE, target: str = TARGET) -> LanguagePairDataset:
    sources, targets = rows(40, source), rows(40, target)
    sizes = [[len(row) for row in side] for side in (sources, targets)]
    return LanguagePairDataset(sources, sizes[0], dictionary(source), targets, sizes[1], dictionary(target))


@pytest.mark.parametrize("kind", ["transformer", "lstm"])
@pytest.mark.parametrize("sides", ["both", "source", "target"])
def test_distribution_and_mass_are_exact(tmp_path: Path, kind: str, sides: str, caplog: Any) -> None:
    """Against the whole teacher in float64: renormalised over the shared symbols, the mass of the others."""
    model = trained_student(kind).eval()
    source = SOURCE if sides != "target" else letters().symbols[4:]
    target = TARGET if sides != "source" else letters().symbols[4:]
    teacher = opened(checkpoint(tmp_path, model, kind), "".join(source), "".join(target))
    dataset = data("".join(source), "".join(target))
    sample = dataset.collater([dataset[number] for number in range(40)])
    found = teacher.score(sample).logits(slice(None)).double().log_softmax(-1)
    whole, theirs = model.double(), letters()
    index = {
        side: torch.tensor([theirs.index(symbol) for symbol in dictionary("".join(own)).symbols])
        for side, own in (("source", source), ("target", target))
    }
    net_input = sample["net_input"]
    with torch.no_grad():
        logits = whole(
            index["source"][net_input["src_tokens"]],
            net_input["src_lengths"],
            index["target"][net_input["prev_output_tokens"]],
        )[0].flatten(0, 1)
    expected = logits[:, index["target"]].log_softmax(-1)
    counted = sample["target"].ne(1).flatten()
    torch.testing.assert_close(found[counted], expected[counted], rtol=0, atol=2e-5)
    mass = 1.0 - logits.softmax(-1)[:, index["target"]].sum(-1)[counted].mean().item()
    with caplog.at_level(logging.INFO):
        check_likelihood(
            teacher, dataset, paths=["t.pt"], pad=1, symbols=len(dataset.tgt_dict), allow_poor=True
        )
    logged = [
        line.getMessage() for line in caplog.records if "symbols that the student lacks" in line.getMessage()
    ]
    if sides == "source":
        assert teacher.outside is None
        assert not logged
    else:
        [line] = logged
        assert abs(float(line.split("teacher t.pt: ")[1].split("%")[0]) - 100 * mass) < 0.01 * 100 * mass
        assert mass > 0.01


def test_what_is_not_a_subset_is_refused(tmp_path: Path) -> None:
    """The message names the way through text."""
    path = checkpoint(tmp_path, trained_student("transformer"), "transformer")
    for source, target in ((SOURCE, TARGET + "?"), (SOURCE + "?", TARGET)):
        with pytest.raises(UsageError, match="imitkd-seqkd --student-data"):
            opened(path, source, target)
    with pytest.raises(UsageError, match="imitkd-seqkd --student-data"):
        opened(f"{path}:{path}")

"""An imported model of many languages as the teacher of a student of several pairs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fairseq_imitkd.checkpoints.tags import TagNames
from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.models.tagged import untagged
from fairseq_imitkd.teacher.language_pairs import load_teacher_of_pairs
from fairseq_imitkd.teacher.source import TeacherSource
from fairseq_imitkd.teacher.teacher import Teacher


def load(case: Any, tags: Callable[[tuple[str, str]], TagNames]) -> Teacher:
    """Load an imported model as the teacher of both directions of its two languages."""
    languages = case.languages
    pairs = [
        LanguagePair(*pair, languages.source_dictionary, languages.target_dictionary)
        for pair in (case.pair, case.pair[::-1])
    ]
    source = TeacherSource(str(case.out / "model.pt"), data=str(case.out))
    return load_teacher_of_pairs(source, pairs, tags, reads_eos_first=True)


def written(pair: tuple[str, str]) -> TagNames:
    """Return the tags of ``--encoder-langtok src --decoder-langtok``."""
    return TagNames((f"__{pair[0]}__",), target_start=("</s>", f"__{pair[1]}__"))


def test_m2m_reads_both_directions_in_one_batch(imported: Callable[[str], Any]) -> None:
    """Its tags stand where fairseq's task puts them, and each row has its own."""
    case = imported("m2m")
    teacher = load(case, written)
    dictionary = case.languages.source_dictionary
    german, english = (dictionary.index(f"__{language}__") for language in ("de", "en"))
    eos = dictionary.eos()
    sources = torch.tensor([[german, 9, 8, eos], [english, 7, 6, eos]])
    inputs = torch.tensor([[english, 11, 12], [german, 13, 14]])
    net_input = {"src_tokens": sources, "src_lengths": torch.tensor([4, 4]), "prev_output_tokens": inputs}
    found = teacher.score({"net_input": net_input, "target": inputs}).logits(slice(None))
    with torch.no_grad():
        own = untagged(teacher.models[0])(
            sources, torch.tensor([4, 4]), torch.cat([torch.full((2, 1), eos), inputs], 1)
        )
    torch.testing.assert_close(found, own[0][:, 1:].flatten(0, 1))


@pytest.mark.parametrize(
    ("name", "tags", "message"),
    [
        ("nllb", written, "has deu_Latn in the source and eng_Latn in the target, the student __deu"),
        ("m2m", lambda pair: TagNames((f"__{pair[1]}__",)), "the student __en__ in the source: use its"),
    ],
)  # fmt: skip
def test_tags_in_other_places_or_of_another_form_are_one_line(
    name: str, tags: Any, message: str, imported: Callable[[str], Any]
) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        load(imported(name), tags)
    assert len(str(raised.value)) <= 200

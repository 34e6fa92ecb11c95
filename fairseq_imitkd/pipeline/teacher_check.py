"""The check that a given teacher knows the text, before anything runs: its steps would refuse it later."""

import os
from pathlib import Path

import torch
from fairseq.data import Dictionary, LanguagePairDataset
from torch import Tensor

from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.pipeline.plan import Plan
from fairseq_imitkd.pipeline.runner import key_of_step
from fairseq_imitkd.pipeline.sentencepieces import first_lines
from fairseq_imitkd.teacher.likelihood import COUNTED, check_likelihood
from fairseq_imitkd.teacher.loading import load_teacher
from fairseq_imitkd.teacher.source import TeacherSource
from fairseq_imitkd.text.pieces import open_pieces

ALLOWED = "--teacher-allow-poor"


def check_teacher(plan: Plan, *, has_recipe: bool = True) -> None:
    """Refuse a teacher's checkpoint that does not know the training text, unless every step allows it.

    Args:
        plan: the plan.
        has_recipe: whether the user has written a recipe, which can allow it.

    Raises:
        UsageError: it does not.
    """
    recipe = plan.recipe
    path, folder = recipe.teacher.checkpoint, recipe.teacher.dictionaries
    asked = [(step.name, command.words) for step in plan.steps for command in step.commands]
    asked = [(name, words) for name, words in asked if str(path) in words and "--teacher-path" in words]
    refusing = list(
        dict.fromkeys(key_of_step(name, ALLOWED) for name, words in asked if ALLOWED not in words)
    )
    if path is None or folder is None or recipe.text.made_up is not None or not refusing:
        return
    names = (recipe.source, recipe.target)
    dictionaries = [Dictionary.load(str(folder / f"dict.{name}.txt")) for name in names]
    pair = recipe.text.pairs["train"]
    sides = [
        _symbols(text, plan, dictionary)
        for text, dictionary in zip((pair.source, pair.target), dictionaries, strict=True)
    ]
    languages = LanguagePair(*names, *dictionaries)
    teacher = load_teacher(TeacherSource(str(path), dtype="fp32", data=str(folder)), languages)
    teacher.place(torch.device("cpu"), torch.float32)
    sizes = [[len(tokens) for tokens in side] for side in sides]
    data = LanguagePairDataset(sides[0], sizes[0], dictionaries[0], sides[1], sizes[1], dictionaries[1])
    try:
        check_likelihood(
            teacher, data, paths=[os.fspath(path)], pad=dictionaries[1].pad(), symbols=len(dictionaries[1])
        )
    except UsageError as error:
        keys = f"key{'s' * (len(refusing) > 1)} {' and '.join(refusing)}"
        remedy = f"{ALLOWED} to {'the' if has_recipe else 'a'} recipe's {keys}"
        raise UsageError(str(error).replace("--teacher-path", "teacher").replace(ALLOWED, remedy)) from error


def _symbols(path: Path, plan: Plan, dictionary: Dictionary) -> list[Tensor]:
    """Return the symbols of a file's first lines, an EOS at the end of each, ``(T,)`` int64."""
    subwords, lines = plan.recipe.subwords, first_lines(str(path), COUNTED)
    if subwords is not None and subwords.model is not None:
        pieces = open_pieces(subwords.model, "sentencepiece").encode(lines, out_type=str)
        lines = [" ".join(line) for line in pieces]
    return [dictionary.encode_line(line, add_if_not_exist=False).long() for line in lines]

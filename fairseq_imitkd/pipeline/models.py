"""The models of a recipe, over the dictionary that they will have, and their numbers of parameters."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from fairseq.data import Dictionary
from fairseq.models import BaseFairseqModel
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from fairseq_imitkd.checkpoints.budget import budget_of
from fairseq_imitkd.checkpoints.build import build_model, configuration, refuse_expressions
from fairseq_imitkd.checkpoints.safe_load import read_checkpoint, reported
from fairseq_imitkd.export.architecture import SYMBOLS, build
from fairseq_imitkd.pipeline.recipe import Recipe
from fairseq_imitkd.text.pieces import open_pieces


@dataclass(frozen=True)
class Sizes:
    """The numbers of parameters of a recipe's models.

    Args:
        students: of each method's student, by the method's name.
        teacher: of the teacher; None if it is not imported yet.
        is_exact: whether the dictionary exists; otherwise its size is estimated.
    """

    students: Mapping[str, int]
    teacher: int | None
    is_exact: bool

    def __str__(self) -> str:
        if self.teacher is None:
            return "parameters are not counted: the teacher is not imported yet"
        name, student = self._largest
        which = "student" if len(set(self.students.values())) == 1 else f"largest student ({name})"
        about = "" if self.is_exact else "about "
        return (
            f"parameters: {which} {about}{student:,}, teacher {about}{self.teacher:,} (the student has "
            f"{_share(student / self.teacher)})"
        )

    @property
    def warning(self) -> str | None:
        """What to change if a student is not smaller than its teacher, else None."""
        name, student = self._largest
        if self.teacher is None or student < self.teacher:
            return None
        return (
            f"{name}'s student has {student:,} parameters, and its teacher {self.teacher:,}: choose a "
            "smaller arch or smaller dimensions in the recipe's key student"
        )

    @property
    def _largest(self) -> tuple[str, int]:
        return max(self.students.items(), key=lambda named: named[1])


def _share(times: float) -> str:
    if times < 0.01:
        return f"{100 * times:.2g}% of them"
    return f"{times:.0%} of them" if times < 2 else f"{times:,.1f} times as many"


def sizes(recipe: Recipe, students: Mapping[str, BaseFairseqModel]) -> Sizes:
    """Count the parameters of a recipe's models.

    Args:
        recipe: the recipe.
        students: each method's student, over the dictionary of :func:`symbols`.

    Raises:
        UsageError: the teacher's checkpoint can't be read.
    """
    has_teacher = recipe.teacher.huggingface is None
    teacher = _parameters(teacher_of(recipe, has_weights=False)) if has_teacher else None
    counts = {name: _parameters(student) for name, student in students.items()}
    return Sizes(counts, teacher, is_exact=recipe.teacher.dictionaries is not None)


def _parameters(model: BaseFairseqModel) -> int:
    return sum(each.numel() for each in model.parameters())


def symbols(recipe: Recipe) -> int:
    """Return the number of symbols in the student's dictionary, as far as it is known.

    fairseq's special symbols do not count.
    """
    if recipe.teacher.dictionaries is not None:
        dictionary = Dictionary.load(str(recipe.teacher.dictionaries / f"dict.{recipe.target}.txt"))
        return len(dictionary) - dictionary.nspecial
    if recipe.subwords is None:
        return SYMBOLS
    if recipe.subwords.model is None:
        return recipe.subwords.vocabulary
    return int(open_pieces(recipe.subwords.model, "sentencepiece").get_piece_size())


def teacher_of(recipe: Recipe, *, has_weights: bool = True) -> BaseFairseqModel:
    """Return the teacher, or a model of the shape that it will have.

    Args:
        recipe: the recipe, whose teacher is a checkpoint or will be trained.
        has_weights: whether it must have weights; otherwise it is built without them if possible.

    Raises:
        UsageError: the checkpoint can't be read.
    """
    if recipe.teacher.checkpoint is None:
        own = ("--user-dir", str(recipe.user_dir)) if recipe.user_dir else ()
        flags = (*own, *recipe.training, *recipe.teacher.flags)
        return build(flags, symbols(recipe), has_weights=has_weights)
    path = str(recipe.teacher.checkpoint)
    state = read_checkpoint(path, None)
    assert recipe.teacher.dictionaries is not None
    with reported(path, "teacher"):
        cfg = configuration(state)
        refuse_expressions(cfg)
        sides = (recipe.source, recipe.target)
        files = (str(recipe.teacher.dictionaries / f"dict.{side}.txt") for side in sides)
        task = TranslationTask(TranslationConfig(), *map(Dictionary.load, files))
        if not has_weights:
            with suppress(Exception), torch.device("meta"), budget_of(state["model"].values()):
                return task.build_model(cfg.model, from_checkpoint=True)
        return build_model(state, cfg, task)

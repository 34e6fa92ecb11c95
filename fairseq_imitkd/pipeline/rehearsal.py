"""A rehearsal of a recipe: every step runs, in minutes, so that nothing fails for the first time days later.

It reads the beginning of the text. Trainings have few updates. If the recipe trains the teacher, all models
are tiny; otherwise teacher and students keep their sizes. The scores mean nothing.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fairseq.models import ARCH_MODEL_REGISTRY

from fairseq_imitkd.export.architecture import import_user_dir
from fairseq_imitkd.pipeline.reading import last_value
from fairseq_imitkd.pipeline.recipe import MadeUp, Method, Recipe

SENTENCES = {"train": 300, "valid": 30, "test": 30, "mono": 300}  # from the beginning of each text
UPDATES = 4
# imitkd-seqkd drops a translation that does not end, so the teacher has to learn to end its sentences.
TEACHER_UPDATES, TEACHER = 200, ("--lr", "2e-2", "--dropout", "0")
TINY = {
    "--encoder-embed-dim": "16", "--decoder-embed-dim": "16", "--decoder-out-embed-dim": "16",
    "--encoder-ffn-embed-dim": "32", "--decoder-ffn-embed-dim": "32",
    "--encoder-attention-heads": "2", "--decoder-attention-heads": "2",
    "--encoder-hidden-size": "8", "--decoder-hidden-size": "16",
    "--encoder-layers": "1", "--decoder-layers": "1",
}  # fmt: skip
SIZED = (
    "--encoder-embed-path", "--decoder-embed-path", "--encoder-layers-to-keep", "--decoder-layers-to-keep",
)  # fmt: skip
OF_ALL_TEXT = "--curriculum-scores"  # a file with a line for each sentence, of which a rehearsal reads few
OTHER_ENDS = {"--max-epoch": 0, "--patience": -1, "--stop-min-lr": -1, "--stop-time-hours": 0}
ANY_TEACHER = ("--teacher-allow-poor",)  # one of few updates; a teacher that is given must be good enough


def rehearsal(recipe: Recipe) -> Recipe:
    """Return the recipe of a rehearsal."""
    if recipe.user_dir is not None and recipe.user_dir.is_dir():  # a later check refuses it otherwise
        import_user_dir(["--user-dir", str(recipe.user_dir)])
    recipe = _of_some_text(recipe)
    trains_teacher = bool(recipe.teacher.flags)
    teacher = recipe.teacher
    if trains_teacher:
        own = (*recipe.training, *teacher.flags)
        teacher = replace(
            teacher, flags=(*teacher.flags, *_tiny(own), *_short(own, TEACHER_UPDATES), *TEACHER)
        )
    return replace(
        recipe,
        text=replace(recipe.text, made_up=_made_up(recipe.text.made_up), references=_references(recipe)),
        teacher=teacher,
        methods=tuple(_method(method, recipe, is_tiny=trains_teacher) for method in recipe.methods),
        translations={
            name: replace(how, flags=(*how.flags, *(ANY_TEACHER if trains_teacher else ())))
            for name, how in recipe.translations.items()
        },
        evaluation=recipe.evaluation
        and replace(recipe.evaluation, flags=("--quick", *recipe.evaluation.flags)),
        export=recipe.export and replace(recipe.export, flags=(*recipe.export.flags, *_checks(recipe))),
        first=SENTENCES,
    )


def _of_some_text(recipe: Recipe) -> Recipe:
    """Return the recipe without the flags of files that have a line for each sentence of the whole text."""

    def kept(flags: Sequence[str]) -> tuple[str, ...]:
        return tuple(
            word
            for word, before in zip(flags, ("", *flags), strict=False)
            if OF_ALL_TEXT not in (word.partition("=")[0], before)
        )

    return replace(
        recipe,
        training=kept(recipe.training),
        distillation=kept(recipe.distillation),
        student=kept(recipe.student),
        teacher=replace(recipe.teacher, flags=kept(recipe.teacher.flags)),
        methods=tuple(
            replace(method, flags=kept(method.flags), student=kept(method.student))
            for method in recipe.methods
        ),
    )


def _method(method: Method, recipe: Recipe, *, is_tiny: bool) -> Method:
    flags = (*recipe.training, *recipe.student_of(method), *recipe.distillation, *method.flags)
    more = (*(_tiny(flags) if is_tiny else ()), *_short(flags, UPDATES))
    has_poor_teacher = method.teacher is not None or (is_tiny and method.criterion is not None)
    return replace(method, flags=(*method.flags, *more, *(ANY_TEACHER if has_poor_teacher else ())))


def _tiny(flags: Sequence[str]) -> tuple[str, ...]:
    """Return the flags of a tiny model of the architecture that some flags name."""
    model = ARCH_MODEL_REGISTRY.get(last_value(flags, "--arch"))
    if model is None:
        return ()  # a later check names the architecture
    if any(last_value(flags, flag) for flag in SIZED):
        return ()  # what these flags name has its sizes
    parser = argparse.ArgumentParser(allow_abbrev=False)
    model.add_args(parser)
    pairs = [pair for pair in TINY.items() if not parser.parse_known_args(list(pair))[1]]
    return tuple(word for pair in pairs for word in pair)


def _short(flags: Sequence[str], updates: int) -> tuple[str, ...]:
    """Return the flags that end a training after a few updates."""
    counts = {
        "--max-update": updates,
        "--validate-interval-updates": updates // 2,
        "--save-interval-updates": updates // 2,
        "--log-interval": 1,
    }
    if_given = {
        "--warmup-updates": updates // 4,
        "--total-num-update": updates,
        "--validate-after-updates": 0,
    }
    if_given |= OTHER_ENDS
    counts |= {flag: count for flag, count in if_given.items() if last_value(flags, flag)}
    return tuple(word for flag, count in counts.items() for word in (flag, str(count)))


def _checks(recipe: Recipe) -> tuple[str, ...]:
    """Return the flags of an export that any student passes. Hugging Face's format has no loss to limit."""
    accepts = ("--max-loss", "100") if recipe.is_served else ()
    return "--sentences", "20", *accepts


def _made_up(made_up: MadeUp | None) -> MadeUp | None:
    if made_up is None:
        return None
    return replace(made_up, sizes={name: min(size, SENTENCES[name]) for name, size in made_up.sizes.items()})


def _references(recipe: Recipe) -> Path | None:
    """Return the file of all references, if it has a line for each sentence of the rehearsal."""
    return recipe.text.references if recipe.text.made_up is not None else None

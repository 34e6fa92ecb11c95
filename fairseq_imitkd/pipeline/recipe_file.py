"""Reads a recipe from a YAML file. docs/distil.md describes its keys."""

import contextlib
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairseq.criterions import CRITERION_REGISTRY

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.export.exporter import QUANTIZATIONS
from fairseq_imitkd.pipeline.reading import Section, flag_in, last_value, load, shown
from fairseq_imitkd.pipeline.recipe import (
    DEVICES,
    EXPORTED,
    HUGGINGFACE,
    JOINED,
    NONE,
    RAW,
    SEPARATE,
    SEQKD,
    SERVED,
    TEACHER,
    Evaluation,
    Export,
    MadeUp,
    Method,
    Pair,
    Recipe,
    Subwords,
    Teacher,
    Text,
    Translations,
)
from fairseq_imitkd.pipeline.rehearsal import rehearsal
from fairseq_imitkd.quick.near import closest
from fairseq_imitkd.quick.recipe_words import SPLITS

KEYS = (
    "languages", "text", "sentencepiece", "dictionaries", "teacher", "student", "training", "distillation",
    "seqkd", "translations", "methods", "seeds", "evaluate", "export", "device", "threads", "processes",
    "user_dir", "about", "folder", "rehearsal",
)  # fmt: skip
NAME = r"\w[\w.]*"  # of a method
LONGEST_NAME = 100  # bytes of a name, which is a part of names of files
LARGEST_VOCABULARY = 1_000_000  # symbols
MOST_THREADS, MOST_SHARDS = 1024, 1000
ENDS = ("--max-update", "--max-epoch", "--patience", "--stop-min-lr", "--stop-time-hours")
# Folders and steps of a run, whose names translations can't have.
RESERVED = (
    "text", "raw", "mono", TEACHER, SEQKD, "models", EXPORTED, "evaluation", "logs",
    "subwords", "import", "binarise", "export", "evaluate", "report",
)  # fmt: skip

# Flags that the steps set themselves, with what to do instead.
_LANGUAGES = dict.fromkeys(("--source-lang", "--target-lang"), "use languages")
_TEACHER = dict.fromkeys(("--teacher-path", "--teacher-data"), "use teacher")
SET_IN_TRAININGS = {
    **_LANGUAGES,
    **_TEACHER,
    "--save-dir": "leave it out: models lie in the run's folder",
    "--seed": "use seeds, or leave it out: a teacher's is 1",
    "--user-dir": "use user_dir",
}
SET_IN_COMMANDS = {
    **_LANGUAGES,
    **_TEACHER,
    **dict.fromkeys(("--num-shards", "--shard-id"), "use shards"),
    "--references": "use text.references",
    "--format": "use export.format",
    "--data": "leave it out: the data lies in the run's folder",
    "--out": "leave it out: results lie in the run's folder",
}

# Flags of a training that leave no checkpoint_best.pt, which export, evaluation and other students read.
WITHOUT_BEST = ("--disable-validation", "--no-save", "--checkpoint-suffix")

# Flags of every training of a recipe that has no others.
TRAINING = (
    "--optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1 --lr 7e-4 --lr-scheduler inverse_sqrt "
    "--warmup-updates 4000 --max-tokens 4096 --max-update 100000 --dropout 0.1 --no-epoch-checkpoints "
    "--validate-interval-updates 2000 --save-interval-updates 2000 --keep-interval-updates 1 "
    """--eval-bleu --eval-bleu-args '{"beam": 1}'"""
)
STUDENT = "--arch transformer_imitkd_2_2 --share-decoder-input-output-embed"


def methods_for(training: Sequence[str]) -> list[Any]:
    """Return the methods of a recipe that names none: SeqKD, and ``imitkd`` from its student.

    That student can write, so it writes every sentence. Its training is a quarter as long, at 0.3 of the
    learning rate: a choice, which a recipe can make otherwise.

    Args:
        training: the flags of every training.
    """
    flags = ["--student-share", "constant:1"]
    with contextlib.suppress(ValueError):  # several rates, one for each epoch
        flags += ["--lr", f"{0.3 * float(last_value(training, '--lr')):g}"]
    updates = last_value(training, "--max-update")
    if updates.isdecimal():
        quarter = max(1, int(updates) // 4)
        for flag in ("--warmup-updates", "--validate-interval-updates", "--save-interval-updates"):
            given = last_value(training, flag)
            if given.isdecimal() and int(given) > 0:
                flags += [flag, str(min(int(given), max(1, quarter // 10)))]
        flags += ["--max-update", str(quarter)]
    then = {"criterion": "imitkd", "name": "then_imitkd", "start": SEQKD, "data": SEQKD}
    return [SEQKD, {**then, "flags": " ".join(flags)}]


def read(path: Path, folder: Path | None = None) -> Recipe:
    """Read a recipe.

    Args:
        path: its file.
        folder: folder that its relative paths start from; None is that of the file.

    Raises:
        UsageError: a key or a value is wrong.
    """
    return parse(load(path), path.resolve().parent if folder is None else folder.absolute())


def parse(content: Any, folder: Path) -> Recipe:
    """Return the recipe that a YAML file's content describes.

    Args:
        content: the content.
        folder: folder that its relative paths start from, if the key ``folder`` names no other.

    Raises:
        UsageError: a key or a value is wrong.
    """
    recipe = Section("", content, KEYS, folder=folder)
    if "folder" in recipe:
        recipe = Section("", content, KEYS, folder=recipe.path("folder"))
    source, target = _languages(recipe)
    translations = _translations(recipe)
    training, seeds = recipe.flags("training", TRAINING), _seeds(recipe)
    methods = _methods(recipe, ("text", *translations), training)
    made = Recipe(
        source=source,
        target=target,
        text=_text(recipe),
        subwords=_subwords(recipe),
        dictionaries=recipe.choice("dictionaries", (JOINED, SEPARATE), JOINED),
        teacher=_teacher(recipe),
        student=_student(recipe),
        training=training,
        distillation=recipe.flags("distillation"),
        translations=translations,
        methods=methods,
        seeds=seeds,
        evaluation=_evaluation(recipe, methods),
        export=_export(recipe, methods),
        device=recipe.choice("device", DEVICES, "auto"),
        threads=recipe.number("threads", 1, most=MOST_THREADS),
        processes=recipe.number("processes", 1, most=MOST_THREADS),
        user_dir=recipe.path("user_dir") if "user_dir" in recipe else None,
        about=recipe.text("about") if "about" in recipe else "",
    )
    if "dictionaries" in recipe and not made.teacher.flags:
        raise UsageError("dictionaries changes nothing with this teacher, which has its own; leave it out")
    _check_flags(made)
    _check_starts(made)
    _check_subwords(made)
    _check_mono(made)
    _check_translations(made)
    _check_ends(made)
    _check_best(made)
    return rehearsal(made) if recipe.yes_or_no("rehearsal", False) else made


def _languages(recipe: Section) -> tuple[str, str]:
    value = recipe.get("languages")
    pair = value.split("-") if isinstance(value, str) else value
    if (
        not isinstance(pair, list)
        or len(pair) != 2
        or not all(isinstance(name, str) and re.fullmatch(r"\w+", name) for name in pair)
        or pair[0] == pair[1]
    ):
        raise recipe.wrong("languages", "must be two names, such as de-en or [deu_Latn, eng_Latn]")
    for name in pair:
        _check_length("languages", name)
    return pair[0], pair[1]


def _text(recipe: Section) -> Text:
    section = recipe.section("text", (*SPLITS, "mono", "references", "origin", "made_up"))
    if "made_up" in section:
        return _made_up(section)
    pairs = {}
    for split in SPLITS:
        files = section.get(split)
        if not isinstance(files, list) or len(files) != 2:
            raise section.wrong(split, f"must be two files, such as [{split}.de, {split}.en]")
        pairs[split] = Pair(*(section.path_of(split, file) for file in files))
    return Text(
        pairs,
        section.path("references") if "references" in section else None,
        section.path("mono") if "mono" in section else None,
        origin=section.text("origin") if "origin" in section else "",
    )


def _made_up(text: Section) -> Text:
    other = next((key for key in text.content if key != "made_up"), None)
    if other is not None:
        raise UsageError(
            f"text.{other} changes nothing with text.made_up, which makes all text; leave it out"
        )
    section = text.section("made_up", (*SPLITS, "seed"))
    sizes = {split: section.number(split) for split in SPLITS}
    pairs = {split: Pair(Path(RAW, f"{split}.src"), Path(RAW, f"{split}.tgt")) for split in SPLITS}
    return Text(pairs, Path(RAW, "test.all"), made_up=MadeUp(sizes, section.number("seed", 1, least=0)))


def _translations(recipe: Section) -> dict[str, Translations]:
    found = {SEQKD: _how(recipe, SEQKD)}
    if "translations" in recipe:
        names = [str(name) for name in recipe.mapping("translations")]
        section = recipe.section("translations", names)
        for name in names:
            _check_length("translations", name)
            if not re.fullmatch(r"[A-Za-z]\w*", name) or name in RESERVED:
                raise UsageError(f"translations.{name} must be another name, of letters, digits and '_'")
            found[name] = _how(section, name)
    return found


def _how(of: Section, key: str) -> Translations:
    if not isinstance(of.content.get(key), Mapping):
        return Translations(of.flags(key))
    section = of.section(key, ("flags", "shards"))
    return Translations(section.flags("flags"), section.number("shards", 1, most=MOST_SHARDS))


def _subwords(recipe: Section) -> Subwords | None:
    if "sentencepiece" not in recipe:
        return None
    if isinstance(recipe.get("sentencepiece"), str):
        return Subwords(recipe.path("sentencepiece"))
    section = recipe.section("sentencepiece", ("model", "vocabulary"))
    if ("model" in section) == ("vocabulary" in section):
        raise UsageError(
            "sentencepiece must have either model, a file, or vocabulary, the number of symbols of a new one"
        )
    if "model" in section:
        return Subwords(section.path("model"))
    return Subwords(None, section.number("vocabulary", least=10, most=LARGEST_VOCABULARY))


def _teacher(recipe: Section) -> Teacher:
    if isinstance(recipe.get("teacher"), str):
        path = recipe.path("teacher")
        return Teacher(path, dictionaries=path.parent)
    section = recipe.section("teacher", ("checkpoint", "dictionaries", "huggingface", "arch", "flags"))
    given = [key for key in ("checkpoint", "huggingface", "arch") if key in section]
    if len(given) != 1:
        raise UsageError(
            "teacher must have one of checkpoint, huggingface and arch, but has "
            f"{' and '.join(given) or 'none of them'}"
        )
    for key, of in (("dictionaries", "checkpoint"), ("flags", "arch")):
        if key in section and of not in section:
            raise UsageError(f"teacher.{key} changes nothing without teacher.{of}; leave it out")
    if "huggingface" in section:
        return Teacher(huggingface=section.path("huggingface"))
    if "arch" in section:
        return Teacher(flags=_model(section))
    path = section.path("checkpoint")
    folder = section.path("dictionaries") if "dictionaries" in section else path.parent
    return Teacher(path, dictionaries=folder)


def _student(recipe: Section) -> tuple[str, ...]:
    if "student" not in recipe:
        return recipe.flags("student", STUDENT)
    if isinstance(arch := recipe.content["student"], str):
        raise UsageError(
            f"student must have keys, but is {shown(arch)}; write student: {{arch: {arch[:60]}}}"
        )
    section = recipe.section("student", ("arch", "flags"))
    return _model(section)


def _model(section: Section) -> tuple[str, ...]:
    """Return the flags of a model's section."""
    flags = section.flags("flags")
    _refuse(f"{section.name}.flags", flags, {"--arch": f"use {section.name}.arch"})
    return "--arch", section.text("arch"), *flags


def _methods(recipe: Section, data: Sequence[str], training: Sequence[str]) -> tuple[Method, ...]:
    methods: list[Method] = []
    listed = recipe.sequence("methods", methods_for(training), "seqkd, imitkd_full")
    for number, entry in enumerate(listed, 1):
        if "user_dir" not in recipe:  # which may have criteria of any name
            _check_criterion(f"methods[{number}]", entry)
        method = _method(f"methods[{number}]", entry, recipe.folder, data=data)
        if any(method.name == other.name for other in methods) or method.name in (TEACHER, EXPORTED):
            raise UsageError(f"methods[{number}].name '{method.name}' is taken; give the method another name")
        methods.append(method)
    for number, method in enumerate(methods, 1):
        earlier = [other.name for other in methods[: number - 1]]
        for key, name in (("start", method.start), ("teacher", method.teacher)):
            if name is not None and name not in earlier:
                known = closest(name, earlier) if earlier else "list that method before this one"
                raise UsageError(f"methods[{number}].{key} '{name}' is not a method before this one: {known}")
    return tuple(methods)


def criteria() -> tuple[str, ...]:
    """Return all names that a method's ``criterion`` may have without a ``user_dir``."""
    return NONE, SEQKD, *CRITERION_REGISTRY


def _check_criterion(name: str, entry: Any) -> None:
    """Refuse another spelling of a method. The check of the training's flags does not know ``none`` and
    ``seqkd``.
    """
    value = entry.get("criterion") if isinstance(entry, Mapping) else entry
    if not isinstance(value, str) or value in (known := criteria()):
        return
    near = difflib.get_close_matches(value.lower().replace("-", "_"), known, 1, cutoff=0.75)
    if near and (near[0] in (NONE, SEQKD) or not re.fullmatch(NAME, value)):
        raise UsageError(f"{name}.criterion {shown(value)} is not a method: did you mean {near[0]}?")


def _method(name: str, entry: Any, folder: Path, *, data: Sequence[str]) -> Method:
    if isinstance(entry, str):
        entry = {"criterion": entry}
    keys = ("name", "criterion", "data", "start", "mono", "flags", "student", "teacher", "seeds")
    section = Section(name, entry, keys, folder=folder)
    criterion = section.text("criterion")
    own = section.text("name", criterion)
    key = "name" if "name" in section else "criterion"
    if not re.fullmatch(NAME, own):
        raise section.wrong(key, "must consist of letters, digits, '_' and '.'")
    _check_length(f"{name}.{key}", own)
    learns = section.choice("data", data, SEQKD if criterion == SEQKD else "text")
    if criterion == SEQKD and learns != SEQKD:
        raise section.wrong("data", f"must be {SEQKD} with criterion {SEQKD} (use {NONE} for references)")
    return Method(
        name=own,
        criterion=None if criterion in (NONE, SEQKD) else criterion,
        data=learns,
        start=section.text("start") if "start" in section else None,
        mono=section.share("mono") if "mono" in section else None,
        flags=section.flags("flags"),
        student=_model(section.section("student", ("arch", "flags"))) if "student" in section else (),
        teacher=section.text("teacher") if "teacher" in section else None,
        seeds=_seeds(section) if "seeds" in section else (),
    )


def _check_length(key: str, name: str) -> None:
    """Refuse a name that would be too long as a part of a file's name."""
    if len(name.encode(errors="replace")) > LONGEST_NAME:
        raise UsageError(f"{key} must have at most {LONGEST_NAME} bytes, but is {shown(name)}; shorten it")


def _seeds(recipe: Section) -> tuple[int, ...]:
    seeds = recipe.sequence("seeds", (1,), "1, 2, 3")
    if not all(type(seed) is int and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise recipe.wrong("seeds", "must be different whole numbers of 0 or more, such as [1, 2, 3]")
    return tuple(seeds)


def _evaluation(recipe: Section, methods: Sequence[Method]) -> Evaluation | None:
    value = recipe.content.get("evaluate", True)
    if isinstance(value, bool):
        return Evaluation() if value else None
    if value is None or isinstance(value, str):
        return Evaluation(flags=recipe.flags("evaluate"))
    section = recipe.section("evaluate", ("baseline", "flags"))
    return Evaluation(_named_method(section, "baseline", methods), section.flags("flags"))


def _export(recipe: Section, methods: Sequence[Method]) -> Export | None:
    value = recipe.content.get("export", True)
    if isinstance(value, bool | None):
        return Export() if value is not False else None
    if isinstance(value, str):
        return Export(quantization=recipe.choice("export", QUANTIZATIONS, "int8"))
    section = recipe.section("export", ("method", "format", "quantization", "flags"))
    form = section.choice("format", (SERVED, HUGGINGFACE), SERVED)
    if form == HUGGINGFACE and "quantization" in section:
        raise UsageError(
            "export.quantization changes nothing with export.format huggingface, which has float32 alone; "
            "leave it out"
        )
    return Export(
        _named_method(section, "method", methods),
        form,
        section.choice("quantization", QUANTIZATIONS, "int8"),
        section.flags("flags"),
    )


def _named_method(section: Section, key: str, methods: Sequence[Method]) -> str | None:
    if key not in section:
        return None
    names = [method.name for method in methods]
    value = section.text(key)
    if value not in names:
        raise UsageError(
            f"{section.name}.{key} {shown(value)} is not one of the methods: {closest(value, names)}"
        )
    return value


def _check_flags(recipe: Recipe) -> None:
    """Refuse flags that the steps set themselves, so that one of the two would change nothing."""
    for key, flags in recipe.flags():
        for word in flags:
            if flag_in(word)[0] == "--help":
                raise UsageError(f"{key} has {word}, which prints a help text and ends; leave it out")
        is_training = key in ("training", "distillation") or key.endswith(".flags")
        _refuse(key, flags, SET_IN_TRAININGS if is_training else SET_IN_COMMANDS)
        if is_training and (lost := [word for word in flags if word.partition("=")[0] in WITHOUT_BEST]):
            raise UsageError(
                f"{key} has {lost[0]}, so a training would leave no checkpoint_best.pt, which later steps "
                "read; leave it out"
            )
        if key in ("training", "distillation") or key.endswith("student.flags"):
            loss = "name it in methods, or in the flags of none or of the teacher"
            _refuse(key, flags, {"--criterion": loss})
        if key in ("training", "distillation"):
            _refuse(key, flags, {"--arch": "use student.arch or teacher.arch"})
    for number, method in enumerate(recipe.methods, 1):
        key = f"methods[{number}].flags"
        if method.criterion is not None:
            _refuse(key, method.flags, {"--criterion": f"use methods[{number}].criterion"})
        if method.start is not None:
            _refuse(key, method.flags, {"--finetune-from-model": "leave it out beside start"})


def _refuse(key: str, flags: Sequence[str], remedies: Mapping[str, str]) -> None:
    for word in flags:
        remedy = remedies.get(flag_in(word)[0])
        if remedy is not None:
            name = word.partition("=")[0]
            raise UsageError(f"{key} has {name}, which imitkd-distill sets itself; {remedy}")


def _check_starts(recipe: Recipe) -> None:
    """Refuse a start of another size or without the seed, and a teacher that nothing asks."""
    for number, method in enumerate(recipe.methods, 1):
        key = f"methods[{number}]"
        if method.teacher is not None and method.criterion is None:
            raise UsageError(
                f"{key}.teacher changes nothing without a criterion that has a teacher; leave it out"
            )
        if method.start is None:
            continue
        start = recipe.method(method.start)
        if recipe.student_of(start) != recipe.student_of(method):
            raise UsageError(
                f"{key}.start '{start.name}' has another student; give both the same key student, or leave "
                "start out"
            )
        lacking = [seed for seed in recipe.seeds_of(method) if seed not in recipe.seeds_of(start)]
        if lacking:
            raise UsageError(
                f"{key}.start '{start.name}' has no student of seed {lacking[0]}; add it to that "
                "method's seeds"
            )


def _check_subwords(recipe: Recipe) -> None:
    """Refuse subwords that can't be the teacher's."""
    if recipe.teacher.huggingface is not None:
        for key, flags in recipe.flags():
            if any(flag_in(word)[0] == "--subwords" for word in flags):
                raise UsageError(f"{key} has --subwords, which teacher.huggingface sets itself; leave it out")
    if recipe.teacher.huggingface is not None and recipe.subwords is not None:
        raise UsageError(
            "sentencepiece changes nothing with teacher.huggingface, which has its own; leave it out"
        )
    if (
        recipe.teacher.checkpoint is not None
        and recipe.subwords is not None
        and recipe.subwords.model is None
    ):
        raise UsageError(
            "sentencepiece.vocabulary trains new subwords, but teacher.checkpoint has its own; name its file"
        )


def _check_mono(recipe: Recipe) -> None:
    """Refuse text without translations that nothing reads, and a method that reads none."""
    for number, method in enumerate(recipe.methods, 1):
        if method.mono is None:
            continue
        if recipe.text.mono is None:
            raise UsageError(
                f"methods[{number}].mono is {method.mono}, but text.mono is not given; name a file of sources"
            )
        if method.criterion is None:
            raise UsageError(
                f"methods[{number}].mono needs a method with a teacher, but its criterion is "
                f"{SEQKD if method.data == SEQKD else NONE}; leave it out"
            )
    if recipe.text.mono is not None and not recipe.reads_mono and not recipe.translated_mono:
        if recipe.translated:
            raise UsageError(
                f"text.mono changes nothing: {recipe.translated[0]} has --select best, which needs "
                "references; add the method seqkd, or mono: 0.5 to a method with rollouts"
            )
        raise UsageError(
            "text.mono changes nothing: add the method seqkd, or mono: 0.5 to a method with rollouts"
        )


def _check_translations(recipe: Recipe) -> None:
    """Refuse the teacher's translations that no student learns from, and those of others."""
    for name, how in recipe.translations.items():
        key = SEQKD if name == SEQKD else f"translations.{name}"
        if name not in recipe.translated and (name != SEQKD or how != Translations()):
            raise UsageError(f"{key} changes nothing: no method has data: {name}; add it to one")
        if any(flag_in(word)[0] == "--translations" for word in how.flags):
            raise UsageError(
                f"{key} has --translations, but in a recipe the teacher translates; leave it out, or name "
                "translations of others in text.train"
            )


def _check_ends(recipe: Recipe) -> None:
    """Refuse a training that would not end."""
    for key, flags in recipe.trainings():
        if not any(_is_above_zero(last_value(flags, flag)) for flag in ENDS):
            raise UsageError(
                f"training has no --max-update, so the training of {key} would not end; add --max-update N"
            )


def _check_best(recipe: Recipe) -> None:
    """Refuse a training that ends before its first checkpoint of a validation: later steps read the best."""
    for key, flags in recipe.trainings():
        after, updates = (_number(flags, flag) for flag in ("--validate-after-updates", "--max-update"))
        if 0 < updates < after:
            raise UsageError(
                f"the training of {key} has --validate-after-updates {after}, above its --max-update "
                f"{updates}, so it would leave no checkpoint_best.pt; lower it"
            )
        epochs = _number(flags, "--max-epoch")
        both = math.lcm(*(_number(flags, flag) or 1 for flag in ("--save-interval", "--validate-interval")))
        others = ("--max-update", "--stop-time-hours", "--save-interval-updates")
        if 0 < epochs < both and not any(_is_above_zero(last_value(flags, flag)) for flag in others):
            raise UsageError(
                f"the training of {key} has --max-epoch {epochs}, but would save what it has validated after "
                f"{both} epochs first; lower --save-interval or --validate-interval"
            )


def _number(flags: Sequence[str], flag: str) -> int:
    """Return the whole number that a flag has, else 0; a later check refuses a value that is not one."""
    value = last_value(flags, flag)
    return int(value) if value.isdecimal() else 0


def _is_above_zero(value: str) -> bool:
    """Whether a flag's value may end a training; a later check refuses one that is not a number."""
    try:
        return float(value or 0) > 0
    except ValueError:
        return True

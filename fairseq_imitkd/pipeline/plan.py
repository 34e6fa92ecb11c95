"""The plan: every step that a recipe asks for, with its commands and the hash of all that it depends on."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

from fairseq_imitkd.pipeline import made_up, sentencepieces
from fairseq_imitkd.pipeline.reading import last_value
from fairseq_imitkd.pipeline.recipe import (
    EXPORTED,
    JOINED,
    RAW,
    TEACHER,
    MadeUp,
    Method,
    Recipe,
)
from fairseq_imitkd.quick.recipe_words import SPLITS

STATE = ".steps"  # folder for the plan, and for what is noted about its steps
FELL_BACK = 3  # imitkd-export has written another quantisation than the one that was asked for
MONO, MONO_DATA = "mono", "mono-bin"  # source text without translations
GLOO = ("--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp")  # of several processes without GPUs
PLAIN = ("--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1")


@dataclass(frozen=True)
class Command:
    """A command of a step.

    Args:
        words: its name and arguments; the working directory is the run's folder.
        given: file that it reads as standard input.
        lines: number of lines of that file that it reads; None reads all.
        out: file for its standard output; None is the log.
        statuses: exit statuses of success.
        processes: number of processes, which ``torchrun`` starts if there are several.
    """

    words: tuple[str, ...]
    given: str | None = None
    lines: int | None = None
    out: str | None = None
    statuses: tuple[int, ...] = (0,)
    processes: int = 1


@dataclass(frozen=True)
class Step:
    """A step.

    Args:
        name: its name.
        commands: what it runs, in turn.
        results: files and folders that it makes. A command may write ``RESULT.part`` instead.
        needs: names of the steps whose results it reads.
        resumes: whether its commands continue what a killed attempt began.
        gpus: GPUs that it takes.
        threads: threads that all its processes compute with.
        updates: number of updates of a training, if the recipe gives it.
        depends: what else the results depend on.
        key: a hash of all that the results depend on.
    """

    name: str
    commands: tuple[Command, ...]
    results: tuple[str, ...]
    needs: tuple[str, ...] = ()
    resumes: bool = False
    gpus: int = 0
    threads: int = 1
    updates: int | None = None
    depends: tuple[str, ...] = ()
    key: str = ""


@dataclass
class Plan:
    """All steps of a recipe, each after those that it needs.

    Args:
        recipe: the recipe.
        digests: hashes of the contents of the files that the recipe names, by their paths.
    """

    recipe: Recipe
    digests: Mapping[str, str]
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        for step in self._all():
            keys = {name: self.step(name).key for name in step.needs}
            self.steps.append(_with_key(step, keys, self.digests))

    def step(self, name: str) -> Step:
        """Return the step of a name."""
        return next(step for step in self.steps if step.name == name)

    def to_json(self, programs: Path, environment: Mapping[str, str]) -> dict[str, Any]:
        """Return the plan as ``step.py`` and the Snakefile read it.

        Args:
            programs: folder of the commands.
            environment: environment variables for all commands.
        """
        steps = [asdict(step) for step in self.steps]
        return {"state": STATE, "programs": str(programs), "environment": dict(environment), "steps": steps}

    def students(self) -> Iterator[tuple[str, Method, int]]:
        """Yield each student's name, method and seed."""
        for method in self.recipe.methods:
            for seed in self.recipe.seeds_of(method):
                yield student_name(method.name, seed), method, seed

    def first_student(self, method: Method) -> str:
        """Return the name of a method's student of the first seed."""
        return student_name(method.name, self.recipe.seeds_of(method)[0])

    def flags(self, method: Method) -> tuple[str, ...]:
        """Return the flags of the training of a method's student of the first seed."""
        return self.step(f"train-{self.first_student(method)}").commands[0].words[2:]

    def _all(self) -> Iterator[Step]:
        recipe = self.recipe
        if recipe.text.made_up is not None:
            yield self._make_up(recipe.text.made_up)
        if recipe.subwords is not None and recipe.subwords.model is None:
            yield self._train_subwords()
        if recipe.teacher.huggingface is not None:
            yield self._import()
        for split in SPLITS:
            yield self._encode(split, *astuple(recipe.text.pairs[split]))
        yield self._binarise()
        if recipe.text.mono is not None:
            yield self._encode(MONO, recipe.text.mono)
        if recipe.reads_mono:
            yield self._binarise_mono()
        if recipe.teacher.flags:
            yield self._train_teacher()
        for name in recipe.translated:
            yield from self._translate(name)
            if name in recipe.translated_mono:
                yield from self._translate(name, mono=True)
        for name, method, seed in self.students():
            yield self._train(name, method, seed=seed)
        if recipe.exported is not None:
            yield self._export(recipe.exported)
        if recipe.evaluation is not None:
            yield self._evaluate(recipe.evaluation.flags)
            yield self._report()

    def _make_up(self, wanted: MadeUp) -> Step:
        sizes = (word for split, size in wanted.sizes.items() for word in (f"--{split}", str(size)))
        words = ("python", "-P", made_up.__file__, f"{RAW}.part", *sizes, "--seed", str(wanted.seed))
        return Step("text", (Command(words),), (RAW,))

    def _train_subwords(self) -> Step:
        assert self.recipe.subwords is not None
        train = self.recipe.text.pairs["train"]
        words: tuple[str, ...] = ("python", "-P", sentencepieces.__file__, "train", "subwords.model.part")
        words += (str(self.recipe.subwords.vocabulary), str(train.source), str(train.target))
        if self.recipe.first is not None:
            words += ("--lines", str(self.recipe.first["train"]))
        return Step("subwords", (Command(words),), ("subwords.model",), self._text_step)

    def _import(self) -> Step:
        words = ("imitkd-import", str(self.recipe.teacher.huggingface), "--out", TEACHER, *self._pair)
        return Step("import", (Command(words),), (TEACHER,))

    def _encode(self, split: str, *files: Path) -> Step:
        """Return the step that splits text: a file of the source language, and one of the target if given."""
        recipe, commands, results = self.recipe, [], []
        sides = (("source", recipe.source), ("target", recipe.target))
        for (side, language), raw in zip(sides, files, strict=False):
            result = f"text/{split}.{language}"
            results.append(result)
            if recipe.teacher.huggingface is not None:
                words: tuple[str, ...] = ("imitkd-encode", TEACHER, "--side", side)
            elif recipe.subwords is not None:
                words = ("python", "-P", sentencepieces.__file__, "encode", self._subword_model)
            else:
                words = ("cat",)
            lines = recipe.first[split] if recipe.first is not None else None
            commands.append(Command(words, given=str(raw), lines=lines, out=f"{result}.part"))
        needs = self._text_step
        if recipe.teacher.huggingface is not None:
            needs += ("import",)
        elif recipe.subwords is not None and recipe.subwords.model is None:
            needs += ("subwords",)
        return Step(f"encode-{split}", tuple(commands), tuple(results), needs)

    def _binarise(self) -> Step:
        recipe, needs = self.recipe, tuple(f"encode-{split}" for split in SPLITS)
        folder = TEACHER if recipe.teacher.huggingface is not None else recipe.teacher.dictionaries
        words = ["fairseq-preprocess", *self._pair, "--destdir", "data-bin.part"]
        for split in SPLITS:
            words += [f"--{split}pref", f"text/{split}"]
        if folder is None:
            words += ["--joined-dictionary"] * (recipe.dictionaries == JOINED)
        else:
            for flag, language in (("--srcdict", recipe.source), ("--tgtdict", recipe.target)):
                words += [flag, str(Path(folder, f"dict.{language}.txt"))]
        if recipe.teacher.huggingface is not None:
            needs = ("import", *needs)
        return Step("binarise", (Command(tuple(words)),), ("data-bin",), needs)

    def _binarise_mono(self) -> Step:
        dictionary = f"data-bin/dict.{self.recipe.source}.txt"
        words = ("fairseq-preprocess", *self._pair, "--only-source", "--srcdict", dictionary)
        command = Command((*words, "--trainpref", f"text/{MONO}", "--destdir", f"{MONO_DATA}.part"))
        return Step("binarise-mono", (command,), (MONO_DATA,), ("binarise", f"encode-{MONO}"))

    def _train_teacher(self) -> Step:
        own = self.recipe.teacher.flags
        flags = (*plain(own), *self.recipe.training, *own, "--seed", "1")
        return self._training("train-teacher", TEACHER, flags, data="data-bin", needs=("binarise",))

    def _translate(self, name: str, *, mono: bool = False) -> Iterator[Step]:
        """Yield the steps that let the teacher translate the text, or the text without translations.

        Shards write one folder together. The first step alone makes and deletes it.
        """
        wanted, folder, more = self.recipe.translations[name], name, tuple[str, ...]()
        needs = ("binarise", *self._teachers_step)
        if mono:
            folder, more = of_mono(name), ("--source-text", f"text/{MONO}.{self.recipe.source}")
            needs = (*needs, f"encode-{MONO}")
        words = ("imitkd-seqkd", "data-bin", *more, *self._taught, "--out", folder, *self._cpu, *wanted.flags)
        computes = self._computes(1)
        if wanted.shards == 1:
            yield Step(folder, (Command(words),), (folder,), needs, resumes=True, **computes)
            return
        make = Command(("mkdir", "-p", folder))
        yield Step(f"{folder}-begin", (make,), (folder,), needs, depends=words)
        names = [f"{folder}-shard{number}" for number in range(1, wanted.shards + 1)]
        for number, name in enumerate(names):
            shard = ("--num-shards", str(wanted.shards), "--shard-id", str(number))
            yield Step(name, (Command((*words, *shard)),), (), (f"{folder}-begin",), **computes)
        yield Step(folder, (Command(words),), (), tuple(names), **computes)

    def _train(self, name: str, method: Method, *, seed: int) -> Step:
        recipe, needs = self.recipe, ["binarise"]
        data = "data-bin"
        if method.data in recipe.translations:
            folders = [method.data]
            if method.data in recipe.translated_mono:
                folders.append(of_mono(method.data))
            data = ":".join(f"{folder}/data-bin" for folder in folders)
            needs += folders
        words = [*plain(method.flags)]
        if method.criterion is not None:
            words = ["--criterion", method.criterion]
            if method.teacher is None:
                words += self._taught
                needs += self._teachers_step
            else:
                assistant = self.first_student(recipe.method(method.teacher))
                words += ["--teacher-path", checkpoint_of(assistant), "--teacher-data", "data-bin"]
                needs.append(f"train-{assistant}")
        if method.mono is not None:
            words += ["--mono-source-data", MONO_DATA, "--mono-source-share", str(method.mono)]
            needs.append("binarise-mono")
        taught = recipe.distillation if method.criterion is not None else ()
        words += [*recipe.training, *recipe.student_of(method), *taught, *method.flags, "--seed", str(seed)]
        if method.start is not None:
            first = student_name(method.start, seed)
            words += ["--finetune-from-model", checkpoint_of(first)]
            needs.append(f"train-{first}")
        return self._training(f"train-{name}", f"models/{name}", words, data=data, needs=tuple(needs))

    def _training(
        self, name: str, folder: str, flags: Sequence[str], *, data: str, needs: tuple[str, ...]
    ) -> Step:
        own = ("--user-dir", str(self.recipe.user_dir)) if self.recipe.user_dir else ()
        count = self.recipe.processes
        words = ("imitkd-train", data, *self._pair, "--save-dir", folder, *self._cpu, *own, *together(count))
        words += (*(GLOO if count > 1 and self._cpu else ()), *flags)
        updates = last_value(flags, "--max-update")
        return Step(
            name,
            (Command(words, processes=count),),
            (folder,),
            needs,
            resumes=True,
            updates=int(updates) if updates.isdecimal() else None,
            **self._computes(count),
        )

    def _export(self, method: Method) -> Step:
        export, name = self.recipe.export, self.first_student(method)
        assert export is not None
        words = [
            "imitkd-export",
            checkpoint_of(name),
            "--data",
            "data-bin",
            "--out",
            EXPORTED,
        ]
        words += self._pair
        if self.recipe.is_served:
            words += ["--quantization", export.quantization]
        else:
            words += ["--format", export.format]
        words += self._imported_subwords
        if self.recipe.subwords is not None:
            words += ["--bpe", "sentencepiece", "--sentencepiece-model", self._subword_model]
        command = Command((*words, *export.flags), statuses=(0, FELL_BACK))
        return Step("export", (command,), (EXPORTED,), (f"train-{name}",), threads=self.recipe.threads)

    def _evaluate(self, flags: Sequence[str]) -> Step:
        names = [name for name, _, _ in self.students()]
        models = [f"{TEACHER}={self._teacher_path}"]
        models += [f"{name}={checkpoint_of(name)}" for name in names]
        needs = [*self._teachers_step, *(f"train-{name}" for name in names)]
        if self.recipe.exported is not None:
            needs.append("export")  # beside it, speeds would be measured on a busy machine
            if self.recipe.is_served:
                models.append(f"{EXPORTED}={EXPORTED}")
        words = ["imitkd-evaluate", "--data", "data-bin", *self._pair, "--out", "evaluation"]
        words += [*self._imported_subwords, "--teacher", TEACHER, "--threads", str(self.recipe.threads)]
        words += ["--baseline", self.first_student(self.recipe.baseline)]
        words += [word for model in models for word in ("--model", model)]
        if self.recipe.text.references is not None:
            words += ["--references", str(self.recipe.text.references)]
        command = Command((*words, *flags), out="evaluation.md.part")
        results = ("evaluation", "evaluation.md")
        return Step("evaluate", (command,), results, tuple(needs), threads=self.recipe.threads)

    @property
    def _imported_subwords(self) -> tuple[str, ...]:
        """The flags that name the subwords of a teacher of Hugging Face's format, which encoded the text."""
        return ("--subwords", TEACHER) if self.recipe.teacher.huggingface is not None else ()

    def _report(self) -> Step:
        folders = [f"models/{name}" for name, _, _ in self.students()]
        if self.recipe.teacher.flags:
            folders.insert(0, TEACHER)
        words = ("imitkd-report", *folders, "--evaluation", "evaluation", "--out", "report.html")
        return Step("report", (Command(words),), ("report.html",), ("evaluate",))

    @property
    def _pair(self) -> tuple[str, ...]:
        return "--source-lang", self.recipe.source, "--target-lang", self.recipe.target

    @property
    def _cpu(self) -> tuple[str, ...]:
        return () if self.recipe.device == "cuda" else ("--cpu",)

    def _computes(self, processes: int) -> dict[str, Any]:
        """Return what a step takes whose processes are each on a GPU, or on the threads in its place."""
        gpus = processes if self.recipe.device == "cuda" else 0
        return {"gpus": gpus, "threads": processes * self.recipe.threads}

    @property
    def _text_step(self) -> tuple[str, ...]:
        return ("text",) if self.recipe.text.made_up is not None else ()

    @property
    def _subword_model(self) -> str:
        subwords = self.recipe.subwords
        return str(subwords.model) if subwords and subwords.model else "subwords.model"

    @property
    def _teacher_path(self) -> str:
        if self.recipe.teacher.checkpoint is not None:
            return str(self.recipe.teacher.checkpoint)
        return f"{TEACHER}/{'checkpoint_best.pt' if self.recipe.teacher.flags else 'model.pt'}"

    @property
    def _taught(self) -> tuple[str, ...]:
        folder = self.recipe.teacher.dictionaries
        where = ("--teacher-data", str(folder)) if folder is not None else ()
        return "--teacher-path", self._teacher_path, *where

    @property
    def _teachers_step(self) -> tuple[str, ...]:
        if self.recipe.teacher.flags:
            return ("train-teacher",)
        return ("import",) if self.recipe.teacher.huggingface is not None else ()


def of_mono(name: str) -> str:
    """Return the folder of the teacher's translations of text without references."""
    return f"{name}-{MONO}"


def plain(flags: Sequence[str]) -> tuple[str, ...]:
    """Return the flags of a loss without a teacher, unless some flags name another one."""
    return () if last_value(flags, "--criterion") else PLAIN


def together(processes: int) -> tuple[str, ...]:
    """Return the flags of each of several processes that torchrun starts; its rank comes last."""
    if processes == 1:
        return ()
    meeting = ("--distributed-init-method", "env://", "--distributed-no-spawn")
    return "--distributed-world-size", str(processes), *meeting


def student_name(method: str, seed: int) -> str:
    """Return the name of a student."""
    return f"{method}-seed{seed}"


def checkpoint_of(student: str) -> str:
    """Return the path of a student's checkpoint."""
    return f"models/{student}/checkpoint_best.pt"


def _with_key(step: Step, keys: Mapping[str, str], digests: Mapping[str, str]) -> Step:
    """Return a step with its key.

    Files count by their content, so a file that is copied or touched changes nothing. The number of threads
    counts for the evaluation alone, whose speeds depend on it.
    """
    programs = {str(program.__file__): program.__name__ for program in (made_up, sentencepieces)}
    stands_for = {**digests, **programs}

    def named(word: str | None) -> str | None:
        if word is None or word in stands_for:
            return stands_for.get(word or "")
        before, equals, value = word.partition("=")  # --flag=FILE, a model NAME=FILE, or --model=NAME=FILE
        return f"{before}={named(value)}" if equals else word

    commands = [
        [
            *map(named, command.words),
            named(command.given),
            command.out,
            *[command.lines] * (command.lines is not None),
        ]
        for command in step.commands
    ]
    depends = [*map(named, step.depends)]
    content = json.dumps([step.name, commands, step.results, [keys[name] for name in step.needs], depends])
    return Step(**{**vars(step), "key": hashlib.sha256(content.encode()).hexdigest()[:16]})

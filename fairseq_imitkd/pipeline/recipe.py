"""The recipe: what a person wants. docs/distil.md describes its keys, and :mod:`recipe_file` reads it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fairseq_imitkd.pipeline.reading import last_value

DEVICES = ("auto", "cpu", "cuda")
JOINED, SEPARATE = "joined", "separate"  # one dictionary of both languages, or one of each
RAW = "raw"  # folder of made-up text in the run's folder
NONE, SEQKD = "none", "seqkd"  # the methods without a criterion of their own
SERVED, HUGGINGFACE = "auto", "huggingface"  # formats of imitkd-export
TEACHER, EXPORTED = "teacher", "exported"  # names in the evaluation that no student may have


@dataclass(frozen=True)
class Pair:
    """Two files of text: line N of one translates line N of the other."""

    source: Path
    target: Path


@dataclass(frozen=True)
class MadeUp:
    """Text in two made-up languages, of :mod:`~fairseq_imitkd.pipeline.made_up`.

    Args:
        sizes: number of sentences of each of :data:`SPLITS`.
        seed: decides languages and sentences.
    """

    sizes: Mapping[str, int]
    seed: int = 1


@dataclass(frozen=True)
class Text:
    """The text of a recipe.

    Args:
        pairs: the pair of files of each of :data:`SPLITS`; those of made-up text start from the run's folder.
        references: file with all right translations of each test sentence; None takes the test's target side.
        mono: file of text in the source language without translations.
        made_up: what is made up; None if the files exist.
        origin: where the files come from, for the message that one is missing.
    """

    pairs: Mapping[str, Pair]
    references: Path | None = None
    mono: Path | None = None
    made_up: MadeUp | None = None
    origin: str = ""


@dataclass(frozen=True)
class Translations:
    """Translations of the text by the teacher.

    Args:
        flags: flags of ``imitkd-seqkd``.
        shards: number of jobs that share the work.
    """

    flags: tuple[str, ...] = ()
    shards: int = 1


@dataclass(frozen=True)
class Subwords:
    """A SentencePiece model.

    Args:
        model: its file; None to train one.
        vocabulary: number of symbols of the one that is trained.
    """

    model: Path | None = None
    vocabulary: int = 0


@dataclass(frozen=True)
class Teacher:
    """The teacher: exactly one of its first three fields is given.

    Args:
        checkpoint: a checkpoint of fairseq.
        huggingface: a folder of a model of Hugging Face's format.
        flags: flags that train one, with ``--arch``.
        dictionaries: folder with the dictionaries of the checkpoint.
    """

    checkpoint: Path | None = None
    huggingface: Path | None = None
    flags: tuple[str, ...] = ()
    dictionaries: Path | None = None


@dataclass(frozen=True)
class Method:
    """How a student is trained.

    Args:
        name: its name in tables and folders.
        criterion: its ``--criterion``; None learns the targets of its data alone.
        data: ``text``, or the name of translations of it by the teacher, such as ``seqkd``.
        start: name of the method whose student it starts from; None starts from random weights.
        mono: share of the sentences of ``text.mono`` in its batches; None reads none.
        flags: further flags of its training.
        student: flags that describe its student, with ``--arch``; empty takes the recipe's.
        teacher: name of the method whose student of its first seed teaches; None is the recipe's teacher.
        seeds: it is trained once with each; empty takes the recipe's.
    """

    name: str
    criterion: str | None = None
    data: str = "text"
    start: str | None = None
    mono: float | None = None
    flags: tuple[str, ...] = ()
    student: tuple[str, ...] = ()
    teacher: str | None = None
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """What is compared, and how.

    Args:
        baseline: name of the method that others are compared with; None is the first one.
        flags: further flags of ``imitkd-evaluate``.
    """

    baseline: str | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Export:
    """What is exported.

    Args:
        method: name of the method whose student of the first seed is exported; None is the last one.
        format: :data:`SERVED`, for ``imitkd-serve``, or :data:`HUGGINGFACE`.
        quantization: as of ``imitkd-export``; only :data:`SERVED` has a choice.
        flags: further flags of ``imitkd-export``.
    """

    method: str | None = None
    format: str = SERVED
    quantization: str = "int8"
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A whole recipe.

    Args:
        source, target: the languages, which name files.
        text: the text.
        subwords: how text is split; None takes the subwords of a teacher of Hugging Face's format, or words.
        dictionaries: whether both languages have one dictionary, if the teacher is trained.
        teacher: the teacher.
        student: flags that describe the students, with ``--arch``, of methods that describe none.
        training: flags of every training.
        distillation: further flags of trainings with the teacher.
        translations: how the teacher translates, by the name of what it writes.
        methods: the students.
        seeds: every method is trained once with each, unless it has seeds of its own.
        evaluation: None leaves it out.
        export: None leaves it out.
        device: one of :data:`DEVICES`.
        threads: threads of a process.
        processes: processes of a training, each on a GPU of its own with ``device: cuda``.
        user_dir: package with methods of the user's own.
        about: what the recipe is, in a line.
        first: number of lines that are read of each text, by its name; None reads all.
    """

    source: str
    target: str
    text: Text
    teacher: Teacher
    subwords: Subwords | None = None
    dictionaries: str = JOINED
    student: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    distillation: tuple[str, ...] = ()
    translations: Mapping[str, Translations] = field(default_factory=lambda: {SEQKD: Translations()})
    methods: tuple[Method, ...] = ()
    seeds: tuple[int, ...] = (1,)
    evaluation: Evaluation | None = field(default_factory=Evaluation)
    export: Export | None = field(default_factory=Export)
    device: str = "auto"
    threads: int = 1
    processes: int = 1
    user_dir: Path | None = None
    about: str = ""
    first: Mapping[str, int] | None = None

    def method(self, name: str) -> Method:
        """Return the method of a name."""
        return next(method for method in self.methods if method.name == name)

    def student_of(self, method: Method) -> tuple[str, ...]:
        """Return the flags that describe a method's student, with ``--arch``."""
        return method.student or self.student

    def seeds_of(self, method: Method) -> tuple[int, ...]:
        """Return the seeds of a method's students."""
        return method.seeds or self.seeds

    def flags(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield the flags of all commands, each with the key that gives them."""
        yield "training", self.training
        yield "distillation", self.distillation
        yield "student.flags", self.student
        yield "teacher.flags", self.teacher.flags
        for number, method in enumerate(self.methods, 1):
            yield f"methods[{number}].flags", method.flags
            yield f"methods[{number}].student.flags", method.student
        for name, translations in self.translations.items():
            yield SEQKD if name == SEQKD else f"translations.{name}", translations.flags
        yield "evaluate", self.evaluation.flags if self.evaluation is not None else ()
        yield "export", self.export.flags if self.export is not None else ()

    def trainings(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield the flags of each kind of training in their order, with the key that it belongs to."""
        if self.teacher.flags:
            yield "teacher", (*self.training, *self.teacher.flags)
        for number, method in enumerate(self.methods, 1):
            taught = self.distillation if method.criterion is not None else ()
            yield f"methods[{number}]", (*self.training, *self.student_of(method), *taught, *method.flags)

    @property
    def translated(self) -> list[str]:
        """The names of the teacher's translations that students learn from."""
        used = {method.data for method in self.methods}
        return [name for name in self.translations if name in used]

    @property
    def translated_mono(self) -> list[str]:
        """Those that translate the text without references too: a selection by references can't."""
        if self.text.mono is None:
            return []
        flags = {name: self.translations[name].flags for name in self.translated}
        return [name for name in flags if last_value(flags[name], "--select") != "best"]

    @property
    def reads_mono(self) -> bool:
        """Whether a student is trained on source text without translations."""
        return any(method.mono is not None for method in self.methods)

    @property
    def baseline(self) -> Method:
        """The method that the others are compared with."""
        named = self.evaluation.baseline if self.evaluation else None
        if named is not None:
            return self.method(named)
        return next((method for method in self.methods if method.name == NONE), self.methods[0])

    @property
    def is_served(self) -> bool:
        """Whether the exported folder is one for ``imitkd-serve``, which ``imitkd-evaluate`` compares too."""
        return self.export is not None and self.export.format == SERVED

    @property
    def exported(self) -> Method | None:
        """The method whose student is exported."""
        if self.export is None:
            return None
        return self.method(self.export.method) if self.export.method else self.methods[-1]

"""``imitkd-distill``: from text and a teacher to a served student, by one recipe."""

import argparse
import difflib
import importlib.util
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from fairseq.models import BaseFairseqModel

from fairseq_imitkd.checkpoints.build import configuration
from fairseq_imitkd.checkpoints.safe_load import read_checkpoint
from fairseq_imitkd.checkpoints.translation import dictionary_folders
from fairseq_imitkd.cli.arguments import TEACHER_DATA, Parser, positive
from fairseq_imitkd.cli.extras import check_extra
from fairseq_imitkd.cli.later_flags import check_command, check_training
from fairseq_imitkd.cli.messages import show_warnings
from fairseq_imitkd.cli.steps_shown import Shown, roughly
from fairseq_imitkd.data.files import atomic_files
from fairseq_imitkd.engines.registry import engine_for, unsupported_reason
from fairseq_imitkd.errors import UsageError, one_line_errors, stoppable
from fairseq_imitkd.export.architecture import build
from fairseq_imitkd.export.huggingface_model import Inexpressible, describe
from fairseq_imitkd.pipeline import folder, inputs, recipe_file, seeds
from fairseq_imitkd.pipeline import step as step_program
from fairseq_imitkd.pipeline.estimate import Estimate, estimate
from fairseq_imitkd.pipeline.folder import Given
from fairseq_imitkd.pipeline.models import Sizes, sizes, symbols
from fairseq_imitkd.pipeline.packaged import listed as listed_recipes
from fairseq_imitkd.pipeline.plan import STATE, Plan, Step
from fairseq_imitkd.pipeline.reading import content_of, flag_in, last_value, parsed, text_of
from fairseq_imitkd.pipeline.recipe import Recipe
from fairseq_imitkd.pipeline.runner import DONE, Engine, Run, check_flags_of_snakemake, described, key_of_step
from fairseq_imitkd.pipeline.teacher_check import check_teacher
from fairseq_imitkd.quick.model_folder import is_huggingface
from fairseq_imitkd.quick.recipe_words import COMPRESSED, SPLITS, languages, packaged, problem
from fairseq_imitkd.text.counted import counted
from fairseq_imitkd.training.configuration.paths import check_folder_to_write

UPDATES = 100_000
CHECKED = ("imitkd-seqkd", "imitkd-export", "imitkd-evaluate")  # commands whose flags the recipe gives
PROGRAMS = Path(sys.executable).parent  # folder of the commands
PACKAGES = ("jinja2", "matplotlib", "ctranslate2")


@one_line_errors("; the same command continues")
@stoppable()
def main(arguments: list[str] | None = None) -> None:
    """Run the command; ``arguments`` default to those of the command line."""
    words = sys.argv[1:] if arguments is None else arguments
    show_warnings()
    own, flags = (
        (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    )
    args = parser().parse_args(own)
    if args.list:
        print(listed_recipes())
        return
    _check_words(args)
    if args.recipe is not None and args.recipe.is_dir() and packaged(args.recipe) is None:
        args.recipe = folder.recipe_in(args.recipe)
    if importlib.util.find_spec("snakemake") is None:  # to import it would change the settings of logging
        raise UsageError("imitkd-distill needs snakemake: pip install 'fairseq-imitkd[pipeline]'")
    check_extra("imitkd-distill", "pipeline", PACKAGES)
    check_flags_of_snakemake(flags)
    out = _out(args)
    with _named(args.recipe):
        wanted, given = _read(args)
    folder.check(out, given)
    if not args.graph:
        check_folder_to_write(out, "--out", out)
    wanted = _with_device(wanted)
    with _named(args.recipe):
        found = inputs.look(wanted)
        run = Run(Plan(wanted, found.digests), out)
        students = check(run.plan)
    for warning in (*found.repeated(wanted), *found.blank(wanted), *found.long):
        print(f"warning: {warning}", file=sys.stderr)
    check_programs(run.plan)
    parameters = sizes(wanted, students)
    needed = found.disk(wanted, max(parameters.students.values()))
    inputs.check_room(out, needed)
    if args.graph:
        print(described(run.plan.steps))
        return
    if not (out / STATE / "done").exists():
        check_teacher(run.plan, has_recipe=given.path is not None)
    if args.dry_run:
        is_done = all(status.state == DONE for status in run.statuses().values())
        expected = Estimate({}) if is_done else estimate(run.plan, found)
        gpus = len(_visible_gpus()) if args.profile is None and wanted.device == "cuda" else 0
        print(listed(run, needed, expected, cores=args.cores, gpus=gpus))
        print(parameters)
        _warn(parameters, wanted)
        return
    print(parameters, file=sys.stderr)
    _warn(parameters, wanted)
    engine = _engine(args, wanted, tuple(flags))
    if distil(run, engine, given) and args.rehearse:
        print(f"Next: {shlex.join(['imitkd-distill', *(word for word in words if word != '--rehearse')])}")


def parser() -> Parser:
    """Return the parser."""
    made = Parser(
        "imitkd-distill",
        "Make a small model of a teacher and text: encode the text, train students, compare them, export "
        "one. A recipe says all of it. The same command continues after a kill, and runs again what a change "
        "of the recipe changes.",
    )
    made.add_argument(
        "recipe",
        metavar="RECIPE",
        type=Path,
        nargs="?",
        help="YAML file (see docs/distil.md of the repository), a name of --list, or the folder of a run, "
        "which goes on",
    )
    made.add_argument("--list", action="store_true", help="list the recipes that come with the package")
    made.add_argument(
        "--text",
        type=Path,
        metavar="DIR",
        help="folder of the text of a recipe of --list (default: the current folder)",
    )
    made.add_argument("flags", metavar="FLAG", nargs="*", help="after --: flags of Snakemake")
    made.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the run (default: RECIPE without its suffix, or the folder of a run's recipe.yaml)",
    )
    made.add_argument(
        "--rehearse",
        action="store_true",
        help="run every step in minutes: a few hundred sentences, a few updates, and tiny models if the "
        "recipe trains the teacher; in DIR-rehearsal",
    )
    made.add_argument("--dry-run", action="store_true", help="check everything, list the steps, and run none")
    made.add_argument(
        "--graph",
        action="store_true",
        help="print the graph of the steps for Graphviz (| dot -Tsvg), and run none",
    )
    made.add_argument(
        "--cores",
        type=positive,
        metavar="N",
        help="threads that all steps together may take; trainings run side by side as far as they allow "
        "(default: all of this machine, or what --profile says)",
    )
    made.add_argument("--profile", metavar="P", help="profile of Snakemake, such as that of a cluster")
    _add_plain_case(made)
    return made


def _add_plain_case(made: Parser) -> None:
    new = made.add_argument_group(
        "in place of a recipe, which is then written to --out",
        "--teacher, --sentencepiece, --train, --valid, --test and --out must be given. A teacher of Hugging "
        "Face's format has its own subwords, and needs no --sentencepiece.",
    )
    new.add_argument(
        "--teacher", metavar="PATH", help="teacher's checkpoint, or a model's folder in Hugging Face's format"
    )
    new.add_argument(
        "--teacher-data",
        metavar="DIR",
        help=TEACHER_DATA,
    )
    new.add_argument("--sentencepiece", metavar="FILE", help="SentencePiece model of the teacher's text")
    for split in SPLITS:
        new.add_argument(
            f"--{split}",
            nargs=2,
            metavar=("SOURCE", "TARGET"),
            help=f"{split} text; suffixes name the languages",
        )
    new.add_argument(
        "--method",
        metavar="M",
        help="train one student only, by this method: a --criterion such as imitkd_full, or seqkd, or none "
        "(default: two trainings, seqkd and then imitkd from its student for a quarter of the updates)",
    )
    new.add_argument(
        "--arch",
        metavar="A",
        help="architecture of the student: one of this plugin, such as transformer_imitkd_2_2, or of "
        "fairseq; its dimensions need a recipe (default: transformer_imitkd_2_2)",
    )
    new.add_argument(
        "--updates",
        type=positive,
        metavar="N",
        help="updates of the training; without --method those of seqkd, and imitkd has a quarter (default: "
        f"{UPDATES})",
    )
    new.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="threads of each training, which matter on a machine without a GPU (default: 1)",
    )


def recipe_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the content of the recipe that flags describe, with absolute paths."""
    suffixes = languages(args.train)
    updates = args.updates or UPDATES
    training, tenth = recipe_file.TRAINING, max(1, updates // 10)
    training = training.replace("--max-update 100000", f"--max-update {updates}")
    training = training.replace("--warmup-updates 4000", f"--warmup-updates {min(4000, tenth)}")
    training = training.replace("updates 2000", f"updates {min(2000, tenth)}")
    arch, _, flags = recipe_file.STUDENT.removeprefix("--arch ").partition(" ")
    return {
        "languages": suffixes,
        "text": {split: [os.path.abspath(file) for file in getattr(args, split)] for split in SPLITS},
        **({"sentencepiece": os.path.abspath(args.sentencepiece)} if args.sentencepiece else {}),
        "teacher": _teacher_of(args, suffixes),
        "student": {"arch": args.arch or arch, "flags": flags},
        "training": training,
        "methods": [args.method] if args.method else recipe_file.methods_for(shlex.split(training)),
        **({"threads": args.threads} if args.threads else {}),
    }


@contextmanager
def _named(recipe: Path | None) -> Iterator[None]:
    """Put the recipe's name before what is wrong in it; None stands for flags in place of a recipe."""
    try:
        yield
    except UsageError as error:
        if recipe is None or str(recipe) in str(error):
            raise
        raise UsageError(f"{recipe}: {error}") from error


def _warn(counted: Sizes, wanted: Recipe) -> None:
    is_shrunk = wanted.first is not None and wanted.teacher.checkpoint is None  # by a rehearsal
    if counted.warning is not None and not is_shrunk:
        print(f"warning: {counted.warning}", file=sys.stderr)


def _teacher_of(args: argparse.Namespace, languages: Sequence[str]) -> str | dict[str, str]:
    """Return the recipe's teacher, whose dictionaries may lie where the checkpoint says."""
    if is_huggingface(args.teacher):
        return {"huggingface": os.path.abspath(args.teacher)}
    checkpoint, names = os.path.abspath(args.teacher), [f"dict.{language}.txt" for language in languages]
    folder = args.teacher_data
    if folder is None and os.path.isfile(checkpoint):
        with suppress(Exception):  # a file that can't be read is reported later
            folders = dictionary_folders(checkpoint, configuration(read_checkpoint(checkpoint, None)))
            having = [each for each in folders if all(os.path.isfile(each / name) for name in names)]
            folder = next(iter(having), None)
    own = os.path.dirname(checkpoint)
    if folder is None or (os.path.isdir(folder) and os.path.samefile(folder, own)):
        return checkpoint
    return {"checkpoint": checkpoint, "dictionaries": os.path.abspath(folder)}


def check(plan: Plan) -> dict[str, BaseFairseqModel]:
    """Check the flags of all commands, and whether the student can be exported.

    Returns:
        each method's student, by the method's name, without weights if possible.

    Raises:
        UsageError: a flag is wrong, or the export can't work.
    """
    for step in plan.steps:
        for command in step.commands:
            if command.words[0] == "imitkd-train":
                check_training(command.words[1:], partial(key_of, plan, step.name.removeprefix("train-")))
            elif command.words[0] in CHECKED:
                check_command(command.words, key_of_step(step.name))
    wanted = plan.recipe
    size = symbols(wanted)
    students = {method.name: _build(plan.flags(method), size, method.name) for method in wanted.methods}
    if wanted.exported is not None:
        reason = _unexportable(students[wanted.exported.name], wanted)
        if reason is not None:
            raise UsageError(
                f"export can't work with {wanted.exported.name}'s student: {reason}; change its flags, or "
                "set export: false"
            )
    return students


def _unexportable(student: BaseFairseqModel, wanted: Recipe) -> str | None:
    """Return why a student can't be exported as the recipe asks; None if it can."""
    if wanted.is_served:
        return None if engine_for(student) is not None else unsupported_reason(student)
    try:
        describe(student, (wanted.source, wanted.target), None)
    except Inexpressible as error:
        return str(error)
    return None


def key_of(plan: Plan, training: str, message: str) -> str:
    """Return the key of the recipe that gives the flag which a message is about.

    Args:
        plan: the plan.
        training: name of the model that is trained.
        message: the message.
    """
    method = next((method.name for name, method, _ in plan.students() if name == training), None)
    number = [each.name for each in plan.recipe.methods].index(method) + 1 if method is not None else 0
    own, student = f"methods[{number}].flags" if number else "teacher.flags", "student.flags"
    if number and plan.recipe.methods[number - 1].student:
        student = f"methods[{number}].{student}"
    keys = [own, "distillation", student, "training"] if number else [own, "training"]
    flag = re.search(r"--[\w-]+", message)
    given = dict(plan.recipe.flags())
    if flag is not None:
        having = [key for key in keys if any(flag_in(word)[0] == flag[0] for word in given[key])]
        named = [key for key in having if f"'{last_value(given[key], flag[0])}'" in message]
        for key in (*named, *having):
            is_model = key in (student, "teacher.flags")
            return key.replace(".flags", ".arch") if flag[0] == "--arch" and is_model else key
        if flag[0] == "--criterion":
            return f"methods[{number}].criterion"
    return own.partition(".")[0]


def _build(flags: Sequence[str], size: int, name: str) -> BaseFairseqModel:
    try:
        return build(flags, size)
    except UsageError as error:
        raise UsageError(f"{name}: {str(error).replace('the flags after --check', 'the flags')}") from error


def check_programs(plan: Plan) -> None:
    """Refuse an environment that lacks a command.

    Raises:
        UsageError: a command is neither beside this Python nor on PATH.
    """
    for name in sorted({command.words[0] for step in plan.steps for command in step.commands}):
        if not (PROGRAMS / name).exists() and shutil.which(name) is None:
            raise UsageError(
                f"{name} is neither in '{PROGRAMS}' nor on PATH; install fairseq and fairseq-imitkd in the "
                "same environment"
            )


def distil(run: Run, engine: Engine, given: Given) -> bool:
    """Run the steps that are not done, and print what they have made.

    Args:
        run: the run.
        engine: how.
        given: the recipe, which the folder of the run keeps.

    Returns:
        whether all steps are done: flags of Snakemake may leave some out.
    """
    began = time.monotonic()
    with Shown(run) as shown:
        run.run(engine, PROGRAMS, shown.show, begin=partial(folder.keep, run.out, given))
    done, count = sum(status.state == DONE for status in run.statuses().values()), len(run.plan.steps)
    if done < count:
        print(f"{run.out}: {done} of {count} steps are done; Snakemake left the others out")
        return False
    wanted = run.plan.recipe
    if wanted.evaluation is not None:
        table, warning = seeds.compared(run.plan, run.out)
        with atomic_files(run.out / "table.md") as [file]:
            file.write(f"{table}\n".encode())
        print(f"\n{table}\n\nreport: {run.out / 'report.html'}; all scores: {run.out / 'evaluation.md'}")
        if warning is not None and wanted.first is None:
            print(f"warning: {warning}", file=sys.stderr)
    print(f"{run.out}: {count} steps are done; {time.monotonic() - began:,.0f} s")
    if wanted.first is not None:
        print("This was a rehearsal: all steps work, and the scores mean nothing")
    elif wanted.is_served:
        print(f"Next: {shlex.join(['imitkd-serve', str(run.out / 'exported')])}", flush=True)
    return True


def listed(run: Run, needed: int, expected: Estimate, *, cores: int | None, gpus: int = 0) -> str:
    """Return what ``--dry-run`` prints.

    Args:
        run: the run.
        needed: bytes on the disk.
        expected: how long the steps take.
        cores: threads that all steps together may take; None for all of this machine.
        gpus: GPUs that they may take; 0 if their number is not known, or does not matter.
    """
    lines, statuses = [], run.statuses()
    for step in run.plan.steps:
        is_done = statuses[step.name].state == DONE
        state = "done" if is_done else "continues" if run.continues(step) else "to run"
        about = f", about {roughly(expected.seconds[step.name])}" if step.name in expected.seconds else ""
        lines.append(f"{step.name}: {state}{about if not is_done else ''}")
        lines += [f"    {line}" for line in typed(step)] if not is_done else []
    left = [step for step in run.plan.steps if statuses[step.name].state != DONE]
    if left:
        folders = {str((run.out / result).parent) for step in left for result in step.results}
        made = shlex.join(["mkdir", "-p", *sorted(folders)])
        lines.insert(0, f"    {made} && cd {shlex.quote(str(run.out))}")
    lines.append(
        f"{len(left)} of {len(run.plan.steps)} steps to run; at least {needed / 1e6:,.0f} MB of disk in all"
    )
    if not left:
        return "\n".join(lines)
    cores = cores or len(os.sched_getaffinity(0))
    place = f"{cores} cores and {counted(gpus, 'GPU')}" if gpus else f"{cores} cores"
    lines.append(
        f"about {roughly(sum(expected.seconds.get(step.name, 0.0) for step in left))} of trainings and "
        f"translations, {roughly(expected.side_by_side(left, cores, gpus or None))} side by side on {place}. "
        f"This rests on passes of these models over random tokens, timed just now on {expected.where}; other "
        f"steps are left out{f', and {expected.left_out}' if expected.left_out else ''}"
    )
    if any(last_value(flags, "--patience") for _, flags in run.plan.recipe.trainings()):
        lines[-1] += "; --patience may end trainings much sooner"
    return "\n".join(lines)


def typed(step: Step) -> list[str]:
    """Return the commands of a step as a shell takes them in the folder of the run.

    They write complete results, which the step itself writes under another name first.
    """
    own = {f"{result}.part": result for result in step.results}
    return [
        step_program.typed(
            {
                **asdict(command),
                "words": [own.get(word, word) for word in command.words],
                "out": own.get(command.out or "", command.out),
            }
        )
        for command in step.commands
    ]


def _check_words(args: argparse.Namespace) -> None:
    """Refuse words that do not go together."""
    known = recipe_file.criteria()
    wrong = problem(args, known)
    if wrong is not None:
        raise UsageError(wrong)
    if args.method is not None and args.method not in known:
        near = difflib.get_close_matches(args.method.lower(), known, 1, cutoff=0.6)
        remedy = f"did you mean {near[0]}?" if near else "use none, seqkd, or a --criterion such as imitkd"
        raise UsageError(f"--method '{args.method}' does not exist: {remedy}")


def _out(args: argparse.Namespace) -> Path:
    """Return the folder of the run. A rehearsal has its own, so that the run itself finds an empty one.

    Raises:
        UsageError: the recipe's file has the name that the folder would have.
    """
    out: Path = args.out or folder.folder_of(args.recipe)
    if args.out is None and out == args.recipe and packaged(out) is None:
        raise UsageError(
            f"recipe '{out}' has no suffix, so the run's folder would have the name of that file; give --out"
        )
    if not args.rehearse:
        return out
    if out.name in ("", ".."):  # such as --out .
        out = Path(os.path.abspath(out))
    return out.parent / f"{out.name}-rehearsal"


def _with_device(wanted: Recipe) -> Recipe:
    if wanted.device == "cuda" and not torch.cuda.is_available():
        print("warning: device is cuda, but this machine has no visible GPU", file=sys.stderr)
    if wanted.device != "auto":
        return wanted
    return replace(wanted, device="cuda" if torch.cuda.is_available() else "cpu")


def _visible_gpus() -> tuple[str, ...]:
    """Return the names of this machine's visible GPUs."""
    known = ",".join(map(str, range(torch.cuda.device_count())))
    return tuple((os.environ.get("CUDA_VISIBLE_DEVICES") or known).split(",")) if known else ()


def _engine(args: argparse.Namespace, wanted: Recipe, flags: tuple[str, ...]) -> Engine:
    cores = args.cores
    if cores is None and args.profile is None:
        cores = len(os.sched_getaffinity(0))
    gpus: tuple[str, ...] = ()
    if args.profile is not None:
        return Engine(cores, gpus, args.profile, flags)
    taken = wanted.processes * wanted.threads
    if cores is not None and taken > cores:
        raise UsageError(
            f"--cores must be at least {taken}, the threads of a training (processes x threads), but is "
            f"{cores}; raise it, or lower them"
        )
    if wanted.device == "cuda":
        gpus = _visible_gpus()
        if wanted.processes > len(gpus):
            raise UsageError(
                f"processes must be at most {len(gpus)}, the number of visible GPUs, but is "
                f"{wanted.processes}; change it or device, or use --profile"
            )
    return Engine(cores, gpus, None, flags)


def _read(args: argparse.Namespace) -> tuple[Recipe, Given]:
    """Return the recipe that the command line names or describes, and what the run's folder keeps of it."""
    wanted, given, start = _given(args)
    if not args.rehearse:
        return wanted, given
    text = folder.with_folder(given.text, start, rehearses=True)
    return recipe_file.parse(parsed(text), start), replace(given, text=text, rehearses=True)


def _given(args: argparse.Namespace) -> tuple[Recipe, Given, Path]:
    """Return that recipe before a rehearsal shortens it, what is kept, and where its relative paths start."""
    if args.recipe is None:
        content, start = recipe_of(args), Path.cwd()
        text = yaml.safe_dump(content, sort_keys=False, width=100)
        return recipe_file.parse(content, start), Given(text), start
    own = packaged(args.recipe)
    if own is None:
        if args.text is not None:
            raise UsageError(
                f"--text '{args.text}' changes nothing beside RECIPE '{args.recipe}', which names its files"
            )
        text = text_of(args.recipe)  # once: it may be a pipe
        is_file = args.recipe.is_file()
        start = args.recipe.resolve().parent if is_file else Path.cwd()
        wanted = recipe_file.parse(content_of(text, args.recipe), start)
        kept = folder.with_folder(text, start)
        return wanted, Given(kept, args.recipe) if is_file else Given(kept, name="a pipe"), start
    start = (args.text or Path.cwd()).absolute()
    wanted = recipe_file.read(own, start)
    if wanted.text.made_up is None:
        _check_text(args.text, wanted)
    elif args.text is not None:
        raise UsageError(
            f"--text '{args.text}' changes nothing with {args.recipe}, whose text is made up; leave it out"
        )
    text = folder.with_folder(own.read_text(encoding="utf-8"), start)
    return wanted, Given(text, name=args.recipe.name), start


def _check_text(given: Path | None, wanted: Recipe) -> None:
    """Refuse a folder that lacks the text of a packaged recipe; None stands for the working directory."""
    if given is not None and not given.is_dir():
        raise UsageError(
            f"--text '{given}' is not a folder; name that of the text, which is {wanted.text.origin}"
        )
    pairs = wanted.text.pairs.values()
    lacks = next((path for pair in pairs for path in (pair.source, pair.target) if not path.exists()), None)
    if lacks is not None:
        what = f"--text '{given}'" if given is not None else "--text is not given, and this folder"
        name = os.path.relpath(lacks, given or Path.cwd())
        if packed := [each for each in COMPRESSED if os.path.exists(f"{lacks}.{each}")]:
            raise UsageError(f"{what} has {name}.{packed[0]}, but no {name}; unpack it")
        raise UsageError(f"{what} has no {name}; name the folder of the text, which is {wanted.text.origin}")


if __name__ == "__main__":
    main()

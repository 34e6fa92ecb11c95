"""Mutation testing: changes the code in one place at a time, and counts the changes that a test notices.

    pip install --no-deps mutmut==3.8.1 libcst==1.9.0
    python benchmarks/mutation.py --sample 70                       # a table of scores by module
    python benchmarks/mutation.py --modules mixing.pool             # all mutants of one module
    python benchmarks/mutation.py --known mutation.json --seconds 0 # survivors again, with all their tests

A changed function is a mutant. A mutant is *killed* when a test fails, and *timed out* when a test takes too
long, which also counts as noticed. mutmut generates the mutants, for every function and method. mutmut itself
would skip functions with a decorator, such as ``decode``, and would start pytest for every mutant. So this
script imports everything and collects the tests once. For each mutant, it forks, replaces the code of one
function in the fork, and runs the tests that call this function until one fails. The tests that killed an
earlier mutant of the function come first, then the fastest ones. ``--seconds`` limits the tests of a mutant.
The limit applies to times that include tracing, so the tests take about a third of it.
No file of the package is changed.

These are never mutated: annotations, defaults, decorators, the texts of errors, code outside functions, and
the signs of integers. Most signed integers are dimensions: -1 and +1 are the same dimension of a matrix.
"""

import argparse
import difflib
import importlib
import inspect
import itertools
import json
import math
import os
import pickle
import resource
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import libcst as cst
import pytest
import torch
from _pytest.runner import runtestprotocol
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

PACKAGE = "fairseq_imitkd"
ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"

# module -> the test files that should notice its mutants: fast ones, which run in this process
TARGETS: dict[str, tuple[str, ...]] = {
    "criterion": (
        "test_criterion", "method/test_method", "method/test_checks", "method/test_schedules",
        "text/test_rewards", "losses/test_chunked", "tasks/test_sentence_prediction",
        "tasks/test_translation",
    ),
    "losses.divergences": ("losses/test_divergences", "test_criterion", "losses/test_chunked"),
    "losses.chunked": ("losses/test_chunked", "test_criterion", "text/test_rewards"),
    "models.logits": (
        "models/test_logits", "losses/test_chunked", "test_criterion", "teacher/test_selection",
        "text/test_rewards",
    ),
    "mixing.mixer": ("mixing/test_mixer", "mixing/test_writers", "tasks/test_translation"),
    "mixing.batch": (
        "mixing/test_batch", "mixing/test_replay", "mixing/test_mixer", "mixing/test_writers",
        "teacher/test_encoder_cache", "tasks/test_translation",
    ),
    "mixing.pool": ("mixing/test_pool", "mixing/test_mixer"),
    "mixing.replay": (
        "mixing/test_replay", "mixing/test_mixer", "mixing/test_writers", "training/test_state",
    ),
    "rollout.engine": (
        "rollout/test_engine", "rollout/test_greedy", "rollout/test_sampling", "rollout/test_length_caps",
        "rollout/test_generator", "mixing/test_mixer", "mixing/test_writers",
    ),
    "rollout.policy": (
        "rollout/test_policy", "rollout/test_engine", "rollout/test_length_caps", "mixing/test_mixer",
        "mixing/test_writers", "method/test_checks",
    ),
    "rollout.steps": (
        "rollout/test_steps", "rollout/test_engine", "rollout/test_greedy", "rollout/test_fast_transformer",
        "rollout/test_sampling", "rollout/test_generator", "mixing/test_writers",
    ),
    "rollout.keyed_random": (
        "rollout/test_keyed_random", "mixing/test_mixer", "rollout/test_sampling", "teacher/test_selection",
    ),
    "method.schedules": (
        "method/test_schedules", "method/test_method", "method/test_checks", "training/test_state",
    ),
    "method.method": (
        "method/test_method", "method/test_schedules", "method/test_checks", "test_criterion",
        "mixing/test_writers", "training/test_state",
    ),
    "training.distiller": (
        "training/test_distiller", "training/test_state", "mixing/test_writers", "teacher/test_selection",
        "tasks/test_with_teacher", "tasks/test_translation", "tasks/test_sentence_prediction",
    ),
    "vocab_ops": ("test_vocab_ops", "rollout/test_policy", "losses/test_divergences", "rollout/test_engine"),
}  # fmt: skip

HELPER = "tests.helpers.fairseq_models"  # trains the tests' small students
UNTOUCHED_CALLS = {"len", "isinstance", "cast"}  # mutmut leaves the first two alone; a cast does nothing
TEST_CPU_SECONDS = 5.0  # limit for one test, in addition to ten times its usual time
PROCESS_BYTES = 12 * 2**30  # limit for the memory of a fork
KEY = ("module", "function", "line", "diff")  # identifies a mutant
KILLED, SURVIVED, TIMED_OUT = "killed", "survived", "timed out"


@dataclass(frozen=True)
class Mutant:
    """A changed function.

    Args:
        module: name of the module within the package.
        function: qualified name of the function within the module.
        line: number of the changed line.
        diff: the change as a unified diff without headers.
        code: compiled code of the changed function.
    """

    module: str
    function: str
    line: int
    diff: str
    code: CodeType

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What identifies the mutant in different runs."""
        return self.module, self.function, self.line, self.diff


def main() -> int:
    args = parse_arguments()
    os.chdir(ROOT)
    torch.set_num_threads(1)
    names = sorted({name for module in args.modules for name in TARGETS[module]})
    files = [str(TESTS / f"{name}.py") for name in names]
    flags = ["-q", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-o", "tmp_path_retention_policy=none"]
    return pytest.main([*flags, *files], plugins=[MutationPlugin(args)])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--modules",
        nargs="+",
        choices=list(TARGETS),
        default=list(TARGETS),
        metavar="NAME",
        help=f"modules to mutate (default: all of {', '.join(TARGETS)})",
    )
    parser.add_argument("--sample", type=int, help="maximum number of mutants per module (default: all)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the sample (default: %(default)s)")
    parser.add_argument(
        "--known",
        type=Path,
        metavar="JSON",
        help="verdicts of an earlier run; only its survivors and new mutants are tested",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help="maximum CPU seconds of tests per mutant, as measured while tracing; 0 runs all tests "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--json",
        type=Path,
        default=Path("mutation.json"),
        help="file for all verdicts (default: %(default)s)",
    )
    return parser.parse_args()


class MutationPlugin:
    """A pytest plugin that runs the collected tests for every mutant, instead of once.

    Args:
        args: the command's arguments.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.verdicts: list[dict[str, Any]] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Replace pytest's own loop over the tests."""
        with session.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            self._judge_modules(session.items)
        return True

    def _judge_modules(self, items: list[pytest.Item]) -> None:
        args, began = self.args, time.time()
        helper = importlib.import_module(HELPER)
        for name in helper.STUDENTS:  # they are cached here; otherwise every fork would train them again
            helper.trained_student(name)
        modules = {name: importlib.import_module(f"{PACKAGE}.{name}") for name in args.modules}
        tests = Tests(items, list(modules.values()), args.seconds or math.inf)
        print(f"\n{len(items)} tests, collected and run once in {time.time() - began:.0f} s", flush=True)
        earlier = json.loads(args.known.read_text()) if args.known else []
        known = {
            tuple(entry[part] for part in KEY): entry for entry in earlier if entry["verdict"] != SURVIVED
        }
        for name, module in modules.items():
            mutants = sampled(list(mutants_of(name, module)), args.sample, args.seed)
            for number, mutant in enumerate(mutants, start=1):
                if mutant.key in known:
                    self.verdicts.append(known[mutant.key])
                else:
                    self._judge(mutant, module, tests, where=f"{name} {number}/{len(mutants)}")
            args.json.write_text(json.dumps(self.verdicts, indent=1))
        print(table(self.verdicts, args.modules))
        spent = os.times()
        cpu = spent.user + spent.system + spent.children_user + spent.children_system
        print(f"\n{cpu / 60:.1f} minutes of CPU time, {(time.time() - began) / 60:.1f} minutes elapsed")

    def _judge(self, mutant: Mutant, module: ModuleType, tests: "Tests", *, where: str) -> None:
        """Test a mutant, record its verdict, and print it unless it was killed."""
        began = time.time()
        chosen = tests.of_function(module, mutant)
        verdict, test = tests.judge(module, mutant, chosen)
        seconds = time.time() - began
        entry = {**asdict(mutant), "verdict": verdict, "by": test, "tests": len(chosen), "seconds": seconds}
        del entry["code"]
        self.verdicts.append(entry)
        if verdict != KILLED:
            summary = f"{where} {verdict} after {seconds:.1f} s, {len(chosen)} tests: {mutant.function}"
            print(f"{summary}\n{mutant.diff}", flush=True)


class Tests:
    """The collected tests, with the time that each takes and the functions that it calls.

    Both are measured when the object is made, by running and tracing every test once.

    Args:
        items: the tests.
        modules: the modules to mutate.
        limit: maximum seconds of tests per mutant.
    """

    def __init__(self, items: list[pytest.Item], modules: list[ModuleType], limit: float):
        self.items, self.limit = items, limit
        self.kills: Counter[tuple[str, int]] = Counter()
        with tempfile.TemporaryFile(buffering=0) as file:  # unbuffered: a fork ends without a flush
            status = forked(
                lambda: pickle.dump(self._observed({module.__file__ for module in modules}), file)
            )
            file.seek(0)
            if status != 0:
                sys.exit("the tests must pass before mutation; run them with pytest")
            self.seconds, self.callers = pickle.load(file)

    def of_function(self, module: ModuleType, mutant: Mutant) -> list[int]:
        """Return the numbers of the tests that call a mutant's function, in the order to run them.

        One case of each parameterised test comes before the second case of any.
        """
        files = {TESTS / f"{name}.py" for name in TARGETS[mutant.module]}
        callers = self.callers[str(module.__file__), mutant.function]
        numbers = [number for number in callers if self.items[number].path in files]
        numbers.sort(key=self.seconds.__getitem__)
        cases: Counter[str] = Counter()
        case_number = {}
        for number in numbers:
            test = self.items[number].nodeid.split("[")[0]
            case_number[number] = cases[test]
            cases[test] += 1
        numbers.sort(key=lambda number: (-self.kills[mutant.function, number], case_number[number]))
        ends = itertools.accumulate(self.seconds[number] for number in numbers)
        return [
            number
            for number, end in zip(numbers, ends, strict=True)
            if end <= self.limit or number == numbers[0]
        ]

    def judge(self, module: ModuleType, mutant: Mutant, numbers: list[int]) -> tuple[str, str]:
        """Run tests on a mutant until one fails; return the verdict and the failing test."""
        if not numbers:
            return SURVIVED, ""
        with tempfile.TemporaryFile() as file:
            status = forked(lambda: self._attempt(module, mutant, numbers, progress=file.fileno()))
            started = os.fstat(file.fileno()).st_size
        if status == 0:
            return SURVIVED, ""
        last = numbers[max(started, 1) - 1]
        self.kills[mutant.function, last] += 1
        verdict = TIMED_OUT if status in (-signal.SIGPROF, -signal.SIGALRM) else KILLED
        return verdict, self.items[last].nodeid

    def _attempt(self, module: ModuleType, mutant: Mutant, numbers: list[int], *, progress: int) -> None:
        """Run tests on a mutant in a fork; write one byte to ``progress`` at the start of each test."""
        # The function object stays, so modules that imported it have the mutant too.
        function_of(module, mutant.function).__code__ = mutant.code
        chosen = [self.items[number] for number in numbers]
        for number, item, following in zip(numbers, chosen, [*chosen[1:], None], strict=True):
            limit = TEST_CPU_SECONDS + 10 * self.seconds[number]
            signal.setitimer(signal.ITIMER_PROF, limit)  # neither signal has a handler: they end the fork
            signal.setitimer(signal.ITIMER_REAL, 10 * limit)
            os.write(progress, b".")
            if not passes(item, following):
                os._exit(1)

    def _observed(self, files: set[str | None]) -> tuple[list[float], dict[tuple[str, str], list[int]]]:
        """Run every test once; return its CPU seconds, and the tests that call each (file, function)."""
        seconds: list[float] = []
        callers: dict[tuple[str, str], list[int]] = defaultdict(list)
        codes: set[CodeType] = set()

        def on_call(frame: FrameType, event: str, arg: object) -> None:
            if frame.f_code.co_filename in files:
                codes.add(frame.f_code)

        for number, (item, following) in enumerate(zip(self.items, [*self.items[1:], None], strict=True)):
            codes.clear()
            began = time.process_time()
            sys.settrace(on_call)
            passed = passes(item, following)
            sys.settrace(None)
            seconds.append(time.process_time() - began)
            if not passed:
                print(f"{item.nodeid} fails", flush=True)
                os._exit(1)
            for function in {(code.co_filename, code.co_qualname.split(".<locals>")[0]) for code in codes}:
                callers[function].append(number)
        return seconds, callers


def sampled(mutants: list[Mutant], size: int | None, seed: int) -> list[Mutant]:
    """Return a sample in random order, or all mutants if ``size`` is None.

    The order depends on hashes, so a larger sample of the same code contains a smaller one.
    """
    if size is None:
        return mutants
    return sorted(mutants, key=lambda mutant: sha256(f"{seed} {mutant.key}".encode()).digest())[:size]


def mutants_of(name: str, module: ModuleType) -> Iterator[Mutant]:
    """Yield all different mutants of a module that compile."""
    wrapper = MetadataWrapper(cst.parse_module(inspect.getsource(module)))
    lines = wrapper.resolve(PositionProvider)
    for function, isolated, qualname in functions(wrapper.module.body):
        source = isolated.code
        seen = {source}
        free_variables = len(function_of(module, qualname).__code__.co_freevars)
        for node in mutable_nodes(function.body):
            operators = [operator for kind, operator in mutation_operators if isinstance(node, kind)]
            for new in itertools.chain.from_iterable(operator(node) for operator in operators):
                changed = isolated.deep_replace(node, new).code
                if changed in seen:
                    continue
                seen.add(changed)
                try:
                    code = code_of(changed, qualname)
                except SyntaxError:
                    continue
                if len(code.co_freevars) == free_variables:
                    yield Mutant(name, qualname, lines[node].start.line, difference(source, changed), code)


def difference(source: str, changed: str) -> str:
    """Return a unified diff with one line of context, without headers."""
    return "\n".join(
        list(difflib.unified_diff(source.splitlines(), changed.splitlines(), n=1, lineterm=""))[3:]
    )


def functions(
    body: Sequence[cst.CSTNode], classes: tuple[cst.ClassDef, ...] = ()
) -> Iterator[tuple[cst.FunctionDef, cst.Module, str]]:
    """Yield the functions and methods of a module; nested functions are part of the function around them.

    Yields:
        the function, a module that holds nothing but the function and its classes, and its qualified name.
    """
    for child in body:
        if isinstance(child, cst.FunctionDef):
            isolated: cst.FunctionDef | cst.ClassDef = child
            for outer in reversed(classes):
                isolated = outer.with_changes(body=outer.body.with_changes(body=[isolated]), decorators=[])
            qualname = ".".join(part.name.value for part in (*classes, child))
            yield child, cst.Module([isolated]), qualname
        elif isinstance(child, cst.ClassDef):
            yield from functions(child.body.body, (*classes, child))


def mutable_nodes(node: cst.CSTNode, in_raise: bool = False) -> Iterator[cst.CSTNode]:
    """Yield the nodes of a syntax tree that may be mutated."""
    untouched = (
        isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and node.func.value in UNTOUCHED_CALLS
    )
    in_raise = in_raise or isinstance(node, cst.Raise)
    if untouched or isinstance(node, cst.Annotation) or (in_raise and isinstance(node, cst.SimpleString)):
        return
    if not (isinstance(node, cst.UnaryOperation) and isinstance(node.expression, cst.Integer)):
        yield node
    for child in node.children:
        yield from mutable_nodes(child, in_raise)


def code_of(source: str, qualname: str) -> CodeType:
    """Compile a module and return the code of one of its functions."""
    waiting = [compile(source, "a mutant", "exec")]
    while waiting:
        code = waiting.pop()
        if code.co_qualname == qualname:
            return code
        waiting += [const for const in code.co_consts if isinstance(const, CodeType)]
    raise LookupError(qualname)


def function_of(module: ModuleType, qualname: str) -> FunctionType:
    """Return a function or method of a module without its decorators."""
    found: Any = module
    for part in qualname.split("."):
        found = vars(found)[part]
    while not (isinstance(found, FunctionType) and found.__code__.co_filename == module.__file__):
        wrapped = getattr(found, "__wrapped__", None) or getattr(found, "__func__", None)
        found = wrapped or getattr(found, "func", None) or found.fget
    return found


def passes(item: pytest.Item, following: pytest.Item | None) -> bool:
    """Run one test, and return whether it passed or was skipped."""
    return not any(report.failed for report in runtestprotocol(item, nextitem=following, log=False))


def forked(work: Callable[[], object]) -> int:
    """Call a function in a fork; return the exit status, or minus the number of the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 2)
            resource.setrlimit(resource.RLIMIT_AS, (PROCESS_BYTES, PROCESS_BYTES))
            work()
            os._exit(0)
        except BaseException:  # the fork must never return into the caller's code
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def table(verdicts: list[dict[str, Any]], modules: list[str]) -> str:
    """Return the scores as a Markdown table."""
    rows = ["| module | killed | timed out | survived | total | score |", "|---|---|---|---|---|---|"]
    for name in [*modules, "all"]:
        counts = Counter(entry["verdict"] for entry in verdicts if name in (entry["module"], "all"))
        score = f"{(counts[KILLED] + counts[TIMED_OUT]) / counts.total():.1%}" if counts else "-"
        numbers = (counts[KILLED], counts[TIMED_OUT], counts[SURVIVED], counts.total())
        rows.append(f"| {name} | {' | '.join(map(str, numbers))} | {score} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())

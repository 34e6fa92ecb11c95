"""Does an update do more work than it used to? Counted, not timed, so that every machine gives the same answer.

    python benchmarks/work_check.py                            # compare with benchmarks/expected_work.json
    python benchmarks/work_check.py --profile imitkd_share_1   # a variant's work by operator
    python benchmarks/work_check.py --update                   # the work has changed, and should have

One whole update of each method and one greedy decoding are counted: calls of torch's operators, floating point
operations of matrix products, and elements touched. The check fails when a total is more than 2% above the expected
one. An unchanged tree gives exactly the expected numbers; the 2% are room for harmless changes, such as one more logged
figure, and small enough to catch what costs 5%. A total more than 2% below asks for a new expectation: later losses
would hide behind the gain.

An element is touched when an operator reads or writes it:

- views and allocations touch nothing;
- a look-up or an assignment by index touches what it finds or writes, not the whole table;
- every other operator touches all tensors that it takes and all that it gives.

The student is untrained, but its weights are scripted (see ``script``): no length of a rollout hangs on a rounding.
Counted is the second update, on a batch not seen before; the first one also makes the optimizer's state. What is lost
outside of torch's operators, or to slower memory layouts and wider data types, is not seen here: ``update_cost.py``
measures time.
"""

import argparse
import contextlib
import functools
import json
import logging
import os
import sys
import tempfile
import warnings
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import torch
import torch.nn.functional as F
from fairseq import options, tasks, utils
from fairseq.data import Dictionary
from fairseq.data.language_pair_dataset import collate
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from fairseq.trainer import Trainer
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

import fairseq_imitkd  # noqa: F401  (registers the task and the criteria)

EXPECTED = Path(__file__).with_name("expected_work.json")
TOLERANCE = 0.02

UPDATES: dict[str, list[str]] = {
    "cross_entropy": ["--criterion", "cross_entropy"],
    "word_kd": ["--criterion", "word_kd"],
    "imitkd_share_0": ["--criterion", "imitkd", "--student-share", "constant:0"],
    "imitkd_share_0.5": ["--criterion", "imitkd", "--student-share", "constant:0.5"],
    "imitkd_share_1": ["--criterion", "imitkd", "--student-share", "constant:1"],
    "imitkd_share_1_sampling": [
        "--criterion",
        "imitkd",
        "--student-share",
        "constant:1",
        "--rollout-policy",
        "sampling",
    ],
    "imitkd_full_share_1": ["--criterion", "imitkd_full", "--student-share", "constant:1"],
}
GENERATE = "generate_greedy"
VARIANTS = [*UPDATES, GENERATE]

SYMBOLS = 4000
FIRST_BATCH, COUNTED_BATCH = range(4), range(4, 44)
MODEL = (
    "--arch", "transformer", "--encoder-layers", "2", "--decoder-layers", "2", "--encoder-embed-dim", "64",
    "--decoder-embed-dim", "64", "--encoder-ffn-embed-dim", "128", "--decoder-ffn-embed-dim", "128",
    "--encoder-attention-heads", "4", "--decoder-attention-heads", "4", "--dropout", "0.1",
    "--max-source-positions", "128", "--max-target-positions", "128",
)  # fmt: skip
# Without layer norms between the layers, what the script makes loud stays loud.
STUDENT = ("--encoder-normalize-before", "--decoder-normalize-before")

ALLOCATIONS = {
    "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided",
    "aten::_unsafe_view",
}  # fmt: skip
LOOK_UPS = {"aten::embedding", "aten::gather", "aten::index", "aten::index_select"}
ASSIGNMENTS = {"aten::index_put_", "aten::_index_put_impl_"}


@dataclass
class Work:
    """Calls of operators, floating point operations of matrix products, elements touched."""

    operators: int = 0
    flop: int = 0
    elements: int = 0


FIGURES = {"operators": "operator calls", "flop": "floating point operations", "elements": "elements touched"}


class WorkCounter(TorchDispatchMode):
    """Counts the work inside, by operator. Backward passes count: on the CPU they run in the thread that asks for them."""

    def __init__(self) -> None:
        super().__init__()
        self.by_operator: dict[str, Work] = defaultdict(Work)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_composite(func):  # they come whole in inference mode, elsewhere in parts
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        work = self.by_operator[func._schema.name]
        work.operators += 1
        work.flop += flop(func, args, kwargs, result)
        work.elements += touched(func, args, kwargs, result)
        return result

    def total(self) -> Work:
        """Over all operators."""
        return Work(
            **{figure: sum(getattr(work, figure) for work in self.by_operator.values()) for figure in FIGURES}
        )


@functools.cache
def is_composite(func: Any) -> bool:
    """Whether an operator only calls others."""
    return func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


@functools.cache
def is_view(func: Any) -> bool:
    """Whether an operator's result is its argument's memory, looked at in another way."""
    aliases = [result.alias_info for result in func._schema.returns]
    return torch.Tag.inplace_view in func.tags or any(
        alias is not None and not alias.is_write for alias in aliases
    )


def flop(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """By torch's formulas; it has registered none for its CPU attention."""
    packet = func.overloadpacket
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        return sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))
    return flop_registry[packet](*args, **kwargs, out_val=result) if packet in flop_registry else 0


def touched(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """The elements that an operator reads and writes, by the rules above."""
    name = func._schema.name
    if name in ALLOCATIONS or is_view(func):
        return 0
    if name in LOOK_UPS:
        return elements([args[1:], kwargs, result])
    if name in ASSIGNMENTS:
        return elements([args[1:], kwargs])
    return elements([args, kwargs, result])


def elements(value: Any) -> int:
    """Of all tensors in nested lists and dictionaries."""
    if isinstance(value, Tensor):
        return value.numel()
    if isinstance(value, dict):
        return sum(elements(item) for item in value.values())
    return sum(elements(item) for item in value) if isinstance(value, list | tuple) else 0


def measure(names: Sequence[str]) -> dict[str, WorkCounter]:
    """The work of these variants, with models and data made for it."""
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]), without_gpu():
        data = Path(folder)
        for language in ("src", "tgt"):
            dictionary().save(str(data / f"dict.{language}.txt"))
        teacher = write_teacher(data)
        return {name: count(variant(name, data, teacher)) for name in names}


def count(work: Callable[[dict[str, Any]], Any]) -> WorkCounter:
    """The work on a second batch."""
    first, second, counter = make_batch(FIRST_BATCH), make_batch(COUNTED_BATCH), WorkCounter()
    with metrics.aggregate(new_root=True):
        work(first)
        with counter:
            work(second)
    return counter


@contextlib.contextmanager
def without_gpu() -> Iterator[None]:
    """Even for ``--cpu``, fairseq takes other operators where it sees a GPU or apex."""
    with (
        mock.patch.object(torch.cuda, "is_available", return_value=False),
        mock.patch.object(utils, "multi_tensor_l2norm_available", False),
    ):
        yield


def variant(name: str, data: Path, teacher: Path) -> Callable[[dict[str, Any]], Any]:
    """What a variant does with a batch."""
    flags = UPDATES.get(name, UPDATES["cross_entropy"])
    trainer = build_trainer(
        data, "--task", "translation_with_teacher", "--teacher-path", str(teacher), *STUDENT, *flags
    )
    student, task = trainer.get_model(), trainer.task
    script(student)
    if name == GENERATE:
        generator = task.build_generator([student.eval()], Namespace(beam=1))
        return lambda batch: task.inference_step(generator, [student], batch)
    return lambda batch: trainer.train_step([batch])


def build_trainer(data: Path, *flags: str) -> Trainer:
    """fairseq's own, around a new model. At a learning rate of 0 all work is done, and the script stays as it is."""
    command = [
        str(data), "--source-lang", "src", "--target-lang", "tgt", "--save-dir", str(data), "--cpu", "--seed", "1",
        "--optimizer", "adam", "--lr", "0", "--clip-norm", "1", "--max-tokens", "10000", *MODEL, *flags,
    ]  # fmt: skip
    cfg = convert_namespace_to_omegaconf(
        options.parse_args_and_arch(options.get_training_parser(), input_args=command)
    )
    task = tasks.setup_task(cfg.task)
    torch.manual_seed(1)
    return Trainer(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))


def write_teacher(data: Path) -> Path:
    """An untrained teacher's checkpoint."""
    path = data / "teacher.pt"
    trainer = build_trainer(data, "--task", "translation", "--criterion", "cross_entropy")
    cfg = OmegaConf.to_container(trainer.cfg, resolve=True, enum_to_str=True)
    torch.save({"cfg": cfg, "model": trainer.get_model().state_dict()}, path)
    return path


@functools.cache
def dictionary() -> Dictionary:
    """Numbers after fairseq's own symbols, the same on both sides."""
    symbols = Dictionary()
    for number in range(len(symbols), SYMBOLS):
        symbols.add_symbol(str(number))
    return symbols


def make_batch(sentences: Iterable[int]) -> dict[str, Any]:
    """Sentences of many lengths. A source repeats one word, by which the scripted student knows how much to write."""
    pad, eos = dictionary().pad(), dictionary().eos()
    rows = []
    for sentence in sentences:
        source = torch.tensor([eos + tokens_written(sentence)] * source_words(sentence) + [eos])
        target = torch.arange(2 + 11 * sentence % 29, -1, -1) + eos
        rows.append({"id": sentence, "source": source, "target": target})
    return collate(rows, pad, eos, left_pad_source=True, left_pad_target=False)


def source_words(sentence: int) -> int:
    """Without the EOS."""
    return 4 + 7 * sentence % 27


def tokens_written(sentence: int) -> int:
    """With the EOS, where no cap cuts; the default cap of a rollout cuts a few."""
    return 2 + 5 * sentence % 31


def script(student: Any) -> None:
    """Make a student count down, from the symbol before the source's word to EOS.

    A token's output weights are the embedding of the symbol after it, so the student writes the symbol before the one
    that it hears best. That is the token it wrote last: its embedding is by far the loudest. At the start that token is
    EOS, which is silent, and the source's word is heard, through the first cross-attention, spread evenly over the
    source. All other layers stay as they were, a whisper.
    """
    decoder = student.decoder
    words = F.normalize(decoder.embed_tokens.weight.detach())
    words[dictionary().eos()] = 0.0
    attention, identity = decoder.layers[0].encoder_attn, torch.eye(words.size(1))
    with torch.no_grad():
        student.encoder.embed_tokens.weight.copy_(100.0 * words)
        decoder.embed_tokens.weight.copy_(100.0 * words)
        decoder.output_projection.weight.copy_(10.0 * words.roll(-1, dims=0))
        attention.q_proj.weight.zero_()
        attention.v_proj.weight.copy_(identity)
        attention.out_proj.weight.copy_(10.0 * identity)
        for projection in (attention.q_proj, attention.v_proj):
            nn.init.zeros_(projection.bias)


def table(found: dict[str, Work], expected: dict[str, Work]) -> str:
    """Markdown: each total and its change from the expected one."""
    lines = ["| variant | operators | GFLOP | million elements |", "|---|--:|--:|--:|"]
    for name, work in found.items():
        totals = (f"{work.operators:,}", f"{work.flop / 1e9:.3f}", f"{work.elements / 1e6:.2f}")
        changes = [change(getattr(work, figure), getattr(expected[name], figure)) for figure in FIGURES]
        cells = [f"{total} ({share:+.1%})" for total, share in zip(totals, changes, strict=True)]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def change(value: int, before: int) -> float:
    """As a share of the value before."""
    return value / before - 1.0


def outside(found: dict[str, Work], expected: dict[str, Work]) -> tuple[list[str], list[str]]:
    """A line for each total above what is allowed, and one for each as far below the expected one."""
    above, below = [], []
    for name, work in found.items():
        for figure, words in FIGURES.items():
            value, before = getattr(work, figure), getattr(expected[name], figure)
            line = f"{name}: {change(value, before):+.1%} {words}, {value:,} where {before:,} are expected"
            if value - before > TOLERANCE * before:
                above.append(line)
            elif before - value > TOLERANCE * before:
                below.append(line)
    return above, below


def profile(counter: WorkCounter) -> str:
    """Markdown: a variant's operators, those that touch the most elements first."""
    total = counter.total()
    lines = ["| operator | calls | GFLOP | million elements | share of elements |", "|---|--:|--:|--:|--:|"]
    for name, work in sorted(counter.by_operator.items(), key=lambda item: item[1].elements, reverse=True):
        share = work.elements / total.elements
        lines.append(
            f"| {name} | {work.operators:,} | {work.flop / 1e9:.3f} | {work.elements / 1e6:.2f} | {share:.1%} |"
        )
    lines.append(
        f"| total | {total.operators:,} | {total.flop / 1e9:.3f} | {total.elements / 1e6:.2f} | 100.0% |"
    )
    return "\n".join(lines)


def versions() -> dict[str, str]:
    """What decides, beside this package, which operators run."""
    return {"torch": torch.__version__.split("+")[0], "fairseq": version("fairseq-fixed")}


def read_expected() -> dict[str, Work]:
    """The expected totals.

    Raises:
        SystemExit: with one line, when they can't be read or were counted with other versions.
    """
    try:
        content = json.loads(EXPECTED.read_text(encoding="utf-8"))
        expected = {name: Work(**content["work"][name]) for name in VARIANTS}
        theirs = content["versions"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"{EXPECTED} can't be used ({type(error).__name__}: {error}): write it with --update")
    if theirs != versions():
        sys.exit(
            f"{EXPECTED} was counted with {theirs}, but here is {versions()}: run make install, or renew it with --update"
        )
    return expected


def write_expected(found: dict[str, Work]) -> None:
    """Whole or not at all."""
    content = {"versions": versions(), "work": {name: asdict(work) for name, work in found.items()}}
    new = EXPECTED.with_name(EXPECTED.name + ".new")
    new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(new, EXPECTED)


class OneLineParser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        """End the program."""
        self.exit(2, f"error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = OneLineParser(description=(__doc__ or "").split("\n")[0])
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--update", action="store_true", help=f"write what is counted to {EXPECTED.name}")
    choice.add_argument(
        "--profile",
        choices=VARIANTS,
        metavar="VARIANT",
        help=f"print a variant's work by operator: {', '.join(VARIANTS)}",
    )
    args = parser.parse_args(arguments)
    if args.profile:
        print(profile(measure([args.profile])[args.profile]))
        return 0
    expected = {} if args.update else read_expected()
    found = {name: counter.total() for name, counter in measure(VARIANTS).items()}
    if args.update:
        write_expected(found)
        print(f"{EXPECTED} is written: commit it with the change that it is for")
        return 0
    print(table(found, expected))
    above, below = outside(found, expected)
    for line in below:
        print(f"less work: {line}; renew the expectation: --update")
    for line in above:
        print(f"MORE WORK: {line} ({TOLERANCE:.0%} more are allowed)")
    if above:
        print(
            "--profile VARIANT, before and after the change, shows where; if the work is worth it, --update"
        )
    return 1 if above else 0


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    sys.exit(main())

"""Checks that an update does no more work than before. It counts instead of timing, so all machines agree.

    python benchmarks/work_check.py                            # compare with benchmarks/expected_work.json
    python benchmarks/work_check.py --profile imitkd_share_1   # show a variant's work by operator
    python benchmarks/work_check.py --update                   # write new expected totals

The script counts one update of each method and one greedy decoding: calls of torch's operators, floating
point operations of matrix products, and elements touched. The check fails when a total is more than 2% above
the expected one. An unchanged tree gives exactly the expected totals. The 2% allow harmless changes, such as
one more logged figure, and still catch a change that costs 5%. When a total is more than 2% below, renew the
expected totals. Otherwise later losses would go unnoticed.

An operator touches the elements that it reads or writes:

- views and allocations touch nothing;
- a look-up or an assignment by index touches the elements that it reads or writes, not the whole table;
- every other operator touches all its input and output tensors.

The student is untrained, but its weights are scripted (see ``script``), so no rollout's length depends on
rounding. The second update is counted, on a new batch, because the first one also allocates the optimizer's
state. Costs outside of torch's operators, and those of slower memory layouts or wider data types, are not
seen here. ``update_cost.py`` measures time.
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
# Without layer norms between the layers, the scripted activations keep their large norms.
STUDENT = ("--encoder-normalize-before", "--decoder-normalize-before")

ALLOCATIONS = {
    "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided",
    "aten::_unsafe_view",
}  # fmt: skip
LOOK_UPS = {"aten::embedding", "aten::gather", "aten::index", "aten::index_select"}
ASSIGNMENTS = {"aten::index_put_", "aten::_index_put_impl_"}


@dataclass
class Work:
    """Operator calls, floating point operations of matrix products, and elements touched."""

    operators: int = 0
    flop: int = 0
    elements: int = 0


FIGURES = {"operators": "operator calls", "flop": "floating point operations", "elements": "elements touched"}


class WorkCounter(TorchDispatchMode):
    """Counts the work by operator. Backward passes count too: on the CPU they run in the calling thread."""

    def __init__(self) -> None:
        super().__init__()
        self.by_operator: dict[str, Work] = defaultdict(Work)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_composite(func):  # inference mode dispatches them undivided
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        work = self.by_operator[func._schema.name]
        work.operators += 1
        work.flop += flop(func, args, kwargs, result)
        work.elements += touched(func, args, kwargs, result)
        return result

    def total(self) -> Work:
        """Return the sum over all operators."""
        return Work(
            **{figure: sum(getattr(work, figure) for work in self.by_operator.values()) for figure in FIGURES}
        )


@functools.cache
def is_composite(func: Any) -> bool:
    """Return whether an operator only calls others."""
    return func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


@functools.cache
def is_view(func: Any) -> bool:
    """Return whether an operator's result shares the memory of its argument."""
    aliases = [result.alias_info for result in func._schema.returns]
    return torch.Tag.inplace_view in func.tags or any(
        alias is not None and not alias.is_write for alias in aliases
    )


def flop(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Return the floating point operations by torch's formulas; torch has none for its CPU attention."""
    packet = func.overloadpacket
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        return sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))
    return flop_registry[packet](*args, **kwargs, out_val=result) if packet in flop_registry else 0


def touched(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Return the number of elements that an operator touches, by the rules of the module docstring."""
    name = func._schema.name
    if name in ALLOCATIONS or is_view(func):
        return 0
    if name in LOOK_UPS:
        return elements([args[1:], kwargs, result])
    if name in ASSIGNMENTS:
        return elements([args[1:], kwargs])
    return elements([args, kwargs, result])


def elements(value: Any) -> int:
    """Return the number of elements of all tensors in nested lists and dictionaries."""
    if isinstance(value, Tensor):
        return value.numel()
    if isinstance(value, dict):
        return sum(elements(item) for item in value.values())
    return sum(elements(item) for item in value) if isinstance(value, list | tuple) else 0


def measure(names: Sequence[str]) -> dict[str, WorkCounter]:
    """Count the work of some variants, with made-up models and data."""
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]), without_gpu():
        data = Path(folder)
        for language in ("src", "tgt"):
            dictionary().save(str(data / f"dict.{language}.txt"))
        teacher = write_teacher(data)
        return {name: count(variant(name, data, teacher)) for name in names}


def count(work: Callable[[dict[str, Any]], Any]) -> WorkCounter:
    """Count the work on a second batch."""
    first, second, counter = make_batch(FIRST_BATCH), make_batch(COUNTED_BATCH), WorkCounter()
    with metrics.aggregate(new_root=True):
        work(first)
        with counter:
            work(second)
    return counter


@contextlib.contextmanager
def without_gpu() -> Iterator[None]:
    """Hide GPUs and apex: even with ``--cpu``, fairseq uses other operators where it finds them."""
    with (
        mock.patch.object(torch.cuda, "is_available", return_value=False),
        mock.patch.object(utils, "multi_tensor_l2norm_available", False),
    ):
        yield


def variant(name: str, data: Path, teacher: Path) -> Callable[[dict[str, Any]], Any]:
    """Return a variant as a function of a batch."""
    flags = UPDATES.get(name, UPDATES["cross_entropy"])
    source = () if "cross_entropy" in flags else ("--teacher-path", str(teacher))
    trainer = build_trainer(data, "--task", "translation_with_teacher", *source, *STUDENT, *flags)
    student, task = trainer.get_model(), trainer.task
    script(student)
    if name == GENERATE:
        generator = task.build_generator([student.eval()], Namespace(beam=1))
        return lambda batch: task.inference_step(generator, [student], batch)
    return lambda batch: trainer.train_step([batch])


def build_trainer(data: Path, *flags: str) -> Trainer:
    """Build fairseq's trainer around a new model. A learning rate of 0 leaves the scripted weights alone."""
    command = [
        str(data), "--source-lang", "src", "--target-lang", "tgt", "--save-dir", str(data), "--cpu",
        "--seed", "1", "--optimizer", "adam", "--lr", "0", "--clip-norm", "1", "--max-tokens", "10000",
        *MODEL, *flags,
    ]  # fmt: skip
    cfg = convert_namespace_to_omegaconf(
        options.parse_args_and_arch(options.get_training_parser(), input_args=command)
    )
    task = tasks.setup_task(cfg.task)
    torch.manual_seed(1)
    return Trainer(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))


def write_teacher(data: Path) -> Path:
    """Write an untrained teacher's checkpoint and return its path."""
    path = data / "teacher.pt"
    trainer = build_trainer(data, "--task", "translation", "--criterion", "cross_entropy")
    cfg = OmegaConf.to_container(trainer.cfg, resolve=True, enum_to_str=True)
    torch.save({"cfg": cfg, "model": trainer.get_model().state_dict()}, path)
    return path


@functools.cache
def dictionary() -> Dictionary:
    """Return the dictionary of both sides: numbers after fairseq's own symbols."""
    symbols = Dictionary()
    for number in range(len(symbols), SYMBOLS):
        symbols.add_symbol(str(number))
    return symbols


def make_batch(sentences: Iterable[int]) -> dict[str, Any]:
    """Return sentences of many lengths. A source repeats one word, which tells the student what to write."""
    pad, eos = dictionary().pad(), dictionary().eos()
    rows = []
    for sentence in sentences:
        source = torch.tensor([eos + tokens_written(sentence)] * source_words(sentence) + [eos])
        target = torch.arange(2 + 11 * sentence % 29, -1, -1) + eos
        rows.append({"id": sentence, "source": source, "target": target})
    return collate(rows, pad, eos, left_pad_source=True, left_pad_target=False)


def source_words(sentence: int) -> int:
    """Return the number of source words, without the EOS."""
    return 4 + 7 * sentence % 27


def tokens_written(sentence: int) -> int:
    """Return the length of a rollout with its EOS. The default maximum length cuts a few rollouts."""
    return 2 + 5 * sentence % 31


def script(student: Any) -> None:
    """Make a student count down, from the symbol before the source's word to EOS.

    A token's output weights are the embedding of the next symbol. So the student writes the symbol before the
    one whose embedding dominates the decoder's state. That is the last token written, because its embedding
    has by far the largest norm. At the start the last token is EOS, whose embedding is zero. Then the
    source's word dominates: the first cross-attention spreads evenly over the source. All other layers keep
    their small initial weights.
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
    """Return a Markdown table of the totals and their changes from the expected ones."""
    lines = ["| variant | operators | GFLOP | million elements |", "|---|--:|--:|--:|"]
    for name, work in found.items():
        totals = (f"{work.operators:,}", f"{work.flop / 1e9:.3f}", f"{work.elements / 1e6:.2f}")
        changes = [change(getattr(work, figure), getattr(expected[name], figure)) for figure in FIGURES]
        cells = [f"{total} ({share:+.1%})" for total, share in zip(totals, changes, strict=True)]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def change(value: int, before: int) -> float:
    """Return the change relative to the value before."""
    return value / before - 1.0


def outside(found: dict[str, Work], expected: dict[str, Work]) -> tuple[list[str], list[str]]:
    """Return a line for each total above the tolerance, and one for each total below it."""
    above, below = [], []
    for name, work in found.items():
        for figure, words in FIGURES.items():
            value, before = getattr(work, figure), getattr(expected[name], figure)
            line = f"{name}: {change(value, before):+.1%} {words}, {value:,} instead of {before:,}"
            if value - before > TOLERANCE * before:
                above.append(line)
            elif before - value > TOLERANCE * before:
                below.append(line)
    return above, below


def profile(counter: WorkCounter) -> str:
    """Return a Markdown table of a variant's operators, those that touch the most elements first."""
    total = counter.total()
    lines = ["| operator | calls | GFLOP | million elements | share of elements |", "|---|--:|--:|--:|--:|"]
    for name, work in sorted(counter.by_operator.items(), key=lambda item: item[1].elements, reverse=True):
        share = work.elements / total.elements
        lines.append(
            f"| {name} | {work.operators:,} | {work.flop / 1e9:.3f} | {work.elements / 1e6:.2f} "
            f"| {share:.1%} |"
        )
    lines.append(
        f"| total | {total.operators:,} | {total.flop / 1e9:.3f} | {total.elements / 1e6:.2f} | 100.0% |"
    )
    return "\n".join(lines)


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide which operators run."""
    return {"torch": torch.__version__.split("+")[0], "fairseq": version("fairseq-fixed")}


def read_expected() -> dict[str, Work]:
    """Read the expected totals.

    Raises:
        SystemExit: they can't be read or were counted with other versions.
    """
    try:
        content = json.loads(EXPECTED.read_text(encoding="utf-8"))
        expected = {name: Work(**content["work"][name]) for name in VARIANTS}
        theirs = content["versions"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"{EXPECTED} can't be used ({type(error).__name__}: {error}); write it with --update")
    if theirs != versions():
        sys.exit(
            f"{EXPECTED} was counted with {theirs}, but the installed versions are {versions()}; "
            "run make install, or renew it with --update"
        )
    return expected


def write_expected(found: dict[str, Work]) -> None:
    """Write the expected totals atomically."""
    content = {"versions": versions(), "work": {name: asdict(work) for name, work in found.items()}}
    new = EXPECTED.with_name(EXPECTED.name + ".new")
    new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(new, EXPECTED)


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports wrong arguments in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with the message."""
        self.exit(2, f"error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = OneLineParser(description=(__doc__ or "").split("\n")[0])
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--update", action="store_true", help=f"write the totals to {EXPECTED.name}")
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
        print(f"wrote {EXPECTED}; commit it with the change that causes it")
        return 0
    print(table(found, expected))
    above, below = outside(found, expected)
    for line in below:
        print(f"less work: {line}; renew the expected totals with --update")
    for line in above:
        print(f"MORE WORK: {line} (at most {TOLERANCE:.0%} more is allowed)")
    if above:
        print(
            "run --profile VARIANT before and after the change to see where; "
            "if the work is worth it, use --update"
        )
    return 1 if above else 0


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    sys.exit(main())

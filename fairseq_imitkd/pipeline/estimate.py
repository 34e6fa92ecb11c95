"""Estimates how long trainings and translations of a plan take, from passes that are timed on this machine.

An update without a teacher is a forward and a backward pass of the student. With a teacher, a forward pass of
the teacher is added, and one of the student for a translation of its own. docs/performance.md compares these
counts with measured updates. Batches count as full, and every sentence as one of average length.
"""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from fairseq import utils
from fairseq.models import BaseFairseqModel
from fairseq.sequence_generator import SequenceGenerator

from fairseq_imitkd.export.architecture import build
from fairseq_imitkd.pipeline.inputs import Inputs
from fairseq_imitkd.pipeline.models import symbols, teacher_of
from fairseq_imitkd.pipeline.plan import MONO, Plan, Step, of_mono
from fairseq_imitkd.pipeline.reading import last_value
from fairseq_imitkd.pipeline.recipe import Recipe

ROWS, BEAM = 32, 5  # sentences of a timed batch; beam of imitkd-seqkd without --beam
SUBWORD = 4  # bytes of a subword, as they are counted before the text is split
SHORTEST, LONGEST = 4, 200  # tokens of an average sentence
SECONDS = 0.3  # a pass is repeated for so long


Clock = Callable[[], float]


@dataclass(frozen=True)
class Pass:
    """Seconds that a model takes for one target token.

    Args:
        forward: in a forward pass.
        training: in a forward and a backward pass.
        translation: in a beam search.
    """

    forward: float
    training: float
    translation: float


@dataclass(frozen=True)
class Estimate:
    """How long the steps of a plan take.

    Args:
        seconds: of each step that is estimated, by its name.
        left_out: why others are not, empty if all trainings and translations are estimated.
        where: where passes were timed.
    """

    seconds: Mapping[str, float]
    left_out: str = ""
    where: str = "this machine"

    def side_by_side(self, steps: Sequence[Step], cores: int, gpus: int | None = None) -> float:
        """Return the seconds of some steps that run as soon as they can.

        Args:
            steps: the steps.
            cores: threads that all of them may take.
            gpus: GPUs that they may take; None is any number.
        """
        running: list[tuple[float, int, int]] = []  # end, threads and GPUs of each step
        now, free, waiting = 0.0, cores, list(steps)
        free_gpus = most_gpus = sum(step.gpus for step in steps) if gpus is None else gpus
        ends = {step.name: math.inf for step in steps}
        while waiting or running:
            for step in list(waiting):
                threads, own = min(step.threads, cores), min(step.gpus, most_gpus)
                is_ready = all(ends.get(name, now) <= now for name in step.needs)
                if is_ready and threads <= free and own <= free_gpus:
                    waiting.remove(step)
                    ends[step.name] = now + self.seconds.get(step.name, 0.0)
                    running.append((ends[step.name], threads, own))
                    free, free_gpus = free - threads, free_gpus - own
            running.sort()
            now, threads, own = running.pop(0)
            free, free_gpus = free + threads, free_gpus + own
        return now


def estimate(plan: Plan, found: Inputs) -> Estimate:
    """Time the passes of student and teacher, and estimate all trainings and translations with them.

    Args:
        plan: the plan.
        found: what the recipe's files hold.
    """
    former = torch.get_num_threads()
    torch.set_num_threads(min(plan.recipe.threads, len(os.sched_getaffinity(0))))  # a cluster may have more
    try:
        return _estimate(plan, found)
    finally:
        torch.set_num_threads(former)


def _estimate(plan: Plan, found: Inputs) -> Estimate:
    recipe = plan.recipe
    length, seconds = average_length(recipe, found), dict[str, float]()
    has_device = recipe.device != "cuda" or torch.cuda.is_available()  # a cluster may have it
    device = recipe.device if has_device else "cpu"
    students = _timed_students(plan, length, device)
    methods = {f"train-{name}": method for name, method, _ in plan.students()}
    teacher, left_out = None, ""
    if recipe.teacher.huggingface is not None:
        left_out = "the teacher is not imported yet, so its steps are left out"
    else:
        beams = [
            int(last_value(recipe.translations[name].flags, "--beam") or BEAM) for name in recipe.translated
        ]
        beam = max(beams, default=BEAM)
        teacher = timed(teacher_of(recipe), length, device, beam=beam)
    train, mono = (lines(recipe, found, kind) for kind in ("train", MONO))
    sentences = {name: (train, recipe.translations[name].shards) for name in recipe.translated}
    sentences |= {of_mono(name): (mono, shards) for name, (_, shards) in sentences.items()}
    for step in plan.steps:
        words = step.commands[0].words
        if step.name.startswith("train-") and step.updates is not None:
            tokens = step.updates * tokens_of_update(words, length)
            if step.name == "train-teacher":
                assert teacher is not None
                seconds[step.name] = tokens * teacher.training
                continue
            method = methods[step.name]
            student, scorer = students[method.name], teacher
            if method.teacher is not None:
                scorer = students[method.teacher]
            if method.criterion is None:
                seconds[step.name] = tokens * student.training
            elif scorer is not None:
                seconds[step.name] = tokens * (student.training + student.forward + scorer.forward)
        elif words[0] == "imitkd-seqkd" and teacher is not None:
            folder, _, shard = step.name.partition("-shard")
            count, shards = sentences[folder]
            if shard or shards == 1:
                seconds[step.name] = count * length * teacher.translation / shards
    return Estimate(
        seconds, left_out, "this machine" if has_device else "the CPU of this machine, which has no GPU"
    )


def _timed_students(plan: Plan, length: float, device: str) -> dict[str, Pass]:
    """Time the student of each method; students of the same sizes are timed once."""
    passes: dict[tuple[tuple[str, torch.Size], ...], Pass] = {}
    found = {}
    for method in plan.recipe.methods:
        model = build(plan.flags(method), symbols(plan.recipe), has_weights=True)
        sizes = tuple((name, weight.size()) for name, weight in model.named_parameters())
        if sizes not in passes:
            passes[sizes] = timed(model, length, device, beam=1)
        found[method.name] = passes[sizes]
    return found


def average_length(recipe: Recipe, found: Inputs) -> float:
    """Return the number of tokens of an average training sentence."""
    text = found.texts.get(recipe.text.pairs["train"].target)
    if text is None:
        return 12.0  # of made-up sentences
    return min(LONGEST, max(SHORTEST, text.bytes / text.lines / SUBWORD))


def lines(recipe: Recipe, found: Inputs, kind: str) -> int:
    """Return the number of sentences of the training text, or of that without translations."""
    if recipe.text.made_up is not None:
        return recipe.text.made_up.sizes["train"]
    path = recipe.text.pairs["train"].source if kind == "train" else recipe.text.mono
    return found.texts[path].lines if path is not None else 0


def tokens_of_update(words: Sequence[str], length: float) -> float:
    """Return the number of target tokens of a training's update, with full batches."""
    freq = utils.eval_str_list(last_value(words, "--update-freq") or "1", int)[-1]  # one for each epoch
    tokens, rows = last_value(words, "--max-tokens"), last_value(words, "--batch-size")
    limits = [float(tokens)] if tokens else []
    limits += [float(rows) * length] if rows else []
    return freq * min(limits, default=4096.0)


def timed(
    model: BaseFairseqModel, length: float, device: str, *, beam: int, clock: Clock = time.monotonic
) -> Pass:
    """Time the passes of a model over a batch of random tokens.

    Args:
        model: the model.
        length: tokens of a sentence.
        device: ``cpu`` or ``cuda``.
        beam: width of the beam search.
        clock: returns seconds.
    """
    columns = min(round(length), *(longest - 1 for longest in model.max_positions()))
    model = model.to(device)
    dictionary = model.decoder.dictionary
    shape = (ROWS, columns)
    tokens = torch.randint(dictionary.nspecial, len(dictionary), shape, device=device)
    lengths = torch.full((ROWS,), columns, device=device)
    generator = SequenceGenerator(
        [model], dictionary, beam_size=beam, max_len_a=0, max_len_b=columns, min_len=columns - 1
    )
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}

    def forward() -> None:
        with torch.no_grad():
            model(tokens, lengths, tokens)

    def train() -> None:
        model(tokens, lengths, tokens)[0].float().log_softmax(-1).mean().backward()
        model.zero_grad()

    def translate() -> None:
        with torch.no_grad():
            generator.generate([model], sample)

    model.eval()
    runs = (forward, train, translate)
    return Pass(*(fastest(run, device, clock) / tokens.numel() for run in runs))


def fastest(run: Callable[[], None], device: str, clock: Clock) -> float:
    """Return the seconds of the fastest of some runs, so that other work on the machine counts least."""
    times: list[float] = []
    until = clock() + SECONDS
    while len(times) < 2 or clock() < until:
        began = clock()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - began)
    return min(times)

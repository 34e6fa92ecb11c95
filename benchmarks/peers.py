"""What other ways to roll out would cost this package's update: ratios of interleaved pairs, on the same batches.

    python benchmarks/peers.py DATA_BIN --student STUDENT.pt --teacher TEACHER.pt [--json FILE]

An implementation of imitation-style distillation may decode without a cache, to a fixed length, every sentence whether it
was drawn or not, or with a generator built anew at every step. Here each of these habits in turn replaces our decoding
inside the same ``imitkd`` update of the same trainer, everything else being ours. See peers.md.

Each round takes one batch and lets every variant do one whole update on it, in an order drawn anew, at a learning rate of
0. A ratio is an update's time over the cross-entropy update's of the same round; that one runs twice a round, so the row
``cross_entropy (again)`` shows what noise alone does. The figures after it are the same over our own update.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import (
    TEACHER,
    Batch,
    argument_parser,
    build_trainer,
    check_arguments,
    conditions,
    first_batches,
    interleave,
    on_device,
    over,
    quartiles,
    table,
    update,
    write_json,
)
from fairseq.models import BaseFairseqModel
from fairseq.sequence_generator import SequenceGenerator
from fairseq.trainer import Trainer
from fairseq_imitkd.mixing.mixer.batch import encoder_inputs, first_decoder_inputs
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fairseq_imitkd.mixing.mixer import mixer
from fairseq_imitkd.rollout import RandomKey, Rollout, RolloutPolicy, engine
from fairseq_imitkd.tasks import translation as task_module

FIXED_LENGTH = 125  # tokens
SHARES = ("0.5", "1")
BASE, AGAIN = "cross_entropy", "cross_entropy (again)"

Decode = Callable[..., Rollout]
Turn = tuple[int, Batch]


@dataclass(frozen=True)
class Habits:
    """What an update does otherwise than ours: all of these off."""

    no_cache: bool = False  # each step decodes the whole prefix
    fixed_length: bool = False  # decoded and padded to FIXED_LENGTH
    every_sentence: bool = False  # decoded before the draw
    new_generator: bool = False  # fairseq's, built for each batch
    all_stay: bool = False  # finished sentences are decoded on until the last one is
    undivided: bool = False  # one forward and backward pass, padded to the longest sentence


OURS = "imitkd, ours"
VARIANTS = {
    OURS: Habits(),
    "no cache": Habits(no_cache=True),
    # Divided into parts of like length, a padded batch would lose its padding again.
    f"fixed length of {FIXED_LENGTH}": Habits(fixed_length=True, undivided=True),
    "every sentence, then the draw": Habits(every_sentence=True),
    "a new SequenceGenerator each step": Habits(new_generator=True),
    "no cache, fixed length, every sentence": Habits(
        no_cache=True, fixed_length=True, every_sentence=True, undivided=True
    ),
    "no cache, none leaves, undivided": Habits(no_cache=True, all_stay=True, undivided=True),
}


def main() -> None:
    parser = argument_parser(__doc__, "peers.json", max_tokens=2048)
    parser.add_argument("--teacher", type=Path, default=TEACHER, help="default: %(default)s")
    parser.add_argument(
        "--rounds", type=int, default=6, help="measured rounds, one batch each (default: %(default)s)"
    )
    parser.add_argument(
        "--warmup", type=int, default=1, help="rounds before, not measured (default: %(default)s)"
    )
    args = parser.parse_args()
    check_arguments(args, rounds=2, warmup=0)

    torch.set_num_threads(args.threads)
    plain = build_trainer(args, ["--criterion", "cross_entropy"])
    runs: dict[str, Callable[[Turn], dict[str, Any]]] = dict.fromkeys(
        (BASE, AGAIN), lambda turn: update(plain, turn[1])
    )
    for share in SHARES:
        trainer = build_trainer(args, ["--criterion", "imitkd", "--student-share", f"constant:{share}"])
        for name, habits in VARIANTS.items():
            runs[f"{name}, share {share}"] = functools.partial(update_with, habits, trainer)
    batches = [on_device(batch, args.device) for batch in first_batches(plain, args.warmup + args.rounds)]
    seconds, logged = interleave(runs, list(enumerate(batches)), args.warmup, args.device)

    ratios = {name: over(times, seconds[BASE]) for name, times in seconds.items()}
    rows = [[name, *quartiles(ratios[name]), "", *quartiles(ratios[name]), ""] for name in (BASE, AGAIN)]
    over_ours = {}
    for name in VARIANTS:
        cells = []
        for share in SHARES:
            variant = f"{name}, share {share}"
            over_ours[variant] = over(seconds[variant], seconds[f"{OURS}, share {share}"])
            cells += [*quartiles(ratios[variant]), quartiles(over_ours[variant])[0]]
        rows.append([name, *cells])
    header = [
        cell
        for share in SHARES
        for cell in (f"share {share}: x cross-entropy (median)", "quartiles", "x ours (median)")
    ]
    print(table(["update", *header], rows))
    print(f"\n{args.rounds} rounds of up to {args.max_tokens} tokens; {conditions(args)}")
    figures = ("rollout_len", "padding", "truncated")
    work = {
        name: {key: [log[key] for log in logs if key in log] for key in figures}
        for name, logs in logged.items()
    }
    write_json(args, seconds=seconds, ratios=ratios, over_ours=over_ours, work=work)


def update_with(habits: Habits, trainer: Trainer, turn: Turn) -> dict[str, Any]:
    """One whole update whose rollouts are written in another way, but of the same sentences: the draw is the update's."""
    number, batch = turn
    trainer.set_num_updates(number)
    with in_place_of_ours(habits, trainer, batch):
        return update(trainer, batch)


@contextmanager
def in_place_of_ours(habits: Habits, trainer: Trainer, batch: Batch) -> Iterator[None]:
    """The task decodes with these habits inside; with none of them nothing is replaced."""
    decode: Decode = engine.decode
    with ExitStack() as replaced:
        if habits.no_cache:
            replaced.enter_context(mock.patch.object(engine, "begin", WithoutCache))
        if habits.all_stay:
            replaced.enter_context(mock.patch.object(engine, "COMPACT_SHARE", 1.0))
        if habits.undivided:
            replaced.enter_context(mock.patch.dict(task_module.PART_COST, clear=True))
        if habits.fixed_length:
            decode = to_fixed_length
        if habits.new_generator:
            decode = functools.partial(by_new_generator, trainer.task.target_dictionary)
        if habits.every_sentence:
            decode = functools.partial(before_the_draw, decode, trainer, batch)
        if decode is not engine.decode:
            replaced.enter_context(mock.patch.object(mixer, "decode", decode))
        yield


class WithoutCache:
    """The engine's steps, each of which decodes the whole prefix, and asks for the logits of the last token alone."""

    def __init__(self, student: BaseFairseqModel, net_input: dict[str, Any], longest: int, samples: int = 1):
        assert samples == 1
        self.student = student
        self.encoder_out = student.encoder.forward_torchscript(net_input)

    def logits(self, tokens: Tensor) -> Tensor:
        features = self.student.decoder.extract_features(tokens, encoder_out=self.encoder_out)[0]
        return self.student.decoder.output_layer(features[:, -1])

    def keep(self, rows: Tensor) -> None:
        self.encoder_out = self.student.encoder.reorder_encoder_out(self.encoder_out, rows)


@torch.no_grad()
def to_fixed_length(
    student: BaseFairseqModel,
    net_input: dict[str, Any],
    first_tokens: Tensor,
    max_lengths: Tensor,
    policy: RolloutPolicy,
    *,
    pad: int,
    eos: int,
    **others: Any,
) -> Rollout:
    """All rows to the same length, whether they ended long before or not, and padded to it."""
    length = min(FIXED_LENGTH, student.max_decoder_positions() - 1)
    tokens = first_tokens.unsqueeze(-1)
    with engine.evaluating(student):
        steps = engine.begin(student, net_input, length)
        for _ in range(length):
            logits = steps.logits(tokens)
            logits[:, pad] = float("-inf")
            tokens = torch.cat([tokens, policy.choose(logits, None).unsqueeze(-1)], dim=-1)
    tokens = tokens[:, 1:]
    is_eos = tokens.eq(eos)
    after_eos = is_eos.cumsum(dim=-1) - is_eos.long() > 0
    return Rollout(tokens.masked_fill(after_eos, pad), ~is_eos.any(dim=-1), rows_computed=tokens.numel())


@torch.no_grad()
def by_new_generator(
    dictionary: Any,
    student: BaseFairseqModel,
    net_input: dict[str, Any],
    first_tokens: Tensor,
    max_lengths: Tensor,
    policy: RolloutPolicy,
    *,
    pad: int,
    **others: Any,
) -> Rollout:
    """fairseq's generator, built for this one batch; where its cap cuts, it puts an EOS."""
    lengths = {"max_len_a": policy.max_len_a, "max_len_b": policy.max_len_b}
    with engine.evaluating(student):
        generator = SequenceGenerator([student], dictionary, beam_size=1, **lengths)
        found = generator.generate([student], {"net_input": net_input}, bos_token=int(first_tokens[0]))
    tokens = pad_sequence(
        [hypotheses[0]["tokens"] for hypotheses in found], batch_first=True, padding_value=pad
    )
    return Rollout(
        tokens, torch.zeros_like(first_tokens, dtype=torch.bool), rows_computed=int(tokens.ne(pad).sum())
    )


@torch.no_grad()
def before_the_draw(
    decode: Decode,
    trainer: Trainer,
    batch: Batch,
    student: BaseFairseqModel,
    net_input: dict[str, Any],
    first_tokens: Tensor,
    max_lengths: Tensor,
    policy: RolloutPolicy,
    *,
    pad: int,
    eos: int,
    **others: Any,
) -> Rollout:
    """Every sentence of the batch is decoded, and then those that were drawn are taken."""
    criterion, update_num = trainer.get_criterion(), trainer.get_num_updates()
    drawn = RandomKey(criterion.seed, update_num).uniforms(batch["id"]) < criterion.student_share(update_num)
    assert int(drawn.sum()) == first_tokens.size(0), "the draw is not the task's"
    everyone = torch.arange(drawn.numel(), device=drawn.device)
    inputs = encoder_inputs(batch, everyone, trainer.task.source_dictionary.pad())
    caps = policy.max_lengths(inputs["src_lengths"], student.max_decoder_positions())
    rollout = decode(student, inputs, first_decoder_inputs(batch), caps, policy, pad=pad, eos=eos)
    tokens = rollout.tokens[drawn]
    if decode is not to_fixed_length:
        tokens = tokens[:, : int(tokens.ne(pad).sum(dim=-1).max())]
    return Rollout(tokens, rollout.truncated[drawn], rollout.rows_computed)


if __name__ == "__main__":
    main()

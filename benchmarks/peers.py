"""Compares this package's rollouts with other ways to roll out, on the same batches.

    python benchmarks/peers.py DATA_BIN --student STUDENT.pt --teacher TEACHER.pt [--json FILE]

Implementations of imitation-style distillation may decode without a cache, to a fixed length, every sentence
whether it was drawn or not, or with a generator that is built anew at every step. Here each of these habits
replaces our decoding inside the same ``imitkd`` update of the same trainer; everything else stays ours. See
peers.md.

In each round every variant does one complete update on one batch, in a new random order, at a learning rate
of 0. A ratio is an update's time divided by that of the cross-entropy update of the same round. Cross-entropy
runs twice per round, so the row ``cross_entropy (again)`` shows the noise. The last column divides by our own
update instead.
"""

import argparse
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
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fairseq_imitkd.mixing import mixer
from fairseq_imitkd.mixing.batch import encoder_inputs, first_decoder_inputs
from fairseq_imitkd.rollout import Prompt, Rollout, RolloutPolicy, SpecialSymbols, engine
from fairseq_imitkd.training import distiller

FIXED_LENGTH = 125  # tokens
SHARES = ("0.5", "1")
BASE, AGAIN = "cross_entropy", "cross_entropy (again)"

Decode = Callable[..., Rollout]
Turn = tuple[int, Batch]


@dataclass(frozen=True)
class Habits:
    """How an update's decoding differs from ours.

    Args:
        no_cache: each step decodes the whole prefix.
        fixed_length: every sentence is decoded and padded to ``FIXED_LENGTH``.
        every_sentence: all sentences are decoded before the draw.
        new_generator: fairseq's generator decodes; it is built for each batch.
        all_stay: finished sentences stay in the batch until the last one has ended.
        undivided: one forward and backward pass, padded to the longest sentence.
    """

    no_cache: bool = False
    fixed_length: bool = False
    every_sentence: bool = False
    new_generator: bool = False
    all_stay: bool = False
    undivided: bool = False


OURS = "imitkd, ours"
VARIANTS = {
    OURS: Habits(),
    "no cache": Habits(no_cache=True),
    # Dividing a padded batch into parts of similar length would remove its padding.
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
        "--warmup", type=int, default=1, help="unmeasured rounds at the start (default: %(default)s)"
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
    seconds, logged = interleave(runs, list(enumerate(batches)), warmup=args.warmup, device=args.device)
    figures = show_ratios(args, seconds)
    names = ("rollout_len", "padding", "truncated")
    work = {
        variant: {name: [log[name] for log in logs if name in log] for name in names}
        for variant, logs in logged.items()
    }
    write_json(args, seconds=seconds, **figures, work=work)


def show_ratios(
    args: argparse.Namespace, seconds: dict[str, list[float]]
) -> dict[str, dict[str, list[float]]]:
    """Print the table; return all ratios over cross-entropy and over our update."""
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
    return {"ratios": ratios, "over_ours": over_ours}


def update_with(habits: Habits, trainer: Trainer, turn: Turn) -> dict[str, Any]:
    """Do one update with these habits. The update number decides which sentences are drawn."""
    number, batch = turn
    trainer.set_num_updates(number)
    with in_place_of_ours(habits, trainer, batch):
        return update(trainer, batch)


@contextmanager
def in_place_of_ours(habits: Habits, trainer: Trainer, batch: Batch) -> Iterator[None]:
    """Replace our decoding by one with these habits; without any of them nothing is replaced."""
    decode: Decode = engine.decode
    with ExitStack() as replaced:
        if habits.no_cache:
            replaced.enter_context(mock.patch.object(engine, "begin_decoding", WithoutCache))
        if habits.all_stay:
            replaced.enter_context(mock.patch.object(engine, "COMPACT_SHARE", 1.0))
        if habits.undivided:
            replaced.enter_context(mock.patch.dict(distiller.PART_COST, clear=True))
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
    """Steps that run the decoder on the whole prefix and compute the logits of its last token only."""

    def __init__(self, student: BaseFairseqModel, net_input: dict[str, Any], *, samples: int, **others: Any):
        assert samples == 1
        self.student, self.rows_computed = student, 0
        self.encoder_out = student.encoder.forward_torchscript(net_input)

    def logits(self, tokens: Tensor) -> Tensor:
        self.rows_computed += tokens.numel()
        features = self.student.decoder.extract_features(tokens, encoder_out=self.encoder_out)[0]
        return self.student.decoder.output_layer(features[:, -1])

    def keep(self, rows: Tensor) -> None:
        self.encoder_out = self.student.encoder.reorder_encoder_out(self.encoder_out, rows)


@torch.no_grad()
def to_fixed_length(
    student: BaseFairseqModel,
    prompt: Prompt,
    policy: RolloutPolicy,
    *,
    symbols: SpecialSymbols,
    **others: Any,
) -> Rollout:
    """Decode all rows to the same length, even if they end earlier, and pad them to it."""
    length = min(FIXED_LENGTH, student.max_decoder_positions() - 1)
    tokens = prompt.first_tokens.unsqueeze(-1)
    with engine.evaluating(student):
        steps = engine.begin_decoding(student, prompt.net_input, longest=length, samples=prompt.samples)
        for _ in range(length):
            logits = steps.logits(tokens)
            logits[:, symbols.pad] = float("-inf")
            tokens = torch.cat([tokens, policy.choose(logits, None).unsqueeze(-1)], dim=-1)
    tokens = tokens[:, 1:]
    is_eos = tokens.eq(symbols.eos)
    after_eos = is_eos.cumsum(dim=-1) - is_eos.long() > 0
    return Rollout(
        tokens.masked_fill(after_eos, symbols.pad), ~is_eos.any(dim=-1), rows_computed=tokens.numel()
    )


@torch.no_grad()
def by_new_generator(
    dictionary: Any,
    student: BaseFairseqModel,
    prompt: Prompt,
    policy: RolloutPolicy,
    *,
    symbols: SpecialSymbols,
    **others: Any,
) -> Rollout:
    """Decode by a new generator of fairseq, which adds an EOS where its maximum length cuts a row."""
    lengths = {"max_len_a": policy.max_len_a, "max_len_b": policy.max_len_b}
    with engine.evaluating(student):
        generator = SequenceGenerator([student], dictionary, beam_size=1, **lengths)
        bos_token = int(prompt.first_tokens[0])
        found = generator.generate([student], {"net_input": prompt.net_input}, bos_token=bos_token)
    tokens = pad_sequence(
        [hypotheses[0]["tokens"] for hypotheses in found], batch_first=True, padding_value=symbols.pad
    )
    truncated = torch.zeros_like(prompt.first_tokens, dtype=torch.bool)
    return Rollout(tokens, truncated, rows_computed=int(tokens.ne(symbols.pad).sum()))


@torch.no_grad()
def before_the_draw(
    decode: Decode,
    trainer: Trainer,
    batch: Batch,
    student: BaseFairseqModel,
    prompt: Prompt,
    policy: RolloutPolicy,
    *,
    symbols: SpecialSymbols,
    **others: Any,
) -> Rollout:
    """Decode every sentence of the batch, then keep those that were drawn."""
    distiller_in_use = trainer.task.distiller_of(trainer.get_criterion())
    now = distiller_in_use.method.at(trainer.get_num_updates(), distiller_in_use.epoch)
    drawn = distiller_in_use.mixer.draw(batch, now).is_fresh
    assert int(drawn.sum()) == prompt.first_tokens.size(0), "the draw is not the task's"
    everyone = torch.arange(drawn.numel(), device=drawn.device)
    inputs = encoder_inputs(batch, everyone, trainer.task.source_dictionary.pad())
    caps = policy.max_lengths(inputs["src_lengths"], student.max_decoder_positions())
    everything = Prompt(inputs, first_decoder_inputs(batch), caps)
    rollout = decode(student, everything, policy, symbols=symbols)
    tokens = rollout.tokens[drawn]
    if decode is not to_fixed_length:
        tokens = tokens[:, : int(tokens.ne(symbols.pad).sum(dim=-1).max())]
    return Rollout(tokens, rollout.truncated[drawn], rollout.rows_computed)


if __name__ == "__main__":
    main()

"""Run one ImitKD update on a batch of three sentences and print what each stage makes of it.

    python docs/one_update.py            print it
    python docs/one_update.py --write    also put it into one-update.md

The models are made by hand, so that the numbers can be checked by hand.
"""

import argparse
import copy
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from fairseq import criterions, options, tasks
from fairseq.data import Dictionary
from fairseq.data.language_pair_dataset import collate
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from fairseq.models import FairseqEncoder, FairseqEncoderDecoderModel, FairseqIncrementalDecoder
from fairseq.trainer import Trainer
from omegaconf import OmegaConf
from torch import Tensor, nn

import fairseq_imitkd  # noqa: F401  # registers the task and the methods
from fairseq_imitkd.mixing.batch import split_by_length
from fairseq_imitkd.rollout import RandomKey
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.training.distiller import PART_COST

PAGE = Path(__file__).with_name("one-update.md")

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS = tuple(map(str, range(10)))
BATCH = {17: "6 2 9 4", 28: "8 1 7", 53: "3 0"}  # index in the data set -> source
UPDATE, UPDATES = 131, 1000
FLAGS = (
    "--task", "translation_with_teacher", "--criterion", "imitkd", "--max-update", str(UPDATES),
    "--seed", "1", "--optimizer", "sgd", "--lr", "1.0", "--clip-norm", "0", "--max-tokens", "100", "--cpu",
    "--source-lang", "src", "--target-lang", "tgt", "--arch", "transformer",
)  # fmt: skip


# The data


def dictionary(symbols: tuple[str, ...]) -> Dictionary:
    """A dictionary of these symbols, after fairseq's four special ones."""
    made = Dictionary()
    for symbol in symbols:
        made.add_symbol(symbol)
    return made


SOURCE, TARGET = dictionary(DIGITS), dictionary(WORDS)


def reference(source: str) -> str:
    """The right translation: the digits as words, the last digit first."""
    return " ".join(WORDS[int(digit)] for digit in reversed(source.split()))


def make_batch() -> dict[str, Any]:
    """The three sentences as fairseq's data sets collate them."""
    pairs = [
        {"id": number, "source": encoded(SOURCE, source), "target": encoded(TARGET, reference(source))}
        for number, source in BATCH.items()
    ]
    return collate(pairs, pad_idx=TARGET.pad(), eos_idx=TARGET.eos())


def encoded(words: Dictionary, text: str) -> Tensor:
    """The ids of a sentence and of the EOS after it."""
    return words.encode_line(text, add_if_not_exist=False).long()


# The models


class LastDigitFirst(FairseqEncoder):
    """Returns the digits of each source in reverse order, then EOS."""

    def forward(self, src_tokens: Tensor, src_lengths: Tensor, **_: Any) -> dict[str, list[Tensor]]:
        digits, eos = src_tokens[:, :-1].flip(1), src_tokens[:, -1:]
        return {"encoder_out": [torch.cat([torch.where(digits == SOURCE.pad(), eos, digits), eos], dim=1)]}

    def reorder_encoder_out(self, encoder_out: dict[str, list[Tensor]], new_order: Tensor) -> Any:
        return {"encoder_out": [value[new_order] for value in encoder_out["encoder_out"]]}

    def max_positions(self) -> int:
        return 64


class WordOfDigit(FairseqIncrementalDecoder):
    """Position ``t`` gets the logits of the ``t``-th digit, which a table holds."""

    def __init__(self, table: Tensor):
        super().__init__(TARGET)
        self.table = nn.Embedding.from_pretrained(table, freeze=False)

    def forward(
        self, prev_output_tokens: Tensor, encoder_out: Any, incremental_state: Any = None, **_: Any
    ) -> tuple[Tensor, Any]:
        digits = encoder_out["encoder_out"][0]
        positions = torch.arange(prev_output_tokens.size(1)).clamp(max=digits.size(1) - 1)
        logits = self.table(digits[:, positions])
        return (logits if incremental_state is None else logits[:, -1:]), {}

    def max_positions(self) -> int:
        return 64


def model(right: float, mistakes: dict[str, tuple[str, float, float]]) -> FairseqEncoderDecoderModel:
    """A model that gives the right word a probability and shares the rest among all other symbols.

    Args:
        right: probability of the right word.
        mistakes: digit -> the word that it is mistaken for, that word's probability, the right word's.
    """
    rows = []
    for symbol in SOURCE.symbols:
        word = WORDS[int(symbol)] if symbol in DIGITS else TARGET.eos_word
        wrong, most, less = mistakes.get(symbol, (word, right, right))
        known = {TARGET.index(wrong): most, TARGET.index(word): less}
        rest = (1.0 - sum(known.values())) / (len(TARGET) - len(known))
        rows.append([known.get(index, rest) for index in range(len(TARGET))])
    table = torch.tensor(rows, dtype=torch.float64).log().float()
    return FairseqEncoderDecoderModel(LastDigitFirst(SOURCE), WordOfDigit(table))


def make_teacher() -> Teacher:
    """It knows every digit."""
    return Teacher([model(0.9, {})])


def make_student() -> FairseqEncoderDecoderModel:
    """It reads 7 as 1, and ends the sentence at 9."""
    return model(0.7, {"7": ("one", 0.6, 0.3), "9": (TARGET.eos_word, 0.6, 0.3)})


# The update


def make_trainer() -> Trainer:
    """fairseq's own trainer, just before the update."""
    with tempfile.TemporaryDirectory() as folder:
        SOURCE.save(f"{folder}/dict.src.txt")
        TARGET.save(f"{folder}/dict.tgt.txt")
        args = options.parse_args_and_arch(options.get_training_parser(), [folder, *FLAGS])
        cfg = convert_namespace_to_omegaconf(args)
        # Without the rest of the configuration, the task does not look for data.
        task = tasks.setup_task(OmegaConf.create(cfg.task))
    task.open_teacher = lambda method: make_teacher()  # it is made here and not read from --teacher-path
    trainer = Trainer(cfg, task, make_student(), criterions.build_criterion(cfg.criterion, task))
    trainer.set_num_updates(UPDATE)
    return trainer


def spy(owner: Any, name: str, seen: dict[str, Any]) -> None:
    """Note what a method returns, and leave it as it is."""
    method: Callable[..., Any] = getattr(owner, name)

    def noting(*args: Any, **kwargs: Any) -> Any:
        seen[name] = method(*args, **kwargs)
        return seen[name]

    setattr(owner, name, noting)


def update() -> tuple[dict[str, Any], Trainer]:
    """Run the update. Returns what the stages returned, by name, and the trainer after the update."""
    trainer, seen = make_trainer(), {"batch": make_batch()}
    task, criterion = trainer.task, trainer.get_criterion()
    distiller, seen["weights before"] = task.distiller_of(criterion), weights(trainer)
    seen["batch before"] = copy.deepcopy(seen["batch"])
    for owner, name in (
        (distiller.mixer, "draw"),
        (distiller.mixer, "roll_out"),
        (distiller.teacher, "score"),
        (task, "train_step"),
    ):
        spy(owner, name, seen)
    train_on = task.train_on

    def losses_first(sample: Any, student: Any, **arguments: Any) -> Any:
        with torch.no_grad():
            seen["lprobs"] = student(**sample["net_input"])[0].log_softmax(dim=-1)
            seen["losses"] = criterion(student, sample, reduce=False)[0]
        return train_on(sample, student, **arguments)

    task.train_on = losses_first
    with metrics.aggregate(new_root=True):
        seen["meters"] = trainer.train_step([seen["batch"]])
    return seen, trainer


def weights(trainer: Trainer) -> Tensor:
    """The student's only parameters, the logits of each digit."""
    return trainer.model.decoder.table.weight.detach().clone()


# What is printed


def columns(*rows: tuple[object, ...]) -> Iterator[str]:
    """Rows as aligned text."""
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def text(words: Dictionary, tokens: Tensor) -> str:
    """Tokens as words, without padding."""
    return " ".join(words[token] for token in tokens.tolist() if token != words.pad())


def tensor(name: str, values: Tensor) -> Iterator[str]:
    """A tensor with its name and shape."""
    yield f"{name} {tuple(values.shape)}"
    yield from ("  " + " ".join(f"{value:2d}" for value in row) for row in values.tolist())


def the_batch(seen: dict[str, Any], _: Trainer) -> Iterator[str]:
    """What fairseq gives."""
    batch = seen["batch before"]
    sources, targets = batch["net_input"]["src_tokens"], batch["target"]
    pairs = zip(batch["id"].tolist(), sources, targets, strict=True)
    yield from columns(
        ("id", "source", "reference"), *((i, text(SOURCE, s), text(TARGET, t)) for i, s, t in pairs)
    )
    yield from tensor("src_tokens", sources)
    yield from tensor("prev_output_tokens", batch["net_input"]["prev_output_tokens"])
    yield from tensor("target", targets)
    yield f"ntokens {batch['ntokens']}"


def the_draw(seen: dict[str, Any], trainer: Trainer) -> Iterator[str]:
    """Whose target each sentence gets."""
    draw, method = seen["draw"], trainer.get_criterion().method
    uniforms = RandomKey(method.seed, draw.now.update_num).uniforms(draw.sample["id"])
    yield f"update {draw.now.update_num} of {UPDATES}: student_share {draw.now.student_share:.4f}"
    yield from columns(
        ("id", "random number", "target"),
        *(
            (number, f"{uniform:.4f}", "the student writes it" if fresh else "reference")
            for number, uniform, fresh in zip(
                draw.sample["id"].tolist(), uniforms.tolist(), draw.is_fresh.tolist(), strict=True
            )
        ),
    )
    yield f"fresh_rows {draw.fresh_rows.tolist()}"


def the_mixed_batch(seen: dict[str, Any], _: Trainer) -> Iterator[str]:
    """The new batch."""
    mixed, before = seen["roll_out"], seen["batch before"]
    batch = mixed.sample
    rows = zip(batch["id"].tolist(), batch["target"], mixed.is_rollout.tolist(), strict=True)
    yield from columns(
        ("id", "target", "is_rollout"), *((number, text(TARGET, tokens), own) for number, tokens, own in rows)
    )
    yield from tensor("prev_output_tokens", batch["net_input"]["prev_output_tokens"])
    yield from tensor("target", batch["target"])
    yield f"ntokens {batch['ntokens']}, truncated {mixed.truncated.tolist()}"
    yield f"rollout_rows_computed {mixed.work['rollout_rows_computed']}"
    unchanged = seen["batch"]["target"].equal(before["target"]) and seen["batch"].keys() == before.keys()
    yield f"the given batch is unchanged: {unchanged}"


def the_scores(seen: dict[str, Any], _: Trainer) -> Iterator[str]:
    """What the teacher says at every prefix."""
    target, logits = seen["roll_out"].sample["target"], seen["score"].logits(slice(None))
    yield f"logits {tuple(logits.shape)}"
    best = logits.argmax(dim=-1).view_as(target).masked_fill(target.eq(TARGET.pad()), TARGET.pad())
    yield from tensor("most probable token, padding left out", best)
    yield from columns(*((text(TARGET, row),) for row in best))


def the_losses(seen: dict[str, Any], _: Trainer) -> Iterator[str]:
    """The loss of each counted token."""
    batch, losses = seen["roll_out"].sample, iter(seen["losses"].tolist())
    best = seen["score"].logits(slice(None)).argmax(dim=-1).view_as(batch["target"])
    rows: list[tuple[object, ...]] = [("id", "prefix", "target", "teacher", "student's p", "loss")]
    for row, number in enumerate(batch["id"].tolist()):
        for position in range(int(batch["target"][row].ne(TARGET.pad()).sum())):
            prefix = text(TARGET, batch["net_input"]["prev_output_tokens"][row, 1 : position + 1])
            label = int(best[row, position])
            probability = seen["lprobs"][row, position, label].exp()
            words = TARGET[int(batch["target"][row, position])], TARGET[label]
            rows.append((number, prefix, *words, f"{probability:.2f}", f"{next(losses):.4f}"))
    yield from columns(*rows)
    loss, count, _ = seen["train_step"]
    yield f"loss {loss:.4f}, sample_size {count}"


def the_log(seen: dict[str, Any], _: Trainer) -> Iterator[str]:
    """The sums that the step logs, without times and zeros."""
    logged = {
        name: float(value) for name, value in seen["train_step"][2].items() if not name.endswith("seconds")
    }
    yield from columns(*((name, f"{value:.4g}") for name, value in logged.items() if value))


def the_division(seen: dict[str, Any], trainer: Trainer) -> Iterator[str]:
    """What fairseq makes of the sums."""
    for name in ("loss", "student_share", "agreement", "rollout_len"):
        yield f"{name} {seen['meters'][name]:.3f}"
    before, after = seen["weights before"], weights(trainer)
    digit, count = SOURCE.index("7"), seen["train_step"][1]
    for word in ("one", "seven"):
        at = digit, TARGET.index(word)
        moved = float(after[at] - before[at])
        yield f"logit of '{word}' for 7: gradient {-moved * count:+.2f} / {count}, moves by {moved:+.4f}"


def the_parts(seen: dict[str, Any], trainer: Trainer) -> Iterator[str]:
    """Batches divided by target length."""
    for lengths in ([2, 4, 3], [4, 5, 60, 62]):
        target = torch.full((len(lengths), max(lengths)), TARGET.pad())
        for row, length in enumerate(lengths):
            target[row, :length] = TARGET.eos()
        parts = [rows.tolist() for rows in split_by_length(target, TARGET.pad(), PART_COST["cpu"])]
        yield f"target lengths {lengths}: rows of each part {parts}"


STAGES = (
    the_batch,
    the_draw,
    the_mixed_batch,
    the_scores,
    the_losses,
    the_parts,
    the_log,
    the_division,
)


def blocks() -> list[str]:
    """The text of each stage, in the order of the page."""
    seen, trainer = update()
    return ["\n".join(stage(seen, trainer)) for stage in STAGES]


def main() -> None:
    """Print the stages, and put them into the page if that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="also put the output into one-update.md")
    write, made = parser.parse_args().write, blocks()
    print("\n\n".join(made))
    if write:
        new = iter(made)
        page = re.sub(
            r"^```text\n.*?^```$",
            lambda _: f"```text\n{next(new)}\n```",
            PAGE.read_text(encoding="utf-8"),
            flags=re.MULTILINE | re.DOTALL,
        )
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()

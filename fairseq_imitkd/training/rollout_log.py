"""Shows some rollouts of an update: the student's words, and the teacher's wherever the two disagree.

Nothing is computed for it: the loss has asked the teacher about these prefixes anyway.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.distributed.utils import is_master
from fairseq.logging import progress_bar
from torch import Tensor

from fairseq_imitkd.data.batch_type import Batch, teacher_input
from fairseq_imitkd.mixing import MixedBatch
from fairseq_imitkd.text.marks import recognised
from fairseq_imitkd.text.scored import ScoredText
from fairseq_imitkd.training.run_files import ROLLOUTS, whole_config

logger = logging.getLogger(__name__)

TAG = "rollouts"
CUT = "…"  # the end of a rollout that the maximum length has cut
TABLE = "train_inner"  # fairseq's TensorBoard folder for the metrics of every few updates
COLOURS = {"": "", "source": "dim", "student": "red", "teacher": "green"}

Part = tuple[str] | tuple[str, str]  # words of both; or the student's token and the teacher's


@dataclass(frozen=True)
class ShownRollout:
    """A rollout with the teacher's corrections.

    Args:
        source: the source as text.
        parts: the rollout in order. Words on which the two agree stand alone; a token of the student on which
            they disagree has the teacher's token beside it. A leading space separates words.
    """

    source: str
    parts: list[Part]

    def spans(self) -> Iterator[tuple[str, str]]:
        """Yield the rollout as pieces of text, each with whose it is: "", "student" or "teacher"."""
        for text, *teacher in self.parts:
            words = text.lstrip(" ")
            if not teacher:
                yield text, ""
                continue
            yield f"{text[: len(text) - len(words)]}[", ""
            yield words, "student"
            yield " → ", ""
            yield teacher[0], "teacher"
            yield "]", ""

    def plain(self) -> str:
        """Return the rollout as plain text: ``a man [is → sits] here``."""
        return "".join(text for text, _ in self.spans())


class RolloutLog:
    """Collects rollouts of an update, and writes them to the log, to TensorBoard and to the run's files.

    One process does so, with its own rollouts. It draws nothing, so training is the same without it.

    Args:
        number: of sentences.
        interval: updates from one time to the next; an update without rollouts passes it on.
        text: turns tokens into text.
        save_dir: where :data:`ROLLOUTS` is written; None writes no file.
        tensorboard: folder of ``--tensorboard-logdir``; None writes no table.
    """

    def __init__(
        self,
        number: int,
        interval: int,
        text: "RolloutText",
        *,
        save_dir: Path | None = None,
        tensorboard: str | None = None,
    ):
        self._number, self._interval, self._text = number, interval, text
        self._save_dir, self._tensorboard = save_dir, tensorboard
        self._due = 0  # the next update, from 0, at which rollouts are shown
        self._shown: list[ShownRollout] = []

    @classmethod
    def of(cls, task: Any, cfg: Any) -> "RolloutLog | None":
        """Return the log that ``--log-rollouts`` asks for; None without it, and in other processes.

        Args:
            task: a task with the dictionaries of both languages, and a part of fairseq's configuration.
            cfg: the method's settings.
        """
        config = whole_config(task.cfg)
        if not cfg.log_rollouts or (config is not None and not is_master(config.distributed_training)):
            return None
        return cls(
            cfg.log_rollouts,
            cfg.log_rollouts_interval,
            RolloutText(
                getattr(task, "transcript_dictionary", task.source_dictionary), task.target_dictionary
            ),
            save_dir=None if config is None else Path(config.checkpoint.save_dir),
            tensorboard=None if config is None else config.common.tensorboard_logdir,
        )

    def choose(self, batch: MixedBatch, update_num: int) -> Tensor | None:
        """Return which sentences of a batch to show, ``(B,)`` bool; None if it is not yet time, or if it has
        no rollout.

        They are spread over the batch, whose sentences are sorted by length.
        """
        if update_num < self._due:
            return None
        rows = batch.is_rollout.nonzero().squeeze(-1)
        if not len(rows):
            return None
        self._shown = []
        steps = torch.linspace(0, len(rows) - 1, min(self._number, len(rows)), device=rows.device)
        chosen = torch.zeros_like(batch.is_rollout)
        chosen[rows[steps.round().long()]] = True
        return chosen

    def collect(self, sample: Batch, chosen: Tensor, truncated: Tensor, *, teacher: Tensor) -> None:
        """Note some rollouts of a batch or of a part of it.

        Args:
            sample: ``B`` sentences with targets of ``T`` positions.
            chosen: ``(B,)`` bool, which of them.
            truncated: ``(B,)`` bool, whether the maximum length has cut them.
            teacher: ``(B, T)``, the teacher's most probable token at each position.
        """
        rows = chosen.nonzero().squeeze(-1)
        sources, targets = teacher_input(sample)["src_tokens"][rows], sample["target"][rows]
        tokens = zip(sources.cpu(), targets.cpu(), teacher[rows].cpu(), strict=True)
        for row, cut in zip(tokens, truncated[rows].tolist(), strict=True):
            self._shown.append(self._text.rollout(*row, truncated=cut))

    def show(self, update_num: int) -> None:
        """Write what was collected, if anything was.

        Args:
            update_num: number of the update (0 = first).
        """
        if not self._shown:
            return
        shown, self._shown = self._shown, []
        update = update_num + 1
        self._due = update // self._interval * self._interval + self._interval - 1
        coloured = list(_coloured(shown, update))
        logger.info("%s", "".join(text for text, _ in coloured), extra={"coloured": coloured})
        if self._tensorboard:
            writer = progress_bar.TensorboardProgressBarWrapper(None, self._tensorboard)._writer(TABLE)
            if writer is not None:
                writer.add_text(TAG, markdown(shown), update)
        if self._save_dir is not None:
            self._write(self._save_dir / ROLLOUTS, shown, update)

    def _write(self, path: Path, shown: Sequence[ShownRollout], update: int) -> None:
        rollouts = [{"source": each.source, "student": each.parts} for each in shown]
        line = json.dumps({"tag": TAG, "num_updates": update, "rollouts": rollouts}, ensure_ascii=False)
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        except OSError as error:
            logger.warning("%s can't be written (%s); training goes on without it", path, error.strerror)
            self._save_dir = None


@dataclass(frozen=True)
class RolloutText:
    """Turns the tokens of rollouts into text.

    Args:
        source: the dictionary of what the teacher reads; None if it reads speech.
        target: the target dictionary.
    """

    source: Dictionary | None
    target: Dictionary

    def rollout(self, source: Tensor, student: Tensor, teacher: Tensor, *, truncated: bool) -> ShownRollout:
        """Return a rollout as it is shown.

        Args:
            source: ``(S,)`` tokens, or frames of speech.
            student: ``(T,)``, the rollout, padded.
            teacher: ``(T,)``, the teacher's most probable token after each prefix of it.
            truncated: whether the maximum length has cut it.
        """
        parts: list[Part] = []
        kind, goes_on = recognised(self.target), False
        counted = student.ne(self.target.pad())
        for own, other in zip(student[counted].tolist(), teacher[counted].tolist(), strict=True):
            symbol, follows = self.target[own], bool(parts)
            starts = not goes_on if kind == "@@ " else self._starts_word(symbol, kind)
            gap = " " if follows and starts else ""
            goes_on = symbol.endswith("@@")
            if own != other:
                parts.append((gap + self._token(own, kind, follows), self._token(other, kind, follows)))
            elif own != self.target.eos():
                _append(parts, gap + printable(_bare(symbol, kind)))
        if truncated:
            _append(parts, f" {CUT}")
        line = "(speech)"
        if self.source is not None:
            text = ScoredText(self.source, recognised(self.source))
            (line,) = text.sources([source[source.ne(self.source.pad())]])
        return ShownRollout(printable(line), parts)

    def _starts_word(self, symbol: str, kind: str | None) -> bool:
        return kind != "sentencepiece" or symbol.startswith("▁") or symbol == self.target[self.target.eos()]

    def _token(self, token: int, kind: str | None, follows: bool) -> str:
        """Return a token that stands alone: ``-`` is where its word goes on."""
        symbol = self.target[token]
        bare = printable(_bare(symbol, kind)) or "▁"
        if token < self.target.nspecial:
            return bare
        if kind == "@@ " and symbol.endswith("@@"):
            return f"{bare}-"
        return f"-{bare}" if follows and not self._starts_word(symbol, kind) else bare


def markdown(shown: Sequence[ShownRollout]) -> str:
    """Return rollouts as a table in Markdown, whose corrections are bold."""
    rows = []
    for each in shown:
        words = "".join(
            f"**{_escaped(text)}**" if whose == "teacher" else _escaped(text) for text, whose in each.spans()
        )
        rows.append(f"| {_escaped(each.source)} | {words} |")
    return "\n".join(["| source | student [its token → teacher's] |", "|---|---|", *rows])


def _coloured(shown: Sequence[ShownRollout], update: int) -> Iterator[tuple[str, str]]:
    """Yield the text of the log, each piece with its colour as rich calls it."""
    yield f"rollouts of update {update:,} ([student → teacher] where they disagree)", "bold"
    for each in shown:
        yield "\n  source:  ", "bold"
        yield each.source, COLOURS["source"]
        yield "\n  student: ", "bold"
        for text, whose in each.spans():
            yield text, COLOURS[whose]


def _append(parts: list[Part], text: str) -> None:
    """Add words on which the two agree; they join those before."""
    if parts and len(parts[-1]) == 1:
        parts[-1] = (parts[-1][0] + text,)
    else:
        parts.append((text,))


def _bare(symbol: str, kind: str | None) -> str:
    """Return a symbol without the mark of its kind of subwords."""
    if kind == "sentencepiece":
        return symbol.removeprefix("▁").replace("▁", " ")
    return symbol.removesuffix("@@") if kind == "@@ " else symbol


def printable(text: str) -> str:
    """Return a text that moves no cursor: a dictionary may have any character."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def _escaped(text: str) -> str:
    """Return a text that Markdown shows as it is."""
    return "".join(f"\\{each}" if each in "\\`*_{}[]<>()#+-.!|~" else each for each in text)

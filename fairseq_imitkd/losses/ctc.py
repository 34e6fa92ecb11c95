"""Connectionist temporal classification (Graves et al. 2006): loss and alignment of a text, and best path.

Every frame has a distribution over the symbols and a blank. A path has one of them at each frame. Its text is
the path without repetitions, and then without blanks.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from torch import Tensor

from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.models.ctc import SpeechCTC
from fairseq_imitkd.models.logits import full_precision


def ctc_loss(lprobs: Tensor, frames: Tensor, target: Tensor, *, tokens: Tensor, blank: int) -> Tensor:
    """Return ``-log`` of the total probability of all paths of a text.

    Args:
        lprobs: ``(B, S, V)`` log-probabilities.
        frames: ``(B,)`` int64, how many frames each sentence has.
        target: ``(B, T)`` int64, texts, padded on the right.
        tokens: ``(B,)`` int64, their lengths.
        blank: index of the blank.

    Returns:
        ``(B,)``, nats; 0, without a gradient, for a text with too few frames.
    """
    return F.ctc_loss(
        lprobs.transpose(0, 1), target, frames, tokens, blank, reduction="none", zero_infinity=True
    )


@torch.no_grad()
def aligned_tokens(lprobs: Tensor, frames: Tensor, target: Tensor, *, tokens: Tensor, blank: int) -> Tensor:
    """Return which token of its text each frame has on the text's most probable path (forced alignment).

    The Viterbi algorithm runs on all sentences at once. ``torchaudio.functional.forced_align`` takes one.

    Args:
        lprobs, frames, target, tokens, blank: see :func:`ctc_loss`.

    Returns:
        ``(B, S)`` int64, positions in the text; -1 at blanks, at padding, and for a text with too few frames.
    """
    sentences, width = target.shape
    states = torch.full((sentences, 2 * width + 1), blank, dtype=torch.int64, device=target.device)
    states[:, 1::2] = target
    emitted = lprobs.gather(2, states.unsqueeze(1).expand(-1, lprobs.size(1), -1))  # (B, S, 2 T + 1)
    # From a token the path may go on to the next one without a blank, unless it is the same symbol.
    may_skip = torch.zeros_like(states, dtype=torch.bool)
    may_skip[:, 2:] = (states[:, 2:] != blank) & (states[:, 2:] != states[:, :-2])
    score = torch.full_like(emitted[:, 0], -torch.inf)
    score[:, :2] = emitted[:, 0, :2]
    steps = []  # for each frame, how many states the path went on by
    for frame in range(1, lprobs.size(1)):
        moved = [F.pad(score, (by, 0), value=-torch.inf)[:, : score.size(1)] for by in (0, 1, 2)]
        moved[2] = moved[2].masked_fill(~may_skip, -torch.inf)
        best, by = torch.stack(moved).max(dim=0)
        is_there = (frame < frames).unsqueeze(-1)
        score = torch.where(is_there, best + emitted[:, frame], score)
        steps.append(by.masked_fill(~is_there, 0))
    ends = torch.stack([2 * tokens, (2 * tokens - 1).clamp(min=0)], dim=-1)
    of_ends, chosen = score.gather(1, ends).max(dim=-1)
    state = ends.gather(1, chosen.unsqueeze(-1))  # (B, 1)
    path = [state]
    for by in reversed(steps):
        state = state - by.gather(1, state)
        path.append(state)
    found = torch.cat(path[::-1], dim=1)  # (B, S)
    is_there = torch.arange(found.size(1), device=found.device) < frames.unsqueeze(-1)
    is_token = (found % 2 == 1) & is_there & of_ends.isfinite().unsqueeze(-1)
    return torch.where(is_token, found // 2, -1)


def best_path(lprobs: Tensor, frames: Tensor, blank: int) -> list[tuple[Tensor, Tensor]]:
    """Return the text of each sentence's most probable path, and the log-probabilities of its symbols.

    Args:
        lprobs, frames, blank: see :func:`ctc_loss`.

    Returns:
        for each sentence the symbols, ``(L,)``, and for each of them the log-probability at its first frame.
    """
    found = []
    best, symbols = lprobs.max(dim=-1)
    for row, length in enumerate(frames.tolist()):
        path = symbols[row, :length]
        is_new = torch.ones_like(path, dtype=torch.bool)
        is_new[1:] = path[1:] != path[:-1]
        kept = is_new & (path != blank)
        found.append((path[kept], best[row, :length][kept]))
    return found


@dataclass(frozen=True)
class Frames:
    """What a student without a decoder says about a batch.

    Args:
        logits, lprobs: ``(B, S, V)``.
        frames, tokens: ``(B,)``, the lengths of the sentences and of their texts.
        counted: ``(B, T)`` bool, the tokens of the texts, which have no EOS.
        loss: ``(B,)``, the CTC loss.
    """

    logits: Tensor
    lprobs: Tensor
    frames: Tensor
    tokens: Tensor
    counted: Tensor
    loss: Tensor

    @classmethod
    def of(cls, model: torch.nn.Module, sample: Batch, dictionary: Dictionary) -> "Frames":
        """Run a student on a batch, whose targets are of this dictionary."""
        output, frames = model(**sample["net_input"])
        logits, target = full_precision(output), sample["target"]
        lprobs = logits.log_softmax(dim=-1)
        counted = target.ne(dictionary.pad()) & target.ne(dictionary.eos())
        tokens = counted.sum(dim=-1)
        loss = ctc_loss(lprobs, frames, target, tokens=tokens, blank=SpeechCTC.blank)
        return cls(logits, lprobs, frames, tokens, counted, loss)

    def per_token(self) -> Tensor:
        """Return each sentence's loss divided among its tokens, ``(B * T,)``, and 0 elsewhere."""
        each = (self.loss / self.tokens.clamp(min=1)).unsqueeze(-1).expand_as(self.counted)
        return each.masked_fill(~self.counted, 0.0).flatten()

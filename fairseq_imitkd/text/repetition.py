"""What repeats itself: one or several words or tokens, :data:`REPEATS` times or more in a row."""

import torch
from torch import Tensor

REPEATS = 3  # this many times in a row is a repetition
LONGEST = 32  # longest phrase that is compared with itself; it bounds time and memory


def repeated(tokens: Tensor) -> Tensor:
    """Return where a phrase ends that stands there for the third time in a row, or for a later one.

    In "a b a b a b a" these are the last two positions. Rows are compared at once and without a wait for the
    device.

    Args:
        tokens: ``(B, T)`` int64. Padding repeats itself too, so the caller ignores what is found there;
            padding on the right changes nothing before it.

    Returns:
        ``(B, T)`` bool.
    """
    length, device = tokens.size(1), tokens.device
    positions = torch.arange(length, device=device)
    sizes = torch.arange(1, min(length // REPEATS, LONGEST) + 1, device=device).unsqueeze(-1)  # (S, 1)
    before = positions - sizes  # (S, T), the position one phrase earlier
    is_same = tokens.unsqueeze(1).eq(tokens[:, before.clamp(min=0)]) & (before >= 0)  # (B, S, T)
    counts = is_same.cumsum(dim=-1, dtype=torch.int32)
    # A phrase stands there for the third time if two phrases' worth of tokens equal those one phrase earlier.
    worth = (REPEATS - 1) * sizes
    begins = (positions - worth).expand(tokens.size(0), -1, -1)
    earlier = counts.gather(-1, begins.clamp(min=0)).masked_fill(begins < 0, 0)
    return (counts - earlier).eq(worth).any(dim=1)


def repeats(text: str) -> bool:
    """Whether one or several words occur :data:`REPEATS` times or more in a row: "a man a man a man"."""
    numbers: dict[str, int] = {}
    words = [numbers.setdefault(word, len(numbers)) for word in text.split()]
    return len(words) >= REPEATS and bool(repeated(torch.tensor([words])).any())

"""A teacher of a student whose dictionaries hold only some of the teacher's symbols.

The teacher is restricted to the shared symbols when it is loaded. Its distribution is then its own one,
renormalised over them: log-probabilities differ by one number at each position, the logarithm of the mass
that the shared symbols have. The teacher gives the rest of its mass to symbols that the student can't write.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from torch import Tensor

from fairseq_imitkd.checkpoints.symbol_tables import are_joined, output_rows, trimmed_weights
from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.models.logits import ProjectedLogits

logger = logging.getLogger(__name__)

SIDES = ("source", "target")
MUCH = 0.05  # mass of the other symbols that is warned of


@dataclass(frozen=True)
class Outside:
    """The output matrix's rows of the symbols that the student lacks.

    Args:
        weight: ``(U, D)``.
        bias: ``(U,)``, or None.
    """

    weight: Tensor
    bias: Tensor | None

    def mass(self, shared: ProjectedLogits) -> Tensor:
        """Return the probability that these symbols have together, ``(N,)`` float32.

        Args:
            shared: the teacher's logits of the shared symbols at ``N`` positions.
        """
        features = shared.features.float()
        bias = None if self.bias is None else self.bias.to(features)
        outside = F.linear(features, self.weight.to(features), bias).logsumexp(dim=-1)
        inside = shared.logits(slice(None)).float().logsumexp(dim=-1)
        return (outside - torch.logaddexp(outside, inside)).exp()


def is_subset(theirs: Dictionary, own: Dictionary) -> bool:
    """Whether a dictionary lacks some of the teacher's symbols and holds no others."""
    return len(own) < len(theirs) and set(own.symbols) < set(theirs.symbols)


def restricted(
    state: dict[str, Any], theirs: Sequence[Dictionary], own: Sequence[Dictionary], *, path: str
) -> tuple[dict[str, Any], Outside | None]:
    """Return a checkpoint whose model is over the student's symbols.

    Args:
        state: content of the checkpoint, which stays unchanged.
        theirs: its source and target dictionary.
        own: the student's, each the same or a subset.
        path: the checkpoint's file, for messages.

    Returns:
        the checkpoint, and the part of the output matrix that it lacks; None if the target symbols are the
        same.

    Raises:
        ValueError: its tables can't be restricted.
    """
    pairs = dict(zip(SIDES, zip(theirs, own, strict=True), strict=True))
    kept = {
        side: [before.index(symbol) for symbol in after.symbols] for side, (before, after) in pairs.items()
    }
    if are_joined(state["model"]) and kept["source"] != kept["target"]:
        raise ValueError(
            "it shares one table between source and target, so the student's dictionaries must be one, too; "
            "binarise its data with --joined-dictionary, or use text (imitkd-seqkd --student-data)"
        )
    sizes = {side: len(before) for side, (before, _) in pairs.items()}
    weights = trimmed_weights(state["model"], kept, sizes, name=f"--teacher-path '{path}'")
    lacking = sorted(set(range(sizes["target"])) - set(kept["target"]))
    outside = Outside(*output_rows(state["model"], lacking)) if lacking else None
    for side, (before, after) in pairs.items():
        if len(after) < len(before):
            logger.info(
                "teacher %s: %s of its %s %s symbols are the student's; its distribution is renormalised",
                path,
                f"{len(after):,}",
                f"{len(before):,}",
                side,
            )
    return {**state, "model": weights}, outside


@torch.no_grad()
def log_mass(
    teacher: Any, outside: Outside, batches: Iterable[Batch], *, pad: int, path: str
) -> float | None:
    """Log the mean probability that a teacher gives to symbols that the student lacks.

    Args:
        teacher: a :class:`~fairseq_imitkd.teacher.teacher.Teacher` of one model, on its device.
        outside: these symbols.
        batches: sentences with references, on the student's device.
        pad: index of the padding symbol in the target dictionary.
        path: the checkpoint's file.

    Returns:
        the mean over the references' tokens; None if there are none, or if the model's logits are not a
        matrix times its hidden states.
    """
    total, tokens = 0.0, 0
    for sample in batches:
        logits = teacher.score(sample, materialise=False)
        if not isinstance(logits, ProjectedLogits):
            return None
        counted = sample["target"].ne(pad).flatten()
        total += float(outside.mass(logits)[counted].double().sum())
        tokens += int(counted.sum())
    if not tokens:
        return None
    mass = total / tokens
    level = logging.WARNING if mass > MUCH else logging.INFO
    logger.log(
        level,
        "teacher %s: %.3g%% of its probability is on symbols that the student lacks, on the first references",
        path,
        100.0 * mass,
    )
    return mass

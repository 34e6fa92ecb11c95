"""The weights of a model that have a row for each symbol, and their restriction to some symbols.

Rows of the embeddings and of the output matrix are left out. So the log-probabilities of the other symbols
are those of the model, renormalised over what is left.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fairseq_imitkd.errors import UsageError

TABLES = {  # a side's tables, with a row for each symbol
    "source": ("encoder.embed_tokens.weight",),
    "target": (
        "decoder.embed_tokens.weight",
        "decoder.output_projection.weight",
        "decoder.embed_out",
        "decoder.fc_out.weight",
        "decoder.fc_out.bias",
        "decoder.fc3.weight",
        "decoder.fc3.weight_g",
        "decoder.fc3.weight_v",
        "decoder.fc3.bias",
    ),
}
# The output matrix: the first one that a model has. Its embeddings are the matrix if it shares them.
_OUTPUTS = (
    "decoder.output_projection.weight",
    "decoder.embed_out",
    "decoder.fc_out.weight",
    "decoder.fc3.weight",
    "decoder.fc3.weight_v",
    "decoder.embed_tokens.weight",
)
# Each name of --arch multilingual_transformer begins so, and goes on with the language pair.
_OF_PAIRS = "models."


def check_tables(weights: Mapping[str, Tensor], *, name: str = "CHECKPOINT") -> None:
    """Refuse a model without tables of symbols, or with some for each language pair.

    Args:
        weights: the model's weights by name.
        name: what messages call the model.

    Raises:
        UsageError: the vocabulary can't be trimmed.
    """
    if any(weight.startswith(_OF_PAIRS) for weight in weights):
        raise UsageError(
            f"{name} has a model for each language pair (--arch multilingual_transformer), whose vocabulary "
            "can't be trimmed; use the whole model, or one of --arch transformer"
        )
    for side, names in TABLES.items():
        if not any(table in weights for table in names):
            raise UsageError(f"{name} has no table of {side} symbols; use a translation model")


def trimmed_weights(
    weights: Mapping[str, Tensor],
    kept: Mapping[str, Sequence[int]],
    sizes: Mapping[str, int],
    *,
    name: str = "CHECKPOINT",
) -> dict[str, Tensor]:
    """Return a model's weights with the rows of the symbols that stay.

    Args:
        weights: the model's weights by name.
        kept: indices of the symbols that stay, of ``source`` and ``target``, in their new order.
        sizes: numbers of symbols of both sides.
        name: what messages call the model.

    Raises:
        UsageError: the model has no tables of symbols, or one of another size.
    """
    check_tables(weights, name=name)
    new, done = dict(weights), dict[tuple[int, str], Tensor]()
    for side, names in TABLES.items():
        index = torch.tensor(kept[side])
        for table_name in [table for table in names if table in weights]:
            table = weights[table_name]
            if table.size(0) != sizes[side]:
                raise UsageError(
                    f"{name} has {table.size(0):,} rows in {table_name}, but the {side} dictionary has "
                    f"{sizes[side]:,} symbols; use the dictionaries that it was trained with"
                )
            key = (table.data_ptr(), str(kept[side]))
            new[table_name] = done.setdefault(
                key, table.index_select(0, index)
            )  # tables that are one stay one
    return new


def are_joined(weights: Mapping[str, Tensor]) -> bool:
    """Return whether both sides share one table, so that they need the same symbols."""
    source, target = (weights.get(TABLES[side][0]) for side in ("source", "target"))
    return (
        source is not None
        and target is not None
        and source.shape == target.shape
        and torch.equal(source, target)
    )


def output_rows(weights: Mapping[str, Tensor], symbols: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Return the rows of the output matrix, ``(n, D)``, and of its bias, ``(n,)`` or None.

    Args:
        weights: a model's weights by name, which have a table of target symbols.
        symbols: ``n`` indices of target symbols.
    """
    name = next(name for name in _OUTPUTS if name in weights)
    index = torch.tensor(symbols, dtype=torch.int64)
    rows = weights[name].index_select(0, index)
    layer, _, part = name.rpartition(".")
    if part == "weight_v":  # of fconv, normalised: weight = g * v / |v|, row by row
        lengths = weights[f"{layer}.weight_g"].index_select(0, index)
        rows = lengths * rows / rows.norm(dim=1, keepdim=True)
    bias = weights.get(f"{layer}.bias") if layer.endswith(("fc_out", "fc3")) else None
    return rows, None if bias is None else bias.index_select(0, index)

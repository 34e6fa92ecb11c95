"""Recipes for tests, on the digit corpus."""

from pathlib import Path
from typing import Any

from tests.helpers.digit_corpus import TINY

TRAINING = (
    "--optimizer adam --lr 5e-3 --lr-scheduler inverse_sqrt --warmup-updates 5 --max-tokens 400 "
    "--max-update 8 --num-workers 0 --no-epoch-checkpoints --log-interval 4 --save-interval-updates 4 "
    "--keep-interval-updates 1 --validate-interval-updates 8"
)


def recipe(folder: Path, /, **changes: Any) -> dict[str, Any]:
    """Return the content of a recipe that trains two students on the digits, with changes by key; None
    leaves a key out.
    """
    content = {
        "languages": "src-tgt",
        "text": {
            split: [str(folder / f"{split}.{side}") for side in ("src", "tgt")]
            for split in ("train", "valid", "test")
        },
        "teacher": {"arch": "transformer", "flags": " ".join(TINY[2:])},
        "student": {"arch": "transformer", "flags": " ".join(TINY[2:])},
        "training": TRAINING,
        "methods": ["none", "imitkd_full"],
        "evaluate": "--quick --batch-sizes 8 --sentences 40 --no-ter --probe-sentences 8",
        "export": {"flags": "--sentences 16 --max-loss 100"},
        "device": "cpu",
    }
    return {key: value for key, value in {**content, **changes}.items() if value is not None}

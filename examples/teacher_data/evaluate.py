"""Decodes the test set with every model of RUN, and writes results.json and table.md."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils
from scoring import asked, decode, score, write  # the quickstart's
from table import MODELS, table
from trainings import training

ONE_PASS = ["--task", "translation_lev", "--iter-decode-max-iter", "0", "--iter-decode-eos-penalty", "0"]


def main() -> None:
    """Evaluate the models in RUN."""
    run, seed, device = asked(__doc__)
    warnings.simplefilter("ignore")  # hydra and torch warn of how fairseq calls them
    logging.disable(logging.INFO)
    models = {name: measure(run, name, device) for name in MODELS}
    found: dict[str, Any] = {
        "recipe": "teacher_data",
        "seed": seed,
        "trainings": {name: training(run, name) for name in MODELS},
        "translations": {
            path.parent.name: json.loads(path.read_text())
            for path in sorted(run.glob("data_*/manifest.json"))
        },
        "models": models,
    }
    write(run, found, device, table)


def measure(run: Path, name: str, device: list[str]) -> dict[str, Any]:
    """Return the scores and the size of a model."""
    checkpoint = run / name / "checkpoint_last.pt"
    flags = ONE_PASS if name.startswith("nat") else []
    output = decode(run / "data-bin", checkpoint, run / name, [*device, *flags])
    [model], _, _ = checkpoint_utils.load_model_ensemble_and_task(
        [str(checkpoint)], arg_overrides={"data": str(run / "data-bin")}
    )
    return {
        **score(run / "text", output),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


if __name__ == "__main__":
    main()

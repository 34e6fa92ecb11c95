"""fairseq's main functions in the test's own process. This saves seconds, and tests can inspect objects."""

import contextlib
import json
import logging
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils, options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.trainer import Trainer
from fairseq_cli import generate as fairseq_generate
from fairseq_cli import interactive as fairseq_interactive
from fairseq_cli import train as fairseq_train
from omegaconf import DictConfig

import fairseq_imitkd  # noqa: F401  (registers the task and the criteria)
from fairseq_imitkd.rollout.policy import MAX_LEN_A, MAX_LEN_B
from fairseq_imitkd.training.train_log import TrainLog
from tests.helpers.digit_corpus import TINY

SETTINGS = (
    "--cpu", "--optimizer", "adam", "--lr", "5e-3", "--lr-scheduler", "inverse_sqrt", "--warmup-updates",
    "20", "--max-tokens", "400", "--dropout", "0.1", "--log-format", "json", "--log-interval", "1",
    "--no-epoch-checkpoints", "--num-workers", "0",
)  # fmt: skip

# With the default multiple of 8, fairseq leaves out the last few sentences of a test set.
DECODE = ("--cpu", "--batch-size", "50", "--required-batch-size-multiple", "1")


@dataclass
class Training:
    """The results of a training in this process: its trainer, and its logged metrics by tag."""

    trainer: Trainer | None = None
    metrics: dict[str, list[dict[str, float]]] = field(
        default_factory=lambda: {"train_inner": [], "valid": []}
    )

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.trainer.get_model().state_dict().items()}


def read_metrics(output: str) -> dict[str, list[dict[str, float]]]:
    """Return the metrics that a command logged with ``--log-format json``, by tag."""
    found: dict[str, list[dict[str, float]]] = {"train_inner": [], "valid": []}
    for line in output.splitlines():
        for tag, metrics in found.items():
            if f"| INFO | {tag} | {{" in line:
                metrics.append(_numbers(line.split(f"| {tag} | ", 1)[1]))
    return found


def config(data: Path, save_dir: Path, *flags: object) -> DictConfig:
    """Return the configuration that ``fairseq-train`` makes of these flags. Later flags override earlier
    ones.
    """
    parser = options.get_training_parser()
    architecture = () if "--arch" in flags else TINY
    arguments = [str(data), "--save-dir", str(save_dir), *SETTINGS, *architecture, *map(str, flags)]
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, arguments))


def train(
    data: Path,
    save_dir: Path,
    *flags: object,
    around_step: Callable[[Trainer, Callable[[], Any], list], Any] | None = None,
    common: dict[str, Any] | None = None,
) -> Training:
    """Run ``fairseq-train`` in this process.

    Args:
        common: settings of ``common`` that only a hydra configuration can reach.
        around_step: called for each update with the trainer, the update as a function without arguments, and
            the update's batches; it must call the function and return its result.
    """
    training = Training()

    class WatchedTrainer(Trainer):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            training.trainer = self

        def train_step(self, samples: list, raise_oom: bool = False) -> Any:
            def update() -> Any:
                return super(WatchedTrainer, self).train_step(samples, raise_oom)

            return around_step(self, update, samples) if around_step else update()

    cfg = config(data, save_dir, *flags)
    cfg.common.update(common or {})
    for function in (checkpoint_utils.save_checkpoint, fairseq_train.should_stop_early):
        function.__dict__.pop("best", None)  # both remember the best score of the process
    with logged(training.metrics):
        fairseq_train.Trainer, stock = WatchedTrainer, fairseq_train.Trainer
        try:
            fairseq_train.main(cfg)
        finally:
            fairseq_train.Trainer = stock
            TrainLog.attached().close()
    return training


def generate(data: Path, checkpoint: Path, results: Path, *flags: object) -> list[str]:
    """Run ``fairseq-generate`` in this process. Return the hypotheses of the split in the data's order."""
    parser = options.get_generation_parser()
    arguments = [data, "--path", checkpoint, *DECODE, "--results-path", results, *flags]
    fairseq_generate.main(options.parse_args_and_arch(parser, input_args=list(map(str, arguments))))
    subset = flags[flags.index("--gen-subset") + 1] if "--gen-subset" in flags else "test"
    return hypotheses((results / f"generate-{subset}.txt").read_text())


def interactive(data: Path, checkpoint: Path, *flags: object) -> None:
    """Run ``fairseq-interactive`` in this process."""
    arguments = [data, "--path", checkpoint, "--cpu", "--task", "translation_with_teacher", *flags]
    args = options.parse_args_and_arch(
        options.get_interactive_generation_parser(), input_args=list(map(str, arguments))
    )
    fairseq_interactive.main(convert_namespace_to_omegaconf(args))


def hypotheses(output: str) -> list[str]:
    """Return the hypotheses that fairseq's commands print, in the data's order."""
    lines = [line.split("\t") for line in output.splitlines() if line.startswith("H-")]
    return [text for _, text in sorted((int(number[2:]), text) for number, _, text in lines)]


def exact_matches(found: list[str], references: list[str]) -> float:
    """Return the share of sentences that equal their references word for word."""
    assert len(found) == len(references)
    return sum(a.split() == b.split() for a, b in zip(found, references, strict=True)) / len(references)


def load_models(*paths: Path) -> list[torch.nn.Module]:
    """Load models by stock fairseq's loader, in evaluation mode."""
    models, _, _ = checkpoint_utils.load_model_ensemble_and_task(list(map(str, paths)))
    return [model.eval() for model in models]


def _numbers(text: str) -> dict[str, float]:
    return {
        name.removeprefix("valid_"): float(value)
        for name, value in json.loads(text).items()
        if value is not None
    }


@contextlib.contextmanager
def logged(metrics: dict[str, list[dict[str, float]]]) -> Iterator[None]:
    """Collect what fairseq's progress bars log under these tags."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if record.name in metrics and text.startswith("{"):
                metrics[record.name].append(_numbers(text))

    root, collector = logging.getLogger(), Collector()
    level = root.level
    root.addHandler(collector)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(collector)
        root.setLevel(level)


def greedy() -> Any:
    """Return the settings of a greedy search with the length limit of rollouts."""
    return Namespace(beam=1, max_len_a=MAX_LEN_A, max_len_b=MAX_LEN_B)

"""Flags that need a GPU, another package, or other processes."""

import logging
import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from fairseq import utils

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.training.configuration.ranges import flag

logger = logging.getLogger(__name__)
_ON_A_GPU = ("profile", "pipeline_model_parallel", "fp16_adam_stats")
# (name of a flag; its value, or None for a switch; the package that it needs)
_PACKAGES = (
    ("zero_sharding", "os", "fairscale"),
    ("ddp_backend", "slowmo", "fairscale"),
    ("pipeline_model_parallel", None, "fairscale"),
    ("write_checkpoints_asynchronously", None, "iopath"),
    ("optimizer", "cpu_adam", "deepspeed"),
    ("optimizer", "lamb", "apex"),
    ("fp16_adam_stats", None, "apex"),
    ("tensorboard_logdir", None, "tensorboard"),
    ("wandb_project", None, "wandb"),
    ("aim_repo", None, "aim"),
    ("azureml_logging", None, "azureml"),
)
# The same of flags that decoding alone uses.
_DECODING_PACKAGES = (
    ("bpe", "bert", "transformers"),
    ("bpe", "fastbpe", "fastBPE"),
    ("bpe", "gpt2", "requests"),
    ("bpe", "hf_byte_bpe", "tokenizers"),
    ("bpe", "subword_nmt", "subword_nmt"),
    ("tokenizer", "moses", "sacremoses"),
    ("tokenizer", "nltk", "nltk"),
    ("scoring", "bert_score", "bert_score"),
    ("scoring", "wer", "editdistance"),
)
_LAUNCHERS = ("WORLD_SIZE", "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")


def check(settings: Mapping[str, Any], command: str) -> None:
    """Refuse flags that this machine can't serve.

    Args:
        settings: the settings.
        command: the command, as in :func:`~fairseq_imitkd.training.configuration.check_configuration`.

    Raises:
        UsageError: naming the flag and what is missing.
    """
    on_cpu = bool(settings.get("cpu") or not torch.cuda.is_available())
    why = "--cpu is given" if settings.get("cpu") else "no GPU is visible"
    for name in _ON_A_GPU:
        if on_cpu and settings.get(name):
            raise UsageError(f"{flag(name)} needs a GPU, but {why}: leave it out")
    # fairseq puts the flat gradients on a GPU. Decoding has none.
    is_flat = not (settings.get("memory_efficient_fp16") or settings.get("fp16_no_flatten_grads"))
    if on_cpu and command == "train" and settings.get("fp16") and is_flat:
        raise UsageError(f"--fp16 needs a GPU, but {why}: leave it out")
    if on_cpu and command == "train" and settings.get("amp"):
        logger.warning("--amp changes nothing without a GPU: the student trains in fp32")
    for name, value, package in _PACKAGES if command == "train" else (*_PACKAGES, *_DECODING_PACKAGES):
        given = settings.get(name)
        if (given == value if value is not None else given) and not _is_installed(package):
            shown = flag(name) if value is None else f"{flag(name)} {value}"
            raise UsageError(
                f"{shown} needs the package {package}, which is not installed: install it or leave it out"
            )
    if command == "train" and settings.get("distributed_world_size") == 1 and _started_by_torchrun() > 1:
        raise UsageError(
            f"torchrun has started {_started_by_torchrun()} processes, which would train one by one: add "
            "--distributed-init-method env:// --distributed-no-spawn --distributed-world-size $WORLD_SIZE "
            "--distributed-rank $RANK"
        )
    for problem in (*_problems(settings), *_problems_of_processes(settings, on_cpu)):
        raise UsageError(problem)


def _started_by_torchrun() -> int:
    """Return the number of processes that torchrun has started together; 1 without it."""
    count = os.environ.get("WORLD_SIZE", "") if "TORCHELASTIC_RUN_ID" in os.environ else ""
    return int(count) if count.isdecimal() else 1


def _is_installed(package: str) -> bool:
    names = (package, "tensorboardX") if package == "tensorboard" else (package,)  # fairseq takes either
    return any(find_spec(name) is not None for name in names)


def _problems(settings: Mapping[str, Any]) -> Iterator[str]:
    shard, shards = settings.get("shard_id") or 0, settings.get("num_shards") or 1
    if shard >= shards:
        yield f"--shard-id must be below --num-shards, which is {shards}, but is {shard}: lower it"
    if settings.get("tpu") and utils.xm is None:
        yield "--tpu needs the package torch_xla, which is not installed: install it or leave it out"
    if settings.get("ddp_backend") == "fully_sharded" and find_spec("fairscale") is None:
        yield (
            "--ddp-backend fully_sharded needs the package fairscale, and no method with a teacher can use "
            "it: use legacy_ddp"
        )
    if settings.get("use_plasma_view"):
        yield "--use-plasma-view needs pyarrow's plasma store, which is no longer released: leave it out"
    if settings.get("model_parallel_size", 1) not in (1, None):
        yield (
            f"--model-parallel-size {settings['model_parallel_size']} needs Megatron, which is not "
            "installed: "
            "leave it out"
        )
    if settings.get("cpu_offload") and settings.get("ddp_backend") != "fully_sharded":
        yield "--cpu-offload changes nothing without --ddp-backend fully_sharded: leave it out"
    if settings.get("num_batch_buckets") and np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        yield (  # fairseq calls np.percentile(interpolation=...), which numpy 2 has no more
            f"--num-batch-buckets {settings['num_batch_buckets']} can't be used with numpy "
            f"{np.__version__}: leave it "
            "out, or install numpy<2"
        )
    if settings.get("base_layers") and settings.get("distributed_init_method") is None:
        yield f"--base-layers {settings['base_layers']} needs several processes: use --base-layers 0"


def _problems_of_processes(settings: Mapping[str, Any], on_cpu: bool) -> Iterator[str]:
    size, rank = settings.get("distributed_world_size"), settings.get("distributed_rank")
    meeting, gpus = settings.get("distributed_init_method"), torch.cuda.device_count()
    if any(name in os.environ for name in _LAUNCHERS):  # torchrun or Slurm sets size and rank later
        return
    if isinstance(size, int) and isinstance(rank, int) and rank >= size:
        yield (
            f"--distributed-rank must be below --distributed-world-size, which is {size}, but is {rank}: "
            "lower it"
        )
    if meeting is None and isinstance(size, int) and size > max(1, gpus):
        yield (
            f"--distributed-world-size {size} is more than the number of GPUs here, {gpus}: add "
            "--distributed-init-method and start one command for each process, or leave it out"
        )
    if meeting is not None and on_cpu and not settings.get("distributed_no_spawn"):
        yield (  # fairseq would start no process, and end with status 0
            f"--distributed-init-method {meeting} starts one process for each GPU, but there is none: add "
            "--distributed-no-spawn and start one command for each process"
        )
    if meeting is not None and on_cpu and settings.get("distributed_backend") == "nccl":
        yield "--distributed-backend nccl needs GPUs: use --distributed-backend gloo"

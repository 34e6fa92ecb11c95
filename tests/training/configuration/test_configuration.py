"""The whole configuration is checked before anything is built: what is refused, and in which words."""

import functools
import math
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.optim.sgd import SGD
from fairseq.registry import REGISTRIES

import fairseq_imitkd  # noqa: F401  (registers the task and the criteria)
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.training.configuration import check_configuration, devices, flat
from fairseq_imitkd.training.configuration.paths import checkpoint_to_start_from
from fairseq_imitkd.training.configuration.ranges import RANGES
from tests.helpers.digit_corpus import TINY

TRAINING = (
    "data", "--task", "translation_with_teacher", "--criterion", "imitkd", "--optimizer", "adam", "--lr",
    "0.01",
    "--max-tokens", "400", "--max-update", "100", "--cpu", "--save-dir", "saved", *TINY,
)  # fmt: skip
DECODING = ("data", "--task", "translation_with_teacher", "--path", "student.pt", "--cpu")


@functools.cache
def parsed(command: str) -> Any:
    """Return the settings of a command line that works."""
    if command == "train":
        return options.parse_args_and_arch(options.get_training_parser(), list(TRAINING))
    parser = options.get_generation_parser(interactive=command == "interactive")
    return options.parse_args_and_arch(parser, list(DECODING))


def check(command: str, **changed: Any) -> None:
    """Check the command line with other values of some flags."""
    check_configuration({**vars(parsed(command)), **changed}, command)


def refusal(command: str, **changed: Any) -> str:
    """Return the message that refuses these values."""
    with pytest.raises(UsageError) as caught:
        check(command, **changed)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) <= 200
    return message


@pytest.mark.parametrize("command", ["train", "generate", "interactive"])
def test_a_command_line_that_works(command: str) -> None:
    check(command)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": -1}, "--seed must be a whole number, 0 or more, but is -1"),
        (
            {"seed": 2**40},
            "--seed must be a whole number, 0 or more, at most 2,147,483,647, but is 1099511627776",
        ),
        ({"max_epoch": -1}, "--max-epoch must be a whole number, 0 or more, but is -1"),
        ({"max_update": -1}, "--max-update must be a whole number, 0 or more, but is -1"),
        ({"update_freq": [1, 0]}, "--update-freq must be a whole number, 1 or more, but is 0"),
        ({"update_freq": []}, "--update-freq must be a whole number, 1 or more, but is empty: add a value"),
        ({"lr": [math.nan]}, "--lr must be a finite number, 0 or more, but is nan"),
        ({"lr": []}, "--lr must be a finite number, 0 or more, but is empty: add a value"),
        ({"dropout": -1.0}, "--dropout must be at least 0 and below 1, but is -1.0"),
        ({"dropout": math.nan}, "--dropout must be at least 0 and below 1, but is nan"),
        ({"a_new_models_dropout": 2.0}, "--a-new-models-dropout must be at least 0 and below 1, but is 2.0"),
        ({"a_new_flag": math.inf}, "--a-new-flag must be a finite number, but is inf"),
        ({"clip_norm": math.nan}, "--clip-norm must be a finite number, 0 or more, but is nan"),
        ({"weight_decay": math.nan}, "--weight-decay must be a finite number, 0 or more, but is nan"),
        ({"adam_eps": 0.0}, "--adam-eps must be a finite number above 0, but is 0.0"),
        ({"save_interval": 0}, "--save-interval must be a whole number, 1 or more, but is 0"),
        ({"num_workers": -1}, "--num-workers must be a whole number, 0 or more, but is -1"),
        ({"patience": -2}, "--patience must be a whole number, 1 or more, or -1 (off), but is -2"),
        (
            {"keep_last_epochs": 0},
            "--keep-last-epochs must be a whole number, 1 or more, or -1 (off), but",
        ),
        ({"lr_shrink": 2.0}, "--lr-shrink must be above 0 and at most 1, but is 2.0"),
        ({"lr_threshold": 1.0}, "--lr-threshold must be at least 0 and below 1, but is 1.0"),
        ({"t_mult": 0.5}, "--t-mult must be a finite number, 1 or more, but is 0.5"),
        ({"decay_rate": 0.8}, "--decay-rate must be a finite number, 0 or less, but is 0.8"),
        (
            {"decoder_attention": "x"},
            "--decoder-attention must be True or False, or a list of them",
        ),
        (
            {"decoder_attention": "[2]"},
            "--decoder-attention must be True or False, or a list of them",
        ),
        (
            {"adaptive_softmax_cutoff": "x"},
            "--adaptive-softmax-cutoff must be ascending whole numbers",
        ),
        (
            {"adaptive_softmax_cutoff": "9,3"},
            "--adaptive-softmax-cutoff must be ascending whole numbers",
        ),
        (
            {"keep_interval_updates_pattern": 0},
            "--keep-interval-updates-pattern must be a whole number, 1 or",
        ),
        ({"max_tokens_valid": "x"}, "--max-tokens-valid must be a whole number, 1 or more, but is x"),
        ({"batch_size_valid": "1.5"}, "--batch-size-valid must be a whole number, 1 or more, but is 1.5"),
        ({"encoder_layers": 10**7}, "--encoder-layers must be a whole number in 1..1000, but is 10000000"),
        ({"decoder_layers": 0}, "--decoder-layers must be a whole number in 1..1000, but is 0"),
        (
            {"encoder_attention_heads": 3},
            "--encoder-embed-dim 32 must be a multiple of --encoder-attention-heads",
        ),
        (
            {"decoder_embed_dim": 2},
            "--decoder-embed-dim must be 4 or more for sinusoidal positions, but is 2",
        ),
        (
            {"encoder_layers_to_keep": [0]},
            "--encoder-layers-to-keep can't be used on the command line: give it",
        ),
        (
            {"share_decoder_input_output_embed": True, "decoder_output_dim": "16"},
            "--share-decoder-input-output-embed needs --decoder-output-dim 32, like --decoder-embed-dim, "
            "but it",
        ),
        (
            {"adam_betas": "x"},
            "--adam-betas must be two numbers, each at least 0 and below 1, such as '(0.9, 0.98)'",
        ),
        ({"adam_betas": "__import__('os')"}, "--adam-betas must be two numbers, each at least 0 and below 1"),
        (
            {"adam_betas": (0.9, 1.0)},
            "--adam-betas must be two numbers, each at least 0 and below 1, such as",
        ),
        (
            {"optimizer_overrides": "[1]"},
            "--optimizer-overrides must be a dictionary such as {'lr': 0.1}, but is",
        ),
        (
            {"update2lr": "{1: 2}"},
            "--update2lr must map texts to numbers, such as {'1-100': 0.1}, but is '{1: 2}'",
        ),
        (
            {"decoder_xformers_att_config": "x"},
            "--decoder-xformers-att-config must be a dictionary such as {'name': 'scaled_dot_product'}, but "
            "is 'x'",
        ),
        ({"update_epoch_batch_itr": "x"}, "--update-epoch-batch-itr must be True or False, but is 'x'"),
        (
            {"bpe": "characters"},
            "--bpe characters can't be used, because fairseq has no settings for it: use one",
        ),
        ({"tokenizer": "moses"}, "--source-lang is not given; --tokenizer moses needs it: add the language"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, dict) else "",
)
def test_values(changed: dict[str, Any], message: str) -> None:
    """Numbers out of range and not finite, sizes that don't fit, and texts without their form."""
    assert refusal("train", **changed).startswith(message)


def test_every_default_is_accepted() -> None:
    """The ranges are those of flags that exist, and fairseq's own values are in them."""
    settings = {**vars(parsed("interactive")), **vars(parsed("train"))}
    assert len(settings.keys() & set(RANGES)) > 70
    assert all(name.isidentifier() for name in RANGES)
    numbers = [
        (name, value)
        for name in settings.keys() & set(RANGES)
        for value in (settings[name] if isinstance(settings[name], list) else [settings[name]])
        if isinstance(value, int | float)
    ]
    assert len(numbers) > 60
    assert [(name, value) for name, value in numbers if value not in RANGES[name]] == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"eval_bleu_args": "{'beam': 1}"}, '--eval-bleu-args must be a JSON object such as \'{"beam": 4'),
        ({"eval_bleu_args": "[1]"}, "--eval-bleu-args must be a JSON object such as"),
        ({"eval_bleu_args": "[" * 9999}, "--eval-bleu-args must be a JSON object such as"),
        (
            {"eval_bleu_args": '{"bem": 1}'},
            "--eval-bleu-args has 'bem', which the search does not have: leave",
        ),
        (
            {"eval_bleu_args": '{"beam": 0}'},
            "'beam' of --eval-bleu-args must be a whole number, 1 or more, but is 0",
        ),
        ({"eval_bleu_args": '{"beam": "x"}'}, "'beam' of --eval-bleu-args must be like 5, but is 'x'"),
        (
            {"eval_bleu_args": '{"sampling_topk": 2}'},
            "--eval-bleu-args: --sampling-topk 2 changes nothing without",
        ),
        (
            {"eval_bleu_args": '{"beam": 4, "diverse_beam_groups": 2}'},
            "'diverse_beam_groups' of --eval-bleu-args mixes up sentences of a data set: use",
        ),
        ({"eval_bleu_detok": "x"}, "--eval-bleu-detok must be one of moses, nltk, space, but is 'x'"),
        ({"eval_bleu_detok_args": "x"}, "--eval-bleu-detok-args must be a JSON object such as"),
        (
            {"eval_bleu_detok_args": '{"x": 1}'},
            "--eval-bleu-detok-args has 'x', which --eval-bleu-detok",
        ),
        (
            {"eval_bleu_remove_bpe": "x"},
            "--eval-bleu-remove-bpe must be one of 'auto', 'none', 'sentencepiece',",
        ),
    ],
)
def test_scores_of_validation(changed: dict[str, Any], message: str) -> None:
    """They are checked if a score is computed, and change nothing otherwise."""
    assert refusal("train", eval_bleu=True, **changed).startswith(message)
    assert refusal("train", eval_metrics="chrf", **changed).startswith(message)
    assert "changes nothing without --eval-bleu or --eval-metrics: add one" in refusal("train", **changed)
    check(
        "train",
        eval_bleu=True,
        eval_bleu_args='{"beam": 4, "lenpen": 0.6, "max_len_a": 1.2, "max_len_b": 10}',
    )


@pytest.mark.parametrize(
    ("scheduler", "changed", "message"),
    [
        ("inverse_sqrt", {"warmup_updates": 0}, "--warmup-updates must be 1 or more under --lr-scheduler"),
        (
            "inverse_sqrt",
            {"lr": [0.1, 0.2]},
            "--lr-scheduler inverse_sqrt takes one --lr, but has 2: give one",
        ),
        ("polynomial_decay", {}, "--total-num-update is not given; --lr-scheduler polynomial_decay needs it"),
        (
            "cosine",
            {"max_update": 0},
            "--lr-scheduler cosine needs --max-update above --warmup-updates 0, or",
        ),
        (
            "cosine",
            {"warmup_updates": 100},
            "--lr-scheduler cosine needs --max-update above --warmup-updates 100",
        ),
        (
            "tri_stage",
            {},
            "--decay-steps must be 1 or more under --lr-scheduler tri_stage, but is 0: raise it",
        ),
        ("tri_stage", {"phase_ratio": [0.5, 0.5]}, "--phase-ratio must be three numbers that add up to 1"),
        (
            "tri_stage",
            {"phase_ratio": [0.5, 0.5, 0.0]},
            "--phase-ratio [0.5, 0.5, 0.0] leaves no update to decay in",
        ),
        ("triangular", {"max_lr": 0.01}, "--max-lr must be above --lr 0.01 under --lr-scheduler triangular"),
        ("triangular", {"max_lr": 1, "lr_period_updates": 1}, "--lr-period-updates must be 2 or more under"),
        ("step", {"min_lr": 0.01}, "--min-lr must be below --lr 0.01 under --lr-scheduler step, but is 0.01"),
        (
            "reduce_lr_on_plateau",
            {"lr_shrink": 1.0},
            "--lr-shrink must be below 1 under --lr-scheduler reduce",
        ),
        (
            "cosine",
            {"min_lr": 0.01},
            "--min-lr must be below --lr 0.01 under --lr-scheduler cosine, but",
        ),
        ("pass_through", {}, "--lr-scheduler pass_through needs an --optimizer with a schedule of its own"),
    ],
)
def test_learning_rates(scheduler: str, changed: dict[str, Any], message: str) -> None:
    """Companions that fairseq asks for when the data is read, or divides by."""
    assert refusal("train", lr_scheduler=scheduler, **changed).startswith(message)


STEPS = {"decay_steps": 9, "init_lr_scale": 0.1, "max_lr": 1.0, "lr_period_updates": 9, "total_num_update": 9}


@pytest.mark.parametrize(
    ("scheduler", "changed", "first"),
    [
        ("inverse_sqrt", {"warmup_updates": 10, "warmup_init_lr": -1}, 0.0),
        ("inverse_sqrt", {"warmup_updates": 10, "warmup_init_lr": 0.002}, 0.002),
        ("reduce_lr_on_plateau", {"warmup_updates": 10, "warmup_init_lr": -1, "lr_shrink": 0.1}, 0.0),
        ("reduce_lr_on_plateau", {"warmup_updates": 0, "warmup_init_lr": -1, "lr_shrink": 0.1}, 0.01),
        ("cosine", {"warmup_updates": 10, "warmup_init_lr": -1, "min_lr": 0.001}, 0.001),
        ("cosine", {"warmup_updates": 0, "warmup_init_lr": -1, "min_lr": 0.001}, 0.01),
        ("step", {"warmup_updates": 10, "warmup_init_lr": -1, "min_lr": 0.001}, 0.001),
        ("fixed", {"warmup_updates": 10, "warmup_init_lr": None}, 0.001),
        ("polynomial_decay", {"warmup_updates": 10}, 0.0),
        ("polynomial_decay", {"warmup_updates": 0}, 0.01),
        ("tri_stage", {"warmup_steps": 2}, 0.001),
        ("tri_stage", {"warmup_steps": 0}, 0.01),
        ("tri_stage", {"phase_ratio": [0.1, 0.4, 0.5]}, 0.001),
        ("triangular", {}, 0.01),
    ],
)
def test_a_training_that_would_end_before_it_begins(
    scheduler: str, changed: dict[str, Any], first: float, tmp_path: Path, monkeypatch: Any
) -> None:
    """fairseq says that it is done. The first learning rate is that of fairseq's own scheduler."""
    monkeypatch.chdir(tmp_path)
    given = {**STEPS, **changed, "lr_scheduler": scheduler}
    schedulers = REGISTRIES["lr_scheduler"]
    defaults = vars(schedulers["dataclass_registry"][scheduler]())
    settings = Namespace(**{**defaults, **vars(parsed("train")), **given})
    optimizer = SGD(
        Namespace(lr=[0.01], momentum=0.0, weight_decay=0.0), [torch.nn.Parameter(torch.zeros(1))]
    )
    schedule = schedulers["registry"][scheduler](settings, optimizer)
    schedule.step_begin_epoch(1)
    assert schedule.step_update(0) == pytest.approx(first)
    check("train", **given, stop_min_lr=first - 1e-9)
    message = refusal("train", **given, stop_min_lr=first + 1e-9)
    assert "ends the training before its first update, whose learning rate is" in message
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "checkpoint_last.pt").touch()
    check("train", **given, stop_min_lr=first + 1e-9)  # the schedule continues elsewhere
    refusal("train", **given, stop_min_lr=first + 1e-9, reset_lr_scheduler=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"max_tokens": None},
            "--max-tokens is not given; add the most tokens that a batch may hold, such as",
        ),
        ({"optimizer": None}, "--optimizer is not given; add one, such as --optimizer adam"),
        (
            {"optimizer": "nag", "memory_efficient_bf16": True},
            "--memory-efficient-bf16 can't be used with --optimizer nag: use adam or adafactor",
        ),
        ({"optimizer": "composite"}, "--optimizer composite can only be used with fairseq-hydra-train: use"),
        ({"optimizer": "adafactor", "relative_step": True}, "--relative-step can't be used with --lr, which"),
        (
            {"optimizer": "adafactor", "warmup_init": True},
            "--warmup-init needs --relative-step, which can't be",
        ),
        (
            {"optimizer": "adafactor", "adafactor_eps": "(0, 1)"},
            "--adafactor-eps must be two numbers, each a",
        ),
        (
            {"quant_noise_scalar": 0.1},
            "--quant-noise-scalar 0.1 can't be used, because checkpoints lack its scales and a stopped run "
            "could not go on: leave it out",
        ),
        (
            {"criterion": "ctc"},
            "--criterion ctc is not for --task translation_with_teacher: use a method",
        ),
        (
            {"criterion": "label_smoothed_cross_entropy_with_alignment"},
            "--criterion label_smoothed_cross_entropy_with_alignment needs alignments: add --load-alignments",
        ),
        ({"ema_decay": 0.9}, "--ema-decay changes nothing without --store-ema: add that, or leave it out"),
        ({"ema_seed_model": "x.pt"}, "--ema-seed-model changes nothing without --store-ema: add that, or"),
        ({"best_checkpoint_metric": "nope"}, "--best-checkpoint-metric must be one of loss, nll_loss, ppl,"),
        (
            {"finetune_from_model": "a.pt", "restore_file": "b.pt"},
            "--finetune-from-model can't be used with --restore-file b.pt: leave one of them out",
        ),
        (
            {"finetune_from_model": "a.pt", "reset_meters": True},
            "--reset-meters changes nothing with --finetune-from-model, which resets it: leave it out",
        ),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, dict) else "",
)
def test_trainer(changed: dict[str, Any], message: str) -> None:
    assert refusal("train", **changed).startswith(message)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fp16": True}, "--fp16 needs a GPU, but --cpu is given: leave it out"),
        ({"fp16": True, "cpu": False}, "--fp16 needs a GPU, but no GPU is visible: leave it out"),
        ({"profile": True}, "--profile needs a GPU, but --cpu is given: leave it out"),
        (
            {"tpu": True},
            "--tpu needs the package torch_xla, which is not installed: install it or leave it out",
        ),
        ({"zero_sharding": "os"}, "--zero-sharding os needs the package fairscale, which is not installed:"),
        (
            {"write_checkpoints_asynchronously": True},
            "--write-checkpoints-asynchronously needs the package iopath",
        ),
        ({"use_plasma_view": True}, "--use-plasma-view needs pyarrow's plasma store, which is no longer"),
        (
            {"model_parallel_size": 2},
            "--model-parallel-size 2 needs Megatron, which is not installed: leave it",
        ),
        (
            {"cpu_offload": True},
            "--cpu-offload changes nothing without --ddp-backend fully_sharded: leave it out",
        ),
        ({"wandb_project": "x"}, "--wandb-project needs the package wandb, which is not installed"),
        ({"aim_repo": "x"}, "--aim-repo needs the package aim, which is not installed"),
        ({"base_layers": 1}, "--base-layers 1 needs several processes: use --base-layers 0"),
        ({"num_batch_buckets": 2}, "--num-batch-buckets 2 can't be used with numpy 2"),
        (
            {"distributed_rank": 1},
            "--distributed-rank must be below --distributed-world-size, which is 1, but",
        ),
        (
            {"distributed_world_size": 2},
            "--distributed-world-size 2 is more than the number of GPUs here, 0: add",
        ),
        (
            {"distributed_init_method": "tcp://a:1"},
            "--distributed-init-method tcp://a:1 starts one process for",
        ),
        (
            {"distributed_init_method": "tcp://a:1", "distributed_no_spawn": True},
            "--distributed-backend nccl needs GPUs: use --distributed-backend gloo",
        ),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, dict) else "",
)
def test_what_this_machine_lacks(changed: dict[str, Any], message: str, monkeypatch: Any) -> None:
    """A GPU, a package, or other processes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name in ("WORLD_SIZE", "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    assert refusal("train", **changed).startswith(message)
    if changed == {"fp16": True}:
        check("generate", **changed)  # fairseq decodes so
        check("train", fp16=True, memory_efficient_fp16=True)  # and trains so
        check("train", fp16=True, fp16_no_flatten_grads=True)
    if changed == {"distributed_world_size": 2}:
        monkeypatch.setenv("WORLD_SIZE", "2")  # torchrun
        check("train", **changed)


def test_processes_of_torchrun_that_would_train_alone(monkeypatch: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    check("train", distributed_world_size=1)  # another program may set this variable
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    message = refusal("train", distributed_world_size=1)
    assert message.startswith("torchrun has started 2 processes, which would train one by one: add ")
    check("generate", distributed_world_size=1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    check("train", distributed_world_size=1)


def test_a_warm_up_that_does_not_end_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Once, though the settings are checked twice."""
    for warmup in (90, 100, 100):
        check("train", max_update=95, warmup_updates=warmup)
    assert caplog.messages == [
        "--warmup-updates 100 is not below --max-update 95: the learning rate never reaches --lr; lower it"
    ]


def test_amp_without_a_gpu_is_warned_of(monkeypatch: Any, caplog: pytest.LogCaptureFixture) -> None:
    """fairseq trains in fp32 then, and says nothing."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check("train", amp=True)
    assert "--amp changes nothing without a GPU" in caplog.text


@pytest.mark.parametrize(
    ("command", "changed", "message"),
    [
        ("generate", {"beam": 0}, "--beam must be a whole number, 1 or more, but is 0"),
        ("generate", {"unkpen": math.nan}, "--unkpen must be a finite number, but is nan"),
        ("generate", {"temperature": 0.0}, "--temperature must be a finite number above 0, but is 0.0"),
        (
            "generate",
            {"sampling_topp": 2.0},
            "--sampling-topp must be above 0 and at most 1, or -1 (off), but is 2",
        ),
        ("generate", {"min_len": 300}, "--min-len 300 must be at most --max-len-b 200: lower it"),
        ("generate", {"sampling_topk": 3}, "--sampling-topk 3 changes nothing without --sampling: add it"),
        (
            "generate",
            {"sampling": True},
            "--sampling needs --nbest 5, like --beam, but it is 1: change one of them",
        ),
        (
            "generate",
            {"diverse_beam_groups": 2},
            "--beam 5 must be a multiple of --diverse-beam-groups 2: change",
        ),
        (
            "generate",
            {"match_source_len": True, "diversity_rate": 0.5},
            "--match-source-len can't be used with --diversity-rate: leave one of them out",
        ),
        (
            "generate",
            {"constraints": "ordered"},
            "--constraints is for imitkd-interactive, whose lines hold them",
        ),
        (
            "generate",
            {"print_step": True},
            "--print-step is not for --task translation_with_teacher: leave it",
        ),
        (
            "generate",
            {"eos_token": "x"},
            "--eos-token is not for --task translation_with_teacher: leave it out",
        ),
        ("interactive", {"beam_mt": 2}, "--beam-mt is not for --task translation_with_teacher: leave it out"),
        ("generate", {"nbest": 6}, "--nbest 6 must be at most --beam, which is 5: lower it"),
        (
            "generate",
            {"lm_weight": 0.5},
            "--lm-weight changes nothing without --lm-path: add that, or leave it",
        ),
        (
            "generate",
            {"retain_dropout_modules": ["x"]},
            "--retain-dropout-modules changes nothing without --retain-dropout: add that, or leave it out",
        ),
        (
            "generate",
            {"beam": 4, "diverse_beam_groups": 2},
            "--diverse-beam-groups mixes up sentences of a data",
        ),
        ("generate", {"scoring": "meteor"}, "--scoring meteor can't be used, because nltk takes no texts as"),
        ("generate", {"lr_scheduler": "cosine"}, "--lr-scheduler cosine is for imitkd-train: leave it out"),
        (
            "generate",
            {"shard_id": 2, "num_shards": 2},
            "--shard-id must be below --num-shards, which is 2, but",
        ),
        (
            "generate",
            {"replace_unk": "x"},
            "--replace-unk needs text that is not binarised: add --dataset-impl raw",
        ),
        (
            "generate",
            {"post_process": "x"},
            "--remove-bpe must be one of 'auto', 'none', 'sentencepiece',",
        ),
        (
            "generate",
            {"model_overrides": "x"},
            "--model-overrides must be a dictionary such as {'encoder_layers_to",
        ),
        (
            "interactive",
            {"input": "nope"},
            "--input 'nope' is not a file; use a text file, or - for standard input",
        ),
        (
            "interactive",
            {"replace_unk": "x"},
            "--replace-unk 'x' is not a file; use a dictionary of translations",
        ),
        (
            "interactive",
            {"print_alignment": "soft"},
            "--print-alignment soft is for imitkd-generate: use hard, or leave it out",
        ),
        (
            "interactive",
            {"score_reference": True},
            "--score-reference needs references: use imitkd-generate, or",
        ),
        (
            "interactive",
            {"batch_size": 5},
            "--batch-size 5 must be at most --buffer-size, which is 1: raise that",
        ),
    ],
)
def test_decoding(command: str, changed: dict[str, Any], message: str) -> None:
    assert refusal(command, **changed).startswith(message)


def test_packages_that_decoding_needs(monkeypatch: Any) -> None:
    """fairseq imports them when it has read the data. A training does not use these flags."""
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    for name, value, package in (
        ("bpe", "gpt2", "requests"),
        ("tokenizer", "nltk", "nltk"),
        ("scoring", "bert_score", "bert_score"),
    ):
        assert refusal("generate", **{name: value}) == (
            f"--{name} {value} needs the package {package}, which is not installed: install it or leave it "
            "out"
        )
        check("train", **{name: value})


def test_words_that_replace_unknown_ones(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text("one two\n\n")
    assert refusal("interactive", replace_unk="words.txt") == (
        "--replace-unk 'words.txt' can't be read: list index out of range; give it two words a line"
    )
    Path("words.txt").write_text("one two\nthree four\n")
    check("interactive", replace_unk="words.txt")


FILES = (
    "restore_file", "continue_once", "finetune_from_model", "ema_seed_model",
    "encoder_embed_path", "decoder_embed_path", "bpe_codes", "sentencepiece_model", "gpt2_vocab_bpe",
)  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_not_there(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Every flag that takes one names it. fairseq starts from nothing without --restore-file's."""
    monkeypatch.chdir(tmp_path)
    flag, more = "--" + name.replace("_", "-"), {"store_ema": True}
    assert refusal("train", **more, **{name: "none.pt"}).startswith(f"{flag} 'none.pt' is not a file; use ")
    assert refusal("train", **more, **{name: str(tmp_path)}).startswith(
        f"{flag} '{tmp_path}' is not a file; use "
    )
    (tmp_path / "there.pt").touch()
    if name == "restore_file":
        assert refusal("train", restore_file="") == (
            "--restore-file is empty; name a checkpoint (.pt), or leave it out"
        )
    check("train", **more, **{name: "there.pt"})
    check("train", **more, **{name: "s3://there.pt"})
    if name.startswith(("bpe", "sentencepiece")):
        assert refusal("generate", **{name: "???"}).startswith(f"{flag} is not given; add the ")


def test_settings_of_quantization(tmp_path: Path, monkeypatch: Any) -> None:
    """fairseq reads them when it has read the data, and divides the training by its layers."""
    monkeypatch.chdir(tmp_path)
    file, flag = Path("settings.yaml"), "--quantization-config-path"
    assert refusal("train", quantization_config_path="none.yaml").startswith(
        f"{flag} 'none.yaml' is not a file"
    )
    for text in ("", "a: b: c", "layers_to_quantize: [a, b, c]"):  # 100 updates have no third
        file.write_text(text)
        assert f"{flag} '{file}' can't be used: " in refusal("train", quantization_config_path=str(file))
    file.write_text("layers_to_quantize: [a, b]")
    check("train", quantization_config_path=str(file))


def test_folders_that_can_not_be_made(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file"
    file.touch()
    for name in ("save_dir", "tensorboard_logdir"):
        flag = "--" + name.replace("_", "-")
        for path in ("file", "file/more"):
            assert refusal("train", **{name: path}) == (
                f"{flag} '{path}' can't be made: 'file' is not a folder; use another"
            )
        assert refusal("train", **{name: ""}) == f"{flag} is empty; name a folder"
        assert "its name is too long; use a shorter one" in refusal("train", **{name: "x" * 300})
        check("train", **{name: "new/folder"})
        assert not Path("new").exists()
        if Path("/proc").is_dir():  # where root may write, and can't
            assert refusal("train", **{name: "/proc/x"}).startswith(f"{flag} '/proc/x' can't be written")
    assert refusal("generate", results_path="file").startswith(
        "--results-path 'file' can't be made: 'file' is"
    )
    assert refusal("train", log_file="none/log") == (
        "--log-file 'none/log' can't be written: its folder is not there; make it first"
    )
    assert refusal("train", log_file=str(tmp_path)).endswith("is a folder; name a file")
    assert refusal("train", checkpoint_suffix="a/b").startswith(
        "--checkpoint-suffix must be a part of a file's name"
    )
    check("train", log_file="new.log")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert refusal("train", save_dir="new").startswith(
        "--save-dir 'new' can't be written: check the permissions of"
    )
    assert refusal("train", log_file="new.log").endswith(
        "can't be written; check its permissions, or use another"
    )


def test_the_checkpoint_that_a_training_starts_from(tmp_path: Path, monkeypatch: Any) -> None:
    """As fairseq chooses it. A file that is not needed any more may be gone when a run is resumed."""
    monkeypatch.chdir(tmp_path)

    def start(**changed: Any) -> tuple[str, str] | None:
        return checkpoint_to_start_from({**vars(parsed("train")), **changed})

    assert start() is None
    assert start(finetune_from_model="a.pt") == ("--finetune-from-model", "a.pt")
    assert start(continue_once="b.pt", finetune_from_model="a.pt") == ("--continue-once", "b.pt")
    assert start(restore_file="c.pt", checkpoint_suffix="-x") == ("--restore-file", "c-x.pt")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "checkpoint_last.pt").touch()
    assert start(finetune_from_model="a.pt") == ("--save-dir", "saved/checkpoint_last.pt")
    check("train", finetune_from_model="a.pt")
    (tmp_path / "saved" / "checkpoint_best.pt").touch()
    assert refusal("train", restore_file="checkpoint_best.pt") == (
        "--restore-file 'checkpoint_best.pt' is not a file; use saved/checkpoint_best.pt"
    )


def test_a_configuration_of_sections_is_checked_like_a_command_line() -> None:
    """As fairseq-train --user-dir and fairseq-hydra-train have it."""
    settings = flat(convert_namespace_to_omegaconf(parsed("train")))
    names = ("task", "criterion", "optimizer", "lr_scheduler", "arch")
    assert {name: settings[name] for name in names} == {
        name: getattr(parsed("train"), name) for name in names
    }
    check_configuration(settings, "train")
    for name in ("seed", "max_epoch", "encoder_layers", "warmup_updates", "save_interval"):
        with pytest.raises(UsageError, match=f"^--{name.replace('_', '-')} must be a whole number"):
            check_configuration({**settings, name: -1}, "train")

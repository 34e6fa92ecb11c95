"""The numbers that fairseq's flags accept."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fairseq_imitkd.errors import UsageError, percent
from fairseq_imitkd.method.config import NON_NEGATIVE, POSITIVE, SHARE, Range

MOST = 2**31 - 1
LARGEST_SIZE = 2**17  # of a model; larger ones fill the memory before torch refuses them


def whole(low: int, high: int = MOST, off: int | None = None) -> Range:
    """Return the whole numbers from ``low``, and ``off``, which turns the flag off."""
    limit = f", {low} or more" if high == MOST else f" in {low}..{high}"
    words = f"a whole number{limit}" + ("" if off is None else f", or {off} (off)")
    return Range(low, high, words, also=() if off is None else (off,))


COUNT, COUNT_OR_0 = whole(1), whole(0)
PROBABILITY = Range(0.0, 1.0, "at least 0 and below 1", below_high=True)
ABOVE_0_TO_1 = Range(0.0, 1.0, "above 0 and at most 1", above_low=True)
ANY = Range(-math.inf, math.inf, "a finite number", above_low=True, below_high=True)
OFF_OR_NON_NEGATIVE = Range(
    0.0, math.inf, "a finite number, 0 or more, or -1 (off)", below_high=True, also=(-1,)
)

_GROUPS: tuple[tuple[Range, str], ...] = (
    (
        COUNT,
        "log_interval max_tokens max_tokens_valid batch_size batch_size_valid required_batch_size_multiple "
        "required_seq_len_multiple validate_interval update_freq save_interval distributed_world_size "
        "num_shards "
        "checkpoint_shard_count model_parallel_size all_gather_list_size bucket_cap_mb localsgd_frequency "
        "ema_update_freq fp16_init_scale amp_init_scale quant_noise_pq_block_size global_sync_iter beam "
        "nbest "
        "iter_decode_with_beam lr_deacy_period max_valid_steps fp16_scale_window "
        "amp_scale_window nprocs_per_node total_num_update",
    ),
    (
        COUNT_OR_0,
        "seed fixed_validation_seed num_workers data_buffer_size max_epoch max_update warmup_updates "
        "curriculum "
        "validate_interval_updates validate_after_updates save_interval_updates empty_cache_freq "
        "ema_start_update "
        "num_batch_buckets prefix_size no_repeat_ngram_size min_len max_len_b amp_batch_retries "
        "distributed_rank "
        "distributed_num_procs device_id shard_id lr_patience pipeline_chunks min_params_to_wrap "
        "warmup_steps "
        "hold_steps decay_steps force_anneal buffer_size beam_mt max_len_b_mt warmup_iterations "
        "ignore_prefix_size iter_decode_max_iter",
    ),
    (
        whole(1, off=-1),
        "keep_interval_updates keep_last_epochs keep_best_checkpoints patience "
        "keep_interval_updates_pattern upsample_primary heartbeat_timeout sampling_topk diverse_beam_groups",
    ),
    (whole(1, 65535, off=-1), "distributed_port"),
    (whole(1, 1_000_000), "max_source_positions max_target_positions"),
    (whole(1, 1000), "encoder_layers decoder_layers encoder_attention_heads decoder_attention_heads"),
    (
        whole(1, LARGEST_SIZE),
        "encoder_embed_dim decoder_embed_dim encoder_ffn_embed_dim decoder_ffn_embed_dim decoder_output_dim "
        "decoder_input_dim encoder_hidden_size decoder_hidden_size decoder_out_embed_dim encoder_conv_dim "
        "decoder_conv_dim character_embedding_dim",
    ),
    (whole(0, LARGEST_SIZE), "projection_size"),
    (whole(0, 1000), "base_layers base_sublayers"),
    (ABOVE_0_TO_1, "lr_shrink"),
    (Range(1.0, math.inf, "a finite number, 1 or more", below_high=True), "t_mult"),
    (Range(-math.inf, 0.0, "a finite number, 0 or less", above_low=True), "decay_rate"),
    (
        PROBABILITY,
        "lr_threshold encoder_layerdrop decoder_layerdrop momentum block_momentum beta1 quant_noise_pq",
    ),
    (
        SHARE,
        "ema_decay fp16_scale_tolerance quant_noise_scalar adadelta_rho lr_decay label_smoothing "
        "slowmo_momentum",
    ),
    (
        NON_NEGATIVE,
        "lr stop_time_hours clip_norm weight_decay min_lr end_learning_rate "
        "max_len_a max_len_a_mt "
        "threshold_loss_scale block_lr init_lr_scale diverse_beam_strength",
    ),
    (
        POSITIVE,
        "adam_eps adamax_eps adadelta_eps min_loss_scale temperature clip_threshold max_lr "
        "final_lr_scale "
        "adaptive_softmax_factor adaptive_input_factor power",
    ),
    (OFF_OR_NON_NEGATIVE, "warmup_init_lr lr_period_updates diversity_rate"),
    (Range(0.0, 1.0, "above 0 and at most 1, or -1 (off)", above_low=True, also=(-1,)), "sampling_topp"),
)
RANGES = {name: accepted for accepted, names in _GROUPS for name in names.split()}
_DROPOUT = re.compile(r"(\w+_)?dropout(_in|_out)?")
# Flags that the parser gives as text.
_NUMBERS_AS_TEXT = ("max_tokens_valid", "batch_size_valid", "total_num_update", "decoder_output_dim")
_LISTS = ("update_freq", "lr")
_UNLIMITED = ("softmax_batch",)  # fairseq's own default is the largest number


def check(settings: Mapping[str, Any]) -> None:
    """Refuse numbers that a flag does not accept, and numbers of any flag that are not finite.

    Raises:
        UsageError: naming the flag, its value, and the numbers that it accepts.
    """
    for name, value in settings.items():
        if name.startswith("_") or name in _UNLIMITED:
            continue
        if name in _LISTS and value is not None and not list(_items(value)):
            raise UsageError(f"{flag(name)} must be {accepted_by(name).words}, but is empty: add a value")
        for item in _items(value):
            check_value(name, item, flag(name))


def check_value(name: str, value: Any, shown: str) -> None:
    """Refuse a number that a flag does not accept.

    Args:
        name: name of the flag, as argparse names it.
        value: one value; anything but a number passes, unless the flag takes nothing else.
        shown: how the message calls the flag.

    Raises:
        UsageError: naming the flag, its value, and the numbers that it accepts.
    """
    number = _number(name, value)
    if number is None:
        return
    accepted = accepted_by(name)
    fits = number in accepted and (not _is_whole(accepted) or float(number).is_integer())
    too_large = isinstance(number, int) and abs(number) > MOST
    if not fits or too_large:
        most = f", at most {MOST:,}" if too_large and accepted.high >= MOST else ""
        meant = percent(number) if accepted.high == 1.0 else ""
        raise UsageError(f"{shown} must be {accepted.words}{most}, but is {value}{meant}")


def accepted_by(name: str) -> Range:
    """Return the numbers that a flag accepts; any finite number if nothing is known about it."""
    return RANGES.get(name) or (PROBABILITY if _DROPOUT.fullmatch(name) else ANY)


def flag(name: str) -> str:
    """Return a flag as it is typed."""
    return "--" + name.replace("_", "-")


def _items(value: Any) -> Iterator[Any]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        yield from value
    elif value is not None:
        yield value


def _number(name: str, value: Any) -> int | float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value
    if not isinstance(value, str) or name not in _NUMBERS_AS_TEXT or value.startswith("${"):
        return None
    try:
        return int(value) if value.strip().lstrip("+-").isdecimal() else float(value)
    except ValueError:
        return math.nan


def _is_whole(accepted: Range) -> bool:
    return accepted.words.startswith("a whole number")

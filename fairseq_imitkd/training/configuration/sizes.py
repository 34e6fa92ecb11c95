"""Sizes of a student that don't fit together, seen before it is built."""

from collections.abc import Mapping
from typing import Any

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.training.configuration.ranges import flag


def check(settings: Mapping[str, Any]) -> None:
    """Refuse widths that the heads don't divide, and shared matrices of two widths.

    Raises:
        UsageError: naming the flags and their values.
    """
    for side in ("encoder", "decoder"):
        width, heads = settings.get(f"{side}_embed_dim"), settings.get(f"{side}_attention_heads")
        if isinstance(width, int) and isinstance(heads, int) and heads > 0:
            if width % heads:
                raise UsageError(
                    f"--{side}-embed-dim {width} must be a multiple of --{side}-attention-heads {heads}: "
                    "change one"
                )
            if width < 4 and not settings.get(f"{side}_learned_pos"):
                # fairseq divides by half of the width, less one.
                raise UsageError(
                    f"--{side}-embed-dim must be 4 or more for sinusoidal positions, but is {width}: raise "
                    "it, or add "
                    f"--{side}-learned-pos"
                )
        if settings.get(f"{side}_layers_to_keep") is not None:
            name = flag(f"{side}_layers_to_keep")
            raise UsageError(
                f"{name} can't be used on the command line: give it in --model-overrides of "
                "imitkd-generate, as fairseq "
                "does"
            )
    shares = settings.get("share_decoder_input_output_embed")
    widths = [_width(settings, name) for name in ("decoder_embed_dim", "decoder_output_dim")]
    if shares and None not in widths and widths[0] != widths[1]:
        raise UsageError(
            f"--share-decoder-input-output-embed needs --decoder-output-dim {widths[0]}, like "
            "--decoder-embed-dim, but "
            f"it is {widths[1]}"
        )


def _width(settings: Mapping[str, Any], name: str) -> int | None:
    try:
        return int(settings[name])
    except (KeyError, TypeError, ValueError):
        return None

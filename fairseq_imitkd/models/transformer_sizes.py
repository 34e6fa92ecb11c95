"""Small transformers under names: a deep encoder, which reads a sentence at once, and a shallow decoder, which writes.

Kasai et al., ICLR 2021 (arXiv 2006.10369): with 6 or 12 layers below and 1 above, decoding is several times faster at nearly
the same quality.
"""

from typing import Any

from fairseq.models import register_model_architecture
from fairseq.models.transformer import base_architecture

# name -> encoder layers, decoder layers, width, width of the feed-forward layers, heads
SIZES = {
    "transformer_imitkd_6_1": (6, 1, 512, 2048, 8),
    "transformer_imitkd_6_2": (6, 2, 512, 2048, 8),
    "transformer_imitkd_12_1": (12, 1, 512, 2048, 8),
    "transformer_imitkd_2_2": (2, 2, 256, 768, 4),  # the ImitKD paper's transformer student
    "transformer_imitkd_tiny": (2, 1, 128, 512, 4),
}


def _register(name: str, encoder: int, decoder: int, width: int, feed_forward: int, heads: int) -> None:
    @register_model_architecture("transformer", name)
    def architecture(args: Any) -> None:
        for side, layers in (("encoder", encoder), ("decoder", decoder)):
            settings = {
                "layers": layers,
                "embed_dim": width,
                "ffn_embed_dim": feed_forward,
                "attention_heads": heads,
            }
            for setting, value in settings.items():
                setattr(args, f"{side}_{setting}", getattr(args, f"{side}_{setting}", value))
        args.share_decoder_input_output_embed = getattr(args, "share_decoder_input_output_embed", True)
        base_architecture(args)


for _name, _sizes in SIZES.items():
    _register(_name, *_sizes)

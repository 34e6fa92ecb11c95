"""Named sizes of small transformers with a deep encoder and a shallow decoder.

The encoder reads a sentence in one pass, while the decoder runs once per token. With 6 or 12 encoder layers
and 1 decoder layer, decoding is several times faster at nearly the same quality (Kasai et al., ICLR 2021,
arXiv 2006.10369).
"""

from typing import Any, NamedTuple

from fairseq.models import register_model_architecture
from fairseq.models.transformer import base_architecture


class Size(NamedTuple):
    """The size of a transformer: its numbers of layers, its widths and its attention heads."""

    encoder_layers: int
    decoder_layers: int
    width: int
    feed_forward_width: int
    heads: int


SIZES = {
    "transformer_imitkd_6_1": Size(6, 1, 512, 2048, 8),
    "transformer_imitkd_6_2": Size(6, 2, 512, 2048, 8),
    "transformer_imitkd_12_1": Size(12, 1, 512, 2048, 8),
    "transformer_imitkd_2_2": Size(2, 2, 256, 768, 4),  # the transformer student of the ImitKD paper
    "transformer_imitkd_tiny": Size(2, 1, 128, 512, 4),
}


def _register(name: str, size: Size) -> None:
    @register_model_architecture("transformer", name)
    def architecture(args: Any) -> None:
        for side, layers in (("encoder", size.encoder_layers), ("decoder", size.decoder_layers)):
            settings = {
                "layers": layers,
                "embed_dim": size.width,
                "ffn_embed_dim": size.feed_forward_width,
                "attention_heads": size.heads,
            }
            for setting, value in settings.items():
                setattr(args, f"{side}_{setting}", getattr(args, f"{side}_{setting}", value))
        args.share_decoder_input_output_embed = getattr(args, "share_decoder_input_output_embed", True)
        base_architecture(args)


for _name, _size in SIZES.items():
    _register(_name, _size)

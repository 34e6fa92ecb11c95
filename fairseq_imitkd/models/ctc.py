"""``--arch s2t_ctc``: a speech recogniser without a decoder.

It has the encoder of fairseq's ``s2t_transformer``, and one layer that gives every frame logits over the
symbols and a blank (Graves et al. 2006). All frames are computed at once.
"""

from argparse import Namespace
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from fairseq.models.speech_to_text.s2t_transformer import S2TTransformerEncoder
from torch import Tensor, nn


@dataclass
class SpeechCTCConfig(FairseqDataclass):
    """Sizes of the encoder, with the names and defaults of ``s2t_transformer``."""

    encoder_embed_dim: int = field(default=512, metadata={"help": "width of the encoder"})
    encoder_ffn_embed_dim: int = field(default=2048, metadata={"help": "inner width of feed-forward layers"})
    encoder_layers: int = field(default=12, metadata={"help": "number of encoder layers"})
    encoder_attention_heads: int = field(default=8, metadata={"help": "number of attention heads"})
    activation_fn: str = field(default="relu", metadata={"help": "activation of feed-forward layers"})
    dropout: float = field(default=0.1, metadata={"help": "dropout of embeddings and sublayers"})
    attention_dropout: float = field(default=0.1, metadata={"help": "dropout of attention weights"})
    activation_dropout: float = field(default=0.1, metadata={"help": "dropout after activations"})
    conv_kernel_sizes: str = field(
        default="5,5", metadata={"help": "kernel sizes of the convolutions; each one halves the frames"}
    )
    conv_channels: int = field(default=1024, metadata={"help": "channels of the convolutions"})
    max_source_positions: int = field(default=6000, metadata={"help": "maximum number of frames"})
    max_target_positions: int = field(default=1024, metadata={"help": "maximum number of target tokens"})
    # The task sets these from the data's configuration.
    input_feat_per_channel: int = field(default=80, metadata={"help": "bins of a frame"})
    input_channels: int = field(default=1, metadata={"help": "channels of the speech"})
    speaker_to_id: Optional[Any] = field(default=None, metadata={"help": "not used"})


@register_model("s2t_ctc", dataclass=SpeechCTCConfig)
class SpeechCTC(BaseFairseqModel):
    """An encoder with logits over ``V`` symbols at every frame.

    Args:
        encoder: the encoder.
        width: features of its outputs.
        symbols: number of symbols, the blank included.
        longest: the largest numbers of frames and of target tokens.
    """

    blank = 0  # fairseq's <s>, which no target has

    def __init__(self, encoder: S2TTransformerEncoder, width: int, *, symbols: int, longest: tuple[int, int]):
        super().__init__()
        self.encoder, self.output_projection = encoder, nn.Linear(width, symbols)
        self._longest = longest

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "SpeechCTC":
        """Build an untrained model."""
        fixed = {
            "conv_version": "s2t_transformer",
            "encoder_freezing_updates": 0,
            "encoder_normalize_before": True,
            "no_scale_embedding": False,
        }
        settings = {
            name: getattr(cfg, name) for name in SpeechCTCConfig.__dataclass_fields__ if name[0] != "_"
        }
        encoder = S2TTransformerEncoder(Namespace(**settings, **fixed))
        longest = (cfg.max_source_positions, cfg.max_target_positions)
        return cls(encoder, cfg.encoder_embed_dim, symbols=len(task.target_dictionary), longest=longest)

    def forward(self, src_tokens: Tensor, src_lengths: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        """Return logits at every frame of the encoder, and how many of them each sentence has.

        Args:
            src_tokens: filterbanks, ``(B, F, bins)``.
            src_lengths: their lengths, ``(B,)``.

        Returns:
            ``(B, S, V)`` and ``(B,)`` int64.
        """
        encoded = self.encoder(src_tokens=src_tokens, src_lengths=src_lengths)
        logits = self.output_projection(encoded["encoder_out"][0].transpose(0, 1))
        lengths = torch.full_like(src_lengths, logits.size(1))
        if encoded["encoder_padding_mask"]:
            lengths = lengths - encoded["encoder_padding_mask"][0].sum(dim=1)
        return logits, lengths

    def max_positions(self) -> tuple[int, int]:
        """Return the largest numbers of frames and of target tokens."""
        return self._longest

    def max_decoder_positions(self) -> int:
        """Return the largest number of target tokens."""
        return self._longest[1]

"""Recurrent students of the ImitKD paper (Lin et al., EMNLP 2020): SRU or GRU with attention.

The encoder is bidirectional. The decoder starts from zeros, and attends to the source once, after its last
layer, by scaled dot products. The output is ``tanh(Linear([state; context]))`` times the target embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import (
    FairseqEncoder,
    FairseqEncoderDecoderModel,
    FairseqIncrementalDecoder,
    register_model,
    register_model_architecture,
)
from fairseq.modules import FairseqDropout
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.models.sru import SRU


@dataclass
class GRUConfig(FairseqDataclass):
    """Sizes of a recurrent student. The named architectures set them."""

    encoder_embed_dim: int = field(
        default=256, metadata={"help": "width of the source and target embeddings"}
    )
    encoder_hidden_size: int = field(
        default=256, metadata={"help": "width of each encoder direction's state"}
    )
    encoder_layers: int = field(default=2, metadata={"help": "number of encoder layers"})
    decoder_hidden_size: int = field(default=512, metadata={"help": "width of the decoder's state"})
    decoder_layers: int = field(default=2, metadata={"help": "number of decoder layers"})
    dropout: float = field(
        default=0.1, metadata={"help": "dropout of embeddings, between layers, and before the output"}
    )
    attention_dropout: float = field(default=0.0, metadata={"help": "dropout of attention weights"})
    share_all_embeddings: bool = field(
        default=False,
        metadata={"help": "share one embedding of source and target (needs --joined-dictionary)"},
    )
    max_source_positions: int = field(default=1024, metadata={"help": "maximum source length in tokens"})
    max_target_positions: int = field(default=1024, metadata={"help": "maximum target length in tokens"})


@dataclass
class SRUConfig(GRUConfig):
    """Sizes of an SRU student, with the settings that only SRUs have."""

    projection_size: int = field(
        default=0, metadata={"help": "factorise each layer's matrix with this inner width (0: do not)"}
    )
    layer_norm: bool = field(default=False, metadata={"help": "normalise each layer's input"})
    highway_bias: float = field(
        default=0.0,
        metadata={
            "help": "initial bias of the reset gate; a negative one lets layers pass on more of their input"
        },
    )


class GRU(nn.GRU):
    """torch's GRU with the interface of :class:`~fairseq_imitkd.models.sru.SRU`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        layers: int,
        *,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ):
        between = dropout if layers > 1 else 0.0
        super().__init__(input_size, hidden_size, layers, dropout=between, bidirectional=bidirectional)

    def forward(  # type: ignore[override]
        self, x: Tensor, initial: Tensor | None = None, padding: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Read a batch, see :meth:`fairseq_imitkd.models.sru.SRU.forward`; padding must be at the end."""
        if torch.compiler.is_exporting():
            return self._exported(x, initial, padding)
        if padding is None:
            return super().forward(x, initial)
        lengths = (~padding).sum(dim=0).clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        outputs, last = super().forward(packed, initial)
        padded, _ = nn.utils.rnn.pad_packed_sequence(outputs, total_length=x.size(0))
        return padded, last

    def _exported(self, x: Tensor, initial: Tensor | None, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute the same as an exportable graph for any number of steps, except for the outputs at padding.

        Packed sequences can't be exported.
        """
        reads = torch.zeros_like(x[:, :, 0], dtype=torch.bool) if padding is None else padding
        last: list[Tensor] = []
        for layer in range(self.num_layers):
            outputs = []
            for direction, suffix in enumerate(["", "_reverse"][: 2 if self.bidirectional else 1]):
                names = ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
                weights = [getattr(self, f"{name}_l{layer}{suffix}") for name in names]
                number = len(last)
                state = x.new_zeros(x.size(1), self.hidden_size) if initial is None else initial[number]
                backwards = direction == 1
                steps, skip = (x.flip(0), reads.flip(0)) if backwards else (x, reads)
                states = _gru(steps, skip, state, weights=weights)
                last.append(states[-1])
                outputs.append(states.flip(0) if backwards else states)
            x = torch.cat(outputs, dim=-1)
        return x, torch.stack(last)


def _gru(x: Tensor, padding: Tensor, initial: Tensor, *, weights: Sequence[Tensor]) -> Tensor:
    """Return the states ``(T, B, D)`` of one layer in one direction. Padding does not change the state.

    Args:
        x: inputs ``(T, B, input_size)``.
        padding: ``(T, B)`` bool.
        initial: state before the first step, ``(B, D)``.
        weights: weight and bias of the inputs, weight and bias of the state, as in ``torch.nn.GRU``.
    """
    weight, bias, own_weight, own_bias = weights

    def step(state: Tensor, read: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        reset, update, new = read[0].chunk(3, dim=-1)
        own_reset, own_update, own_new = F.linear(state, own_weight, own_bias).chunk(3, dim=-1)
        new = torch.tanh(new + torch.sigmoid(reset + own_reset) * own_new)
        after = torch.lerp(new, state, torch.sigmoid(update + own_update))
        after = torch.where(read[1].unsqueeze(-1), state, after)
        return after, after.clone()  # the outputs of a graph must be different tensors

    products = F.linear(x, weight, bias)
    if x.size(0) == 1:
        return step(initial, (products[0], padding[0]))[0].unsqueeze(0)
    return scan(step, initial, (products, padding))[1]


def padded_at_end(tokens: Tensor, pad: int) -> Tensor:
    """Return the tokens ``(B, S)`` with all padding moved to the end."""
    padding = tokens.eq(pad)
    if not bool(padding[:, 0].any()):
        return tokens
    return tokens.gather(1, padding.long().argsort(dim=1, stable=True))


class RecurrentEncoder(FairseqEncoder):
    """The bidirectional encoder.

    Args:
        cfg: configuration of the model.
        dictionary, embed_tokens: dictionary and embedding of the source.
        reader: recurrent layers.
    """

    def __init__(self, cfg: Any, dictionary: Dictionary, embed_tokens: nn.Embedding, *, reader: nn.Module):
        super().__init__(dictionary)
        self.embed_tokens, self.reader = embed_tokens, reader
        self.dropout = FairseqDropout(cfg.dropout, module_name=type(self).__name__)
        self.max_source_positions = cfg.max_source_positions
        self.output_units = cfg.decoder_hidden_size
        width = 2 * cfg.encoder_hidden_size
        # Attention needs outputs as wide as the decoder, which they are in the paper's sizes.
        self.widen = (
            nn.Linear(width, cfg.decoder_hidden_size, bias=False)
            if width != cfg.decoder_hidden_size
            else None
        )

    def forward(
        self, src_tokens: Tensor, src_lengths: Tensor | None = None, **_: Any
    ) -> dict[str, list[Tensor]]:
        """Encode ``(B, S)`` tokens, padded at either end.

        Returns:
            outputs in fairseq's form: ``encoder_out`` ``[(S, B, D)]`` and ``encoder_padding_mask`` ``[(B,
            S)]``.
        """
        tokens = padded_at_end(src_tokens, self.dictionary.pad())  # GRU layers can only skip padding there
        at_end = tokens.eq(self.dictionary.pad())
        return {
            "encoder_out": [self.read(tokens, at_end if bool(at_end.any()) else None)],
            "encoder_padding_mask": [at_end],
            "encoder_embedding": [],
            "encoder_states": [],
            "src_tokens": [],
            "src_lengths": [],
        }

    def read(self, tokens: Tensor, padding: Tensor | None) -> Tensor:
        """Return the outputs ``(S, B, D)`` for tokens ``(B, S)`` that are padded at the end."""
        x = self.dropout(self.embed_tokens(tokens)).transpose(0, 1)
        x, _ = self.reader(x, padding=None if padding is None else padding.t())
        return x if self.widen is None else self.widen(x)

    def reorder_encoder_out(
        self, encoder_out: dict[str, list[Tensor]], new_order: Tensor
    ) -> dict[str, list[Tensor]]:
        """Select these sentences in this order."""
        dimensions = {"encoder_out": 1, "encoder_padding_mask": 0}
        return {
            name: [each.index_select(dimensions[name], new_order) for each in values]
            for name, values in encoder_out.items()
        }

    def max_positions(self) -> int:
        """Return the maximum source length in tokens."""
        return self.max_source_positions


class RecurrentDecoder(FairseqIncrementalDecoder):
    """The decoder, which writes from left to right.

    Args:
        cfg: configuration of the model.
        dictionary, embed_tokens: dictionary and embedding of the target. The embedding is also the output
            matrix.
        writer: recurrent layers.
    """

    adaptive_softmax = None

    def __init__(self, cfg: Any, dictionary: Dictionary, embed_tokens: nn.Embedding, *, writer: nn.Module):
        super().__init__(dictionary)
        self.embed_tokens, self.writer = embed_tokens, writer
        self.dropout = FairseqDropout(cfg.dropout, module_name=type(self).__name__)
        self.attention_dropout = cfg.attention_dropout
        self.max_target_positions = cfg.max_target_positions
        width = cfg.decoder_hidden_size
        self.mix = nn.Linear(2 * width, width)
        self.narrow = (
            nn.Linear(width, embed_tokens.embedding_dim) if width != embed_tokens.embedding_dim else None
        )
        self.output_projection = nn.Linear(
            embed_tokens.embedding_dim, embed_tokens.num_embeddings, bias=False
        )
        self.output_projection.weight = embed_tokens.weight

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Tensor]],
        incremental_state: dict[str, dict[str, Tensor | None]] | None = None,
        features_only: bool = False,
        **_: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return logits ``(B, T, V)`` after each prefix of ``(B, T)`` tokens, or hidden states ``(B, T, D)``.

        With an incremental state, only the last token is read, and the result has ``T = 1``.
        """
        x, extra = self.extract_features(prev_output_tokens, encoder_out, incremental_state)
        return (x if features_only else self.output_layer(x)), extra

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Tensor]],
        incremental_state: dict[str, dict[str, Tensor | None]] | None = None,
        **_: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return hidden states; see :meth:`forward`."""
        state = None
        if incremental_state is not None:
            cached = self.get_incremental_state(incremental_state, "state")
            if cached is not None:
                state = cached["state"]
                prev_output_tokens = prev_output_tokens[:, -1:]
        memory, padding = encoder_out["encoder_out"][0], encoder_out["encoder_padding_mask"][0]
        x, state = self.write(prev_output_tokens, memory, padding=padding, state=state)
        if incremental_state is not None:
            self.set_incremental_state(incremental_state, "state", {"state": state})
        return x, {"attn": [None], "inner_states": None}

    def write(
        self, tokens: Tensor, memory: Tensor, *, padding: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Read some more tokens.

        Args:
            tokens: ``(B, T)``, padded at the end, where padding can't affect the sentence.
            memory: outputs of the encoder, ``(S, B, D)``.
            padding: padding of the source, ``(B, S)`` bool.
            state: states of the layers, ``(L, B, D)``; None at the beginning.

        Returns:
            hidden states ``(B, T, D)``, and the states of the layers after the last token, ``(L, B, D)``.
        """
        x = self.dropout(self.embed_tokens(tokens)).transpose(0, 1)
        x, state = self.writer(x, state)
        x = x.transpose(0, 1)
        x = torch.tanh(self.mix(torch.cat([x, self._context(x, memory, padding)], dim=-1)))
        x = self.dropout(x)
        return (x if self.narrow is None else self.narrow(x)), state

    def _context(self, queries: Tensor, memory: Tensor, padding: Tensor) -> Tensor:
        """Return the attention contexts ``(B, T, D)`` for the queries ``(B, T, D)``."""
        keys = memory.transpose(0, 1)
        scores = torch.bmm(queries * queries.size(-1) ** -0.5, keys.transpose(1, 2))
        scores = scores.float().masked_fill(padding.unsqueeze(1), -torch.inf)
        weights = F.dropout(scores.softmax(dim=-1), self.attention_dropout, self.training)
        return torch.bmm(weights.to(keys.dtype), keys)

    def output_layer(self, features: Tensor) -> Tensor:
        """Return the logits for hidden states."""
        return self.output_projection(features)

    def reorder_incremental_state(
        self, incremental_state: dict[str, dict[str, Tensor | None]], new_order: Tensor
    ) -> None:
        """Continue with these rows."""
        cached = self.get_incremental_state(incremental_state, "state")
        if cached is not None and cached["state"] is not None:
            self.set_incremental_state(
                incremental_state, "state", {"state": cached["state"].index_select(1, new_order)}
            )

    def max_positions(self) -> int:
        """Return the maximum target length in tokens."""
        return self.max_target_positions


class RecurrentModel(FairseqEncoderDecoderModel):
    """A recurrent student. Subclasses define its kind of layers."""

    config: type[GRUConfig]
    # Builds the layers of one side: (cfg, input_size, hidden_size, *, layers, bidirectional=False).
    layers: Callable[..., nn.Module]

    @classmethod
    def add_args(cls, parser: Any) -> None:
        """Add the configuration's flags, without defaults: the architecture sets those."""
        gen_parser_from_dataclass(parser, cls.config(), delete_default=True)

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "RecurrentModel":
        """Build the model for the task's dictionaries.

        Raises:
            UsageError: a size is out of range, or the dictionaries can't share an embedding.
        """
        check_sizes(cls.config, cfg)
        source, target = task.source_dictionary, task.target_dictionary
        embedding = _embedding(target, cfg.encoder_embed_dim)
        source_embedding = (
            embedding if cfg.share_all_embeddings else _embedding(source, cfg.encoder_embed_dim)
        )
        if cfg.share_all_embeddings and source != target:
            raise UsageError(
                "--share-all-embeddings needs one dictionary for both languages: use --joined-dictionary"
            )
        width = cfg.encoder_embed_dim
        reader = cls.layers(
            cfg, width, cfg.encoder_hidden_size, layers=cfg.encoder_layers, bidirectional=True
        )
        writer = cls.layers(cfg, width, cfg.decoder_hidden_size, layers=cfg.decoder_layers)
        return cls(
            RecurrentEncoder(cfg, source, source_embedding, reader=reader),
            RecurrentDecoder(cfg, target, embedding, writer=writer),
        )


@register_model("gru")
class GRUModel(RecurrentModel):
    """Gated recurrent units (Cho et al., EMNLP 2014)."""

    config = GRUConfig

    @staticmethod
    def layers(
        cfg: Any, input_size: int, hidden_size: int, *, layers: int, bidirectional: bool = False
    ) -> nn.Module:
        """Build the layers of one side."""
        return GRU(input_size, hidden_size, layers, dropout=cfg.dropout, bidirectional=bidirectional)


@register_model("sru")
class SRUModel(RecurrentModel):
    """Simple recurrent units (Lei et al., EMNLP 2018)."""

    config = SRUConfig

    @staticmethod
    def layers(
        cfg: Any, input_size: int, hidden_size: int, *, layers: int, bidirectional: bool = False
    ) -> nn.Module:
        """Build the layers of one side."""
        return SRU(
            input_size,
            hidden_size,
            layers,
            dropout=cfg.dropout,
            bidirectional=bidirectional,
            projection_size=cfg.projection_size,
            layer_norm=cfg.layer_norm,
            highway_bias=cfg.highway_bias,
        )


def check_sizes(config: type[GRUConfig], cfg: Any) -> None:
    """Refuse sizes out of range.

    Raises:
        UsageError: a size is out of range; the message names the flag.
    """
    least = {"projection_size": 0}
    for name, default in config.__dataclass_fields__.items():
        value: Any = getattr(cfg, name, None)
        flag = "--" + name.replace("_", "-")
        if default.type is int and not (isinstance(value, int) and value >= least.get(name, 1)):
            raise UsageError(f"{flag} must be {least.get(name, 1)} or more, but is {value}")
        if name.endswith("dropout") and not 0.0 <= value < 1.0:
            raise UsageError(f"{flag} must be at least 0 and below 1, but is {value}")


def _embedding(dictionary: Dictionary, width: int) -> nn.Embedding:
    embedding = nn.Embedding(len(dictionary), width, dictionary.pad())
    nn.init.normal_(embedding.weight, mean=0.0, std=width**-0.5)
    nn.init.constant_(embedding.weight[dictionary.pad()], 0.0)
    return embedding


# name -> (model, settings that differ from the configuration's defaults, which are the paper's for IWSLT'14)
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"{cell}_{layers}": (cell, {"encoder_layers": layers, "decoder_layers": layers})
        for cell in ("gru", "sru")
        for layers in (2, 3, 4)
    },
    "sru_cnn_dm": ("sru", {"encoder_hidden_size": 512, "decoder_hidden_size": 1024, "projection_size": 256}),
    "sru_wmt": (
        "sru",
        {
            "encoder_layers": 4,
            "decoder_layers": 4,
            "encoder_hidden_size": 1024,
            "decoder_hidden_size": 2048,
            "projection_size": 256,
            "layer_norm": True,
            "share_all_embeddings": True,
        },
    ),
}


def _register(name: str, model: str, *, settings: dict[str, Any], config: type[GRUConfig]) -> None:
    @register_model_architecture(model, name)
    def architecture(args: Any) -> None:
        for setting, default in config.__dataclass_fields__.items():
            if setting != "_name":
                setattr(args, setting, getattr(args, setting, settings.get(setting, default.default)))


for _model, _config in (("gru", GRUConfig), ("sru", SRUConfig)):
    _register(_model, _model, settings={}, config=_config)
for _name, (_model, _settings) in SIZES.items():
    _register(_name, _model, settings=_settings, config=SRUConfig if _model == "sru" else GRUConfig)

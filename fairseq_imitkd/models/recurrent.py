"""Recurrent students as in the ImitKD paper (Lin et al., EMNLP 2020): SRU or GRU, attention above the top layer.

A bidirectional encoder; a decoder that starts from zeros and looks at the source once, after its last layer, by scaled dot
products; ``tanh(Linear([state; context]))``; an output matrix that is the target embedding.
"""

from collections.abc import Callable
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
    """Sizes of a recurrent student; the named architectures set them."""

    encoder_embed_dim: int = field(
        default=256, metadata={"help": "width of the embeddings, the source's and the target's"}
    )
    encoder_hidden_size: int = field(default=256, metadata={"help": "state of one direction of the encoder"})
    encoder_layers: int = field(default=2, metadata={"help": "layers of the encoder"})
    decoder_hidden_size: int = field(default=512, metadata={"help": "state of the decoder"})
    decoder_layers: int = field(default=2, metadata={"help": "layers of the decoder"})
    dropout: float = field(
        default=0.1, metadata={"help": "of embeddings, between layers, and before the output"}
    )
    attention_dropout: float = field(default=0.0, metadata={"help": "of attention weights"})
    share_all_embeddings: bool = field(
        default=False, metadata={"help": "one embedding for source and target (needs --joined-dictionary)"}
    )
    max_source_positions: int = field(default=1024, metadata={"help": "longest source, in tokens"})
    max_target_positions: int = field(default=1024, metadata={"help": "longest target, in tokens"})


@dataclass
class SRUConfig(GRUConfig):
    """What an SRU can be told besides."""

    projection_size: int = field(
        default=0, metadata={"help": "factorise each layer's matrix by this width (0: not)"}
    )
    layer_norm: bool = field(default=False, metadata={"help": "normalise each layer's input"})
    highway_bias: float = field(
        default=0.0, metadata={"help": "of the reset gate; below 0, layers pass more on unchanged"}
    )


class GRU(nn.GRU):
    """torch's, with the interface of :class:`~fairseq_imitkd.models.sru.SRU`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        layers: int,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ):
        between = dropout if layers > 1 else 0.0
        super().__init__(input_size, hidden_size, layers, dropout=between, bidirectional=bidirectional)

    def forward(  # type: ignore[override]
        self, x: Tensor, initial: Tensor | None = None, padding: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See there. Padding must be at the end."""
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
        """The same as a graph, for any number of steps, but for what stands at padding: what packs sequences has none."""
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
                states = _gru(steps, skip, state, *weights)
                last.append(states[-1])
                outputs.append(states.flip(0) if backwards else states)
            x = torch.cat(outputs, dim=-1)
        return x, torch.stack(last)


def _gru(
    x: Tensor,
    padding: Tensor,
    initial: Tensor,
    weight: Tensor,
    bias: Tensor,
    own_weight: Tensor,
    own_bias: Tensor,
) -> Tensor:
    """One layer in one direction: ``(T, B, D)`` states; a step that is padding leaves the state as it is."""

    def step(state: Tensor, read: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        reset, update, new = read[0].chunk(3, dim=-1)
        own_reset, own_update, own_new = F.linear(state, own_weight, own_bias).chunk(3, dim=-1)
        new = torch.tanh(new + torch.sigmoid(reset + own_reset) * own_new)
        after = torch.lerp(new, state, torch.sigmoid(update + own_update))
        after = torch.where(read[1].unsqueeze(-1), state, after)
        return after, after.clone()  # a graph's outputs may not be one tensor

    products = F.linear(x, weight, bias)
    if x.size(0) == 1:
        return step(initial, (products[0], padding[0]))[0].unsqueeze(0)
    return scan(step, initial, (products, padding))[1]


def padded_at_end(tokens: Tensor, pad: int) -> Tensor:
    """``(B, S)`` tokens with the padding of either end at the right."""
    padding = tokens.eq(pad)
    if not bool(padding[:, 0].any()):
        return tokens
    return tokens.gather(1, padding.long().argsort(dim=1, stable=True))


class RecurrentEncoder(FairseqEncoder):
    """Reads in both directions.

    Args:
        cfg: the model's configuration.
        dictionary, embed_tokens: of the source.
        reader: the layers.
    """

    def __init__(self, cfg: Any, dictionary: Dictionary, embed_tokens: nn.Embedding, reader: nn.Module):
        super().__init__(dictionary)
        self.embed_tokens, self.reader = embed_tokens, reader
        self.dropout = FairseqDropout(cfg.dropout, module_name=type(self).__name__)
        self.max_source_positions = cfg.max_source_positions
        width = 2 * cfg.encoder_hidden_size
        # What the decoder attends to has its width; in the paper's sizes it has it by itself.
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
            fairseq's form: ``encoder_out`` ``[(S, B, D)]`` and ``encoder_padding_mask`` ``[(B, S)]``.
        """
        tokens = padded_at_end(src_tokens, self.dictionary.pad())  # where both kinds of layers can skip it
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
        """What the decoder attends to, ``(S, B, D)``, of ``(B, S)`` tokens and where they are padding, which is at the end."""
        x = self.dropout(self.embed_tokens(tokens)).transpose(0, 1)
        x, _ = self.reader(x, padding=None if padding is None else padding.t())
        return x if self.widen is None else self.widen(x)

    def reorder_encoder_out(
        self, encoder_out: dict[str, list[Tensor]], new_order: Tensor
    ) -> dict[str, list[Tensor]]:
        """These sentences, in this order."""
        dimensions = {"encoder_out": 1, "encoder_padding_mask": 0}
        return {
            name: [each.index_select(dimensions[name], new_order) for each in values]
            for name, values in encoder_out.items()
        }

    def max_positions(self) -> int:
        """The longest source, in tokens."""
        return self.max_source_positions


class RecurrentDecoder(FairseqIncrementalDecoder):
    """Writes from left to right.

    Args:
        cfg: the model's configuration.
        dictionary, embed_tokens: of the target; the embedding is also the output matrix.
        writer: the layers.
    """

    adaptive_softmax = None

    def __init__(self, cfg: Any, dictionary: Dictionary, embed_tokens: nn.Embedding, writer: nn.Module):
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
        """Logits ``(B, T, V)`` after every prefix of ``(B, T)`` tokens, or hidden states ``(B, T, D)``.

        With an incremental state only the last token is read, and ``T`` of the result is 1.
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
        """Hidden states, as :meth:`forward` has it."""
        state = None
        if incremental_state is not None:
            cached = self.get_incremental_state(incremental_state, "state")
            if cached is not None:
                state = cached["state"]
                prev_output_tokens = prev_output_tokens[:, -1:]
        x, state = self.write(
            prev_output_tokens, encoder_out["encoder_out"][0], encoder_out["encoder_padding_mask"][0], state
        )
        if incremental_state is not None:
            self.set_incremental_state(incremental_state, "state", {"state": state})
        return x, {"attn": [None], "inner_states": None}

    def write(
        self, tokens: Tensor, memory: Tensor, padding: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Go on by some tokens.

        Args:
            tokens: ``(B, T)``; padding is at the end: what follows a sentence changes nothing of it.
            memory: ``(S, B, D)``, as the encoder reads.
            padding: ``(B, S)`` bool, of the source.
            state: ``(L, B, D)`` of the layers; None is the beginning.

        Returns:
            hidden states ``(B, T, D)``, and the layers' states after the last token.
        """
        x = self.dropout(self.embed_tokens(tokens)).transpose(0, 1)
        x, state = self.writer(x, state)
        x = x.transpose(0, 1)
        x = torch.tanh(self.mix(torch.cat([x, self._context(x, memory, padding)], dim=-1)))
        x = self.dropout(x)
        return (x if self.narrow is None else self.narrow(x)), state

    def _context(self, queries: Tensor, memory: Tensor, padding: Tensor) -> Tensor:
        """What ``(B, T, D)`` states see of the source."""
        keys = memory.transpose(0, 1)
        scores = torch.bmm(queries * queries.size(-1) ** -0.5, keys.transpose(1, 2))
        scores = scores.float().masked_fill(padding.unsqueeze(1), -torch.inf)
        weights = F.dropout(scores.softmax(dim=-1), self.attention_dropout, self.training)
        return torch.bmm(weights.to(keys.dtype), keys)

    def output_layer(self, features: Tensor) -> Tensor:
        """Logits of hidden states."""
        return self.output_projection(features)

    def reorder_incremental_state(
        self, incremental_state: dict[str, dict[str, Tensor | None]], new_order: Tensor
    ) -> None:
        """Go on with these rows."""
        cached = self.get_incremental_state(incremental_state, "state")
        if cached is not None and cached["state"] is not None:
            self.set_incremental_state(
                incremental_state, "state", {"state": cached["state"].index_select(1, new_order)}
            )

    def max_positions(self) -> int:
        """The longest target, in tokens."""
        return self.max_target_positions


class RecurrentModel(FairseqEncoderDecoderModel):
    """A recurrent student; subclasses say of which layers."""

    config: type[GRUConfig]
    layers: Callable[
        ..., nn.Module
    ]  # of one side: (cfg, input_size, hidden_size, layers, bidirectional=False)

    @classmethod
    def add_args(cls, parser: Any) -> None:
        """The flags of the configuration; an architecture's defaults come later."""
        gen_parser_from_dataclass(parser, cls.config(), delete_default=True)

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "RecurrentModel":
        """Build it over the task's dictionaries.

        Raises:
            UsageError: sizes out of range, or dictionaries that can't share an embedding.
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
        reader = cls.layers(
            cfg, cfg.encoder_embed_dim, cfg.encoder_hidden_size, cfg.encoder_layers, bidirectional=True
        )
        writer = cls.layers(cfg, cfg.encoder_embed_dim, cfg.decoder_hidden_size, cfg.decoder_layers)
        return cls(
            RecurrentEncoder(cfg, source, source_embedding, reader),
            RecurrentDecoder(cfg, target, embedding, writer),
        )


@register_model("gru")
class GRUModel(RecurrentModel):
    """Gated recurrent units (Cho et al., EMNLP 2014)."""

    config = GRUConfig

    @staticmethod
    def layers(
        cfg: Any, input_size: int, hidden_size: int, layers: int, bidirectional: bool = False
    ) -> nn.Module:
        """The layers of one side."""
        return GRU(input_size, hidden_size, layers, cfg.dropout, bidirectional)


@register_model("sru")
class SRUModel(RecurrentModel):
    """Simple recurrent units (Lei et al., EMNLP 2018)."""

    config = SRUConfig

    @staticmethod
    def layers(
        cfg: Any, input_size: int, hidden_size: int, layers: int, bidirectional: bool = False
    ) -> nn.Module:
        """The layers of one side."""
        return SRU(
            input_size, hidden_size, layers, cfg.dropout, bidirectional=bidirectional, projection_size=cfg.projection_size,
            layer_norm=cfg.layer_norm, highway_bias=cfg.highway_bias,
        )  # fmt: skip


def check_sizes(config: type[GRUConfig], cfg: Any) -> None:
    """Refuse sizes out of range.

    Raises:
        UsageError: naming the flag.
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


# name -> the model, and its settings where they are not the configuration's defaults, which are the paper's for IWSLT'14.
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
            "encoder_layers": 4, "decoder_layers": 4, "encoder_hidden_size": 1024, "decoder_hidden_size": 2048,
            "projection_size": 256, "layer_norm": True, "share_all_embeddings": True,
        },
    ),
}  # fmt: skip


def _register(name: str, model: str, settings: dict[str, Any], config: type[GRUConfig]) -> None:
    @register_model_architecture(model, name)
    def architecture(args: Any) -> None:
        for setting, default in config.__dataclass_fields__.items():
            if setting != "_name":
                setattr(args, setting, getattr(args, setting, settings.get(setting, default.default)))


for _model, _config in (("gru", GRUConfig), ("sru", SRUConfig)):
    _register(_model, _model, {}, _config)
for _name, (_model, _settings) in SIZES.items():
    _register(_name, _model, _settings, SRUConfig if _model == "sru" else GRUConfig)

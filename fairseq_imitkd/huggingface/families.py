"""The model families that can be imported and exported: how each of them differs from fairseq's transformer.

One table. All families have the layers of fairseq's transformer, with the same names of parameters. They
differ in where they normalise, in their positions, in how sentences begin and end, and in their subwords.
"""

from dataclasses import dataclass
from typing import Literal

Positions = Literal["fairseq", "learned", "marian"]


@dataclass(frozen=True)
class Family:
    """A model family of ``transformers``.

    Args:
        title: what messages call it.
        pre_norm: whether layers normalise their input; then both sides end with a layer norm.
        positions: ``fairseq`` for fairseq's sinusoids, ``learned`` for a table whose first two rows are
            unused, ``marian`` for Marian's sinusoids.
        embedding_norm: whether embeddings are normalised.
        unknown: id of the unknown symbol, if no tokenizer tells it.
        tags: whether sentences need a language tag.
        starts: id of the decoder's first input, if the configuration does not tell it: the name of a special
            symbol.
        model: name of its class in ``transformers``.
        vocabularies: names of the sizes of both vocabularies in ``config.json``; the second is None if there
            can be only one.
    """

    title: str
    pre_norm: bool
    positions: Positions
    embedding_norm: bool = False
    unknown: int = 3
    tags: bool = False
    starts: Literal["eos", "pad"] = "eos"
    model: str = ""
    vocabularies: tuple[str, str | None] = ("vocab_size", None)


FAMILIES = {
    "marian": Family(
        "Marian",
        pre_norm=False,
        positions="marian",
        unknown=1,
        starts="pad",
        model="MarianMTModel",
        vocabularies=("vocab_size", "decoder_vocab_size"),
    ),
    "m2m_100": Family(
        "M2M-100 or NLLB",
        pre_norm=True,
        positions="fairseq",
        tags=True,
        model="M2M100ForConditionalGeneration",
    ),
    "mbart": Family(
        "mBART",
        pre_norm=True,
        positions="learned",
        embedding_norm=True,
        tags=True,
        model="MBartForConditionalGeneration",
    ),
    "bart": Family(
        "BART",
        pre_norm=False,
        positions="learned",
        embedding_norm=True,
        model="BartForConditionalGeneration",
    ),
    "fsmt": Family(
        "FSMT",
        pre_norm=False,
        positions="fairseq",
        model="FSMTForConditionalGeneration",
        vocabularies=("src_vocab_size", "tgt_vocab_size"),
    ),
    "pegasus": Family(
        "Pegasus",
        pre_norm=True,
        positions="marian",
        unknown=105,
        starts="pad",
        model="PegasusForConditionalGeneration",
    ),
}

_RELATIVE = "it has relative positions, which fairseq's transformer lacks"
_EXPERTS = "it has a mixture of experts"
# Why fairseq's transformer can't compute what these families compute.
UNSUPPORTED = {
    **dict.fromkeys(("t5", "mt5", "umt5", "longt5", "byt5", "pop2piano"), _RELATIVE),
    **dict.fromkeys(("nllb-moe", "switch_transformers"), _EXPERTS),
    **dict.fromkeys(
        ("seamless_m4t", "seamless_m4t_v2", "speech_to_text", "whisper", "speecht5"), "it reads speech"
    ),
    **dict.fromkeys(("led", "bigbird_pegasus", "pegasus_x"), "it has another kind of attention"),
}

# transformers' name of an activation -> fairseq's; the first of several is the one that an export writes
ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_accurate",
    "gelu_fast": "gelu_accurate",
    "gelu_pytorch_tanh": "gelu_accurate",
    "swish": "swish",
    "silu": "swish",
    "tanh": "tanh",
    "linear": "linear",
}

"""Small models of Hugging Face's format with random weights, and subwords trained on made-up text."""

import functools
import json
import logging
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import torch

logging.getLogger("transformers").setLevel(logging.ERROR)

SIZES = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 80,
}
LETTERS = "aäbcdeéfghijklmnoöpqrsßtuüvwxyz"


@functools.cache
def words(count: int = 400, seed: int = 1) -> tuple[str, ...]:
    """Return made-up words."""
    generator = random.Random(seed)
    return tuple("".join(generator.choices(LETTERS, k=generator.randint(2, 9))) for _ in range(count))


def sentences(count: int, seed: int = 1) -> list[str]:
    """Return made-up sentences, with capitals, numbers and marks."""
    generator = random.Random(seed)
    lines = []
    for _ in range(count):
        line = generator.choices(words(), k=generator.randint(1, 12))
        if generator.random() < 0.3:
            line.insert(generator.randrange(len(line) + 1), str(generator.randint(0, 3000)))
        marks = generator.choice((".", "!", "?", "", " .", "…"))
        lines.append(generator.choice((", ", " ", "  ")).join(line).capitalize() + marks)
    return lines


@functools.cache
def sentencepiece_model(kind: str = "unigram", seed: int = 1, size: int = 300, **settings: Any) -> bytes:
    """Return a SentencePiece model of made-up sentences."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text")
        text.write_text("\n".join(sentences(800, seed)), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(text),
            model_prefix=f"{folder}/spm",
            vocab_size=size,
            model_type=kind,
            minloglevel=2,
            **settings,
        )
        return Path(folder, "spm.model").read_bytes()


def pieces(model: bytes) -> list[str]:
    """Return the pieces of a SentencePiece model."""
    loaded = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [loaded.id_to_piece(number) for number in range(loaded.get_piece_size())]


def randomise(model: Any, seed: int = 1) -> Any:
    """Give each weight, bias and norm of a model a random value, and the bias of its output too."""
    torch.manual_seed(seed)
    with torch.no_grad():
        fixed = {
            id(weight)
            for module in model.modules()
            if "Sinusoidal" in type(module).__name__
            for weight in module.parameters()
        }
        for name, parameter in model.named_parameters():
            if id(parameter) in fixed:
                continue
            is_norm = "norm" in name and name.endswith("weight")
            parameter.copy_(torch.randn_like(parameter) * 0.3 + float(is_norm))
        bias = getattr(model, "final_logits_bias", None)
        if bias is not None:
            bias.copy_(torch.randn_like(bias))
    return model.eval()


def write_json(folder: Path, name: str, content: Any) -> None:
    """Write a JSON file."""
    (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def write_files(folder: Path, files: Mapping[str, Any]) -> None:
    """Write bytes, texts, and JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        elif isinstance(content, str):
            (folder / name).write_text(content, encoding="utf-8")
        else:
            write_json(folder, name, content)


def marian_files(kind: str = "unigram", tags: Sequence[str] = (), **settings: Any) -> dict[str, Any]:
    """Return the tokenizer files of an OPUS-MT model: two SentencePiece models, one list of symbols."""
    source, target = sentencepiece_model(kind, 1, **settings), sentencepiece_model(kind, 2, **settings)
    both = [*pieces(source)[3:], *pieces(target)[3:]]
    random.Random(3).shuffle(both)
    symbols = list(dict.fromkeys(["</s>", "<unk>", *tags, *both, "<pad>"]))
    return {
        "source.spm": source,
        "target.spm": target,
        "vocab.json": {symbol: number for number, symbol in enumerate(symbols)},
        "tokenizer_config.json": {
            "tokenizer_class": "MarianTokenizer",
            "source_lang": "de",
            "target_lang": "en",
        },
    }


def m2m_files(kind: str = "bpe", **settings: Any) -> dict[str, Any]:
    """Return the tokenizer files of M2M-100."""
    model = sentencepiece_model(kind, 1, **settings)
    symbols = ["<s>", "<pad>", "</s>", "<unk>", *pieces(model)[3:]]
    return {
        "sentencepiece.bpe.model": model,
        "vocab.json": {symbol: number for number, symbol in enumerate(symbols)},
        "tokenizer_config.json": {"tokenizer_class": "M2M100Tokenizer"},
    }


def mbart_files(kind: str = "unigram", name: str = "MBartTokenizer", **settings: Any) -> dict[str, Any]:
    """Return the tokenizer files of mBART or mBART-50."""
    return {
        "sentencepiece.bpe.model": sentencepiece_model(kind, 1, **settings),
        "tokenizer_config.json": {"tokenizer_class": name},
    }


def byte_level_files(merges: int = 200) -> dict[str, Any]:
    """Return the tokenizer files of BART: GPT-2's subwords."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        sentences(800), vocab_size=260 + merges, special_tokens=special, show_progress=False
    )
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_model(folder)
        symbols = json.loads(Path(folder, "vocab.json").read_text(encoding="utf-8"))
        symbols["<mask>"] = len(symbols)
        return {
            "vocab.json": symbols,
            "merges.txt": Path(folder, "merges.txt").read_text(encoding="utf-8"),
            "tokenizer_config.json": {"tokenizer_class": "BartTokenizer"},
        }


def fsmt_files(merges: int = 150) -> dict[str, Any]:
    """Return the tokenizer files of FSMT: fastBPE's merges, and a list of symbols for each side."""
    import io

    from subword_nmt.learn_bpe import learn_bpe

    out = io.StringIO()
    learn_bpe(io.StringIO("\n".join(sentences(800))), out, merges)
    pairs = [line.split() for line in out.getvalue().splitlines()[1:]]
    single = sorted({letter for line in sentences(800) for letter in line if letter.strip()})
    symbols = list(
        dict.fromkeys([*single, *(f"{letter}</w>" for letter in single), *("".join(pair) for pair in pairs)])
    )
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    sides = [[*special, *symbols], [*special, *symbols[::-1][:-7]]]
    return {
        "vocab-src.json": {symbol: number for number, symbol in enumerate(sides[0])},
        "vocab-tgt.json": {symbol: number for number, symbol in enumerate(sides[1])},
        "merges.txt": "".join(f"{' '.join(pair)} {1000 - number}\n" for number, pair in enumerate(pairs)),
        "tokenizer_config.json": {"tokenizer_class": "FSMTTokenizer", "langs": ["de", "en"]},
    }


def pegasus_files(kind: str = "unigram", **settings: Any) -> dict[str, Any]:
    """Return the tokenizer files of Pegasus, with the ``tokenizer.json`` that transformers makes."""
    from transformers import PegasusTokenizer

    model = sentencepiece_model(kind, 1, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, **settings)
    loaded = sentencepiece.SentencePieceProcessor(model_proto=model)
    scored = [(loaded.id_to_piece(n), loaded.get_score(n)) for n in range(3, loaded.get_piece_size())]
    special = ["<pad>", "</s>", "<mask_1>", "<mask_2>", *(f"<unk_{n}>" for n in range(2, 103)), "<unk>"]
    tokenizer = PegasusTokenizer(vocab=[*((symbol, 0.0) for symbol in special), *scored])
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return {"spiece.model": model, **files}


def symbols_in(files: Mapping[str, Any]) -> int:
    """Return how many symbols tokenizer files list."""
    return len(files["vocab.json"])


def save(model: Any, folder: Path, files: Mapping[str, Any] | None = None, *, pickled: bool = False) -> Path:
    """Write a model as ``huggingface_hub`` leaves it: weights, ``config.json`` and tokenizer files."""
    folder.mkdir(parents=True, exist_ok=True)
    if pickled:
        model.config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        model.save_pretrained(folder)
    write_files(folder, files or {})
    return folder


def built(kind: str, *, seed: int = 1, **settings: Any) -> Any:
    """Return a model of a family with random weights.

    Args:
        kind: its type in ``transformers``.
        seed: seed of the weights.
        settings: settings of its configuration.
    """
    import transformers

    names = {
        "marian": ("MarianConfig", "MarianMTModel"),
        "m2m_100": ("M2M100Config", "M2M100ForConditionalGeneration"),
        "mbart": ("MBartConfig", "MBartForConditionalGeneration"),
        "bart": ("BartConfig", "BartForConditionalGeneration"),
        "fsmt": ("FSMTConfig", "FSMTForConditionalGeneration"),
        "pegasus": ("PegasusConfig", "PegasusForConditionalGeneration"),
    }
    config, model = (getattr(transformers, name) for name in names[kind])
    defaults = {
        "marian": {"activation_function": "swish", "scale_embedding": True, "bos_token_id": 0},
        "mbart": {"scale_embedding": True, "decoder_start_token_id": 2},
        "bart": {"forced_bos_token_id": 0},
        "fsmt": {"langs": ["de", "en"]},
        "pegasus": {"scale_embedding": True},
    }.get(kind, {})
    return randomise(model(config(**{**SIZES, **defaults, **settings})), seed)


def nllb_files(tags: Sequence[str], kind: str = "bpe") -> dict[str, Any]:
    """Return the tokenizer files of NLLB, with the ``tokenizer.json`` that transformers makes."""
    import transformers

    model = sentencepiece_model(kind, 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        listed = {"tokenizer_class": "NllbTokenizer", "extra_special_tokens": list(tags), "src_lang": tags[0]}
        write_files(path, {"sentencepiece.bpe.model": model, "tokenizer_config.json": listed})
        transformers.NllbTokenizer.from_pretrained(folder).save_pretrained(path / "saved")
        saved = path / "saved"
        files = {file.name: file.read_bytes() for file in saved.iterdir()}
    return {**files, "sentencepiece.bpe.model": model}

"""Makes a small OPUS-MT model with random weights, and text of made-up words, to try the script offline.

python random_model.py FOLDER
"""

import json
import random
import sys
from pathlib import Path

import sentencepiece
import torch
from transformers import MarianConfig, MarianMTModel

SIZES = {"train": 400, "valid": 20, "test": 20}


def main(folder: Path) -> None:
    """Write ``raw.SPLIT.LANG`` and ``model/``."""
    generator = random.Random(1)
    words = ["".join(generator.choices("abcdefghiklmnoprstu", k=generator.randint(2, 8))) for _ in range(300)]
    for split, count in SIZES.items():
        lines = [generator.choices(words, k=generator.randint(2, 9)) for _ in range(count)]
        for language, order in (("de", 1), ("en", -1)):
            text = "\n".join(" ".join(line[::order]).capitalize() + "." for line in lines)
            (folder / f"raw.{split}.{language}").write_text(text + "\n", encoding="utf-8")
    make_model(folder / "model", folder)


def make_model(model: Path, text: Path) -> None:
    """Write two SentencePiece models, the list of their symbols, and random weights."""
    model.mkdir(exist_ok=True)
    pieces: dict[str, None] = {}
    for side, language in (("source", "de"), ("target", "en")):
        sentencepiece.SentencePieceTrainer.train(
            input=str(text / f"raw.train.{language}"),
            model_prefix=str(model / side),
            vocab_size=300,
            minloglevel=2,
        )
        (model / f"{side}.model").rename(model / f"{side}.spm")
        (model / f"{side}.vocab").unlink()
        loaded = sentencepiece.SentencePieceProcessor(model_file=str(model / f"{side}.spm"))
        pieces |= dict.fromkeys(loaded.id_to_piece(n) for n in range(3, loaded.get_piece_size()))
    symbols = ["</s>", "<unk>", *pieces, "<pad>"]
    for name, content in (
        ("vocab.json", {symbol: number for number, symbol in enumerate(symbols)}),
        ("tokenizer_config.json", {"tokenizer_class": "MarianTokenizer"}),
    ):
        (model / name).write_text(json.dumps(content), encoding="utf-8")
    torch.manual_seed(1)
    size = len(symbols)
    config = MarianConfig(
        vocab_size=size, pad_token_id=size - 1, decoder_start_token_id=size - 1, eos_token_id=0, d_model=32,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=128, activation_function="swish",
        scale_embedding=True,
    )  # fmt: skip
    MarianMTModel(config).save_pretrained(model)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Small speech models and made-up speech: each letter is a few frames of its own pattern."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fairseq.models import ARCH_CONFIG_REGISTRY
from omegaconf import OmegaConf

from fairseq_imitkd.data.speech import SpokenSentences, TranscriptEncoder
from fairseq_imitkd.tasks.speech_to_text import SpeechToTextWithTeacherConfig, SpeechToTextWithTeacherTask
from tests.helpers.fairseq_models import letters, reversed_pairs

BINS = 8
COLUMNS = ("id", "audio", "n_frames", "tgt_text", "src_text")
WIDTHS: dict[str, Any] = {
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_embed_dim": 16,
    "decoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 16,
    "decoder_ffn_embed_dim": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "conv_channels": 16,
    "conv_out_channels": 4,
    "dropout": 0.1,
    "max_source_positions": 400,
    "max_target_positions": 30,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "s2t_transformer": WIDTHS,
    "convtransformer": WIDTHS,
    "s2t_conformer": {
        **WIDTHS,
        "depthwise_conv_kernel_size": 3,
        "attn_type": "espnet",
        "pos_enc_type": "abs",
    },
    "s2t_berard": {
        "input_layers": "[16]",
        "conv_layers": "[(4, 3, 2), (4, 3, 2)]",
        "num_blstm_layers": 1,
        "lstm_size": 8,
        "embedding_dim": 8,
        "decoder_hidden_dim": 16,
        "decoder_num_layers": 1,
        "attention_dim": 8,
        "output_layer_dim": 8,
    },
}


def frames(source: Sequence[int], generator: np.random.Generator) -> np.ndarray:
    """Return 3 to 6 noisy frames for each letter, ``(frames, BINS)`` float32."""
    patterns = np.random.default_rng(0).normal(size=(len(letters()), BINS))
    rows = [patterns[letter] for letter in source for _ in range(generator.integers(3, 7))]
    return (np.array(rows) + 0.1 * generator.normal(size=(len(rows), BINS))).astype(np.float32)


def write_split(folder: Path, split: str, count: int, *, seed: int, columns: Sequence[str] = COLUMNS) -> None:
    """Write filterbanks and a manifest. The target has the letters of the transcript in reverse order."""
    generator, dictionary = np.random.default_rng(seed), letters()
    lines = ["\t".join(columns)]
    for number, (source, target) in enumerate(reversed_pairs(count, seed)):
        path = folder / "features" / f"{split}{number}.npy"
        spoken = frames(source, generator)
        np.save(path, spoken)
        texts = (" ".join(dictionary[4 + letter] for letter in side) for side in (target, source))
        values = dict(zip(COLUMNS, (f"{split}{number}", path.name, len(spoken), *texts), strict=True))
        lines.append("\t".join(str(values[name]) for name in columns))
    (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")


def write_data(folder: Path, counts: dict[str, int], **config: Any) -> Path:
    """Write a folder of manifests with their configuration and dictionary."""
    (folder / "features").mkdir(parents=True, exist_ok=True)
    letters().save(str(folder / "dict.txt"))
    settings = {"audio_root": str(folder / "features"), "input_feat_per_channel": BINS, **config}
    OmegaConf.save(OmegaConf.create(settings), folder / "config.yaml")
    for seed, (split, count) in enumerate(counts.items()):
        write_split(folder, split, count, seed=seed)
    return folder


def tiny_task(data: Path, train_subset: str = "train") -> SpeechToTextWithTeacherTask:
    """Return a task of a folder of manifests."""
    cfg = SpeechToTextWithTeacherConfig(data=str(data), train_subset=train_subset, seed=1)
    return SpeechToTextWithTeacherTask(cfg, letters())


def build(task: Any, arch: str = "s2t_transformer", seed: int = 1, **changes: Any) -> Any:
    """Return an untrained model."""
    args = Namespace(
        arch=arch, criterion="imitkd", tpu=False, fp16=False, **{**ARCHITECTURES[arch], **changes}
    )
    ARCH_CONFIG_REGISTRY[arch](args)
    torch.manual_seed(seed)
    return task.build_model(args)


def spoken(task: Any, *, reads_text: bool, longest: int = 30) -> SpokenSentences:
    """Return the training set, with its transcripts for a teacher of text. The task forgets it."""
    task.load_dataset(task.cfg.train_subset)
    encode = TranscriptEncoder(task.data_cfg, letters(), longest) if reads_text else None
    return SpokenSentences(task.datasets.pop(task.cfg.train_subset), encode)


def batch(dataset: SpokenSentences, numbers: Sequence[int] = range(7)) -> dict[str, Any]:
    """Return some sentences as a batch."""
    return dataset.collater([dataset[number] for number in numbers])


def fitted(model: Any, sample: dict[str, Any], updates: int = 40) -> Any:
    """Return a model in evaluation mode that has begun to learn a batch, so that its texts vary and end."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(updates):
        logits = model(**sample["net_input"])[0].flatten(0, 1)
        loss = F.cross_entropy(logits, sample["target"].flatten(), ignore_index=letters().pad())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()

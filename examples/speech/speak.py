"""Speaks text and writes fairseq's manifests: ``speak.py RAW OUT``.

RAW is the folder of commands.py. For each of train, valid and test, OUT gets ``SPLIT.tsv``, and in
``features/`` one file of filterbanks for each line. ``config.yaml`` tells fairseq how to read them.

espeak-ng speaks. Accent, voice, speed and pitch are drawn for each line, and noise is added. With
``--tones``, each letter is a tone instead, for tests without espeak-ng.
"""

import argparse
import csv
import io
import shutil
import subprocess
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.audio_utils import mel_filter_bank

ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-rp", "en-gb-x-gbcwmd", "en-029")
VOICES = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5")
RATE = 22050  # samples a second, as espeak-ng writes them
WINDOW, HOP, BINS = 551, 441, 40  # 25 ms, 20 ms, mel filters
NOISE = (10.0, 25.0)  # signal-to-noise ratio, in decibels: least and most

Samples = NDArray[np.float32]


def spoken(text: str, numbers: np.random.Generator) -> Samples:
    """Return a text as espeak-ng speaks it, in [-1, 1]."""
    voice = f"{numbers.choice(ACCENTS)}+{numbers.choice(VOICES)}"
    command = ["espeak-ng", "--stdout", "-v", voice, "-s", str(numbers.integers(140, 200))]
    command += ["-p", str(numbers.integers(30, 70)), "--", text]
    output = subprocess.run(command, capture_output=True, check=True).stdout
    with wave.open(io.BytesIO(output)) as file:
        # To a pipe, espeak-ng writes a header that does not know the length.
        data = output[44:] if file.getnframes() > len(output) else file.readframes(file.getnframes())
    return np.frombuffer(data, np.int16).astype(np.float32) / 2**15


def toned(text: str, numbers: np.random.Generator) -> Samples:
    """Return a text with one tone for each letter."""
    time = np.arange(RATE // 25) / RATE
    return np.concatenate([np.sin(2 * np.pi * 40 * (ord(each) - 90) * time) for each in text]).astype(
        np.float32
    )


def noisy(samples: Samples, numbers: np.random.Generator) -> Samples:
    """Add white noise."""
    power = np.mean(samples**2) / 10 ** (numbers.uniform(*NOISE) / 10)
    return (samples + numbers.normal(0.0, np.sqrt(power), samples.shape)).astype(np.float32)


def filterbanks(samples: Samples, mel: torch.Tensor) -> torch.Tensor:
    """Return the logarithms of the energies of ``BINS`` mel filters, ``(frames, BINS)``."""
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(
        torch.from_numpy(samples), 1024, HOP, WINDOW, window=window, return_complex=True
    )  # (frequencies, frames)
    return (spectrum.abs().square().T @ mel).clamp(min=1e-8).log()


def main() -> None:
    """Write features and manifests."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("raw", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--targets", default="de", help="ending of the files with the targets")
    parser.add_argument("--tones", action="store_true")
    args = parser.parse_args()
    if not args.tones and shutil.which("espeak-ng") is None:
        raise SystemExit("espeak-ng is not on PATH: install it (Debian: apt install espeak-ng)")
    speak = toned if args.tones else spoken
    mel = torch.from_numpy(
        mel_filter_bank(513, BINS, 0.0, RATE / 2, RATE, norm=None, mel_scale="htk")
    ).float()
    (args.out / "features").mkdir(parents=True, exist_ok=True)
    mean = deviation = None
    for number, split in enumerate(("train", "valid", "test")):
        numbers = np.random.default_rng(number)
        english, targets = (
            (args.raw / f"{split}.{side}").read_text("utf-8").splitlines() for side in ("en", args.targets)
        )
        features = [filterbanks(noisy(speak(line, numbers), numbers), mel) for line in english]
        if mean is None or deviation is None:
            frames = torch.cat(features)
            mean, deviation = frames.mean(dim=0), frames.std(dim=0)
        rows = []
        for line, each in enumerate(features):
            path = args.out / "features" / f"{split}{line}.npy"
            np.save(path, ((each - mean) / deviation).numpy().astype(np.float16))
            rows.append((f"{split}{line}", path.name, len(each), targets[line], english[line]))
        manifest(args.out / f"{split}.tsv", rows)
    config = ["vocab_filename: dict.txt", f"audio_root: {args.out.resolve() / 'features'}"]
    config += [f"input_feat_per_channel: {BINS}", "input_channels: 1", "shuffle: true"]
    (args.out / "config.yaml").write_text("\n".join(config) + "\n", encoding="utf-8")


def manifest(path: Path, rows: Sequence[tuple]) -> None:
    """Write a manifest. The text teacher reads the column src_text."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n")
        writer.writerow(("id", "audio", "n_frames", "tgt_text", "src_text"))
        writer.writerows(rows)


if __name__ == "__main__":
    main()

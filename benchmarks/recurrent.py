"""Compares the speed of the package's recurrent layers with torch's LSTM, in training and in decoding.

    python benchmarks/recurrent.py [--width 512] [--layers 2] [--steps 30] [--sentences 128] [--rounds 20]

All layers have the same width. In each round every kind of layer runs once, in a new random order: a forward
and backward pass over a batch, a forward pass alone, and single steps as in decoding. A speed is the LSTM's
time divided by the layer's time in the same round. The LSTM runs twice, so the row ``(again)`` shows the
noise.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import conditions, interleave, table, write_json
from torch import nn

from fairseq_imitkd.models.recurrent import GRU
from fairseq_imitkd.models.sru import SRU


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--width", type=int, default=512, help="width of inputs and states (default: %(default)s)"
    )
    parser.add_argument("--layers", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=30, help="tokens per sentence (default: %(default)s)")
    parser.add_argument(
        "--sentences", type=int, default=128, help="sentences per batch (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--json",
        type=Path,
        default=Path("recurrent.json"),
        help="file for all figures (default: %(default)s)",
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    width, layers = args.width, args.layers
    kinds: dict[str, nn.Module] = {
        "LSTM": nn.LSTM(width, width, layers),
        "GRU": GRU(width, width, layers),
        "SRU": SRU(width, width, layers),
        "SRU, projection 256": SRU(width, width, layers, projection_size=256),
    }
    kinds = {name: kind.to(args.device) for name, kind in {**kinds, "LSTM (again)": kinds["LSTM"]}.items()}
    batch = torch.randn(args.steps, args.sentences, width, device=args.device)
    rows = []
    figures: dict[str, Any] = {}
    for name, work in (("forward and backward", both), ("forward", forward), ("step by step", steps)):
        runs = {kind: runner(work, layer) for kind, layer in kinds.items()}
        seconds, _ = interleave(
            runs, [batch] * (args.rounds + 2), warmup=2, device=args.device, keep=lambda _: None
        )
        figures[name] = seconds
    for kind in kinds:
        cells = []
        for seconds in figures.values():
            faster = [base / own for base, own in zip(seconds["LSTM"], seconds[kind], strict=True)]
            cells.append(f"{statistics.median(faster):.2f}")
        rows.append([kind, *cells])
    print(table([f"x torch's LSTM, {layers} layers of {width}", *figures], rows))
    print(
        f"\n{args.steps} steps of {args.sentences} sentences; medians of {args.rounds} rounds; "
        f"{conditions(args)}"
    )
    write_json(args, seconds=figures)


def runner(
    work: Callable[[nn.Module, torch.Tensor], None], layers: nn.Module
) -> Callable[[torch.Tensor], None]:
    return lambda batch: work(layers, batch)


def both(layers: nn.Module, batch: torch.Tensor) -> None:
    batch = batch.detach().requires_grad_()
    layers(batch)[0].sum().backward()
    layers.zero_grad(set_to_none=True)


@torch.no_grad()
def forward(layers: nn.Module, batch: torch.Tensor) -> None:
    layers(batch)


@torch.no_grad()
def steps(layers: nn.Module, batch: torch.Tensor) -> None:
    state = None
    for step in batch.split(1):
        _, state = layers(step, state)


if __name__ == "__main__":
    main()

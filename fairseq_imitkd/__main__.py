"""``python -m fairseq_imitkd --version``: what a bug report needs. ``--methods``: every method and its settings."""

import argparse
import importlib.util
import platform
from importlib.metadata import version

import torch
from fairseq import utils
from fairseq.modules import layer_norm
from fairseq.optim.fused_adam import get_fused_adam_class

import fairseq_imitkd
from fairseq_imitkd import methods


def versions() -> str:
    """Versions of everything that a result depends on, a line each."""
    kernels = {
        "FusedLayerNorm": layer_norm.has_fused_layernorm,
        "FusedAdam": get_fused_adam_class() is not None,
        "multi_tensor_l2norm": utils.multi_tensor_l2norm_available,
        "xentropy": importlib.util.find_spec("xentropy_cuda") is not None,
    }
    found = [name for name, present in kernels.items() if present]
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU visible"
    lines = {
        "fairseq-imitkd": fairseq_imitkd.__version__,
        "fairseq": version("fairseq-fixed"),
        "torch": torch.__version__,
        "CUDA": f"{torch.version.cuda or 'not in this torch'} ({device})",
        "apex kernels": ", ".join(found) if found else "none found (optional)",
        "Python": platform.python_version(),
    }
    return "\n".join(f"{name}: {value}" for name, value in lines.items())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m fairseq_imitkd", description=fairseq_imitkd.__doc__)
    parser.add_argument(
        "--version", action="store_true", help="print the versions of everything that a result depends on"
    )
    parser.add_argument(
        "--methods", action="store_true", help="print a table of all methods, their papers and their settings"
    )
    args = parser.parse_args()
    if args.version:
        print(versions())
    elif args.methods:
        print(methods.table())
    else:
        parser.print_help()


if __name__ == "__main__":
    main()

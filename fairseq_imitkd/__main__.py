"""``python -m fairseq_imitkd``: the versions for a bug report, and a table of all methods."""

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
    """Return the versions of everything that a result depends on, one per line."""
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
    """Run the command."""
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

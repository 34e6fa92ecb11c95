"""The engines that a student can be exported to: which one takes a model, and how one is opened."""

from pathlib import Path
from types import ModuleType

import torch
from fairseq.models import BaseFairseqModel

from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.engines import ctranslate2_convert, onnx, onnx_convert
from fairseq_imitkd.engines.base import Engine, SearchSettings
from fairseq_imitkd.engines.ctranslate2 import CTranslate2Engine
from fairseq_imitkd.errors import UsageError, in_one_line

# The converters by their engine's name, in the order in which they are tried.
CONVERTERS: dict[str, ModuleType] = {"ctranslate2": ctranslate2_convert, "onnx": onnx_convert}


def engine_for(model: BaseFairseqModel) -> str | None:
    """Return the name of the engine that a model can be exported to; None if there is none."""
    for name, converter in CONVERTERS.items():
        if converter.unsupported_reason(model) is None:
            return name
    return None


def unsupported_reason(model: BaseFairseqModel) -> str:
    """Return in a few words why no engine takes a model."""
    reason = ctranslate2_convert.unsupported_reason(model)
    return f"CTranslate2 can't compute it because {reason}, and ONNX takes only SRU and GRU students"


def open_engine(
    name: str,
    folder: Path,
    languages: LanguagePair,
    *,
    settings: SearchSettings,
    longest: tuple[int, int],
    device: str = "cpu",
) -> Engine:
    """Load an exported model.

    Args:
        name: name of the engine, a key of :data:`CONVERTERS`.
        folder: folder that the engine's converter wrote.
        languages: the language pair with its dictionaries.
        settings: how to search.
        longest: maximum numbers of tokens of a source and of a target.
        device: ``cpu`` or ``cuda``.

    Raises:
        UsageError: a package is not installed, the device can't be used, or the folder is damaged.
    """
    if name == "onnx" and device != "cpu":
        raise UsageError(f"--device {device} can't be used: recurrent models run on the CPU; leave it out")
    try:
        if device != "cpu" and not ctranslate2_convert.library().get_cuda_device_count():
            raise UsageError(
                f"--device {device} can't be used: CTranslate2 finds no GPU, or its driver is too old; "
                "use --device cpu, or look at nvidia-smi"
            )
        if name == "onnx":
            return onnx.OnnxEngine.of_model(onnx.load(folder, languages, longest), languages, settings)
        ctranslate2_convert.check_vocabulary(folder, languages)
        return CTranslate2Engine(
            folder, languages, settings, longest_target=longest[1], device=torch.device(device)
        )
    except ImportError as error:
        raise UsageError(
            f"an exported model needs {error.name}: pip install 'fairseq-imitkd[fast]'"
        ) from error
    except UsageError:
        raise
    except Exception as error:  # CTranslate2 and onnxruntime raise many types for a bad file or device
        raise UsageError(
            f"'{folder}' can't be loaded with --device {device}: {in_one_line(error)}; export it again, or "
            "use another --device"
        ) from error

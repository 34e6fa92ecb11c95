"""Checkpoints as an attacker, a full disk or a broken tool would make them.

Every file differs from a good checkpoint in one thing. Each says which readers must refuse it; the other
readers do not look at what is wrong, so they may accept it.
"""

import codecs
import copy
import fractions
import os
import pickle
import zipfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy
import torch

try:  # numpy 2 renamed its core
    from numpy._core import multiarray
except ImportError:
    from numpy.core import multiarray  # type: ignore[no-redef]

State = dict[str, Any]
FORMER = {"_use_new_zipfile_serialization": False}  # torch's format before 1.6


class Wrong(Enum):
    """What is wrong with a file, and so who must refuse it."""

    FILE = "file"  # every reader
    SETTINGS = "settings"  # readers that build the model of the settings
    TASK = "task"  # those of them that set up the task of the settings
    WEIGHTS = "weights"  # readers that load the weights into a model
    PROGRESS = "progress"  # trainings that continue
    NOTHING = "nothing"  # nobody: it is strange, but harmless


@dataclass(frozen=True)
class Hostile:
    """A file to be written.

    Args:
        name: its name, unique.
        wrong: what is wrong with it.
        write: writes it, given its path, the state of a good checkpoint, and a path that its code would
            create.
    """

    name: str
    wrong: Wrong
    write: Callable[[Path, State, Path], None]


class Code:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def all_files() -> list[Hostile]:
    """Return every file."""
    made = [*_bytes(), *_contents(), *_settings(), *_arguments(), *_weights(), *_progress()]
    assert len({each.name for each in made}) == len(made)
    return made


def _saved(change: Callable[[State, Path], Any], **how: Any) -> Callable[[Path, State, Path], None]:
    """Return a function that writes what ``change`` returns, or the state that it has changed in place."""

    def write(path: Path, state: State, trace: Path) -> None:
        state = copy.deepcopy(state)
        changed = change(state, trace)
        torch.save(state if changed is None else changed, path, **how)

    return write


def _bytes() -> list[Hostile]:
    """Return files whose bytes are damaged, or are another format's."""

    def damaged(change: Callable[[bytes], bytes], **how: Any) -> Callable[[Path, State, Path], None]:
        def write(path: Path, state: State, trace: Path) -> None:
            torch.save(state, path, **how)
            path.write_bytes(change(path.read_bytes()))

        return write

    files = {
        "empty": damaged(lambda _: b""),
        "text": damaged(lambda _: b"<html>404 not found</html>\n" * 50),
        "noise": damaged(lambda _: bytes(range(256)) * 40),
        "first-bytes": damaged(lambda data: data[:10]),
        "half": damaged(lambda data: data[: len(data) // 2]),
        "last-byte-missing": damaged(lambda data: data[:-1]),
        "half-former-format": damaged(lambda data: data[: len(data) // 2], **FORMER),
        "zeros-in-pickle": damaged(lambda data: data[:400] + bytes(400) + data[800:]),
        "zeros-in-weights": _zeros_in_weights,
        "zip-of-text": _zip_of_text,
        "zip-bomb": _zip_bomb,
        "pickle-2": lambda path, state, trace: path.write_bytes(pickle.dumps(_with_code(state, trace), 2)),
        "pickle-4": lambda path, state, trace: path.write_bytes(pickle.dumps(_with_code(state, trace), 4)),
    }
    return [Hostile(name, Wrong.FILE, write) for name, write in files.items()]


def _zeros_in_weights(path: Path, state: State, trace: Path) -> None:
    """Write a file in which a part of the weights is zero, as after a power cut."""
    torch.save(state, path)
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
    data = bytearray(path.read_bytes())
    middle = largest.header_offset + largest.file_size // 2
    data[middle : middle + 200] = bytes(200)
    path.write_bytes(data)


def _zip_of_text(path: Path, state: State, trace: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("note.txt", "hello")


def _rewritten(path: Path, change: Callable[[bytes], bytes], compress: int = zipfile.ZIP_STORED) -> None:
    """Exchange a checkpoint's pickle."""
    with zipfile.ZipFile(path) as source:
        parts = {part.filename: source.read(part) for part in source.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            if name.endswith("data.pkl"):
                archive.writestr(name, change(content), compress, 1)
            else:
                archive.writestr(name, content)


def _zip_bomb(path: Path, state: State, trace: Path) -> None:
    """Write a checkpoint whose pickle is compressed, and holds 10**8 empty lists."""
    torch.save(state, path)
    _rewritten(path, lambda _: b"\x80\x02" + b"]" * 2**27 + b".", zipfile.ZIP_DEFLATED)


def _set(state: State, part: str, **values: Any) -> State:
    """Change settings of the task or the model."""
    node = state["cfg"][part]
    (vars(node) if isinstance(node, Namespace) else node).update(values)
    return state


def _with_code(state: State, trace: Path, key: str = "note") -> State:
    return {**state, key: Code(codecs.open, str(trace), "w")}


def _contents() -> list[Hostile]:
    """Return files that hold something other than a checkpoint, or fill the memory."""
    changes: dict[str, Callable[[State, Path], Any]] = {
        "code": _with_code,
        "code-blocked": lambda state, trace: {**state, "note": Code(os.system, f"touch '{trace}'")},
        "code-in-cfg": lambda state, trace: _with_code(state, trace, "cfg"),
        "code-in-optimizer": lambda state, trace: _with_code(state, trace, "last_optimizer_state"),
        "code-in-model": lambda state, trace: _with_code(state, trace, "model"),
        "other-type": lambda state, _: {**state, "note": fractions.Fraction(1, 3)},
        "list": lambda *_: [1, 2],
        "number": lambda *_: 7,
        "tensor": lambda *_: torch.zeros(3),
        "nothing-in-it": lambda *_: {},
        "number-as-key": lambda state, _: {1: state},
        "without-model": lambda state, _: {key: state[key] for key in state if key != "model"},
        "cycle": lambda state, _: {**state, "note": _cycle()},
        "cycle-in-cfg": lambda state, _: _set(state, "task", inner=_cycle()),
        "laughs": lambda state, _: {**state, "note": _laughs()},
        "laughs-in-cfg": lambda state, _: _set(state, "model", inner=_laughs()),
        "laughs-in-model": lambda state, _: {**state, "model": _laughs()},
        "million-settings": lambda state, _: _set(state, "task", **{f"a{n}": n for n in range(10**6)}),
        "bomb-of-bytes": lambda state, _: {**state, "note": Code(bytearray, 10**10)},
        "bomb-of-hex": lambda state, _: {**state, "note": _hex_bomb()},
        "bomb-of-array": lambda state, _: {**state, "note": _numpy_bomb("_reconstruct")},
        "bomb-of-scalar": lambda state, _: {**state, "note": _numpy_bomb("scalar")},
        "bomb-of-tensor": lambda state, _: {**state, "note": Code(torch.Tensor, 3 * 10**9)},
    }
    for name, value in _VALUES.items():
        changes[f"model-is-{name}"] = lambda state, _, value=value: {**state, "model": value}
        if name != "nothing":
            changes[f"cfg-is-{name}"] = lambda state, _, value=value: {**state, "cfg": value}
            changes[f"args-is-{name}"] = lambda state, _, value=value: {**state, "cfg": None, "args": value}
    for name, value in {
        "texts": {"encoder": "x"}, "nested": {"encoder": {"weight": torch.zeros(2)}},
        "named-by-numbers": {3: torch.zeros(2)}, "unprintable": {"\x1b[31m": torch.zeros(2)},
    }.items():  # fmt: skip
        changes[f"model-of-{name}"] = lambda state, _, value=value: {**state, "model": value}
    made = [Hostile(name, Wrong.FILE, _saved(change)) for name, change in changes.items()]
    made.append(Hostile("deep", Wrong.FILE, _deep(lambda state: {**state, "note": _MARK})))
    made.append(Hostile("deep-in-cfg", Wrong.FILE, _deep(lambda state: _set(state, "task", inner=_MARK))))
    made.append(Hostile("deep-in-model", Wrong.FILE, _deep(lambda state: {**state, "model": _MARK})))
    made.append(Hostile("code-former-format", Wrong.FILE, _saved(_with_code, **FORMER)))
    return made


# What a part of a checkpoint must not be.
_VALUES: dict[str, Any] = {
    "nothing": None, "list": [1, 2], "text": "a text", "number": 7, "tensor": torch.ones(2),
}  # fmt: skip


def _cycle() -> list[Any]:
    circle: list[Any] = []
    circle.append(circle)
    return circle


_MARK = "@deep@"  # in the place of lists within lists, for which Python's pickler needs too long a stack


def _deep(change: Callable[[State], Any]) -> Callable[[Path, State, Path], None]:
    """Return a function that writes a checkpoint with 50,000 lists within each other."""
    levels, mark = 50_000, b"X" + len(_MARK).to_bytes(4, "little") + _MARK.encode()

    def write(path: Path, state: State, trace: Path) -> None:
        _saved(lambda state, _: change(state))(path, state, trace)
        _rewritten(path, lambda data: data.replace(mark, b"]" * levels + b"a" * (levels - 1)))

    return write


def _laughs() -> Any:
    """Return a list that holds 2**60 lists, in 60 objects."""
    laugh: list[Any] = []
    for _ in range(60):
        laugh = [laugh, laugh]
    return {"laugh": laugh}


def _hex_bomb() -> Any:
    """Return bytes that double 33 times when they are unpickled."""
    bomb: Any = b"x"
    for _ in range(33):
        bomb = Code(codecs.encode, bomb, "hex")
    return bomb


def _numpy_bomb(name: str) -> Code:
    arguments = {
        "_reconstruct": (numpy.ndarray, (10**10,), b"b"),
        "scalar": (numpy.dtype("V2000000000"),),
    }[name]
    return Code(getattr(multiarray, name), *arguments)


def _settings() -> list[Hostile]:
    """Return files whose settings cost much, are impossible, or lead elsewhere."""
    made = [
        Hostile(f"{part}-{name}", wrong, _saved(lambda state, trace, part=part, values=values:
            _set(state, part, **{key: _filled(value, trace) for key, value in values.items()})))
        for part, named in (("model", _MODEL), ("task", _TASK))
        for name, (wrong, values) in named.items()
    ]  # fmt: skip
    return made


def _filled(value: Any, trace: Path) -> Any:
    return value.replace("TRACE", str(trace)) if isinstance(value, str) else value


_CALL = "__import__('os').system('touch TRACE')"
_HUGE = 10**12
_BAD, _FINE, _FOR_ALL = Wrong.SETTINGS, Wrong.NOTHING, Wrong.FILE

# What is wrong, and the settings.
_MODEL: dict[str, tuple[Wrong, dict[str, Any]]] = {
    "encoder-layers": (_BAD, {"encoder_layers": 10**7}),
    "decoder-layers": (_BAD, {"decoder_layers": 10**7}),
    "negative-layers": (_BAD, {"encoder_layers": -3}),
    "no-layers": (_BAD, {"decoder_layers": 0}),
    "layers-text": (_BAD, {"encoder_layers": "many"}),
    "layers-none": (_BAD, {"encoder_layers": None}),
    "layers-list": (_BAD, {"encoder_layers": [1, 2]}),
    "layers-fraction": (_BAD, {"encoder_layers": 1.5}),
    "layers-nan": (_BAD, {"encoder_layers": float("nan")}),
    "width": (_BAD, {"encoder_embed_dim": 10**9}),
    "widths": (_BAD, {"encoder_embed_dim": 10**6, "decoder_embed_dim": 10**6}),
    "width-none": (_BAD, {"encoder_embed_dim": 0}),
    "width-negative": (_BAD, {"decoder_embed_dim": -32}),
    "heads-none": (_BAD, {"encoder_attention_heads": 0}),
    "heads-many": (_BAD, {"encoder_attention_heads": _HUGE}),
    "heads-negative": (_BAD, {"decoder_attention_heads": -2}),
    "ffn": (_BAD, {"encoder_ffn_embed_dim": _HUGE}),
    "ffn-of-10-GB": (_BAD, {"decoder_ffn_embed_dim": 10**8}),
    "source-positions": (_BAD, {"max_source_positions": _HUGE}),
    "target-positions": (_BAD, {"max_target_positions": _HUGE}),
    "positions-of-10-GB": (_BAD, {"max_source_positions": 10**8, "max_target_positions": 10**8}),
    "learned-positions": (_BAD, {"max_source_positions": 10**8, "encoder_learned_pos": True}),
    "output-width": (_BAD, {"decoder_output_dim": 10**9}),
    "beyond-64-bits": (_FOR_ALL, {"encoder_layers": 2**70}),
    "million-digits": (_FOR_ALL, {"encoder_layers": 10**1_000_000}),
    "dropout-nan": (_BAD, {"dropout": float("nan")}),
    "dropout-negative": (_FINE, {"dropout": -1.0}),
    "dropout-text": (_BAD, {"dropout": "a lot"}),
    "long-text": (_BAD, {"note": "x" * 10**7}),
    "long-word": (_BAD, {"encoder_layers_to_keep": "1," * 10**6}),
    "long-list": (_BAD, {"note": [0] * 10**6}),
    "call": (_BAD, {"adaptive_softmax_cutoff": _CALL}),
    "call-in-list": (_BAD, {"adaptive_softmax_cutoff": f"[{_CALL}]"}),
    "call-in-bytes": (_BAD, {"adaptive_softmax_cutoff": f"[{_CALL}]".encode()}),
    "repeated-list": (_BAD, {"adaptive_softmax_cutoff": "[0]*1000000000"}),
    "repeated-lists": (_BAD, {"adaptive_softmax_cutoff": "[[0]*100000]*100000"}),
    "list-of-sums": (_BAD, {"adaptive_softmax_cutoff": "[1]*99999+[1]*999999999"}),
    "shifted": (_BAD, {"adaptive_softmax_cutoff": "1<<80000000000"}),
    "repeated-text": (_BAD, {"adaptive_softmax_cutoff": "x*9999999999"}),
    "power": (_BAD, {"adaptive_softmax_cutoff": "9**9**9**9"}),
    "product": (_BAD, {"adaptive_softmax_cutoff": "*".join(["99999999"] * 1000)}),
    "brackets": (_BAD, {"adaptive_softmax_cutoff": "[" * 5000}),
    "minuses": (_BAD, {"adaptive_softmax_cutoff": "-" * 5000 + "1"}),
    "many-digits": (_BAD, {"adaptive_softmax_cutoff": "9" * 9000}),
    "deep-json": (_BAD, {"adaptive_softmax_cutoff": "[" * 4000 + "]" * 4000}),
    "softmax-cutoff": (_BAD, {"adaptive_softmax_cutoff": "5,1000000000000"}),
    "unknown": (_BAD, {"_name": "no_such_arch", "arch": "no_such_arch"}),
    "no-name": (_BAD, {"_name": None, "arch": None}),
    "name-is-number": (_BAD, {"_name": 3, "arch": 3}),
    "convolutions": (_BAD, {"_name": "fconv", "arch": "fconv", "encoder_layers": "[(32,3)]*9999999"}),
    "kernels": (_BAD, {"_name": "lightconv", "arch": "lightconv", "encoder_kernel_size_list": [10**9]}),
    "recurrent-layers": (_BAD, {"_name": "lstm", "arch": "lstm", "encoder_layers": 10**7}),
    "recurrent-width": (_BAD, {"_name": "lstm", "arch": "lstm", "encoder_hidden_size": 10**9}),
    "other-arch": (_BAD, {"_name": "levenshtein_transformer", "arch": "levenshtein_transformer"}),
    "language-model": (_BAD, {"_name": "transformer_lm", "arch": "transformer_lm"}),
    "speech": (_BAD, {"_name": "wav2vec2", "arch": "wav2vec2"}),
    "downloaded": (_BAD, {"_name": "xm_transformer", "arch": "xm_transformer", "w2v_path": "http://0.0.0.0/x"}),
    "embeddings-elsewhere": (_FINE, {"encoder_embed_path": "/dev/zero", "decoder_embed_path": "/dev/zero"}),
    "environment": (_BAD, {"arch": "${oc.env:HOME}"}),
    "environment-in-path": (_BAD, {"encoder_embed_path": "${oc.env:HOME}"}),
    "target": (_FINE, {"_target_": "os.system"}),
}  # fmt: skip
_TASK: dict[str, tuple[Wrong, dict[str, Any]]] = {
    "unknown": (Wrong.TASK, {"_name": "no_such_task", "task": "no_such_task"}),
    "no-name": (Wrong.TASK, {"_name": None, "task": None}),
    "other": (Wrong.TASK, {"_name": "language_modeling", "task": "language_modeling"}),
    "levenshtein": (Wrong.TASK, {"_name": "translation_lev", "task": "translation_lev"}),
    "data-elsewhere": (_FINE, {"data": "/proc/self"}),
    "data-long": (_BAD, {"data": "/x" * 10**7}),
    "data-is-number": (_FINE, {"data": 3}),
    "data-is-list": (_BAD, {"data": ["/x"] * 10**6}),
    "user-dir": (_FINE, {"user_dir": "/tmp"}),
    "environment": (_BAD, {"data": "${oc.env:HOME}"}),
    "languages": (Wrong.TASK, {"source_lang": "../../etc", "target_lang": "passwd"}),
    "language-is-number": (Wrong.TASK, {"source_lang": 3, "target_lang": 4}),
    "bleu-arguments": (_BAD, {"eval_bleu": True, "eval_bleu_args": _CALL}),
    "bleu-json": (_FINE, {"eval_bleu": True, "eval_bleu_args": "[" * 100000}),
    "source-positions": (_FINE, {"max_source_positions": -5}),
    "interpolated": (Wrong.TASK, {"source_lang": "${task.source_lang}"}),
}


def _arguments() -> list[Hostile]:
    """Return files of the form before 2020, with ``args``."""

    def changed(**values: Any) -> Callable[[Path, State, Path], None]:
        def change(state: State, trace: Path) -> State:
            model, task = state["cfg"]["model"], state["cfg"]["task"]
            settings = {**task, **(vars(model) if isinstance(model, Namespace) else model)}
            settings.update(task=task["_name"], arch=settings.get("arch") or settings["_name"])
            settings.update({name: _filled(value, trace) for name, value in values.items()})
            return {**state, "cfg": None, "args": Namespace(**settings)}

        return _saved(change)

    found: dict[str, tuple[Wrong, dict[str, Any]]] = {
        "layers": (_BAD, {"encoder_layers": 10**7}),
        "width": (_BAD, {"encoder_embed_dim": 10**9}),
        "heads": (_BAD, {"encoder_attention_heads": 0}),
        "positions": (_BAD, {"max_source_positions": _HUGE}),
        "million-digits": (_FOR_ALL, {"encoder_layers": 10**1_000_000}),
        "call": (_BAD, {"adaptive_softmax_cutoff": _CALL}),
        "repeated-list": (_BAD, {"adaptive_softmax_cutoff": "[0]*1000000000"}),
        "long-text": (_BAD, {"note": "x" * 10**7}),
        "long-list": (_BAD, {"note": [0] * 10**6}),
        "quoted": (_BAD, {"source_lang": "a', model._target_='os.system"}),
        "environment": (_BAD, {"source_lang": "${oc.env:HOME}"}),
        "unknown-task": (_BAD, {"task": "no_such_task"}),
        "unknown-arch": (_BAD, {"arch": "no_such_arch"}),
        "not-numbers": (_BAD, {"encoder_layers": "x", "decoder_layers": "y"}),
        "learning-rates": (_BAD, {"lr": "[0]*1000000000"}),
        "user-dir": (_FINE, {"user_dir": "/tmp"}),
    }
    return [Hostile(f"args-{name}", wrong, changed(**values)) for name, (wrong, values) in found.items()]


def _weights() -> list[Hostile]:
    """Return files whose weights are not those of their model."""
    name, bad = "encoder.layers.0.fc1.weight", Wrong.WEIGHTS
    changes: dict[str, tuple[Wrong, Callable[[torch.Tensor], Any]]] = {
        "nan": (bad, lambda value: value * float("nan")),
        "infinite": (bad, lambda value: value / 0),
        "integers": (bad, lambda value: value.long()),
        "truth-values": (bad, lambda value: value > 0),
        "complex": (bad, lambda value: value.to(torch.complex64)),
        "transposed": (bad, lambda value: value.t()),
        "longer": (bad, lambda value: torch.cat([value, value])),
        "scalar": (bad, lambda value: value[0, 0]),
        "text": (Wrong.FILE, lambda _: "x"),
        "number": (Wrong.FILE, lambda _: 3),
        "list": (Wrong.FILE, lambda value: value.tolist()),
        "expanded": (Wrong.FILE, lambda _: torch.zeros(1).expand(10**6, 10**6)),
        "expanded-in-shape": (Wrong.FILE, lambda value: torch.zeros(1).expand(value.shape)),
        "meta": (Wrong.FILE, lambda value: torch.empty(10**6, 10**6, device="meta")),
        "sparse": (Wrong.FILE, lambda value: value.to_sparse()),
        "sparse-huge": (Wrong.FILE, _huge_sparse),
        "quantised": (Wrong.FILE, lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)),
        "nested": (Wrong.FILE, lambda value: torch.nested.nested_tensor([value, value[:2]])),
        "subclass": (bad, lambda value: torch.nn.Parameter(value.half() * 1e9)),
    }  # fmt: skip

    def changed(change: Callable[[torch.Tensor], Any]) -> Callable[[Path, State, Path], None]:
        return _saved(
            lambda state, _: {**state, "model": {**state["model"], name: change(state["model"][name])}}
        )

    made = [Hostile(f"weight-{kind}", wrong, changed(change)) for kind, (wrong, change) in changes.items()]
    whole: dict[str, Callable[[State], State]] = {
        "zeros": lambda weights: {key: value * 0 for key, value in weights.items()},
        "missing": lambda weights: {key: weights[key] for key in weights if key != name},
        "more": lambda weights: {**weights, "encoder.layers.7.fc1.weight": weights[name]},
        "renamed": lambda weights: {f"module.{key}": value for key, value in weights.items()},
        "many": lambda weights: {**weights, **{f"encoder.x{n}": torch.zeros(0) for n in range(20_000)}},
    }
    for kind, change in whole.items():
        write = _saved(lambda state, _, change=change: {**state, "model": change(state["model"])})
        made.append(Hostile(f"weights-{kind}", bad, write))
    return made


def _record(state: State, key: str) -> State:
    """Return the part of a training's record that holds a number."""
    return state["optimizer_history"][-1] if key == "num_updates" else state["extra_state"]["train_iterator"]


def _huge_sparse(_: torch.Tensor) -> torch.Tensor:
    return torch.sparse_coo_tensor(torch.tensor([[0], [0]]), torch.ones(1), (10**9, 10**9))


def _progress() -> list[Hostile]:
    """Return files from which a training can't continue."""

    def changed(change: Callable[[State], Any]) -> Callable[[Path, State, Path], None]:
        return _saved(lambda state, _: change(state))

    changes: dict[str, tuple[Wrong, Callable[[State], Any]]] = {}
    for key in ("optimizer_history", "extra_state", "last_optimizer_state", "task_state"):
        for name, value in {"number": 7, "text": "x", "list": [1], "tensor": torch.ones(2)}.items():
            changes[f"{key}-is-{name}"] = (
                Wrong.PROGRESS, lambda state, key=key, value=value: {**state, key: value}
            )  # fmt: skip
    values = {"text": "x", "huge": 10**15, "negative": -5, "nan": float("nan")}
    for name, value in values.items():
        for part, key in (
            ("updates", "num_updates"), ("epoch", "epoch"), ("position", "iterations_in_epoch")
        ):  # fmt: skip
            changes[f"{part}-{name}"] = (
                Wrong.PROGRESS, lambda state, key=key, value=value: _record(state, key).update({key: value})
            )  # fmt: skip
    moments = torch.zeros(1).expand(10**6, 10**6)

    def first_moment(state: State, value: Any) -> None:
        state["last_optimizer_state"]["state"][0]["exp_avg"] = value

    changes |= {
        "moments-expanded": (Wrong.FILE, lambda state: first_moment(state, moments)),
        "moments-of-another-shape": (Wrong.PROGRESS, lambda state: first_moment(state, torch.zeros(3))),
        "moments-nan": (Wrong.PROGRESS, lambda state: first_moment(state, torch.full((3,), float("nan")))),
        "moments-text": (Wrong.PROGRESS, lambda state: first_moment(state, "x")),
        "no-moments": (Wrong.PROGRESS, lambda state: {**state, "last_optimizer_state": {}}),
        "no-history": (Wrong.PROGRESS, lambda state: {**state, "optimizer_history": []}),
        "history-of-nothing": (Wrong.PROGRESS, lambda state: {**state, "optimizer_history": [{}]}),
        "history-of-numbers": (Wrong.PROGRESS, lambda state: {**state, "optimizer_history": [1]}),
        "no-iterator": (Wrong.PROGRESS, lambda state: state["extra_state"].pop("train_iterator") and None),
        "iterator-text": (Wrong.PROGRESS, lambda state: state["extra_state"].update(train_iterator="x")),
        "metrics-text": (Wrong.PROGRESS, lambda state: state["extra_state"].update(metrics="x")),
        "metrics-unknown": (
            Wrong.PROGRESS,
            lambda state: state["extra_state"].update(metrics={"default": [(1, "x", "Meter", {"a": 1})]}),
        ),
        "scheduler-text": (
            Wrong.PROGRESS, lambda state: state["optimizer_history"][-1].update(lr_scheduler_state="x"),
        ),
        "best-text": (Wrong.PROGRESS, lambda state: state["extra_state"].update(best="x")),
        "fingerprints-text": (Wrong.PROGRESS, lambda state: {**state, "task_state": {"dictionaries": "x"}}),
    }  # fmt: skip
    return [Hostile(name, wrong, changed(change)) for name, (wrong, change) in changes.items()]

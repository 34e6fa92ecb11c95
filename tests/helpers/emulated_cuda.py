"""An emulated CUDA device: tensors that claim to be on ``cuda:0`` while the CPU computes.

It finds errors that would otherwise occur only on a GPU. As on a real device, tensors of host and device
can't be mixed, Python must wait for the device to read a value (each wait is recorded), and a captured graph

- repeats its operations without running Python, with the sizes and numbers of the capture;
- reads and writes the same memory at each replay;
- computes nothing during the capture, and can't wait for the device.

It does not emulate errors, rounding and speed of kernels, several streams, the fate of a graph's memory, or
failed captures. Autocast uses the CPU's lists, which leave softmax in half precision.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

from fairseq_imitkd.rollout.cuda_graphs import release_graphs

DEVICE = torch.device("cuda", 0)
aten = torch.ops.aten

# Operations for which the host waits: the size of their result, or their value in Python, comes from the
# device.
WAITS = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten._unique2.default,
    aten.equal.default, aten.is_nonzero.default, aten.repeat_interleave.Tensor,
}  # fmt: skip
FACTORIES = {
    torch.arange,
    torch.empty,
    torch.eye,
    torch.full,
    torch.linspace,
    torch.ones,
    torch.rand,
    torch.randn,
    torch.zeros,
}
# Functions that accept tensors of both devices; the sizes of a packed sequence are on the host.
MIXING = {"__getitem__", "__setitem__", "copy_", "_has_compatible_shallow_copy_type", "_pack_padded_sequence",
          "_pad_packed_sequence", "lstm", "gru"}  # fmt: skip


class DeviceTensor(Tensor):
    """A tensor on the emulated device. ``inner`` holds its values."""

    inner: Tensor
    device = DEVICE  # type: ignore[assignment]
    is_cuda = True  # type: ignore[assignment]
    is_cpu = False  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor) -> "DeviceTensor":
        """Make a CPU tensor for C++, because autograd would need a CUDA stream for a CUDA tensor."""
        made: DeviceTensor = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
        )
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.inner!r})"

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return current().computed(func, args, kwargs or {})


class _ToDevice(torch.autograd.Function):
    """``Tensor.to(device)`` with its gradient."""

    @staticmethod
    def forward(ctx: Any, host: Tensor) -> Tensor:
        return DeviceTensor(host.detach().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.inner if isinstance(gradient, DeviceTensor) else gradient


class _ToHost(torch.autograd.Function):
    """``Tensor.cpu`` with its gradient."""

    @staticmethod
    def forward(ctx: Any, there: Tensor) -> Tensor:
        assert isinstance(there, DeviceTensor)
        return there.inner.detach().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return DeviceTensor(gradient)


class Graph:
    """``torch.cuda.CUDAGraph``: a list of operations and the tensors that they read and write."""

    def __init__(self) -> None:
        self.operations: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]] = []

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        device = current()
        assert device.capturing is None, "a capture began within another"
        device.capturing = self

    def capture_end(self) -> None:
        current().capturing = None

    def replay(self) -> None:
        current().launches += 1
        for func, args, kwargs, made in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Emulation(TorchFunctionMode):
    """The emulated device."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.launches = 0  # operations that compute, and replays: about the number of kernel launches
        self.capturing: Graph | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        there = any(isinstance(tensor, DeviceTensor) for tensor in tensors)
        if func in (Tensor.cuda, Tensor.cpu, Tensor.to, Tensor.type_as):
            return self._moved(func, args, kwargs)
        if there and func is Tensor.new:
            return DeviceTensor(
                tensors[0].inner.new(*tree_map_only(DeviceTensor, lambda tensor: tensor.inner, args[1:]))
            )
        if there and func is Tensor.__deepcopy__:
            copy = DeviceTensor(tensors[0].inner.clone())
            args[1][id(tensors[0])] = copy = (
                nn.Parameter(copy) if isinstance(tensors[0], nn.Parameter) else copy
            )
            return copy.requires_grad_(tensors[0].requires_grad)
        if there and func in (Tensor.tolist, Tensor.numpy):
            if func is Tensor.numpy:
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
            self._waits("tolist")
            return args[0].inner.tolist()
        if _is_cuda(kwargs.get("device")) and func is not torch._C._nn._parse_to:
            return self._made(func, args, {**kwargs, "device": "cpu"})
        if there and getattr(func, "__name__", "") not in MIXING:
            strangers = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor)]
            if any(tensor.dim() and tensor.numel() for tensor in strangers):
                name = getattr(func, "__name__", func)
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but {name} got some that are not"
                )
        result = func(*args, **kwargs)
        # C++ returns a CPU tensor, because it considers its arguments CPU tensors.
        if there and getattr(func, "__name__", "") == "_pad_packed_sequence":
            return _ToDevice.apply(result[0]), result[1]
        return result

    def computed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation of ATen that has arguments on the device."""
        inner_args, inner_kwargs = tree_map_only(DeviceTensor, lambda tensor: tensor.inner, (args, kwargs))
        if func in WAITS or (
            func is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        ):
            self._waits(func._overloadpacket.__name__)
        if func is aten.copy_.default and not all(isinstance(tensor, DeviceTensor) for tensor in args[:2]):
            self._waits("copy_")
        if self.capturing is not None:
            made = self._captured(func, inner_args, inner_kwargs)
        else:
            self.launches += launches_a_kernel(func)
            made = func(*inner_args, **inner_kwargs)
        wrapped = tree_map_only(Tensor, DeviceTensor, made)
        if func is aten._pack_padded_sequence.default:
            return wrapped[0], made[1]
        return return_and_correct_aliasing(func, args, kwargs, wrapped)

    def _captured(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record an operation without computing it. Its results hold NaN or 0, which must not be read."""
        assert self.capturing is not None
        writes = func._schema.is_mutable
        written = [
            _argument(func, args, kwargs, number) for number in range(len(func._schema.arguments)) if writes
        ]
        before = [(tensor, tensor.clone()) for tensor in written if tensor is not None]
        made = func(*args, **kwargs)
        for tensor, old in before:
            tensor.copy_(old)
        self.capturing.operations.append((func, args, kwargs, made))
        if not writes and not any(ret.alias_info for ret in func._schema.returns):
            _spoil(made)
        return made

    def _made(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make a new tensor on the device."""
        if self.capturing is not None and func not in FACTORIES:
            raise RuntimeError(
                f"{func.__name__} copies from the host: operation not permitted when stream is capturing"
            )
        with torch._C.DisableTorchFunction():
            made = func(*args, **kwargs)
        if self.capturing is not None:
            self.capturing.operations.append((func, args, kwargs, made))
            _spoil(made)
        return DeviceTensor(made) if not made.requires_grad else DeviceTensor(made.detach()).requires_grad_()

    def _moved(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run ``tensor.cuda()``, ``tensor.cpu()`` or ``tensor.to(…)``."""
        tensor, *rest = args
        rest = [DEVICE if _is_cuda(value) else value for value in rest]
        named = {name: value for name, value in kwargs.items() if name != "device"}
        given = (*rest, kwargs.get("device"))
        devices = [value for value in given if _is_cuda(value) or isinstance(value, (torch.device, str))]
        target: Any = (
            DEVICE if func is Tensor.cuda else "cpu" if func is Tensor.cpu else (devices or [None])[0]
        )
        if rest and isinstance(rest[0], Tensor):  # use the device of the other tensor
            target, rest, func = rest[0].device, [rest[0].dtype, *rest[1:]], Tensor.to
        if target is not None and _is_cuda(target) != isinstance(tensor, DeviceTensor):
            if _is_cuda(target):
                if self.capturing is not None:
                    raise RuntimeError(
                        "a copy from the host: operation not permitted when stream is capturing"
                    )
                tensor = _ToDevice.apply(tensor)
            else:
                self._waits("cpu")
                tensor = _ToHost.apply(tensor)
        rest = [value for value in rest if not isinstance(value, (torch.device, str))]
        if func is not Tensor.to or not any(
            isinstance(value, torch.dtype) for value in (*rest, kwargs.get("dtype"))
        ):
            return tensor
        return Tensor.to(tensor, *rest, **named)

    def _waits(self, name: str) -> None:
        if self.capturing is not None:
            raise RuntimeError(
                f"{name} waits for the device: operation not permitted when stream is capturing"
            )
        self.waits.append(name)


def launches_a_kernel(func: Any) -> bool:
    """Whether an operation of ATen computes on the device: it writes, or returns a new tensor."""
    returns = func._schema.returns
    new = any("Tensor" in str(ret.type) for ret in returns) and not any(ret.alias_info for ret in returns)
    return bool(func._schema.is_mutable or new)


_running: list[Emulation] = []


def current() -> Emulation:
    """Return the device that is emulated now."""
    return _running[-1]


def _is_cuda(device: Any) -> bool:
    number = isinstance(device, int) and not isinstance(device, bool)
    return number or (isinstance(device, (torch.device, str)) and str(device).startswith("cuda"))


def _argument(func: Any, args: Sequence[Any], kwargs: dict[str, Any], number: int) -> Tensor | None:
    """Return an argument if the operation writes to it, else None."""
    argument = func._schema.arguments[number]
    if argument.alias_info is None or not argument.alias_info.is_write:
        return None
    return args[number] if number < len(args) else kwargs.get(argument.name)


def _spoil(made: Any) -> None:
    for tensor in tree_leaves(made):
        if isinstance(tensor, Tensor) and tensor.numel():
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)


class _Moment:
    """``torch.cuda.Event`` and ``torch.cuda.Stream``, where everything is complete and in order."""

    _moments = itertools.count()

    def __init__(self, *_: Any, **__: Any) -> None:
        self.moment = 0

    def record(self, *_: Any) -> None:
        self.moment = next(self._moments)

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Self) -> float:
        """Return milliseconds."""
        return float(other.moment - self.moment)

    def wait_stream(self, _: Self) -> None:
        return None

    def synchronize(self) -> None:
        return None


def _apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """``nn.Module._apply`` with new parameters; torch's would change the C++ tensor of a device tensor."""
    made: dict[Tensor, nn.Parameter] = {}
    for module in self.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if parameter not in made:
                    made[parameter] = nn.Parameter(fn(parameter.detach()), parameter.requires_grad)
                module._parameters[name] = made[parameter]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fn(buffer)
        if isinstance(module, nn.RNNBase):
            module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
    return self


@contextmanager
def _stream(_: Any) -> Iterator[None]:
    yield


_ENTER_AUTOCAST = torch.autocast.__init__
_AUTOCAST_ENABLED, _AUTOCAST_DTYPE = torch.is_autocast_enabled, torch.get_autocast_dtype


def _autocast_enabled(_: str | None = None) -> bool:
    return _AUTOCAST_ENABLED("cpu")


def _autocast_dtype(_: str) -> torch.dtype:
    return _AUTOCAST_DTYPE("cpu")


def _autocast(
    self: torch.autocast, device_type: str, dtype: torch.dtype | None = None, **settings: Any
) -> None:
    """Use the CPU's autocast for the device, because C++ considers device tensors CPU tensors."""
    if device_type == "cuda":
        device_type, dtype = (
            "cpu",
            dtype or (_AUTOCAST_DTYPE("cpu") if _AUTOCAST_ENABLED("cpu") else torch.float16),
        )
    _ENTER_AUTOCAST(self, device_type, dtype, **settings)


@contextmanager
def emulated_cuda() -> Iterator[Emulation]:
    """Emulate a CUDA device, to which models and batches can be moved."""
    replaced = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "Event": _Moment,
        "Stream": _Moment,
        "current_stream": lambda *_: _Moment(),
        "stream": _stream,
        "CUDAGraph": Graph,
        "graph_pool_handle": object,
        "_lazy_init": lambda: None,
        "is_current_stream_capturing": lambda: bool(current().capturing),
        "get_device_name": lambda *_: "emulated",
        "get_rng_state": lambda *_: torch.empty(0),
        "set_rng_state": lambda *_: None,
        "manual_seed": lambda *_: None,
        "get_device_properties": lambda *_: SimpleNamespace(
            name="emulated", major=9, minor=0, total_memory=2**30
        ),
        "max_memory_allocated": lambda *_: 0,
        "reset_peak_memory_stats": lambda *_: None,
        "set_device": lambda *_: None,
    }
    with ExitStack() as stack:
        for name, replacement in replaced.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, replacement))
        stack.enter_context(mock.patch.object(nn.Module, "_apply", _apply))
        stack.enter_context(mock.patch.object(torch.autocast, "__init__", _autocast))
        stack.enter_context(mock.patch.object(torch, "is_autocast_enabled", _autocast_enabled))
        stack.enter_context(mock.patch.object(torch, "get_autocast_dtype", _autocast_dtype))
        device = Emulation()
        _running.append(device)
        try:
            with device:
                yield device
        finally:
            _running.pop()
            release_graphs()  # no later test has a use for them

"""A budget of memory for building a model of a stranger's settings: those of its weights in the file.

Ten settings can describe a model of any size, in any architecture. So the tensors are counted while the model
is built, each before it is allocated.
"""

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from fairseq import models
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

# A model makes more than its weights: tables of positions, and what it computes them from.
_FACTOR, _NUMBERS = 8, 2**27
_TENSORS_FACTOR, _TENSORS = 10, 1000

_current: ContextVar["Budget | None"] = ContextVar("budget", default=None)


class OverBudget(ValueError):
    """The settings of a checkpoint describe a model that is far larger than its weights."""


class Budget(TorchDispatchMode):
    """Counts the tensors that are made while it is active.

    Args:
        weights: the weights that the model will load.
    """

    def __init__(self, weights: Iterable[Tensor]):
        super().__init__()
        sizes = [weight.numel() for weight in weights]
        self.held, self.count = sum(sizes), len(sizes)
        self.numbers = _FACTOR * self.held + _NUMBERS
        self.tensors = _TENSORS_FACTOR * self.count + _TENSORS

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count what an operator makes, then call it.

        Raises:
            OverBudget: it would be more than the budget.
        """
        kwargs = kwargs or {}
        if not func._schema.is_mutable and not func.is_view:
            self._spend(self._made(func, args, kwargs))
        return func(*args, **kwargs)

    @staticmethod
    def _made(func: Any, args: Any, kwargs: Any) -> int:
        """Return how many numbers an operator would make, found without making them."""
        args, kwargs = tree_map(_on_meta, (args, kwargs))
        if "device" in (argument.name for argument in func._schema.arguments):
            kwargs = {**kwargs, "device": torch.device("meta"), "pin_memory": None}
            kwargs = {name: value for name, value in kwargs.items() if _takes(func, name)}
        try:
            made = func(*args, **kwargs)
        except Exception:  # it has no form for the device meta, or raises the same when it is called
            return 0
        parts = made if isinstance(made, tuple | list) else [made]
        return sum(part.numel() for part in parts if isinstance(part, Tensor))

    def _spend(self, numbers: int) -> None:
        self.numbers -= numbers
        self.tensors -= 1
        if self.numbers < 0 or self.tensors < 0:
            raise OverBudget(
                f"its settings describe a larger model than its weights, {self.count:,} tensors of "
                f"{self.held:,} numbers: they are not of one training; use another"
            )


def _on_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _takes(func: Any, name: str) -> bool:
    return any(argument.name == name for argument in func._schema.arguments)


@contextmanager
def budget_of(weights: Iterable[Any]) -> Iterator[None]:
    """Limit the models that are built in the enclosed code to a few times the size of these weights.

    Args:
        weights: the values of the files' ``model``.
    """
    token = _current.set(Budget(value for value in weights if isinstance(value, Tensor)))
    try:
        yield
    finally:
        _current.reset(token)


def is_building() -> bool:
    """Return whether the enclosed code of a :func:`budget_of` is running."""
    return _current.get() is not None


def limit_building() -> None:
    """Make fairseq's ``build_model``, which every task calls, keep to the budget of the enclosing
    :func:`budget_of`, if there is one.
    """
    build = models.build_model

    @functools.wraps(build)
    def build_within_budget(*arguments: Any, **settings: Any) -> Any:
        budget = _current.get()
        if budget is None:
            return build(*arguments, **settings)
        with budget:
            return build(*arguments, **settings)

    models.build_model = build_within_budget

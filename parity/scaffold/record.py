"""Run a model once and keep what every module was given and returned.

Letters in shapes: B batch.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from parity.execution.modes import Mode
from parity.execution.tap import Point

_QUIET = ("norm", "dropout", "identity", "gelu", "silu", "relu", "tanh", "swish", "activation", "softmax")
CALLS = 4
"""Calls of one module that are looked at one by one."""


@dataclass(frozen=True, eq=False)
class Seen:
    """A value at one point of one side.

    Args:
        point: where.
        order: when, counted in ops and calls.
        value: float32, calls joined along dim 0 where the point says "all".
        shared: whether the tensor is used after the call it was given to: a residual stream.
        quiet: whether the module is a norm, an activation or a dropout.
    """

    point: Point
    order: int
    value: Tensor
    shared: bool = False
    quiet: bool = False

    @cached_property
    def fingerprint(self) -> tuple[int, float, float]:
        """Number of elements, mean and mean square: what no layout changes."""
        return self.value.numel(), float(self.value.mean()), float(self.value.square().mean())

    @property
    def module(self) -> str:
        """Path of the module."""
        return self.point.module or ""


@dataclass(frozen=True)
class Recording:
    """What one forward showed: points in execution order, and what it returned."""

    points: tuple[Seen, ...]
    returned: Any


@dataclass
class _Raw:
    module: str
    at: Literal["input", "output"]
    element: str | None
    order: int
    tensor: Tensor
    value: Tensor
    end: int = 0


class _Clock(Mode):
    """Counts ops, and keeps when each storage was last used."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.used: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.now += 1
        for value in _tensors((*args, *(kwargs or {}).values())):
            self.used[value.untyped_storage()._cdata] = self.now
        return func(*args, **(kwargs or {}))


def record(model: nn.Module, call: Callable[[], Any]) -> Recording:
    """Call a model and return what was seen.

    The tensors themselves are kept alive until the end, so that no storage is taken for another.
    """
    clock, raw = _Clock(), list[_Raw]()
    handles = [h for path, m in model.named_modules() if path for h in _hooked(path, m, clock, raw)]
    try:
        with torch.no_grad(), clock:
            returned = call()
    finally:
        for handle in handles:
            handle.remove()
    return Recording(tuple(sorted(_points(model, raw, clock), key=lambda s: s.order)), returned)


def _hooked(path: str, module: nn.Module, clock: _Clock, raw: list[_Raw]) -> Iterator[Any]:
    open_calls: list[list[_Raw]] = []

    def before(m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with _disable_current_modes():
            clock.now += 1
            given = next(_elements_of_call(args, kwargs), None)
            seen = [] if given is None else [_raw(path, "input", given[0], clock.now, given[1])]
            open_calls.append(seen)
            raw.extend(seen)

    def after(m: nn.Module, args: tuple[Any, ...], returned: Any) -> None:
        with _disable_current_modes():
            clock.now += 1
            for seen in open_calls.pop() if open_calls else ():
                seen.end = clock.now
            raw.extend(_raw(path, "output", e, clock.now, value) for e, value in elements(returned))

    yield module.register_forward_pre_hook(before, with_kwargs=True)
    yield module.register_forward_hook(after)


def _raw(path: str, at: Literal["input", "output"], element: str | None, now: int, tensor: Tensor) -> _Raw:
    return _Raw(path, at, element, now, tensor, tensor.detach().to(torch.float32, copy=True))


def _elements_of_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[str | None, Tensor]]:
    """Yield the tensors a module is called with; the first positional one needs no name."""
    for number, value in enumerate(args):
        if _counts(value):
            yield (None if number == 0 else str(number)), value
    for name, value in kwargs.items():
        if _counts(value):
            yield name, value


def elements(returned: Any, depth: int = 2) -> Iterator[tuple[str | None, Tensor]]:
    """Yield the tensors of a returned structure, each with the path a `Point` names it by."""
    if _counts(returned):
        yield None, returned
    elif depth:
        for name, held in _members(returned):
            for rest, value in elements(held, depth - 1):
                yield (name if rest is None else f"{name}.{rest}"), value


def _members(held: Any) -> list[tuple[str, Any]]:
    if isinstance(held, Mapping):
        return [(str(key), value) for key, value in held.items()]
    if isinstance(held, (tuple, list)):
        return [(str(number), value) for number, value in enumerate(held)]
    if dataclasses.is_dataclass(held) and not isinstance(held, type):
        return [(f.name, getattr(held, f.name)) for f in dataclasses.fields(held)]
    return []


def _counts(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype != torch.bool and not value.is_complex() and value.numel() > 0


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _points(model: nn.Module, raw: list[_Raw], clock: _Clock) -> Iterator[Seen]:
    places: dict[tuple[str, Literal["input", "output"], str | None], list[_Raw]] = defaultdict(list)
    for seen in raw:
        places[seen.module, seen.at, seen.element].append(seen)
    for (path, at, element), calls in places.items():
        quiet = is_quiet(path, model.get_submodule(path))
        for call, held in _calls(calls):
            shared = at == "input" and any(clock.used.get(_storage(h.tensor), 0) > h.end for h in held)
            value = held[0].value if len(held) == 1 else torch.cat([h.value for h in held])
            yield Seen(Point(path, at, element, call), held[0].order, value, shared, quiet)


def _calls(calls: list[_Raw]) -> Iterator[tuple[int | Literal["only", "all"], list[_Raw]]]:
    if len(calls) == 1:
        yield "only", calls
        return
    if len({call.value.shape[1:] for call in calls if call.value.dim()}) == 1 and all(c.value.dim() for c in calls):
        yield "all", calls
    for number, call in enumerate(calls[:CALLS]):
        yield number, [call]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def is_quiet(path: str, module: nn.Module) -> bool:
    """Say whether a module is a norm, an activation or a dropout: never a branch of a block."""
    words = type(module).__name__.lower()
    return any(word in words for word in _QUIET) or "norm" in path.rpartition(".")[2].lower().split("_")

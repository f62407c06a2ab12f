"""Floats that leave torch and come back: seen above the dispatcher, where `tolist` and `torch.tensor` still exist."""

from __future__ import annotations

import sys
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from parity.execution.shadow import Shadow

_OUT = {Tensor.tolist: "tolist", Tensor.numpy: "numpy", Tensor.__array__: "numpy"}
_IN = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor}
_OURS = ("parity/execution/", "/torch/")


class LeakWatch(TorchFunctionMode):
    """Tell the shadow what leaves torch, and what is made from Python numbers.

    A literal (`torch.tensor(0.1)`) keeps its double value in the shadow. An array that comes back after floats have
    left in the same segment is not trusted; one that never came from a tensor is a constant.
    """

    def __init__(self, shadow: Shadow) -> None:
        super().__init__()
        self._shadow = shadow

    def __enter__(self) -> LeakWatch:
        # `torch.from_numpy` is the one door that function modes do not see.
        self._from_numpy = torch.from_numpy
        torch.from_numpy = self._watched_from_numpy  # type: ignore[assignment]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)  # type: ignore[no-untyped-call]
        torch.from_numpy = self._from_numpy

    def _watched_from_numpy(self, array: Any) -> Tensor:
        out: Tensor = self._from_numpy(array)
        self._entered(out, (None,), {})
        return out

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Below the dispatcher autocast has done its work and is off.
        self._shadow.autocast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
        if func is Tensor.__setitem__ and isinstance(args[2], (int, float)):
            with self._shadow.number(float(args[2])):
                return func(*args, **kwargs)
        out = func(*args, **kwargs)
        if func in _OUT and isinstance(args[0], Tensor):
            self._left(_OUT[func], args[0])
        elif func in _IN and isinstance(out, Tensor):
            self._entered(out, args, kwargs)
        return out

    def _left(self, how: str, tensor: Tensor) -> None:
        if tensor.is_floating_point() and not self._shadow.is_exact(tensor):
            self._shadow.leak(how)

    def _entered(self, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not out.is_floating_point() or self._shadow.knows(out):
            return
        if self._shadow.leaked is not None:
            return  # a stray: not trusted where it is used
        data = args[-1] if args else kwargs.get("data", kwargs.get("obj"))
        try:
            exact = torch.tensor(data, dtype=torch.float64, device="cpu") if _literal(data) else None
        except (TypeError, ValueError):
            exact = None
        self._shadow.constant(out, exact)


def _literal(data: Any) -> bool:
    if isinstance(data, (list, tuple)):
        return all(_literal(d) for d in data)
    return isinstance(data, (int, float))


def caller_line() -> str:
    """Name the line of the model that runs now: the innermost frame outside torch and this package."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not any(part in name for part in _OURS):
            return f"{'/'.join(PurePath(name).parts[-2:])}:{frame.f_lineno}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return "an unknown line"

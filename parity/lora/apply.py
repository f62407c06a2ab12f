"""Put an adapter on a model and take it off again, unmerged as PEFT does or merged into the weights.

Letters in shapes: R rank, I inputs, O outputs, S tokens.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.errors import LoraError
from parity.lora.adapter import LoraAdapter, LoraTarget
from parity.numerics.chunks import norm


@dataclass(frozen=True)
class AppliedModule:
    """What an adapter does to one module: rank, scaling and the change's norm relative to the weight's."""

    rank: int
    scaling: float
    relative_norm: float


@dataclass(frozen=True)
class AppliedReport:
    """Which modules an adapter changes; `how` is "unmerged" or "merged"."""

    name: str
    how: str
    modules: Mapping[str, AppliedModule]


@contextmanager
def applied(model: nn.Module, adapter: LoraAdapter) -> Iterator[AppliedReport]:
    """Wrap the forward of each target: `y + scaling * B(A(x))` with A and B in the weight's dtype.

    A and B are non-persistent buffers of their module meanwhile. The model is as it was after exit, whatever happened.

    Raises:
        LoraError: a path does not exist, is no linear layer of fitting size, or the adapter changes nothing.
    """
    layers = _layers(model, adapter)
    report = AppliedReport(adapter.name, "unmerged", _described(layers))
    with ExitStack() as stack:
        for layer, target in layers.values():
            stack.callback(_wrap(layer, target))
        yield report


@contextmanager
def merged(model: nn.Module, adapter: LoraAdapter) -> Iterator[AppliedReport]:
    """Add `scaling * B @ A`, computed in float32, to each target's weight and cast; the copy kept is put back on exit.

    Raises:
        LoraError: as `applied`.
    """
    layers = _layers(model, adapter)
    report = AppliedReport(adapter.name, "merged", _described(layers))
    with ExitStack() as stack:
        for layer, target in layers.values():
            stack.callback(_merge(_weight(layer), target))
        yield report


def _layers(model: nn.Module, adapter: LoraAdapter) -> dict[str, tuple[nn.Module, LoraTarget]]:
    modules = dict(model.named_modules(remove_duplicate=False))
    layers = {path: (_found(path, modules, adapter), target) for path, target in adapter.targets.items()}
    for path, (layer, target) in layers.items():
        _check_fits(path, layer, target)
    if not any(bool(target.A.any()) and bool(target.B.any()) and target.scaling for target in adapter.targets.values()):
        raise LoraError(f"adapter {adapter.name!r} changes nothing: scaling * B @ A is zero in all its targets")
    return layers


def _found(path: str, modules: Mapping[str, nn.Module], adapter: LoraAdapter) -> nn.Module:
    if path not in modules:
        missing = sum(name not in modules for name in adapter.targets)
        near = difflib.get_close_matches(path, modules, n=1, cutoff=0.4)
        hint = f"\nnearest: {near[0]!r}" if near else ""
        text = f"{missing} of {len(adapter.targets)} targets of adapter {adapter.name!r} are no module of the model"
        raise LoraError(f"{text}\nfirst: {path!r}{hint}")
    return modules[path]


def _check_fits(path: str, layer: nn.Module, target: LoraTarget) -> None:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        kind = type(layer).__name__
        raise LoraError(f"{path!r} is a {kind} without a weight [out, in] of floats; LoRA needs a linear layer")
    given = (target.B.shape[0], target.A.shape[1])
    if given != tuple(weight.shape):
        raise LoraError(f"{path!r}: B @ A is {given}, the weight is {tuple(weight.shape)} [out, in]")


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _described(layers: Mapping[str, tuple[nn.Module, LoraTarget]]) -> dict[str, AppliedModule]:
    return {
        path: AppliedModule(target.rank, target.scaling, _relative(target, _weight(layer)))
        for path, (layer, target) in layers.items()
    }


def _relative(target: LoraTarget, weight: Tensor) -> float:
    """Return |scaling B A| / |W| from the R x R products in float64, never materialising B @ A."""
    A, B = target.A.double(), target.B.double()
    square = float(((B.t() @ B) * (A @ A.t()).t()).sum().clamp_min(0))
    size = norm(weight)
    return abs(target.scaling) * square**0.5 / size if size else float("inf")


def _wrap(layer: nn.Module, target: LoraTarget) -> Callable[[], None]:
    """Wrap the layer's forward and return what undoes it."""
    weight, own = _weight(layer), layer.__dict__.get("forward")
    names = [_free_name(layer, name) for name in ("lora_A", "lora_B")]
    for name, value in zip(names, (target.A, target.B), strict=True):
        layer.register_buffer(name, value.detach().to(weight.device, weight.dtype, copy=True), persistent=False)
    layer.__dict__["forward"] = _with_lora(layer, layer.forward, names[0], names[1], target.scaling)

    def undo() -> None:
        layer.__dict__.pop("forward", None)
        if own is not None:
            layer.__dict__["forward"] = own
        for name in names:
            delattr(layer, name)

    return undo


def _free_name(layer: nn.Module, name: str) -> str:
    names = (f"{name}_{number}" if number else name for number in range(1000))
    return next(free for free in names if not hasattr(layer, free))


def _with_lora(
    layer: nn.Module, forward: Callable[..., Any], name_a: str, name_b: str, scaling: float
) -> Callable[..., Any]:
    def with_lora(*args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else next(iter(kwargs.values()))
        A, B = getattr(layer, name_a), getattr(layer, name_b)
        result = forward(*args, **kwargs)
        y = result[0] if isinstance(result, tuple) else result
        y = (y + F.linear(F.linear(x.to(A.dtype), A), B) * scaling).to(y.dtype)
        return (y, *result[1:]) if isinstance(result, tuple) else y

    return with_lora


@torch.no_grad()
def _merge(weight: Tensor, target: LoraTarget) -> Callable[[], None]:
    """Merge into the weight and return what puts the copy back."""
    data, kept = weight.detach(), weight.detach().clone()
    delta = target.delta(torch.float32).to(weight.device)
    data.copy_((data.float() + delta).to(data.dtype))

    def undo() -> None:
        data.copy_(kept)

    return undo

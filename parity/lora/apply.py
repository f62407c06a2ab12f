"""Put an adapter on a model and take it off again, unmerged as PEFT does or merged into the weights.

Letters in shapes: R rank, I inputs, O outputs, S tokens.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.errors import LoraError
from parity.lora.adapter import LoraAdapter, LoraTarget
from parity.lora.dora import by_input, factors, with_magnitudes
from parity.lora.merge import KEPT_LIMIT, check_bias, kept_share, merge_into, warn_of_swallowed
from parity.numerics.chunks import norm

__all__ = ["KEPT_LIMIT", "AppliedModule", "AppliedReport", "applied", "kept_share", "merged", "quantised"]

@dataclass(frozen=True)
class AppliedModule:
    """What an adapter does to one module: rank, scaling and the change's norm relative to the weight's.

    The relative norm is NaN for a quantised weight, whose stored numbers are not the weight. `kept` is the share of the
    change that is in the weight once merged: below half a unit in the last place an element does not change at all.
    """

    rank: int
    scaling: float
    relative_norm: float
    kept: float = 1.0


@dataclass(frozen=True)
class AppliedReport:
    """Which modules an adapter changes; `how` is "unmerged" or "merged"."""

    name: str
    how: str
    modules: Mapping[str, AppliedModule]


@contextmanager
def applied(model: nn.Module, adapter: LoraAdapter) -> Iterator[AppliedReport]:
    """Wrap the forward of each target: `y + scaling * B(A(x))` with A and B in the weight's dtype.

    On a quantised layer A and B keep their own dtype, at most float32, and the weight stays as it is.

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
    """Add `scaling * B @ A`, computed in float32, to each target's weight and cast; the copies are put back on exit.

    Warns where the dtype of the weights swallows a tenth of the change or more (class "stored-weight rounding").

    Raises:
        LoraError: as `applied`; or a weight is quantised, where merging would round most of the change away.
    """
    layers = _layers(model, adapter)
    _check_mergeable(layers)
    for path, (layer, target) in layers.items():
        check_bias(path, layer, target)
    described = _described(layers)
    with ExitStack() as stack:
        for path, (layer, target) in layers.items():
            kept, undo = merge_into(layer, target)
            stack.callback(undo)
            described[path] = replace(described[path], kept=kept)
        warn_of_swallowed(adapter.name, {path: one.kept for path, one in described.items()})
        yield AppliedReport(adapter.name, "merged", described)


def _layers(model: nn.Module, adapter: LoraAdapter) -> dict[str, tuple[nn.Module, LoraTarget]]:
    modules = dict(model.named_modules(remove_duplicate=False))
    layers = {path: (_found(path, modules, adapter), target) for path, target in adapter.targets.items()}
    for path, (layer, target) in layers.items():
        _check_fits(path, layer, target)
    if not any(_changes(target) for target in adapter.targets.values()):
        raise LoraError(f"adapter {adapter.name!r} changes nothing: scaling * B @ A is zero in all its targets")
    return layers


def _changes(target: LoraTarget) -> bool:
    if target.magnitude is not None or (target.bias is not None and bool(target.bias.any())):
        return True
    return bool(target.A.any() and target.B.any() and target.scaling)


def _found(path: str, modules: Mapping[str, nn.Module], adapter: LoraAdapter) -> nn.Module:
    if path not in modules:
        missing = sum(name not in modules for name in adapter.targets)
        near = difflib.get_close_matches(path, modules, n=1, cutoff=0.4)
        hint = f"\nnearest: {near[0]!r}" if near else ""
        text = f"{missing} of {len(adapter.targets)} targets of adapter {adapter.name!r} are no module of the model"
        raise LoraError(f"{text}\nfirst: {path!r}{hint}")
    return modules[path]


def _check_fits(path: str, layer: nn.Module, target: LoraTarget) -> None:
    shape = _shape(layer)
    if shape is None:
        kind = type(layer).__name__
        raise LoraError(f"{path!r} is a {kind} without a weight [out, in] of floats; LoRA needs a linear layer")
    given = (target.B.shape[0], target.A.shape[1])
    if given != shape:
        raise LoraError(f"{path!r}: B @ A is {given}, the weight is {shape} [out, in]")
    if target.magnitude is not None and quantised(layer):
        raise LoraError(f"{path!r} is quantised: magnitudes (DoRA) need the weight itself")


def _shape(layer: nn.Module) -> tuple[int, int] | None:
    """Return (O, I) of a linear layer; of a quantised one by its features, since its weight may be packed."""
    weight, sizes = getattr(layer, "weight", None), [getattr(layer, f"{way}_features", None) for way in ("out", "in")]
    if isinstance(weight, Tensor) and not quantised(layer):
        return (weight.shape[0], weight.shape[1]) if weight.ndim == 2 else None
    if all(isinstance(size, int) for size in sizes):
        return int(sizes[0] or 0), int(sizes[1] or 0)
    return (weight.shape[0], weight.shape[1]) if isinstance(weight, Tensor) and weight.ndim == 2 else None


def quantised(layer: nn.Module) -> bool:
    """Whether a layer's stored weight is integers, eight-bit floats, or not there under that name."""
    weight = getattr(layer, "weight", None)
    return not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.element_size() == 1


def _check_mergeable(layers: Mapping[str, tuple[nn.Module, LoraTarget]]) -> None:
    found = [path for path, (layer, _) in layers.items() if quantised(layer)]
    if found:
        text = f"{len(found)} layers are quantised, the first {found[0]!r}: merging would round most of the change away"
        raise LoraError(f"{text}\napply the adapter unmerged, or merge it before the model is quantised")


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _described(layers: Mapping[str, tuple[nn.Module, LoraTarget]]) -> dict[str, AppliedModule]:
    return {
        path: AppliedModule(target.rank, target.scaling, _relative(target, layer))
        for path, (layer, target) in layers.items()
    }


def _relative(target: LoraTarget, layer: nn.Module) -> float:
    """Return |scaling B A| / |W| from the R x R products in float64, never materialising B @ A."""
    if quantised(layer):
        return math.nan
    A, B = target.A.double(), target.B.double()
    square = float(((B.t() @ B) * (A @ A.t()).t()).sum().clamp_min(0))
    size = norm(_weight(layer))
    return abs(target.scaling) * square**0.5 / size if size else float("inf")


def _wrap(layer: nn.Module, target: LoraTarget) -> Callable[[], None]:
    """Wrap the layer's forward and return what undoes it."""
    own = layer.__dict__.get("forward")
    dtype, device = _arithmetic(layer, target)
    names = [_free_name(layer, name) for name in ("lora_A", "lora_B")]
    for name, value in zip(names, (target.A, target.B), strict=True):
        layer.register_buffer(name, value.detach().to(device, dtype, copy=True), persistent=False)
    layer.__dict__["forward"] = _with_lora(layer, layer.forward, names[0], names[1], target.scaling)
    if target.magnitude is not None:
        names.append(_free_name(layer, "lora_magnitude"))
        layer.register_buffer(names[-1], factors(target, _weight(layer)).to(device, dtype), persistent=False)
        layer.__dict__["forward"] = with_magnitudes(layer, layer.__dict__["forward"], names[-1], by_input(target))
    if target.bias is not None:
        names.append(_free_name(layer, "lora_bias"))
        layer.register_buffer(names[-1], target.bias.detach().to(device, dtype, copy=True), persistent=False)
        layer.__dict__["forward"] = _with_bias(layer, layer.__dict__["forward"], names[-1])

    def undo() -> None:
        layer.__dict__.pop("forward", None)
        if own is not None:
            layer.__dict__["forward"] = own
        for name in names:
            delattr(layer, name)

    return undo


def _arithmetic(layer: nn.Module, target: LoraTarget) -> tuple[torch.dtype, torch.device]:
    """Return the dtype and device of A and B: the weight's, or on a quantised layer the adapter's own."""
    held = next((value for value in (*layer.parameters(False), *layer.buffers(False))), target.A)
    if not quantised(layer):
        return _weight(layer).dtype, held.device
    low = target.A.dtype in (torch.bfloat16, torch.float16)
    return (target.A.dtype if low else torch.float32), held.device


def _free_name(layer: nn.Module, name: str) -> str:
    names = (f"{name}_{number}" if number else name for number in range(1000))
    return next(free for free in names if not hasattr(layer, free))


def _with_bias(layer: nn.Module, forward: Callable[..., Any], name: str) -> Callable[..., Any]:
    def with_bias(*args: Any, **kwargs: Any) -> Any:
        result = forward(*args, **kwargs)
        y = result[0] if isinstance(result, tuple) else result
        y = (y + getattr(layer, name)).to(y.dtype)
        return (y, *result[1:]) if isinstance(result, tuple) else y

    return with_bias


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

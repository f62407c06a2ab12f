"""Put an adapter on a model and take it off again, unmerged as PEFT does or merged into the weights.

Letters in shapes: R rank, I inputs, O outputs, S tokens.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from torch import nn

from parity.errors import LoraError
from parity.lora.adapter import LoraAdapter, LoraTarget
from parity.lora.beside import weight_of, wrap, wrap_in_full
from parity.lora.dora import by_input
from parity.lora.full import Place, places, without_bias, write
from parity.lora.layers import kind_of, quantised, shape_of
from parity.lora.merge import KEPT_LIMIT, check_bias, kept_share, merge_into, warn_of_swallowed
from parity.lora.problems import some
from parity.numerics.chunks import norm

__all__ = ["KEPT_LIMIT", "AppliedModule", "AppliedReport", "applied", "kept_share", "merged", "quantised"]


@dataclass(frozen=True)
class AppliedModule:
    """What an adapter does to one module: rank, scaling and the change's norm relative to the weight's.

    The relative norm is NaN for a quantised weight, whose stored numbers are not the weight. `kept` is the share of the
    change that is in the weight once merged: below half a unit in the last place an element does not change at all.
    Of a tensor that is changed in full the rank is 0.
    """

    rank: int
    scaling: float
    relative_norm: float
    kept: float = 1.0


@dataclass(frozen=True)
class AppliedReport:
    """Which modules an adapter changes, and which tensors in full; `how` is "unmerged" or "merged"."""

    name: str
    how: str
    modules: Mapping[str, AppliedModule]


@contextmanager
def applied(model: nn.Module, adapter: LoraAdapter) -> Iterator[AppliedReport]:
    """Wrap the forward of each target: `y + scaling * B(A(x))` with A and B in the weight's dtype.

    On a quantised layer A and B keep their own dtype, at most float32, and the weight stays as it is. What is changed
    in full stands beside the weight of a linear layer, an embedding or a convolution too; other tensors (norms,
    tables) and weights that are replaced hold it themselves meanwhile.

    A and B are non-persistent buffers of their module meanwhile. The model is as it was after exit, whatever happened.

    Warns where a bias is for a layer without one: it is added to the layer's output, which other loaders leave out.

    Raises:
        LoraError: a path does not exist, is no linear layer of fitting size, or the adapter changes nothing.
    """
    layers, full = _layers(model, adapter)
    for path, (layer, target) in layers.items():
        _check_unmerged(path, layer, target)
    described = _described(layers, full)
    _warn_of_biases(adapter, full)
    with ExitStack() as stack:
        _write(stack, [place for place in full.values() if not place.beside], described)
        for layer, target in layers.values():
            stack.callback(wrap(layer, target))
        for place in full.values():
            if place.beside:
                stack.callback(wrap_in_full(place))
        warn_of_swallowed(adapter.name, {path: one.kept for path, one in described.items()})
        yield AppliedReport(adapter.name, "unmerged", described)


@contextmanager
def merged(model: nn.Module, adapter: LoraAdapter) -> Iterator[AppliedReport]:
    """Add `scaling * B @ A`, computed in float32, to each target's weight and cast; the copies are put back on exit.

    Warns where the dtype of the weights swallows a tenth of the change or more (class "stored-weight rounding").

    Raises:
        LoraError: as `applied`; or a weight is quantised, where merging would round most of the change away.
    """
    layers, full = _layers(model, adapter)
    _check_mergeable(layers, full)
    for path, (layer, target) in layers.items():
        check_bias(path, layer, target)
    described = _described(layers, full)
    with ExitStack() as stack:
        _write(stack, list(full.values()), described)
        for path, (layer, target) in layers.items():
            kept, undo = merge_into(layer, target)
            stack.callback(undo)
            described[path] = replace(described[path], kept=kept)
        warn_of_swallowed(adapter.name, {path: one.kept for path, one in described.items()})
        yield AppliedReport(adapter.name, "merged", described)


def _write(stack: ExitStack, full: list[Place], described: dict[str, AppliedModule]) -> None:
    """Write changes in full into their tensors, and how much of each the tensor's dtype keeps into `described`."""
    for place in full:
        old = None if place.tensor is None else place.tensor.detach().clone()
        stack.callback(write(place))
        if place.tensor is not None and old is not None:
            kept = kept_share(place.tensor, old, place.change.added_to(old))
            described[place.name] = replace(described[place.name], kept=kept)


Layers = dict[str, tuple[nn.Module, LoraTarget]]


def _layers(model: nn.Module, adapter: LoraAdapter) -> tuple[Layers, dict[str, Place]]:
    modules = dict(model.named_modules(remove_duplicate=False))
    layers = {path: (_found(path, modules, adapter), target) for path, target in adapter.targets.items()}
    for path, (layer, target) in layers.items():
        _check_fits(path, layer, target)
    full = places(model, adapter)
    for place in full.values():
        if place.attribute == "weight" and _magnitude(adapter, place.path):
            text = f"{place.name!r} is changed in full and has magnitudes (DoRA): no loader says what that means"
            raise LoraError(text)
    changes = any(one.replaces or bool(one.value.any()) for one in adapter.changes.values())
    if not changes and not any(_changes(target) for target in adapter.targets.values()):
        raise LoraError(f"adapter {adapter.name!r} changes nothing: scaling * B @ A is zero in all its targets")
    return layers, full


def _magnitude(adapter: LoraAdapter, path: str) -> bool:
    return path in adapter.targets and adapter.targets[path].magnitude is not None


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
    shape = shape_of(layer)
    if shape is None:
        kind = type(layer).__name__
        raise LoraError(f"{path!r} is a {kind} without a weight [out, in] of floats; LoRA needs a linear layer")
    given = (target.B.shape[0], target.A.shape[1])
    if given != shape:
        raise LoraError(f"{path!r}: B @ A is {given}, the weight is {shape} [out, in]")
    if target.magnitude is not None and quantised(layer):
        raise LoraError(f"{path!r} is quantised: magnitudes (DoRA) need the weight itself")


def _check_unmerged(path: str, layer: nn.Module, target: LoraTarget) -> None:
    """Refuse what can only be merged."""
    kind = kind_of(layer)
    if kind is None:
        text = f"{path!r} is a {type(layer).__name__}: a change cannot stand beside its weight"
        raise LoraError(f"{text}\nmerge the adapter: parity.lora.apply.merged")
    if target.magnitude is not None and kind == "convolution" and by_input(target):
        text = f"{path!r} is a convolution: magnitudes (DoRA) of its inputs cannot stand beside its weight"
        raise LoraError(f"{text}\nmerge the adapter: parity.lora.apply.merged")


def _check_mergeable(layers: Layers, full: Mapping[str, Place]) -> None:
    found = [path for path, (layer, _) in layers.items() if quantised(layer)]
    found += [name for name, place in full.items() if place.attribute == "weight" and quantised(place.layer)]
    if found:
        text = f"{len(found)} layers are quantised, the first {found[0]!r}: merging would round most of the change away"
        raise LoraError(f"{text}\napply the adapter unmerged, or merge it before the model is quantised")


def _warn_of_biases(adapter: LoraAdapter, full: Mapping[str, Place]) -> None:
    if without := list(without_bias(full)):
        text = f"adapter {adapter.name!r} changes the bias of {len(without)} layers that have none: {some(without)}"
        warnings.warn(f"{text}; it is added to their output, where other loaders leave it out", stacklevel=4)


def _described(layers: Layers, full: Mapping[str, Place]) -> dict[str, AppliedModule]:
    low = {p: AppliedModule(t.rank, t.scaling, _relative(t, layer)) for p, (layer, t) in layers.items()}
    return {**low, **{name: AppliedModule(0, 1.0, _relative_in_full(place)) for name, place in full.items()}}


def _relative_in_full(place: Place) -> float:
    if place.tensor is None or (place.attribute == "weight" and quantised(place.layer)):
        return math.nan
    size, change = norm(place.tensor), norm(place.change.added_to(place.tensor))
    return change / size if size else float("inf")


def _relative(target: LoraTarget, layer: nn.Module) -> float:
    """Return |scaling B A| / |W| from the R x R products in float64, never materialising B @ A."""
    if quantised(layer):
        return math.nan
    A, B = target.A.double(), target.B.double()
    square = float(((B.t() @ B) * (A @ A.t()).t()).sum().clamp_min(0))
    size = norm(weight_of(layer))
    return abs(target.scaling) * square**0.5 / size if size else float("inf")

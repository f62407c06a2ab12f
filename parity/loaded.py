"""One side, built: what calls it, and what shadows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from parity.errors import ModelFailed, ParityError
from parity.execution.module_state import ModuleState
from parity.execution.outside import keep_outside, outside
from parity.execution.passes import OUTPUT, Runner
from parity.execution.roots import EXACT_ABOVE, build_remembering, pruned, roots_of
from parity.execution.shadow import Shadow
from parity.execution.storage import ShadowTable, bits
from parity.execution.tap import Inputs, Tap
from parity.lora.adapter import FullChange, LoraAdapter
from parity.lora.apply import applied, kept_share, quantised
from parity.lora.dora import change_of
from parity.lora.full import is_plain, tensors_of
from parity.pair import Build, Side


@dataclass
class LoadedSide:
    """One side, built.

    `memory` holds the exact values of tables made while building and in the first call; `unused` is the model's state
    before any call. With `earlier` each pass starts from there with these calls, and leaves the model as it finds it.
    """

    label: str
    side: Side
    model: nn.Module
    memory: list[ShadowTable]
    finer: dict[int, Tensor] = field(default_factory=dict)
    unused: ModuleState | None = None
    earlier: tuple[Inputs, ...] | None = None
    outside: list[bool] = field(default_factory=list)
    """Whether calls make tables outside the model, once there was one; all views of the side share it."""

    def runner(self, taps: tuple[Tap, ...]) -> Runner:
        """Return what calls this side with its taps attached."""
        runner = Runner(self.label, self.model, self.side.call, self.side.output, taps, self.side.around_call)
        if self.earlier is not None:
            runner.unused, runner.earlier = self.unused, self.earlier
        return runner

    def shadow(self, make: Callable[..., Shadow], inputs: Inputs, **options: Any) -> Shadow:
        """Make a shadow whose roots are the model's and the inputs, with every finer value that is known."""
        for table in self.memory:
            pruned(table, self.model)
        given = [dict(one) for one in (inputs, *(self.earlier or ()))]
        return make(roots=roots_of(self.model, given), finer=self.finer, memory=[*self.memory, outside()], **options)

    def learn_constants(self, inputs: Inputs, taps: tuple[Tap, ...]) -> None:
        """Run a forward once under a shadow, for tables that are made and cached in the first call.

        The taps only tell how far a forward came that raises.
        """
        if self.earlier is not None:
            return  # each pass makes its own
        _, table = self._first_call(inputs, taps)
        self.memory.append(table)

    def output(self, inputs: Inputs) -> Tensor:
        """Call the model in whatever state it is and return its output.

        Where calls make tables outside the model, this one runs under a shadow, which computes the same, and they are
        kept: no later call makes them again.
        """
        as_it_is = replace(self, earlier=None)
        if not all(self.outside):
            return as_it_is.runner(()).run(inputs).values[OUTPUT].low
        low, _ = as_it_is._first_call(inputs, ())
        return low

    def _first_call(self, inputs: Inputs, taps: tuple[Tap, ...]) -> tuple[Tensor, ShadowTable]:
        shadow = self.shadow(Shadow, inputs, exact_above=EXACT_ABOVE)
        low = self.runner(taps).run(inputs, None, shadow, complete=False).values[OUTPUT].low
        made = keep_outside(shadow.table, self.model, [inputs, low])
        self.outside[:] = [made or any(self.outside) or bool(outside().entries)]
        return low, shadow.table


def load_side(label: str, side: Side, build: Build) -> LoadedSide:
    """Build one side.

    Raises:
        ModelFailed: it does not build.
    """
    try:
        model, memory = build_remembering(lambda: side.build(build))
        keep_outside(memory, model)
    except ParityError:
        raise
    except Exception as error:
        raise ModelFailed(f"the {label} {side.name!r} does not build: {type(error).__name__}: {error}") from error
    return LoadedSide(label, side, model.eval(), [memory], unused=ModuleState(model))


@contextmanager
def with_lora(side: LoadedSide, adapter: LoraAdapter) -> Iterator[Mapping[str, float]]:
    """Put a LoRA, named as the side's modules, on a side in the side's own way while the context is open.

    Yields what share of its change each weight it was merged into holds.
    """
    put = side.side.apply_lora or applied
    before = _target_weights(side.model, adapter)
    with put(side.model, adapter):
        shares: dict[str, float] = {}
        earlier, side.finer = side.finer, {**side.finer, **_merged_weights(side, adapter, before, shares)}
        try:
            yield shares
        finally:
            side.finer = earlier


def stored_lora(model: nn.Module, adapter: LoraAdapter) -> LoraAdapter:
    """Return an adapter with A and B in the dtype of the weights they go to, as PEFT keeps them beside a weight.

    Both sides get this one: rounding of A and B, which a merge may skip, is no difference between them.
    """
    modules, targets = dict(model.named_modules()), dict(adapter.targets)
    for path, one in adapter.targets.items():
        layer = modules.get(path)
        if layer is not None and not quantised(layer):
            dtype = layer.weight.dtype
            bias = None if one.bias is None else one.bias.to(dtype)
            targets[path] = replace(one, A=one.A.to(dtype), B=one.B.to(dtype), bias=bias)
    return LoraAdapter(adapter.name, targets, _stored_changes(model, adapter))


def _stored_changes(model: nn.Module, adapter: LoraAdapter) -> dict[str, FullChange]:
    """Return changes in full in the dtype of what they change; where that is quantised, as they are."""
    held = tensors_of(model, adapter.changes)
    return {
        name: replace(one, value=one.value.to(held[name])) if name in held and is_plain(held[name]) else one
        for name, one in adapter.changes.items()
    }


@contextmanager
def compiled_parts(side: LoadedSide) -> Iterator[None]:
    """Compile a side as it says it is deployed, while the context is open; what is compiled already stays so."""
    if side.side.compile is None:
        yield
        return
    before = {id(m): m._compiled_call_impl for m in side.model.modules()}
    side.side.compile(side.model)
    try:
        yield
    finally:
        for module in side.model.modules():
            module._compiled_call_impl = before.get(id(module))


def _rounding(finer: Tensor, delta: Tensor, dtype: torch.dtype) -> Tensor:
    """Return how far a sum may be from its exact value: half a unit of its own, and what the change had before."""
    change = delta.abs() + delta.square().mean().sqrt()
    return 2.0 ** -bits(dtype) * (1.001 * finer.abs().clamp_min(torch.finfo(dtype).tiny) + 8 * change)


def _target_weights(model: nn.Module, adapter: LoraAdapter) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the weight of each target and each tensor that is changed in full, and a copy of it."""
    modules = dict(model.named_modules())
    weights = {path: getattr(modules.get(path), "weight", None) for path in adapter.targets}
    weights |= tensors_of(model, adapter.changes)
    return {path: (w, w.detach().clone()) for path, w in weights.items() if isinstance(w, Tensor) and is_plain(w)}


def _changes_at(adapter: LoraAdapter, name: str, weight: Tensor, old: Tensor) -> Iterator[Tensor]:
    """Yield what may have been added to a weight: each of the adapter's changes of it alone, and all of them."""
    full = [one for one in (adapter.changes.get(name), adapter.changes.get(f"{name}.weight")) if one is not None]
    parts = [one.added_to(old) for one in full]
    if name in adapter.targets:
        parts.append(change_of(adapter.targets[name], old))
    yield sum(parts, torch.zeros_like(old, dtype=torch.float64))
    yield from parts if len(parts) > 1 else ()


def _merged_weights(
    side: LoadedSide, adapter: LoraAdapter, before: Mapping[str, tuple[Tensor, Tensor]], shares: dict[str, float]
) -> dict[int, Tensor]:
    """Return the exact values of weights an adapter was merged into: stored-weight rounding, not another function.

    A weight that is not what merging the adapter gives, but for the rounding of the sum and of the change, keeps its
    stored values. Into `shares` goes how much of each change the stored weight holds.
    """
    found = {}
    for path, (weight, old) in before.items():
        if torch.equal(weight, old):
            continue
        for delta in _changes_at(adapter, path, weight, old):
            finer = side.finer.get(id(weight), old).double() + delta
            slack = _rounding(finer, delta, weight.dtype)
            if id(weight) in side.finer:  # what it was merged into was rounded itself
                slack += 2.0 ** -bits(weight.dtype) * old.double().abs()
            if id(weight) not in found and bool(((weight.double() - finer).abs() <= slack).all()):
                found[id(weight)] = finer
                shares[path] = kept_share(weight, old, delta)
    return found

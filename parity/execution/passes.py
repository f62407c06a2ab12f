"""One forward of one side: plain or shadowed, free-running or in lockstep with a reference.

Lockstep: each time a tap is reached its value is recorded, then both sides go on from one number: the reference's
value, rounded to the coarser of the two sides' dtypes there. What is seen at a tap is then the error made since the
previous taps, so every faulty segment shows in one pass and none hides another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from parity.errors import ModelFailed, NotReached, ParityError, TapError
from parity.execution.hooks import TapHooks
from parity.execution.modes import eager
from parity.execution.module_state import ModuleState
from parity.execution.shadow import Shadow
from parity.execution.storage import bits
from parity.execution.tap import Inputs, Tap
from parity.execution.trace import Kept, Sink, Trace

OUTPUT = "final_output"


class Restart(Protocol):
    """From the value a side reached to the one it goes on with (its own layout); None: as it is."""

    def __call__(self, tap: Tap, value: Tensor, number: int) -> Tensor | None:
        """Return the value to go on with."""


@dataclass
class Runner:
    """Calls one side.

    Args:
        side: "reference" or "native".
        model: the model, already in eval mode.
        call: runs one forward.
        output: picks the final output from what the call returned.
        around: what surrounds a call.
        taps: the pair's taps.
        unused: the model's state before any call, from which each pass starts; None: as the last one left it.
        earlier: calls of a pass before the one that counts.
    """

    side: str
    model: nn.Module
    call: Callable[[nn.Module, Inputs], Any]
    output: Callable[[Any], Tensor]
    taps: Sequence[Tap]
    around: Callable[[nn.Module, Inputs], AbstractContextManager[Any]] = lambda model, inputs: nullcontext()
    unused: ModuleState | None = None
    earlier: Sequence[Inputs] = ()

    @property
    def is_compiled(self) -> bool:
        """Whether a part of the model is compiled (`torch.compile` or `Module.compile`)."""
        return any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in self.model.modules())

    def run(
        self, inputs: Inputs, restart: Restart | None = None, shadow: Shadow | None = None, *, compiled: bool = False,
        sink: Sink | None = None, complete: bool = True,
    ) -> Trace:  # fmt: skip
        """Run one forward and return its trace.

        Args:
            inputs: what the pair feeds to both sides.
            restart: lockstep: what each tap goes on with; None: free-running.
            shadow: a shadow to run under; None: plain.
            compiled: let compiled parts run compiled; else all runs eagerly.
            sink: where values go; None: they are kept in memory.
            complete: every tap is to be reached.

        Raises:
            NotReached: taps were not reached.
            ModelFailed: the model raised or ran out of memory.
        """
        seen = _Recorder(restart, shadow, sink or Kept())
        hooks = TapHooks(self.model, self.taps, self.side, seen)
        try:
            with torch.no_grad(), hooks.attached(), self.around(self.model, inputs), ExitStack() as inner:
                inner.enter_context(nullcontext() if self.unused is None else self.unused.restored())
                inner.enter_context(nullcontext() if compiled else eager())
                inner.enter_context(shadow or nullcontext())
                self._call_earlier(hooks)
                out = self.output(self.call(self.model, inputs))
        except (ParityError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise _failed(self.side, seen.last, error) from error
        if not isinstance(out, Tensor):
            raise TapError(f"{self.side}: the pair's `output` gave a {type(out).__name__}, not a tensor")
        trace = seen.trace(out)
        if complete:
            self._check_reached(trace)
        return trace

    def _call_earlier(self, hooks: TapHooks) -> None:
        hooks.quiet = True
        for given in self.earlier:
            with self.around(self.model, given):
                self.call(self.model, given)
        hooks.quiet = False

    def _check_reached(self, trace: Trace) -> None:
        missing = [t.name for t in self.taps if getattr(t, self.side) is not None and t.name not in trace.values]
        if missing:
            raise NotReached(
                f"{self.side}: {len(missing)} of {len(self.taps)} taps were never reached: {', '.join(missing[:6])}\n"
                f"the {self.side} has these modules and does not call them in this forward: a step it leaves out, "
                "another branch,\nor compiled away; take the taps out of the pair to judge the rest",
                self.side, tuple(missing),
            )  # fmt: skip


def _failed(side: str, last: str, error: Exception) -> ModelFailed:
    if isinstance(error, torch.OutOfMemoryError):
        text = f"the {side} ran out of memory after {last}: {str(error)[:120] or 'no details'}".splitlines()[0]
        return ModelFailed(f"{text}\ntake a smaller input or size, or run one model at a time")
    return ModelFailed(f"the {side} raised after {last}: {type(error).__name__}: {str(error)[:300]}")


def _every(tap: Tap) -> bool:
    return True


def _copy(value: Tensor) -> Tensor:
    """Copy a value, dense: what is computed from it must not depend on the strides it had in the model."""
    return value.clone(memory_format=torch.contiguous_format)


class _Recorder:
    """Keeps what is seen at taps, and restarts low and high from the same number."""

    def __init__(self, restart: Restart | None, shadow: Shadow | None, sink: Sink) -> None:
        self.restart, self.shadow, self.sink = restart, shadow, sink
        self.last = "its start"

    def __call__(self, tap: Tap, value: Tensor, number: int) -> Tensor | None:
        with _disable_current_modes():
            self.last = tap.name
            high = None if self.shadow is None else _copy(self.shadow.high(value))
            self.sink.put(tap.name, _copy(value.detach()), high)
            if self.shadow is not None:
                self.shadow.begin_segment(tap.name)
            if self.restart is None or not tap.restarts or not getattr(self.restart, "wants", _every)(tap):
                return None
            return self._restarted(tap, value, high, number)

    def _restarted(self, tap: Tap, value: Tensor, high: Tensor | None, number: int) -> Tensor | None:
        assert self.restart is not None
        new = self.restart(tap, value, number)
        going_on = value if new is None else new
        if self.shadow is not None and high is not None:
            kept = self._kept(tap, value)
            self.shadow.assign(going_on, going_on if kept is None else torch.where(kept, high, going_on))
        return new

    def _kept(self, tap: Tap, value: Tensor) -> Tensor | None:
        """Return the mask of what keeps the side's own value (padding) in the call that was restarted last."""
        mask: Callable[[Tap, Tensor], Tensor | None] | None = getattr(self.restart, "kept", None)
        return None if mask is None or tap.valid is None else mask(tap, value)

    def trace(self, out: Tensor) -> Trace:
        """Close the pass with the final output."""
        high = None if self.shadow is None else _copy(self.shadow.high(out))
        self.sink.put(OUTPUT, _copy(out.detach()), high)
        trace = Trace(self.sink.values())
        if self.shadow is not None:
            trace.events, trace.kernels, trace.ops = Counter(self.shadow.events), self.shadow.kernels, self.shadow.ops
            trace.decisions = self.shadow.decisions
            trace.dtypes = self.shadow.dtypes
        return trace


# --- restarts ---------------------------------------------------------------------------------------------------------


@dataclass
class FromReference:
    """The reference's own restart: its value, rounded where the native's dtype is coarser.

    Args:
        coarser: tap name to the native's dtype there.
        inputs: for masks of valid tokens.
    """

    coarser: Mapping[str, torch.dtype]
    inputs: Inputs
    _rows: dict[str, tuple[int, int]] = field(default_factory=dict)

    def wants(self, tap: Tap) -> bool:
        """Say whether the native has the tap: where one side cannot restart, neither does."""
        return tap.native is not None

    def __call__(self, tap: Tap, value: Tensor, number: int) -> Tensor | None:
        """Round to the native's dtype where that is coarser; else go on as it is."""
        start = self._rows.get(tap.name, (0, 0))[1]
        self._rows[tap.name] = start, start + (value.shape[0] if value.dim() else 1)
        if tap.layout.settle is not None:
            return self._settled(tap, tap.layout.settle(value))
        return self._rounded(tap, value)

    def _settled(self, tap: Tap, value: Tensor) -> Tensor:
        rounded = self._rounded(tap, value)
        return value.clone() if rounded is None else rounded

    def _rounded(self, tap: Tap, value: Tensor) -> Tensor | None:
        other = self.coarser.get(tap.name)
        floats = other is not None and other.is_floating_point and value.is_floating_point()
        if other is None or not floats or bits(other) >= bits(value.dtype):
            return None
        rounded = value.to(other).to(value.dtype)
        kept = self.kept(tap, value)
        return rounded if kept is None else torch.where(kept, value, rounded)

    def kept(self, tap: Tap, value: Tensor) -> Tensor | None:
        """Mask what is padding in the reference's layout, of several calls in the one at hand."""
        if tap.valid is None:
            return None
        mask = tap.valid(self.inputs)
        start, stop = self._rows[tap.name]
        if value.dim() > 1 and mask.dim() >= value.dim() - 1 and mask.shape[0] > value.shape[0]:
            mask = mask[start:stop]
        return ~broadcast_mask(mask, value)


@dataclass(frozen=True)
class ExactAt:
    """A restart of shadows only: at the named taps the values as computed are taken as the truth."""

    names: frozenset[str]

    def wants(self, tap: Tap) -> bool:
        """Say whether the tap is one of them."""
        return tap.name in self.names

    def __call__(self, tap: Tap, value: Tensor, number: int) -> Tensor | None:
        """Leave the low value as it is."""
        return None


@dataclass
class FromTrace:
    """The native's restart: the reference's value at the tap, in the native's layout and dtype.

    Args:
        values: tap name to the reference's value, already rounded to the coarser dtype, reference layout.
        shapes: tap name to the native's shape, calls concatenated, and the dim-0 sizes of its calls.
        inputs: for masks of valid tokens.
    """

    values: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[torch.Size, tuple[int, ...]]]
    inputs: Inputs
    _cache: dict[str, list[Tensor]] = field(default_factory=dict)
    _number: dict[str, int] = field(default_factory=dict)

    def wants(self, tap: Tap) -> bool:
        """Say whether the reference has the tap: where one side cannot restart, neither does."""
        return tap.name in self.values

    def __call__(self, tap: Tap, value: Tensor, number: int) -> Tensor | None:
        """Return the reference's value for this call; padding keeps the native's own."""
        if tap.name not in self.values or tap.layout.backward is None:
            return None
        self._number[tap.name] = number
        new = self._part(tap, number).to(value.dtype)
        if new.shape != value.shape:
            given = f"the layout {tap.layout.name!r} gives {tuple(new.shape)}"
            raise TapError(f"tap {tap.name}: {given}, the native has {tuple(value.shape)}")
        kept = self.kept(tap, value)
        new = new if kept is None else torch.where(kept, value, new)
        strided = not any(step == 0 and size > 1 for step, size in zip(value.stride(), value.shape, strict=True))
        # An expanded value has one number at many places: it cannot be written to, and needs none of its strides.
        strides = value.stride() if strided else torch.empty(value.shape, device="meta").stride()
        out = torch.empty_strided(value.shape, strides, dtype=value.dtype, device=value.device)
        return out.copy_(new)

    def _part(self, tap: Tap, number: int) -> Tensor:
        if tap.name not in self._cache:
            shape, parts = self.shapes[tap.name]
            assert tap.layout.backward is not None
            whole = tap.layout.backward(self.values[tap.name], shape)
            self._cache[tap.name] = list(torch.split(whole, list(parts))) if len(parts) > 1 else [whole]
        held = self._cache[tap.name]
        if number >= len(held):
            raise TapError(f"tap {tap.name}: the native reached it {number + 1} times, {len(held)} in its plain pass")
        part = held[number]
        if number == len(held) - 1:
            held.clear()  # memory stays at the taps between first and last call
            held.extend([part.new_empty(0)] * (number + 1))
        return part

    def kept(self, tap: Tap, value: Tensor) -> Tensor | None:
        """Mask what is padding, in the native's layout, of several calls in the one at hand."""
        if tap.valid is None or tap.layout.backward is None:
            return None
        like = self.values[tap.name]
        shape, parts = self.shapes[tap.name]
        mask = ~mask_of(tap, self.inputs, like)
        whole = tap.layout.backward(mask.expand(like.shape).to(like.dtype), shape) > 0.5
        return torch.split(whole, list(parts))[self._number[tap.name]] if len(parts) > 1 else whole


def mask_of(tap: Tap, inputs: Inputs, value: Tensor) -> Tensor:
    """Return the mask of valid elements, broadcast to the reference value's shape."""
    assert tap.valid is not None
    return broadcast_mask(tap.valid(inputs), value)


def broadcast_mask(mask: Tensor, value: Tensor) -> Tensor:
    """Bring a mask to a value's device and number of dims."""
    mask = mask.to(value.device)
    return mask if mask.dim() == value.dim() else mask.expand(value.shape[:-1]).unsqueeze(-1)

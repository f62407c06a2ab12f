"""Writing shadows: binding results, casts, constants and in-place writes to the storages they belong to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from parity.execution.equivalents import Call
from parity.execution.leaks import caller_line
from parity.execution.memory import NAN, ShadowMemory, leaves, shadowable
from parity.execution.rules import Rule
from parity.execution.storage import Entry, is_float, real_dtype

CONSTANTS: dict[str, float | None] = {
    "zeros": 0.0, "zeros_like": 0.0, "new_zeros": 0.0, "ones": 1.0, "ones_like": 1.0, "new_ones": 1.0,
    "full": None, "full_like": None, "new_full": None,
}  # fmt: skip


_AFTER_ROUNDING = frozenset({"clamp", "clamp_min", "clamp_max", "hardtanh", "add", "sub"})


class ShadowBinder(ShadowMemory):
    """Gives tensors shadows. `exact_above`: outputs above this many elements are taken as exact (build mode)."""

    exact_above: int | None = None
    quantised = False
    """Whether something was rounded to integers in this pass: only then is it worth looking for what they stand for."""

    def exact(self, tensor: Tensor) -> None:
        """Take the tensor's values as they are now as the truth (a restart, a declared constant)."""
        self._write(tensor, tensor)

    def assign(self, tensor: Tensor, high: Tensor) -> None:
        """Give the tensor these shadow values."""
        self._write(tensor, high)

    def constant(self, tensor: Tensor, exact: Tensor | None) -> None:
        """Take a tensor made of Python numbers or arrays as a constant, with its exact values where they are known."""
        with torch.utils._python_dispatch._disable_current_modes():
            same = exact is not None and exact.shape == tensor.shape
            self._write(tensor, exact.to(tensor.device) if same and exact is not None else tensor)

    def _write(self, tensor: Tensor, high: Tensor) -> None:
        if not shadowable(tensor) or not is_float(tensor):
            return
        if self.table.find(tensor) is None and tensor.untyped_storage()._cdata not in self._roots:
            self.table.new(tensor).fill = NAN
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            if size > 1 and stride == 0:  # an expanded view: its elements share memory, one of them is written
                tensor, high = tensor.narrow(dim, 0, 1), high.narrow(dim, 0, 1)
        self._writable(tensor, whole=False).copy_(high)

    def _writable(self, tensor: Tensor, whole: bool) -> Tensor:
        entry = self.table.find(tensor)
        if entry is None:
            key = tensor.untyped_storage()._cdata
            root = self._roots.get(key)
            remembered = next((t.entries[key] for t in self._memory if key in t.entries), None)
            entry = self.table.new(tensor)
            if remembered is not None and not self._as_stored:
                low: Any = self._copy_of(remembered)
            elif root is None:
                self._stray(tensor)
                low = None if whole else self._nan
            else:
                low = self._root_flat
        elif entry.source is not None or entry.fill is not None or entry.flat is not None:
            held = self._copy_of(entry)
            low = held
        else:
            low = self._nan
        return self.table.materialise(tensor, entry, low)

    def _copy_of(self, entry: Entry) -> Any:
        snapshot = Entry(entry.low_dtype)
        snapshot.flat, snapshot.fill, snapshot.source = entry.flat, entry.fill, entry.source
        return lambda whole: self.table.read(whole, snapshot)

    @staticmethod
    def _nan(whole: Tensor) -> Tensor:
        return torch.full_like(whole, NAN, dtype=torch.float64)

    def _reinterpreted(self, tensor: Tensor) -> None:
        """An integer view of float memory is written: bits, not values; the floats are no longer trusted."""
        entry = self.table.find(tensor)
        if entry is None:
            return
        if entry.step is not None:
            del self.table.entries[tensor.untyped_storage()._cdata]
        elif entry.low_dtype != real_dtype(tensor.dtype):
            entry.flat, entry.owner, entry.source, entry.fill = None, None, None, NAN
            self.events[f"bits written through {tensor.dtype} at {caller_line()}"] += 1

    def _bind(self, rule: Rule, low: Tensor, high: Tensor) -> None:
        self.table.adopt(low, high)

    def _cast(self, source: Tensor, out: Tensor) -> None:
        """A cast changes nothing in the shadow; the cast of a root stays a root."""
        if not is_float(source):
            high = self._high(source).clone() if self._carries(source) else source.to(self._high_dtype(out))
            self.table.adopt(out, high)
            return
        if source.is_complex() and not out.is_complex():
            self.table.adopt(out, self._high(source).real.clone())
            return
        key = source.untyped_storage()._cdata
        entry = self.table.entries.get(key)
        high = self._high(source)
        if entry is not None and not (out.is_complex() and not source.is_complex()):
            self.table.share(out, entry, high)
        elif self._is_plain_root(key) and _same_memory_layout(source, out):
            self.table.new(out).source = source  # a cached autocast weight: no second copy in high
        else:
            self.table.adopt(out, high.to(self._high_dtype(out)).clone())

    def _is_plain_root(self, key: int) -> bool:
        """Say whether a root is a parameter whose high values are just its low ones: its cast needs no memory.

        Parameters are not written in a forward; a buffer's cast must not change when the buffer does.
        """
        root = self._roots.get(key)
        known = key in self._finer or any(key in t.entries for t in self._memory)
        return isinstance(root, nn.Parameter) and not known

    def _integers(self, rule: Rule, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        """Keep the shadow of quantised activations: of what a cast to 8-bit integers rounded, and of what moves them.

        Integers made of them in any other way are not trusted.
        """
        source = args[0] if args else None
        if not shadowable(out) or out.dtype == torch.bool:
            return
        if any(isinstance(a, Tensor) and self._carries(a) for a in leaves((args, kwargs))):
            high = self._quantised_high(rule, func, args, kwargs, out)
        elif rule.cast and out.dtype in (torch.int8, torch.uint8) and isinstance(source, Tensor) and is_float(source):
            entry = self.table.find(source)
            high = entry.step if entry is not None and entry.step is not None else self._high(source)
        else:
            return
        self.quantised = True
        fresh = self.table.new(out)
        self.table.materialise(out, fresh, None).copy_(high)
        fresh.step = high

    def _quantised_high(self, rule: Rule, func: Any, args: Any, kwargs: Any, out: Tensor) -> Tensor:
        if rule.equivalent is not None:
            high = rule.equivalent(Call(rule.name, args, kwargs, out, self._map(args), self._map_kwargs(kwargs)))[0]
        elif rule.moves or rule.cast:
            high = self._map(args[0]).clone() if rule.cast else func(*self._map(args), **self._map_kwargs(kwargs))
        else:
            self.events[f"{rule.name} of quantised activations at {caller_line()}"] += 1
            high = None
        same = isinstance(high, Tensor) and high.shape == out.shape
        return high if same else torch.full_like(out, NAN, dtype=torch.float64)

    def _filled(self, out: Tensor, fill: float) -> None:
        self.table.new(out).fill = fill

    def _constant(self, rule: Rule, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        """A constant fill is kept as its number, so that memory written behind the dispatcher's back is noticed."""
        number = CONSTANTS[rule.short]
        if number is None:
            numbers = [a for a in (*args, *kwargs.values()) if isinstance(a, (int, float)) and not isinstance(a, bool)]
            number = float(numbers[-1]) if numbers and not out.is_complex() else NAN
        if number != number or out.is_complex():
            self.table.adopt(out, out.to(self._high_dtype(out)))
        else:
            self._filled(out, number)

    def _distrust(self, rule: Rule, outs: list[Tensor], why: str, written: bool = False) -> None:
        self.events[f"{why} at {caller_line()}"] += 1
        for out in outs:
            if written:
                self._write(out, torch.full_like(out, NAN, dtype=self._high_dtype(out)))
            else:
                self._filled(out, NAN)

    def _keep_unrounded(self, rule: Rule, func: Any, args: Any, kwargs: Any, low: Tensor) -> None:
        """Remember what a rounding rounded: a cast to int8 that follows is a down-cast, not a decision.

        A zero point added and a saturation in between are done to it too.
        """
        entry, source = self.table.find(low), args[0]
        if entry is None or not isinstance(source, Tensor) or not shadowable(source):
            return
        if rule.short == "round":
            self.quantised = True
            entry.step = self._high(source).clone()
        elif rule.short in _AFTER_ROUNDING:
            before = self.table.find(source)
            if before is not None and before.step is not None and before.step.shape == low.shape:
                entry.step = func(before.step, *self._map(args[1:]), **self._map_kwargs(kwargs))

    def _needs_shadow(self, out: Tensor) -> bool:
        if not is_float(out) or not shadowable(out):
            return False
        if self.knows(out):
            return False  # an alias of something that has one
        return self.exact_above is None or out.numel() <= self.exact_above


def _same_memory_layout(source: Tensor, out: Tensor) -> bool:
    """Say whether a view of `out` can be read off `source` by its geometry."""
    whole = source.storage_offset() == 0 and source.is_contiguous() and out.is_contiguous()
    return whole and not source.is_complex() and source.device == out.device

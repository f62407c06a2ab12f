"""Shadows by storage: one high-precision copy of each storage the forward writes.

Keyed by storage and not by tensor, every view, `detach`, `.data` and slice of a tensor finds its shadow by geometry,
whoever made it. What cannot be trusted is NaN in the shadow, element by element: NaN spreads through arithmetic to
exactly what depends on it, so taint needs no bookkeeping of its own.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from parity.execution.reuse import Spare

REAL = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}
BITS = {
    torch.float64: 53,
    torch.float32: 24,
    torch.float16: 11,
    torch.bfloat16: 8,
    torch.float8_e4m3fn: 4,
    torch.float8_e5m2: 3,
    torch.float8_e4m3fnuz: 4,
    torch.float8_e5m2fnuz: 3,
    **({torch.float8_e8m0fnu: 1} if hasattr(torch, "float8_e8m0fnu") else {}),
}
"""Significand bits, the hidden one included."""


def is_float(tensor: Tensor) -> bool:
    """Say whether a tensor carries rounding: real or complex floating point."""
    return tensor.is_floating_point() or tensor.is_complex()


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of one real component."""
    return REAL.get(dtype, dtype)


def bits(dtype: torch.dtype) -> int:
    """Return the significand bits of a float or complex dtype."""
    return BITS[real_dtype(dtype)]


def geometry(tensor: Tensor) -> tuple[torch.Size, tuple[int, ...], int]:
    """Return size, stride and offset: what makes a view of a storage."""
    return tensor.shape, tensor.stride(), int(tensor.storage_offset())


class _Watch(weakref.ref):  # type: ignore[type-arg]
    """A weak reference that knows the key it guards; two words instead of a closure per storage."""

    __slots__ = ("key",)
    key: int


class Entry:
    """The shadow of one storage.

    `flat` holds one high value per real scalar of the storage. Until something is written it may be absent: then the
    values are `fill` everywhere (fresh constants, NaN for uninitialised memory), or those of `source`, a root this
    storage is a cast of (so that cached autocast weights cost no memory). `low`: of a remembered table, the values as
    computed when it was remembered.
    """

    __slots__ = ("fill", "flat", "low", "low_dtype", "owner", "shared", "source", "step", "watch")

    def __init__(self, low_dtype: torch.dtype) -> None:
        self.low_dtype = low_dtype
        self.flat: Tensor | None = None
        self.fill: float | None = None
        self.source: Tensor | None = None
        self.owner: tuple[Any, Tensor] | None = None
        self.shared = False
        self.step: Tensor | None = None
        self.low: Tensor | None = None
        self.watch: _Watch | None = None


class ShadowTable:
    """Shadows of the storages that are alive. Letters: n real scalars in a storage."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.dtype = dtype
        self.entries: dict[int, Entry] = {}
        self.spare = Spare()

    def high_dtype(self, low: torch.dtype) -> torch.dtype:
        """Return the shadow dtype of a low dtype: what is float64 in the model stays float64."""
        wide = torch.float64 if real_dtype(low) == torch.float64 else self.dtype
        if low in REAL:
            return torch.complex128 if wide == torch.float64 else torch.complex64
        return wide

    def find(self, tensor: Tensor) -> Entry | None:
        """Return the entry of the tensor's storage, if it has one."""
        return self.entries.get(tensor.untyped_storage()._cdata)

    def new(self, tensor: Tensor) -> Entry:
        """Make an empty entry for the tensor's storage; it goes when the storage goes."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        entry = Entry(real_dtype(tensor.dtype))
        watch = _Watch(storage, self._forget)
        watch.key = key
        entry.watch = watch
        self.entries[key] = entry
        return entry

    def _forget(self, watch: _Watch) -> None:
        held = self.entries.get(watch.key)
        if held is not None and held.watch is watch:
            del self.entries[watch.key]
            flat, held.flat, held.owner = held.flat, None, None
            if flat is not None and not held.shared:
                self.spare.keep(flat)

    def adopt(self, tensor: Tensor, high: Tensor) -> None:
        """Bind freshly computed high values to a freshly computed tensor of the same shape."""
        entry = self.new(tensor)
        if high.dtype != self.high_dtype(tensor.dtype):
            high = high.to(self.high_dtype(tensor.dtype))
        if high.untyped_storage()._cdata == tensor.untyped_storage()._cdata:
            high = high.clone()  # float64 as it is: what is written in place must not be written twice
        if _covers(tensor) and high.stride() == tensor.stride() and _covers(high):
            entry.owner = (geometry(tensor), high)
            entry.flat = _flat(high)
        else:
            self.materialise(tensor, entry, None).copy_(high)

    def share(self, tensor: Tensor, other: Entry, high: Tensor) -> None:
        """Let a cast have the shadow of what it was cast from; copied when either is written."""
        same_layout = _covers(tensor) and _covers(high) and high.stride() == tensor.stride()
        if same_layout and other.flat is not None and high.dtype == self.high_dtype(tensor.dtype):
            entry = self.new(tensor)
            entry.owner, entry.flat = (geometry(tensor), high), _flat(high)
            entry.shared = other.shared = True
            return
        self.adopt(tensor, high.clone())

    def read(self, tensor: Tensor, entry: Entry) -> Tensor:
        """Return the high values of a view. Read only: it may alias the low tensor's float64 memory or a root."""
        if real_dtype(tensor.dtype) != entry.low_dtype:
            return tensor.to(self.high_dtype(tensor.dtype)).fill_(float("nan"))
        if entry.owner is not None and entry.owner[0] == geometry(tensor):
            return _conj_like(tensor, entry.owner[1])
        if entry.flat is not None:
            return _conj_like(tensor, self._view(entry.flat, tensor))
        if entry.source is not None and tensor.is_complex() != entry.source.is_complex():
            flat = entry.source.reshape(-1).to(self.dtype)
            return _conj_like(tensor, self._view(flat, tensor))
        if entry.source is not None:
            return view_like(entry.source, tensor).to(self.high_dtype(tensor.dtype))
        return self._filled(tensor, entry)

    def _filled(self, tensor: Tensor, entry: Entry) -> Tensor:
        """Give the fill value, NaN where the low memory no longer holds it: a write the dispatcher never saw."""
        assert entry.fill is not None
        high = torch.full_like(tensor, entry.fill, dtype=self.high_dtype(tensor.dtype))
        if entry.fill == entry.fill:
            high.masked_fill_(tensor != torch.full_like(tensor, entry.fill), float("nan"))
        return high

    def _view(self, flat: Tensor, tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            flat = torch.view_as_complex(flat.view(-1, 2))
        return flat.as_strided(*geometry(tensor))

    def materialise(self, tensor: Tensor, entry: Entry, low: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Give the whole storage values of its own and return the writable view of `tensor`.

        `low` gives the high values of a tensor that covers the storage; None where all of it is about to be written.
        """
        if entry.flat is None or entry.shared:
            scalars = tensor.untyped_storage().nbytes() // entry.low_dtype.itemsize
            dtype = torch.float64 if entry.low_dtype == torch.float64 else self.dtype
            flat = torch.empty(scalars, dtype=dtype, device=tensor.device)
            if low is not None:
                whole = tensor.new_empty(0, dtype=entry.low_dtype).set_(tensor.untyped_storage(), 0, (scalars,))  # type: ignore[call-overload]
                flat.copy_(low(whole))
            elif not _covers(tensor):
                flat.fill_(float("nan"))
            entry.flat, entry.shared = flat, False
            entry.fill = entry.source = None
        entry.owner = entry.step = None
        return _seen_like(tensor, self._view(entry.flat, tensor))


def view_like(whole: Tensor, tensor: Tensor) -> Tensor:
    """Take the view of `whole`'s storage that `tensor` is of its own."""
    return whole.as_strided(*geometry(tensor)) if geometry(whole) != geometry(tensor) else whole


def _covers(tensor: Tensor) -> bool:
    """Say whether a tensor is dense and is all of its storage."""
    return (
        tensor.storage_offset() == 0
        and tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def _flat(high: Tensor) -> Tensor:
    real = torch.view_as_real(high.resolve_conj()) if high.is_complex() else high
    return real.as_strided((real.numel(),), (1,), 0)


def _seen_like(tensor: Tensor, high: Tensor) -> Tensor:
    """Return a writable view that shows high values as `tensor` shows its memory: conjugated, negated or as is."""
    high = high.conj() if tensor.is_conj() else high
    return torch._neg_view(high) if tensor.is_neg() else high


def _conj_like(tensor: Tensor, high: Tensor) -> Tensor:
    high = high.conj() if tensor.is_conj() else high
    return -high if tensor.is_neg() else high

"""Reading shadows: of what a pass computed, of roots, of tables remembered from earlier passes."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from parity.execution.leaks import caller_line
from parity.execution.storage import ShadowTable, geometry, is_float, real_dtype

NAN = float("nan")
_WORKSPACE_FROM = 1 << 15
"""Elements from which an upcast root goes to a reused buffer: fresh memory is the main cost of an upcast."""
_PAD = 8
"""Columns left free at the end of a matrix's rows: rows a power of two apart fall on the same lines of a cache."""
_IDLE: list[list[Tensor]] = []
"""The buffers of the last pass on a CPU, for the next one. A GPU's allocator keeps its own."""


class ShadowMemory:
    """What a shadow pass knows of tensors: their high values, exact where they are roots, NaN where not trusted.

    Args: as for `Shadow`.
    """

    def __init__(
        self,
        roots: Iterable[Tensor],
        finer: Mapping[int, Tensor] | None,
        dtype: torch.dtype,
        memory: Sequence[ShadowTable],
        as_stored: bool,
    ) -> None:
        self.table = ShadowTable(dtype)
        self.events: Counter[str] = Counter()
        self._roots: dict[int, Tensor] = {}
        self._finer: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._memory, self._as_stored = tuple(memory), as_stored
        self._work: list[Tensor] = []
        self._slot = 0
        self._leak: str | None = None
        self._number: float | None = None
        self.declare(roots, finer)

    def declare(self, roots: Iterable[Tensor], finer: Mapping[int, Tensor] | None = None) -> None:
        """Take tensors as exact: their low values, or the finer ones given by `id` of the tensor."""
        for root in roots:
            if not shadowable(root):
                continue
            key = root.untyped_storage()._cdata
            self._roots.setdefault(key, root)
            better = finer.get(id(root)) if finer else None
            if better is not None:
                self._finer.setdefault(key, []).append((root, better))

    def high(self, tensor: Tensor) -> Tensor:
        """Return the shadow values of a tensor, NaN where they are not trusted. Read only."""
        if not is_float(tensor) and not self._carries(tensor):
            return tensor.to(torch.float64)  # integers and masks are what the low side decided
        return self._high(tensor)

    @property
    def leaked(self) -> str | None:
        """What left torch in this segment, if anything did."""
        return self._leak

    @contextlib.contextmanager
    def number(self, value: float) -> Iterator[None]:
        """Name the Python number that torch wraps into a tensor meanwhile."""
        self._number = value
        try:
            yield
        finally:
            self._number = None

    def knows(self, tensor: Tensor) -> bool:
        """Say whether the tensor's storage has a shadow or is a root."""
        key = tensor.untyped_storage()._cdata
        if key in self.table.entries or key in self._roots:
            return True
        return bool(self._memory) and any(key in t.entries for t in self._memory)

    def is_exact(self, tensor: Tensor) -> bool:
        """Say whether a tensor's low values are its high values."""
        with torch.utils._python_dispatch._disable_current_modes():
            return not shadowable(tensor) or bool((self._high(tensor) == tensor).all())

    def _high(self, tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        entry = self.table.entries.get(key)
        if entry is not None:
            if entry.low_dtype != real_dtype(tensor.dtype):
                return self._lost(tensor, f"memory of {entry.low_dtype} read as {tensor.dtype}")
            return self.table.read(tensor, entry)
        for table in self._memory:
            remembered = table.entries.get(key)
            if remembered is not None:
                high = self._up(tensor) if self._as_stored else table.read(tensor, remembered)
                return high.to(self._high_dtype(tensor))
        if key in self._roots:
            return self._root(key, tensor)
        return self._stray(tensor)

    def _root(self, key: int, tensor: Tensor) -> Tensor:
        finer = self._finer.get(key, [])
        for owner, better in finer:
            if geometry(owner) == geometry(tensor):
                return self._up(better)
        if finer and not tensor.is_complex():  # a view of a finer root, or one that spans several
            size = tensor.untyped_storage().nbytes() // real_dtype(tensor.dtype).itemsize
            low = tensor.new_empty(0).set_(tensor.untyped_storage(), 0, (size,))  # type: ignore[call-overload]
            return self._root_flat(low).as_strided(*geometry(tensor))
        if real_dtype(self._roots[key].dtype) != real_dtype(tensor.dtype):
            return self._lost(tensor, f"a root read as {tensor.dtype}")
        return self._up(tensor)

    def _up(self, tensor: Tensor) -> Tensor:
        """Upcast a root for one op, into a reused buffer where it is large."""
        dtype = self._high_dtype(tensor)
        if tensor.dtype == dtype:
            return tensor
        if tensor.numel() < _WORKSPACE_FROM or tensor.is_complex():
            return tensor.to(dtype)
        if tensor.dim() != 2:
            return self._workspace(tensor.numel(), dtype, tensor.device).view(tensor.shape).copy_(tensor)
        turned = tensor.stride(0) == 1 and tensor.stride(1) >= tensor.shape[0]
        rows, columns = tensor.shape[::-1] if turned else tensor.shape
        padded = columns + (_PAD if columns % _PAD == 0 else 0)
        matrix = self._workspace(rows * padded, dtype, tensor.device).view(rows, padded)[:, :columns]
        return (matrix.t() if turned else matrix).copy_(tensor)

    def _workspace(self, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return reused memory, another piece for each large root of one op."""
        slot, self._slot = self._slot, self._slot + 1
        while len(self._work) <= slot:
            self._work.append(torch.empty(0, dtype=dtype, device=device))
        held = self._work[slot]
        if held.numel() < count or held.dtype != dtype or held.device != device:
            held = self._work[slot] = torch.empty(count, dtype=dtype, device=device)
        return held[:count]

    def _take_workspace(self) -> None:
        """Take the buffers of an earlier pass, unless a pass around this one has them."""
        self._work = _IDLE.pop() if _IDLE else []
        self.table.spare.__enter__()

    def _leave_workspace(self) -> None:
        """Leave the buffers to the next pass."""
        kept = [held for held in self._work if held.device.type == "cpu"]
        self._work = []
        _IDLE[:] = [kept] if kept else _IDLE
        self.table.spare.__exit__()

    def _root_flat(self, whole: Tensor) -> Tensor:
        """Return the high values of a root's whole memory [n]."""
        flat = whole.to(self._high_dtype(whole), copy=True)
        for owner, better in self._finer.get(whole.untyped_storage()._cdata, []):
            flat.as_strided(*geometry(owner)).copy_(better)
        return flat

    def _stray(self, tensor: Tensor) -> Tensor:
        """A float tensor from nowhere: numpy, another thread, a kernel outside the dispatcher.

        In `x[0] = 0.5` the one without dims is the number that torch wrapped, unless numbers have leaked.
        """
        if tensor.dim() == 0 and self._number is not None and self.leaked is None:
            return torch.full_like(tensor, self._number, dtype=self._high_dtype(tensor))
        return self._lost(tensor, "a tensor without a shadow (numpy, another thread, or made before the pass)")

    def _lost(self, tensor: Tensor, why: str) -> Tensor:
        self.events[f"{why} at {caller_line()}"] += 1
        return torch.full_like(tensor, NAN, dtype=self._high_dtype(tensor))

    def _carries(self, tensor: Tensor) -> bool:
        """Say whether an integer tensor is a quantised activation with a shadow."""
        if is_float(tensor) or not shadowable(tensor):
            return False
        entry = self.table.find(tensor)
        return entry is not None and entry.step is not None and entry.low_dtype == tensor.dtype

    def _high_dtype(self, tensor: Tensor) -> torch.dtype:
        return self.table.high_dtype(tensor.dtype)

    def _map(self, value: Any, views: Mapping[int, Tensor] | None = None) -> Any:
        if isinstance(value, Tensor):
            if views is not None and id(value) in views:
                return views[id(value)]
            if is_float(value) and shadowable(value):
                return self._high(value)
            return self._high(value) if self._carries(value) else value
        if isinstance(value, torch.dtype):
            return self._map_dtype(value)
        if isinstance(value, (list, tuple)):
            return type(value)(self._map(v, views) for v in value)
        return value

    def _map_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return self.table.high_dtype(dtype) if dtype.is_floating_point or dtype.is_complex else dtype

    def _map_kwargs(self, kwargs: Mapping[str, Any], views: Mapping[int, Tensor] | None = None) -> dict[str, Any]:
        return {k: self._map(v, views) for k, v in kwargs.items()}


def shadowable(tensor: Tensor) -> bool:
    """Say whether a tensor has memory a shadow can stand beside: strided, not meta."""
    return tensor.layout == torch.strided and tensor.device.type != "meta"


def leaves(value: Any) -> list[Any]:
    """List what nested lists, tuples and mappings hold."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return [value]
    found: list[Any] = []
    for held in value:
        if isinstance(held, (list, tuple, dict)):
            found += leaves(held)
        else:
            found.append(held)  # called for every op: no list for each of its arguments
    return found

"""`Stored`: a tensor in a file, read in part, into a given buffer or a fresh one."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from parity.errors import CheckpointError
from parity.io.checkpoints.header import Entry

_HALVED = getattr(torch, "float4_e2m1fn_x2", None)
TORCH_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "C64": torch.complex64, "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn, "F4": _HALVED,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "U16": getattr(torch, "uint16", None),
    "U32": getattr(torch, "uint32", None), "U64": getattr(torch, "uint64", None),
    "F8_E8M0": getattr(torch, "float8_e8m0fnu", None),
}  # fmt: skip
"""torch's dtype by the header's name; None or absent where this torch has none."""
NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items() if dtype is not None}
_MOST_AT_ONCE = 1 << 30
_LONG = 1 << 17
"""Reads of so many bytes are part of reading on."""


class Stored(Protocol):
    """A tensor of a file: what its header says, and its elements where asked for."""

    dtype_name: str
    shape: tuple[int, ...]
    nbytes: int

    def torch_dtype(self) -> torch.dtype:
        """Return torch's dtype of the elements."""

    def elements(self, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Return elements `[start, stop)` in row-major order, in the bytes of `out` where given."""

    def expect(self, start: int, stop: int) -> None:
        """Have the system read elements `[start, stop)` in advance, where it can."""


class StoredBytes:
    """A tensor of a safetensors file.

    Args:
        entry: its place.
        numbers: the file opened twice: for small reads, which the kernel is told are scattered, and for long ones. Its
            readahead would make a sample of a cold file read most of it.
        name: for messages.
    """

    def __init__(self, entry: Entry, numbers: tuple[int, int], name: str) -> None:
        self.dtype_name, self.shape = entry.dtype, entry.shape
        self.nbytes = entry.stop - entry.start
        self._start, self._numbers, self._name = entry.start, numbers, name
        if entry.dtype == "F4" and entry.shape:
            self.shape = (*entry.shape[:-1], entry.shape[-1] // 2)  # torch packs two in one element

    def torch_dtype(self) -> torch.dtype:
        """Return torch's dtype.

        Raises:
            CheckpointError: this torch has none.
        """
        found = TORCH_DTYPES.get(self.dtype_name)
        if found is None:
            raise CheckpointError(f"{self._name} is stored as {self.dtype_name}, for which this torch has no dtype")
        return found

    def elements(self, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Read elements `[start, stop)`.

        Shapes: [stop - start]; out [n] uint8, long enough, reused.

        Raises:
            CheckpointError: the file ends before, or its disk fails.
        """
        dtype = self.torch_dtype()
        count = (stop - start) * dtype.itemsize
        buffer = torch.empty(count, dtype=torch.uint8) if out is None else out[:count]
        if count:
            self._fill(memoryview(buffer.numpy()), self._start + start * dtype.itemsize)  # type: ignore[arg-type]
        return buffer.view(dtype)

    def expect(self, start: int, stop: int) -> None:
        """Have the system read elements `[start, stop)` in advance, where it can."""
        if hasattr(os, "posix_fadvise") and stop > start:
            size = self.torch_dtype().itemsize
            place = self._start + start * size, (stop - start) * size
            os.posix_fadvise(self._numbers[0], *place, os.POSIX_FADV_WILLNEED)

    def _fill(self, view: memoryview, at: int) -> None:
        done, number = 0, self._numbers[len(view) >= _LONG]
        while done < len(view):
            try:
                count = os.preadv(number, [view[done : done + _MOST_AT_ONCE]], at + done)
            except OSError as error:
                raise CheckpointError(f"{self._name} cannot be read: {error.strerror}") from error
            if not count:
                raise CheckpointError(f"{self._name}: the file ends at byte {at + done}; it was cut while open")
            done += count


class StoredTensor:
    """A tensor of a pickle, mapped from the file."""

    def __init__(self, load: Callable[[], Tensor]) -> None:
        self._load = load
        value = load()
        self.dtype_name, self.shape = NAMES.get(value.dtype, str(value.dtype)), tuple(value.shape)
        self.nbytes = value.numel() * value.element_size()

    def torch_dtype(self) -> torch.dtype:
        """Return the tensor's dtype."""
        return self._load().dtype

    def elements(self, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Return elements `[start, stop)`, a view of the mapped file where the tensor is contiguous.

        Shapes: [stop - start].
        """
        return self._load().reshape(-1)[start:stop]

    def expect(self, start: int, stop: int) -> None:
        """Nothing: the file is mapped, and the system reads ahead by itself."""

"""A safetensors file as a `TensorSource`, read tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from parity.errors import LoraFileError
from parity.weights.source import TensorInfo

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


class SafetensorsSource:
    """A safetensors file as a `TensorSource`; only the header is read until a tensor is asked for.

    Each tensor is copied out of a mapping of its own: what was read does not stay resident while a large file is gone
    through.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._opened() as file:
            self.header: dict[str, str] = dict(file.metadata() or {})
            found = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            self._infos = {key: (tuple(one.get_shape()), str(one.get_dtype())) for key, one in found.items()}

    def _opened(self) -> Any:
        return safe_open(self.path, framework="pt")

    def keys(self) -> Iterable[str]:
        """Return the keys."""
        return self._infos

    def info(self, key: str) -> TensorInfo:
        """Return shape and dtype from the header."""
        shape, name = self._infos[key]
        if name not in _DTYPES:
            raise LoraFileError("unknown_dtype", f"{key} is stored as {name}, which is not read")
        return TensorInfo(torch.Size(shape), _DTYPES[name])

    def get_tensor(self, key: str) -> Tensor:
        """Return a copy of the whole tensor."""
        with self._opened() as file:
            value: Tensor = file.get_tensor(key).clone()
        return value

    def get_slice(self, key: str, start: int, stop: int) -> Tensor:
        """Return a copy of rows `[start, stop)` of dim 0."""
        with self._opened() as file:
            value: Tensor = file.get_slice(key)[start:stop].clone()
        return value

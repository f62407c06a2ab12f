"""`TensorSource`: where tensors come from, a state dict or a lazily opened checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from parity.errors import UsageError


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before its values are read."""

    shape: torch.Size
    dtype: torch.dtype


@runtime_checkable
class TensorSource(Protocol):
    """Tensors by key, read one at a time."""

    def keys(self) -> Iterable[str]:
        """Return the keys."""

    def info(self, key: str) -> TensorInfo:
        """Return shape and dtype without reading values."""

    def get_tensor(self, key: str) -> Tensor:
        """Return the whole tensor."""

    def get_slice(self, key: str, start: int, stop: int) -> Tensor:
        """Return rows `[start, stop)` of dim 0."""


@runtime_checkable
class ElementSource(TensorSource, Protocol):
    """Tensors of which any run of elements can be read into a reused buffer."""

    def get_elements(self, key: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Return elements `[start, stop)` in row-major order, in the bytes of `out` where that saves memory."""

    def expect(self, key: str, start: int, stop: int) -> None:
        """Take note that elements `[start, stop)` will be asked for soon."""


class StateDictSource:
    """A state dict, or any mapping to tensors, as a `TensorSource`; entries that are no tensors are left out."""

    def __init__(self, state: Mapping[str, object]) -> None:
        self._state = {key: value.detach() for key, value in state.items() if isinstance(value, Tensor)}

    def keys(self) -> Iterable[str]:
        """Return the keys in the order of the state dict."""
        return self._state.keys()

    def info(self, key: str) -> TensorInfo:
        """Return shape and dtype."""
        value = self.get_tensor(key)
        return TensorInfo(value.shape, value.dtype)

    def get_tensor(self, key: str) -> Tensor:
        """Return the tensor itself.

        Raises:
            UsageError: there is no such key.
        """
        if key not in self._state:
            raise UsageError.unknown("tensor", key, self._state)
        return self._state[key]

    def get_slice(self, key: str, start: int, stop: int) -> Tensor:
        """Return a view of rows `[start, stop)`.

        Shapes: [I, ...] to [stop - start, ...].

        Raises:
            UsageError: there is no such key, or the tensor has no such rows.
        """
        value = self.get_tensor(key)
        rows = value.shape[0] if value.ndim else 0
        if not 0 <= start <= stop <= rows:
            raise UsageError(f"rows {start} to {stop} of {key!r}, which has shape {tuple(value.shape)}")
        return value[start:stop]

    def get_elements(self, key: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Return elements `[start, stop)` in row-major order; a view where the tensor is contiguous.

        Shapes: [stop - start].
        """
        return self.get_tensor(key).reshape(-1)[start:stop]

    def expect(self, key: str, start: int, stop: int) -> None:
        """Nothing: the values are in memory."""


def computable(value: Tensor) -> Tensor:
    """Return a tensor one can compute with: packed 4-bit floats as the bytes they lie in, others as they are."""
    packed = getattr(torch, "float4_e2m1fn_x2", None)
    return value.view(torch.uint8) if packed is not None and value.dtype == packed else value


def shapes_of(source: TensorSource) -> dict[str, torch.Size]:
    """Return the shape of each tensor of a source."""
    return {key: source.info(key).shape for key in source.keys()}  # noqa: SIM118

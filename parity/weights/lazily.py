"""A source of tensors as a mapping that reads each tensor when it is asked for and keeps none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from parity.weights.source import TensorSource, computable


class Lazily(Mapping[str, Tensor]):
    """Tensors of a source by key; the last one read is kept, since pieces of one tensor come in a row."""

    def __init__(self, source: TensorSource) -> None:
        self._source, self._keys = source, set(source.keys())
        self._last: tuple[str, Tensor] | None = None

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._keys:
            raise KeyError(key)
        if self._last is None or self._last[0] != key:
            self._last = None  # let go of the last before the next is read
            self._last = key, computable(self._source.get_tensor(key))
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

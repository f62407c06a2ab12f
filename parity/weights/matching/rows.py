"""Rows of tensors as float32 matrices: a few scattered ones, or all in runs, each read into the same buffers.

Letters in shapes: n rows asked for, J columns of a tensor seen as a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from parity.weights.source import ElementSource, computable

Ints = npt.NDArray[np.int64]
CHUNK = 1 << 18
"""Elements read at once."""


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return rows and columns of a tensor seen as a matrix: leading ones dropped, later dims flattened.

    >>> matrix_shape((1, 6, 64)), matrix_shape((64, 16, 1, 2, 2)), matrix_shape((64,))
    ((6, 64), (64, 64), (1, 64))
    """
    sizes = list(shape)
    while len(sizes) > 2 and sizes[0] == 1:
        sizes.pop(0)
    if len(sizes) < 2:
        return 1, math.prod(sizes)
    return sizes[0], math.prod(sizes[1:])


def runs_of(lines: Ints) -> Iterator[tuple[int, int]]:
    """Yield where runs of consecutive numbers begin and end.

    >>> list(runs_of(np.array([4, 5, 6, 0, 1])))
    [(0, 3), (3, 5)]
    """
    breaks = np.flatnonzero(np.diff(lines) != 1) + 1
    if len(lines):
        yield from pairwise([0, *breaks.tolist(), len(lines)])


class Rows:
    """Reads rows of a source's tensors; of one thread, since it reuses its buffers."""

    def __init__(self, source: ElementSource) -> None:
        self.source = source
        self._raw = torch.empty(0, dtype=torch.uint8)
        self._wide = torch.empty(0)
        self._known: dict[str, tuple[int, int, torch.dtype]] = {}

    def info(self, key: str) -> tuple[int, int, torch.dtype]:
        """Return rows and columns of a tensor's matrix, and its dtype."""
        if key not in self._known:
            held = self.source.info(key)
            self._known[key] = *matrix_shape(tuple(held.shape)), held.dtype
        return self._known[key]

    def elements(self, key: str, start: int, stop: int) -> Tensor:
        """Return elements `[start, stop)` as they are stored, valid until the next call. Shapes: [stop - start]."""
        needed = (stop - start) * self.info(key)[2].itemsize
        if self._raw.numel() < needed:
            self._raw = torch.empty(needed, dtype=torch.uint8)
        return computable(self.source.get_elements(key, start, stop, self._raw))

    def stored(self, key: str, start: int, stop: int, columns: int) -> Tensor:
        """Return rows `[start, stop)` as they are stored, valid until the next call. Shapes: [stop - start, J]."""
        return self.elements(key, start * columns, stop * columns).view(stop - start, columns)

    def take(self, key: str, rows: Ints) -> Tensor:
        """Return some rows in float32, in memory of their own. Shapes: [n, J]."""
        columns = self.info(key)[1]
        out = torch.empty(len(rows), columns)
        for start, stop in runs_of(rows):
            out[start:stop] = _real(self.stored(key, int(rows[start]), int(rows[stop - 1]) + 1, columns))
        return out

    def expect(self, key: str, rows: Ints) -> None:
        """Take note that some rows will be taken soon."""
        columns = self.info(key)[1]
        for start, stop in runs_of(rows):
            self.source.expect(key, int(rows[start]) * columns, (int(rows[stop - 1]) + 1) * columns)

    def all(self, key: str) -> Iterator[tuple[int, int, Tensor]]:
        """Yield all rows in runs in float32, each valid until the next. Shapes: [rows, J]."""
        rows, columns, _ = self.info(key)
        step = max(CHUNK // max(columns, 1), 1)
        if self._wide.numel() < step * columns:
            self._wide = torch.empty(step * columns)
        for start in range(0, rows if columns else 0, step):
            stop = min(start + step, rows)
            read = _real(self.stored(key, start, stop, columns))
            yield start, stop, self._wide[: read.numel()].view(stop - start, columns).copy_(read)


def _real(values: Tensor) -> Tensor:
    return values.abs() if values.is_complex() else values

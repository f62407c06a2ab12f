"""Exact numbers for a pair that was found: cosine, Pearson, relative L2, streamed in chunks and summed in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from parity.weights.matching.lines import Assignment, Ints, Part, is_quantised
from parity.weights.matching.sketch import matrix_shape
from parity.weights.source import ElementSource, computable

_CHUNK = 1 << 18


class Moments:
    """Sums over paired values, in float64."""

    def __init__(self) -> None:
        self.n = 0
        self.sums = torch.zeros(6, dtype=torch.float64)
        self._means = torch.zeros(2, dtype=torch.float64)
        self._shift: tuple[Tensor, Tensor] | None = None

    def add(self, expected: Tensor, actual: Tensor) -> None:
        """Take a chunk. Shapes: both [n], float64."""
        if self._shift is None:  # Pearson in one pass fails where there is a mean: sums are about the first chunk's
            self._shift = expected.mean(), actual.mean()
        e, a = expected - self._shift[0], actual - self._shift[1]
        d = actual - expected
        parts = (expected.dot(expected), actual.dot(actual), d.dot(d))
        self.sums += torch.stack((*parts, e.dot(e), a.dot(a), e.dot(a)))
        self._means += torch.stack((e.sum(), a.sum()))
        self.n += expected.numel()

    def metrics(self) -> dict[str, float]:
        """Return cosine, pearson and rel_l2; NaN against zeros or a constant."""
        if not self.n:
            return dict.fromkeys(("cosine", "pearson", "rel_l2"), math.nan)
        ee, aa, dd, e2, a2, ea = self.sums.tolist()
        e1, a1 = self._means.tolist()
        x, y = math.sqrt(ee), math.sqrt(aa)
        cosine = 1 - (dd - (x - y) ** 2) / (2 * x * y) if x and y else (1.0 if dd == 0 else math.nan)
        ve, va, cov = e2 - e1 * e1 / self.n, a2 - a1 * a1 / self.n, ea - e1 * a1 / self.n
        pearson = cov / math.sqrt(ve * va) if ve > 0 and va > 0 else (1.0 if dd == 0 else math.nan)
        rel_l2 = math.sqrt(dd) / x if x else (0.0 if dd == 0 else math.inf)
        return {"cosine": min(cosine, 1.0), "pearson": max(min(pearson, 1.0), -1.0), "rel_l2": rel_l2}


class Measurer:
    """Measures parts of native tensors against the references they come from.

    Runs of rows are streamed; a tensor whose lines are out of order is kept whole, the last of each side.
    """

    def __init__(self, reference: ElementSource, native: ElementSource, tell: Callable[[int], None]) -> None:
        self._reference, self._native, self._tell = reference, native, tell
        self._buffers = {id(source): torch.empty(0, dtype=torch.uint8) for source in (reference, native)}
        self._kept: dict[str, tuple[str, Tensor]] = {}

    def measure(self, key: str, found: Assignment, part: Part) -> dict[str, float]:
        """Return the metrics of one part of a native tensor; sums are taken only where values differ."""
        if all(e.dtype == a.dtype and torch.equal(e, a) for e, a in self._pairs(key, found, part)):
            return {"cosine": 1.0, "pearson": 1.0, "rel_l2": 0.0}
        moments = Moments()
        scaled = is_quantised(self._native.info(key).dtype) and not is_quantised(self._reference.info(part.key).dtype)
        for expected, actual in self._pairs(key, found, part):
            e, a = expected.double(), actual.double()
            if scaled:
                a = a * ((e * a).sum(1, keepdim=True) / (a * a).sum(1, keepdim=True).clamp_min(1e-300))
            moments.add(e.reshape(-1), a.reshape(-1))
        return moments.metrics()

    def _pairs(self, key: str, found: Assignment, part: Part) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield chunks of paired lines. Shapes: [lines, length] both."""
        length = self._length(self._native, key, found.axis)
        step = max(_CHUNK // max(length, 1), 1)
        for start in range(0, len(part.native), step):
            at, there = part.native[start : start + step], part.reference[start : start + step]
            if found.reshape:
                yield self._same_elements(key, part.key, at), self._rows(self._native, key, at)
            else:
                expected = self._lines(self._reference, part.key, part.axis, there)
                yield expected, self._lines(self._native, key, found.axis, at)
            self._tell(2 * len(at) * length * self._native.info(key).dtype.itemsize)

    def _length(self, source: ElementSource, key: str, axis: int) -> int:
        rows, columns = matrix_shape(tuple(source.info(key).shape))
        return rows if axis else columns

    def _same_elements(self, key: str, reference: str, at: Ints) -> Tensor:
        columns = self._length(self._native, key, 0)
        first, last = int(at[0]) * columns, (int(at[-1]) + 1) * columns
        return _plain(self._reference.get_elements(reference, first, last)).view(-1, columns)

    def _lines(self, source: ElementSource, key: str, axis: int, at: Ints) -> Tensor:
        if axis == 0 and len(at) and int(at[-1]) - int(at[0]) + 1 == len(at) and (at[1:] > at[:-1]).all():
            return self._rows(source, key, at)
        return self._whole(source, key).index_select(axis, torch.from_numpy(at)).movedim(axis, 0)

    def _rows(self, source: ElementSource, key: str, at: Ints) -> Tensor:
        columns = self._length(source, key, 0)
        needed = len(at) * columns * 8
        if self._buffers[id(source)].numel() < needed:
            self._buffers[id(source)] = torch.empty(needed, dtype=torch.uint8)
        values = source.get_elements(key, int(at[0]) * columns, (int(at[-1]) + 1) * columns, self._buffers[id(source)])
        return _plain(values).view(-1, columns)

    def _whole(self, source: ElementSource, key: str) -> Tensor:
        """Return a tensor as a matrix; the last of each side is kept."""
        side = "native" if source is self._native else "reference"
        if self._kept.get(side, ("", None))[0] != key:
            self._kept.pop(side, None)
            shape = matrix_shape(tuple(source.info(key).shape))
            values = _plain(source.get_elements(key, 0, shape[0] * shape[1])).view(shape)
            self._kept[side] = key, values if values.element_size() > 1 else values.float()
        return self._kept[side][1]


def _plain(values: Tensor) -> Tensor:
    return values.abs() if values.is_complex() else computable(values)

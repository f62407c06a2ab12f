"""Sketches: rows, and where needed columns, of a tensor as a few numbers.

A line (row or column) is centred, multiplied by a fixed random matrix that belongs to its length alone, and made a unit
vector. Two lines then have about the same cosine as before, whichever tensor, file or axis they come from: a row of a
fused projection equals the row it was, a row of a transposed weight the column it was.

A few rows of every tensor are sketched first; they tell most of what there is to tell. All lines are sketched only of
tensors that these leave open.

Letters in shapes: I, J rows and columns of a tensor seen as a matrix, m rows looked at first, K size of a sketch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from parity.weights.matching.rows import Ints, Rows
from parity.weights.source import ElementSource

K = 64
"""Numbers in the sketch of a line."""
FEW_LINES = 16
"""Tensors of so few rows or columns are kept whole and compared exactly: their sketches would tell too little."""
SLABS, SLAB = 8, 2
"""A first look takes so many runs, of so many rows each."""
LINE_BYTES = 2 * K + 4
_MOST_KEPT = 1 << 22
_AT_ONCE = 1 << 13


@dataclass(frozen=True)
class Sketch:
    """What is kept of one tensor.

    Args:
        key, shape, dtype: of the tensor.
        rows, columns: of its matrix, see `matrix_shape`.
        seen: the rows looked at first [m].
        seen_lines: their unit sketches [m, K] and the norms of the centred rows [m].
        lines: unit sketches of all rows [I, K] and all columns [J, K] in float16, where they were made; a constant line
            is zero.
        norms: of the centred lines, as their sketches estimate them. Shapes: [I], [J].
        values: the whole tensor in float32 where it has few lines. Shapes: [I, J].
        constant: the one value all elements have.
        finite: whether there is anything but NaN and inf in what was looked at.
        packed: the format in which several values share an element, so that they cannot be compared.
    """

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: int
    columns: int
    seen: Ints
    seen_lines: tuple[Tensor, Tensor]
    lines: tuple[Tensor, Tensor]
    norms: tuple[Tensor, Tensor]
    values: Tensor | None
    constant: float | None
    finite: bool
    packed: str | None = None

    def length(self, axis: int) -> int:
        """Return the length of a line: of rows (axis 0) or columns (axis 1)."""
        return self.rows if axis else self.columns

    @property
    def full_bytes(self) -> int:
        """Bytes that sketches of all its lines take."""
        return (self.rows + self.columns) * LINE_BYTES

    @property
    def telling(self) -> bool:
        """Whether its values can tell it from others."""
        return self.finite and self.constant is None and self.packed is None


class Projections:
    """The random matrix of each length, made once; the last column is ones, which gives the line's sum."""

    def __init__(self) -> None:
        self._made: dict[int, Tensor] = {}
        self._totals: dict[int, Tensor] = {}

    def of(self, length: int) -> Tensor:
        """Return the matrix of a length. Shapes: [length, K + 1]."""
        if length not in self._made:
            if sum(held.numel() for held in self._made.values()) > 1 << 24:
                self._made.clear()
            generator = torch.Generator().manual_seed(length)
            random = torch.randn(length, K, generator=generator) / math.sqrt(K)
            self._made[length] = torch.cat((random, torch.ones(length, 1)), dim=1)
        return self._made[length]

    def total(self, length: int) -> Tensor:
        """Return the sketch of a line of ones. Shapes: [K]."""
        if length not in self._totals:
            self._totals[length] = self.of(length)[:, :K].sum(0)
        return self._totals[length]


def rows_to_see(rows: int) -> Ints:
    """Return the rows of a first look: runs at eighths, so that a tensor and its equal parts share some.

    >>> rows_to_see(48).tolist()
    [0, 1, 6, 7, 12, 13, 18, 19, 24, 25, 30, 31, 36, 37, 42, 43]
    """
    starts = np.arange(SLABS) * rows // SLABS
    return np.unique((starts[:, None] + np.arange(SLAB)).reshape(-1))


class Sketcher:
    """Sketches tensors of a source.

    Args:
        source: what to read.
        projections: shared by the sketchers of both sides.
    """

    def __init__(self, source: ElementSource, projections: Projections) -> None:
        self.rows = Rows(source)
        self._projections = projections

    def expect(self, key: str) -> None:
        """Have what `first` looks at read in advance."""
        rows, columns, _ = self.rows.info(key)
        self.rows.expect(key, np.arange(rows) if _is_kept(rows, columns) else rows_to_see(rows))

    def first(self, key: str) -> Sketch:
        """Return what a few rows tell, or all values where there are few lines."""
        info = self.rows.source.info(key)
        rows, columns, _ = self.rows.info(key)
        few = _is_kept(rows, columns)
        seen: Ints = np.arange(rows) if few else rows_to_see(rows)
        values = self.rows.take(key, seen) if columns else torch.empty(rows, 0)
        lines = _NOTHING if few else self._sketched(values, columns)
        low, high = (float(v) for v in values.aminmax()) if values.numel() else (0.0, 1.0)  # NaN where there is one
        finite = bool(values.numel()) and (
            math.isfinite(low + high) or (not few and bool(values.isfinite().all(dim=1).any()))
        )
        if low == high and not few:
            low, high = self._range(key)
        return Sketch(key, tuple(info.shape), info.dtype, rows, columns, seen, lines, (_NOTHING[0], _NOTHING[0]),
                      (_NOTHING[1], _NOTHING[1]), values if few else None,
                      low if low == high else None, finite)  # fmt: skip

    def _sketched(self, values: Tensor, columns: int) -> tuple[Tensor, Tensor]:
        projection = self._projections.of(columns)
        return _units(values @ projection, self._projections.total(columns), columns)

    def full(self, sketch: Sketch) -> Sketch:
        """Return a sketch with those of all rows and columns; the tensor is read once."""
        rows, columns = sketch.rows, sketch.columns
        by_column, by_row = self._projections.of(rows), self._projections.of(columns)
        sums = torch.zeros(rows, K + 1), torch.zeros(columns, K + 1)
        for start, stop, chunk in self.rows.all(sketch.key):
            torch.mm(chunk, by_row, out=sums[0][start:stop])
            sums[1].addmm_(chunk.t(), by_column[start:stop])
        totals = self._projections.total(columns), self._projections.total(rows)
        halves = (_halves(sums[0], totals[0], columns), _halves(sums[1], totals[1], rows))
        lines, norms = zip(*halves, strict=True)
        return replace(sketch, lines=lines, norms=norms)

    def _range(self, key: str) -> tuple[float, float]:
        """Return the least and the most of a tensor of which a few rows are constant, as far as they agree."""
        low, high = math.inf, -math.inf
        for _, _, chunk in self.rows.all(key):
            least, most = (float(value) for value in chunk.aminmax())
            low, high = min(low, least), max(high, most)
            if low != high:  # NaN too: no constant
                return 0.0, 1.0
        return low, high


_NOTHING = torch.zeros(0, K), torch.zeros(0)


def _is_kept(rows: int, columns: int) -> bool:
    return min(rows, columns) <= FEW_LINES and rows * columns <= _MOST_KEPT


def _units(sums: Tensor, total: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Centre and normalise sketches; the sketch of a centred line is its sketch less its mean times that of ones.

    Shapes: sums [n, K + 1] to [n, K] and norms [n].
    """
    mean = sums[:, K:] / max(length, 1)
    centred = sums[:, :K] - mean * total
    norm = centred.norm(dim=1, keepdim=True)
    still = norm > 1e-5 * (sums[:, :K].norm(dim=1, keepdim=True) + 1e-30)
    units = torch.where(still, centred / norm.clamp_min(1e-30), 0.0).nan_to_num_(0.0, 0.0, 0.0)
    return units, torch.where(still, norm, 0.0).squeeze(1).nan_to_num_(0.0, 0.0, 0.0)


def _halves(sums: Tensor, total: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Do the same in float16 and in steps, for many lines. Shapes: sums [n, K + 1] to [n, K] and norms [n]."""
    units, norms = torch.empty(len(sums), K, dtype=torch.float16), torch.empty(len(sums))
    for at in range(0, len(sums), _AT_ONCE):
        some = slice(at, at + _AT_ONCE)
        units[some], norms[some] = _units(sums[some], total, length)
    return units, norms

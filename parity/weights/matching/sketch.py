"""Sketches: every row, and where needed every column, of a tensor as a few numbers, in one pass each.

A line (row or column) is centred, multiplied by a fixed random matrix that belongs to its length alone, and made a unit
vector. Two lines then have about the same cosine as before, whichever tensor, file or axis they come from: a row of a
fused projection equals the row it was, a row of a transposed weight the column it was.

Letters in shapes: I, J rows and columns of a tensor seen as a matrix, K size of a sketch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from parity.weights.source import ElementSource, computable

K = 32
"""Numbers in the sketch of a line."""
FEW_LINES = 16
"""Tensors of so few rows or columns are kept whole and compared exactly: their sketches would tell too little."""
_MOST_KEPT = 1 << 22
_CHUNK = 1 << 19


@dataclass(frozen=True)
class Sketch:
    """What is kept of one tensor.

    Args:
        key, shape, dtype: of the tensor.
        rows, columns: of its matrix, see `matrix_shape`.
        lines: unit sketches of rows [I, K] and of columns [J, K] in float16, where they were made; a constant line is
            zero.
        norms: of the centred lines, as their sketches estimate them. Shapes: [I], [J].
        values: the whole tensor in float32 where it has few lines. Shapes: [I, J].
        constant: the one value all elements have.
        finite: whether it holds no NaN or inf.
    """

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: int
    columns: int
    lines: tuple[Tensor, Tensor]
    norms: tuple[Tensor, Tensor]
    values: Tensor | None
    constant: float | None
    finite: bool

    def length(self, axis: int) -> int:
        """Return the length of a line: of rows (axis 0) or columns (axis 1)."""
        return self.rows if axis else self.columns


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


class Projections:
    """The random matrix of each length, made once; the last column is ones, which gives the line's sum."""

    def __init__(self) -> None:
        self._made: dict[int, Tensor] = {}

    def of(self, length: int) -> Tensor:
        """Return the matrix of a length. Shapes: [length, K + 1]."""
        if length not in self._made:
            if sum(held.numel() for held in self._made.values()) > 1 << 25:
                self._made.clear()
            generator = torch.Generator().manual_seed(length)
            random = torch.randn(length, K, generator=generator) / math.sqrt(K)
            self._made[length] = torch.cat((random, torch.ones(length, 1)), dim=1)
        return self._made[length]


class Sketcher:
    """Sketches tensors of a source, each read in chunks into the same buffers.

    Args:
        source: what to read.
        tell: called with the bytes read since the last call.
    """

    def __init__(self, source: ElementSource, tell: Callable[[int], None] = lambda _: None) -> None:
        self._source, self._tell = source, tell
        self._projections = Projections()
        self._raw = torch.empty(_CHUNK * 8, dtype=torch.uint8)
        self._wide = torch.empty(_CHUNK)

    def rows(self, key: str) -> Sketch:
        """Return the sketch of a tensor's rows, or all its values where it has few lines."""
        info = self._source.info(key)
        rows, columns = matrix_shape(tuple(info.shape))
        whole = rows * columns
        few = min(rows, columns) <= FEW_LINES and whole <= _MOST_KEPT
        sums = torch.zeros(0 if few else rows, K + 1)
        kept = torch.empty(rows, columns) if few else None
        low, high = math.inf, -math.inf
        for start, stop, chunk in self._chunks(key, rows, columns):
            least, most = chunk.aminmax()
            low, high = _wider(low, high, float(least), float(most))
            if kept is not None:
                kept[start:stop] = chunk
            else:
                torch.mm(chunk, self._projections.of(columns), out=sums[start:stop])
        constant = low if low == high and whole else None
        finite = math.isfinite(low) and math.isfinite(high)
        units, norms = _units(sums, self._projections.of(0 if few else columns), columns)
        empty = torch.zeros(0, K, dtype=torch.float16), torch.zeros(0)
        return Sketch(key, tuple(info.shape), info.dtype, rows, columns, (units, empty[0]), (norms, empty[1]),
                      kept, constant, finite)  # fmt: skip

    def with_columns(self, sketch: Sketch) -> Sketch:
        """Return a sketch with that of the columns added; the tensor is read once more."""
        if sketch.values is not None or len(sketch.lines[1]) or not sketch.finite:
            return sketch
        sums = torch.zeros(sketch.columns, K + 1)
        projection = self._projections.of(sketch.rows)
        for start, stop, chunk in self._chunks(sketch.key, sketch.rows, sketch.columns):
            sums.addmm_(chunk.t(), projection[start:stop])
        units, norms = _units(sums, projection, sketch.rows)
        return replace(sketch, lines=(sketch.lines[0], units), norms=(sketch.norms[0], norms))

    def _chunks(self, key: str, rows: int, columns: int) -> Iterator[tuple[int, int, Tensor]]:
        """Yield row ranges in float32; a row that is longer than the buffers gets buffers of its own."""
        if not rows * columns:
            return
        raw, wide = self._raw, self._wide
        if columns > _CHUNK:
            raw, wide = torch.empty(columns * 8, dtype=torch.uint8), torch.empty(columns)
        step = max(wide.numel() // columns, 1)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            read = computable(self._source.get_elements(key, start * columns, stop * columns, raw))
            plain = read.abs() if read.is_complex() else read
            chunk = wide[: plain.numel()].copy_(plain)
            self._tell(read.numel() * read.element_size())
            yield start, stop, chunk.view(stop - start, columns)


def _wider(low: float, high: float, least: float, most: float) -> tuple[float, float]:
    """Return the range widened; NaN stays NaN."""
    if math.isnan(least) or math.isnan(low):
        return math.nan, math.nan
    return min(low, least), max(high, most)


def _units(sums: Tensor, projection: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Centre and normalise sketches; the sketch of a centred line is its sketch less its mean times that of ones.

    Shapes: sums [n, K + 1] to [n, K] float16 and norms [n].
    """
    mean = sums[:, K:] / max(length, 1)
    centred = sums[:, :K] - mean * projection[:, :K].sum(0)
    norm = centred.norm(dim=1, keepdim=True)
    still = norm > 1e-5 * (sums[:, :K].norm(dim=1, keepdim=True) + 1e-30)
    units = torch.where(still, centred / norm.clamp_min(1e-30), 0.0).nan_to_num_(0.0, 0.0, 0.0).half()
    return units, torch.where(still, norm, 0.0).squeeze(1).nan_to_num_(0.0, 0.0, 0.0)

"""Sketches: every row and every column of every tensor as a few numbers, in one pass over a checkpoint.

A line (row or column) is centred, multiplied by a fixed random matrix that belongs to its length alone, and made a unit
vector. Two lines then have about the same cosine as before, whichever tensor, file or axis they come from: a row of a
fused projection equals the row it was, a row of a transposed weight the column it was.

Letters in shapes: I, J rows and columns of a tensor seen as a matrix, K size of a sketch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from parity.weights.source import ElementSource

K = 32
"""Numbers in the sketch of a line."""
FEW_LINES = 16
"""Tensors of so few rows or columns are kept whole and compared exactly: their sketches would tell too little."""
_MOST_KEPT = 1 << 22


@dataclass(frozen=True)
class Sketch:
    """What is kept of one tensor.

    Args:
        key, shape, dtype: of the tensor.
        rows, columns: of its matrix, see `matrix_shape`.
        lines: unit sketches of rows [I, K] and of columns [J, K] in float16; a constant line is zero.
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


def sketches(
    source: ElementSource, keys: list[str], budget: int, tell: Callable[[int], None] = lambda _: None
) -> Iterator[Sketch]:
    """Sketch tensors one after the other, each read once in chunks into the same buffer.

    Args:
        source: what to read.
        keys: of which tensors.
        budget: bytes the chunks may take.
        tell: called with the bytes read since the last call.
    """
    projections = Projections()
    elements = max(min(budget // 16, 1 << 22), 1 << 12)
    raw = torch.empty(elements * 8, dtype=torch.uint8)
    wide = torch.empty(elements)
    for key in keys:
        yield _sketch(source, key, projections, raw, wide, tell)


def _sketch(
    source: ElementSource, key: str, projections: Projections, raw: Tensor, wide: Tensor, tell: Callable[[int], None]
) -> Sketch:
    info = source.info(key)
    rows, columns = matrix_shape(tuple(info.shape))
    whole = rows * columns
    small = min(rows, columns) <= FEW_LINES and whole <= _MOST_KEPT
    sums = torch.zeros(rows, K + 1), torch.zeros(columns, K + 1)
    kept = torch.empty(rows, columns) if small else None
    low, high, finite = math.inf, -math.inf, True
    for start, stop, chunk in _chunks(source, key, rows, columns, raw, wide):
        tell(chunk.numel() * info.dtype.itemsize)
        if kept is not None:
            kept[start:stop] = chunk
        low, high = min(low, float(chunk.min())), max(high, float(chunk.max()))
        finite = finite and math.isfinite(low) and math.isfinite(high) and not math.isnan(float(chunk.sum()))
        torch.mm(chunk, projections.of(columns), out=sums[0][start:stop])
        sums[1].addmm_(chunk.t(), projections.of(rows)[start:stop])
    constant = low if low == high and whole else None
    along, across = _units(sums[0], projections.of(columns), columns), _units(sums[1], projections.of(rows), rows)
    lines, norms = (along[0], across[0]), (along[1], across[1])
    return Sketch(key, tuple(info.shape), info.dtype, rows, columns, lines, norms, kept, constant, finite and whole > 0)


def _chunks(
    source: ElementSource, key: str, rows: int, columns: int, raw: Tensor, wide: Tensor
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield row ranges in float32; the buffers are grown for a row that is longer than they are."""
    if not rows * columns:
        return
    step = max(wide.numel() // columns, 1)
    if columns > wide.numel():
        raw, wide = torch.empty(columns * 8, dtype=torch.uint8), torch.empty(columns)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        read = source.get_elements(key, start * columns, stop * columns, raw)
        plain = read.abs() if read.is_complex() else read
        chunk = wide[: plain.numel()]
        chunk.copy_(plain)
        yield start, stop, chunk.view(stop - start, columns)


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

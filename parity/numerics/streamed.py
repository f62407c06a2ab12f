"""`Streamed`: two tensors with the sums and maxima metrics are made of, each gathered once.

One pass gathers sums and maxima of all chunks; a second, where asked for, the centred sums, because Pearson in one pass
fails where there is a mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from parity.numerics.chunks import CHUNK, Chunk, check_comparable, chunks_of

_SUMS = ("e", "a", "ee", "aa", "dd", "abs_d", "ulp")
_MAXIMA = ("d", "e", "d_over_e", "d_over_1e")
_COUNTS = ("expected_nan", "expected_inf", "actual_nan", "actual_inf", "unequal")
_EXPONENT = 0x7FF0000000000000


class Streamed:
    """Two tensors of one shape with the sums every metric is made of.

    Shapes: expected and actual any one shape, of any float dtypes, contiguous or not.

    Raises:
        ParityError: shapes differ, the tensors are empty or hold no floats.
    """

    def __init__(self, expected: Tensor, actual: Tensor, chunk: int = CHUNK) -> None:
        check_comparable(expected, actual)
        self.expected, self.actual, self.chunk = expected, actual, chunk
        self.numel = expected.numel()

    def chunks(self, only: int | None = None) -> Iterator[Chunk]:
        """Stream the pair once more, for a metric the sums do not cover."""
        return chunks_of(self.expected, self.actual, self.chunk, only)

    def total(self, of_chunk: Callable[[Chunk], Tensor]) -> Tensor:
        """Sum a vector of numbers over all chunks in float64.

        Shapes: of_chunk gives [k]; returns [k].
        """
        return torch.stack([of_chunk(chunk).double() for chunk in self.chunks()]).sum(0)

    @cached_property
    def sums(self) -> Mapping[str, float]:
        """Sums over all elements: e, a, ee, aa, dd, abs_d (magnitudes of d) and ulp (squares of d in ulp)."""
        return dict(zip(_SUMS, self._first[:, : len(_SUMS)].sum(0).tolist(), strict=True))

    @cached_property
    def maxima(self) -> Mapping[str, float]:
        """Maxima of magnitudes: d, e, d_over_e, d_over_1e (of d / (1 + |e|)); NaN where there is one."""
        return dict(zip(_MAXIMA, self._first[:, len(_SUMS) :].amax(0).tolist(), strict=True))

    @cached_property
    def max_abs_index(self) -> tuple[int, ...]:
        """Index of the largest difference, or of the first NaN."""
        number = int(self._first[:, len(_SUMS)].argmax())
        chunk = next(self.chunks(only=number))
        return index_of(chunk.start + int(chunk.difference.abs_().argmax()), self.expected.shape)

    @cached_property
    def centred(self) -> tuple[float, float, float]:
        """Centred sums: expected squared, actual squared, product."""
        e_mean, a_mean = self.sums["e"] / self.numel, self.sums["a"] / self.numel

        def of_chunk(c: Chunk) -> Tensor:
            e, a = c.expected.sub_(e_mean), c.actual.sub_(a_mean)
            return torch.stack((e.dot(e), a.dot(a), e.dot(a)))

        ee, aa, ea = self.total(of_chunk).tolist()
        return ee, aa, ea

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """Counts of NaN and inf on each side, and of unequal elements (-0.0 is not 0.0, NaN is NaN)."""
        return dict(zip(_COUNTS, map(int, self.total(_counted).tolist()), strict=True))

    @cached_property
    def _first(self) -> Tensor:
        return torch.stack([_row(chunk, self.expected.dtype) for chunk in self.chunks()])


def index_of(number: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the index of an element by its number in row-major order, as `torch.unravel_index` (which imports sympy).

    >>> index_of(7, (2, 2, 3))
    (1, 0, 1)
    """
    index: list[int] = []
    for size in reversed(shape):
        number, at = divmod(number, size)
        index.append(at)
    return tuple(reversed(index))


def _row(c: Chunk, dtype: torch.dtype) -> Tensor:
    """Sums and maxima of one chunk; `actual` is used up as a second free buffer once its sums are taken."""
    e, d = c.expected, c.difference
    sums = [e.sum(), c.actual.sum(), e.dot(e), c.actual.dot(c.actual), d.dot(d)]
    in_ulp = torch.div(d, ulp(e, dtype, out=c.scratch), out=c.scratch)
    square = in_ulp.dot(in_ulp)
    d, e = d.abs_(), torch.abs(e, out=c.actual)
    top = [d.amax(), e.amax()]
    ratio = torch.div(d, e, out=c.scratch).masked_fill_(d == 0, 0.0).amax()
    return torch.stack((*sums, d.sum(), square, *top, ratio, d.div_(e.add_(1)).amax()))


def _counted(c: Chunk) -> Tensor:
    nan_e, nan_a = c.expected.isnan(), c.actual.isnan()
    both = (nan_e, c.expected.isinf(), nan_a, c.actual.isinf(), unequal(c))
    return torch.stack([found.sum() for found in both])


def unequal(c: Chunk) -> Tensor:
    """Mark elements that are unequal: -0.0 is not 0.0, NaN is NaN whatever its payload.

    Shapes: [n] bool.
    """
    differ = (c.expected != c.actual) | (c.expected.signbit() != c.actual.signbit())
    return differ & ~(c.expected.isnan() & c.actual.isnan())


def ulp(value: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """Return the unit in the last place `dtype` has at each value, not below that of its subnormals.

    At inf and NaN it is inf.

    Shapes: value and result [n], float64.
    """
    info = torch.finfo(dtype)
    out = torch.abs(value, out=torch.empty_like(value) if out is None else out).clamp_min_(info.smallest_normal)
    out.view(torch.int64).bitwise_and_(_EXPONENT)
    return out.mul_(info.eps)

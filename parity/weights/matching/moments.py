"""Cosine, Pearson and relative L2 of paired values that come in chunks: sums in float32 inside, in float64 outside.

Letters in shapes: n values of a chunk.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_RUN = 1 << 17
"""A float32 sum of so many squares is right to 1e-6."""
_BLOCK = 1 << 19
"""Values summed at once: their float32 copies stay in the processor's cache."""
_SMALL = 1 << 12
_EXACT = (torch.float64, torch.int32, torch.int64, torch.complex64, torch.complex128)
_EXPONENTS: dict[torch.dtype, tuple[type[np.generic], type[np.generic], int, int]] = {
    torch.float64: (np.int64, np.uint64, 0x7FF0000000000000, 0xFFF0000000000000),
    torch.float32: (np.int32, np.uint32, 0x7F800000, 0xFF800000),
    torch.bfloat16: (np.int16, np.uint16, 0x7F80, 0xFF80), torch.float16: (np.int16, np.uint16, 0x7C00, 0xFC00),
    torch.float8_e4m3fn: (np.int8, np.uint8, 0x7F, 0xFF), torch.float8_e5m2: (np.int8, np.uint8, 0x7C, 0xFC),
}  # fmt: skip
"""By dtype: signed and unsigned integers of its width, and the least of each that is no number."""
Sums = tuple[float, float, float, float, float]


def room() -> Tensor:
    """Return memory for float32 copies of both sides. Shapes: [2, _BLOCK]."""
    return torch.empty(2, _BLOCK)


class Moments:
    """Sums over paired values.

    Args:
        wide: memory to compute in, see `room`, which one thread can use again and again.

    Attributes:
        finite: whether every value was a number.
    """

    def __init__(self, wide: Tensor | None = None) -> None:
        self.finite = True
        self._n = 0
        self._sums = np.zeros(5)
        self._wide = room() if wide is None else wide

    def add(self, expected: Tensor, actual: Tensor) -> None:
        """Take a chunk. Shapes: both [n], of any dtype."""
        for one, other in zip(_flat(expected).split(_BLOCK), _flat(actual).split(_BLOCK), strict=True):
            self._n += one.numel()
            exact = one.numel() <= _SMALL or one.dtype in _EXACT or other.dtype in _EXACT
            sums = _in_float64(one, other) if exact else self._in_float32(one, other)
            self.finite &= all(map(math.isfinite, sums))
            self._sums += sums

    def _in_float32(self, expected: Tensor, actual: Tensor) -> Sums:
        """Return the sums from float32 copies; from float64 ones where float32 overflows or a mean drowns the rest."""
        n = expected.numel()
        wide = self._wide if n == _BLOCK else self._wide[:, :n]
        one, other = wide
        one.copy_(expected)
        other.copy_(actual)
        ee, aa, _, e1, a1 = sums = _sums(wide)
        enough = ee * n - e1 * e1 >= 1e-3 * n * ee and aa * n - a1 * a1 >= 1e-3 * n * aa
        return sums if enough and all(map(math.isfinite, sums)) else _in_float64(expected, actual)

    def metrics(self) -> dict[str, float]:
        """Return cosine, pearson and rel_l2; NaN against zeros or a constant."""
        if not self._n or not self.finite:
            return dict.fromkeys(("cosine", "pearson", "rel_l2"), math.nan)
        ee, aa, dd, e1, a1 = self._sums.tolist()
        about_means = ((ee, e1), (aa, a1), (dd, a1 - e1))
        ve, va, vd = (max(square - total * total / self._n, 0.0) for square, total in about_means)
        rel_l2 = math.sqrt(dd / ee) if ee else (0.0 if dd == 0 else math.inf)
        return {"cosine": _alike(ee, aa, dd), "pearson": _alike(ve, va, vd), "rel_l2": rel_l2}


def _alike(ee: float, aa: float, dd: float) -> float:
    """Return the cosine from squared norms of both sides and of the difference: exact also near 1."""
    x, y = math.sqrt(ee), math.sqrt(aa)
    if not x * y:
        return 1.0 if dd == 0 else math.nan
    return max(min(1 - (dd - (x - y) ** 2) / (2 * x * y), 1.0), -1.0)


def _flat(values: Tensor) -> Tensor:
    plain = torch.view_as_real(values) if values.is_complex() else values
    return plain.reshape(-1)


def _in_float64(one: Tensor, other: Tensor) -> Sums:
    return _sums(torch.stack([one.double(), other.double()]))


def _sums(both: Tensor) -> Sums:
    """Return squared norms of both and of the difference, and both sums; the second is overwritten. Shapes: [2, n]."""
    (e1, a1), (one, other) = both.sum(1).tolist(), both
    expected, actual = both.numpy()
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is summed again, or reported as no number
        ee, aa = _square(expected), _square(actual)
        torch.sub(other, one, out=other)
        return ee, aa, _square(actual), e1, a1


def _square(values: npt.NDArray[np.floating]) -> float:
    if len(values) <= _RUN or values.dtype == np.float64:
        return float(values.dot(values))
    return sum(float(part.dot(part)) for part in (values[at : at + _RUN] for at in range(0, len(values), _RUN)))


def same_bytes(one: Tensor, other: Tensor) -> bool:
    """Whether two chunks are of one dtype and hold the same bytes, read as wide integers: the fastest way."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool((_bytes(one) == _bytes(other)).all())


def _bytes(values: Tensor) -> np.ndarray:
    held = values.reshape(-1).view(torch.uint8).numpy()
    return held.view(np.int64) if len(held) % 8 == 0 else held


def all_numbers(values: Tensor) -> bool:
    """Whether a chunk holds neither NaN nor inf, from the bits of its exponents."""
    if not values.numel() or not (values.is_floating_point() or values.is_complex()):
        return True
    plain = torch.view_as_real(values) if values.is_complex() else values
    if plain.dtype not in _EXPONENTS:
        return bool(plain.float().isfinite().all())
    signed, unsigned, least, least_unsigned = _EXPONENTS[plain.dtype]
    bits = plain.reshape(-1).view(torch.uint8).numpy()
    return bool(bits.view(signed).max() < least and bits.view(unsigned).max() < least_unsigned)

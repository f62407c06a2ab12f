"""What a tensor holds where it does not hold what it should: rounding, a byte a value, nothing, other orders."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from parity.numerics.metrics import bit_equal, cosine, max_abs, rel_l2
from parity.numerics.streamed import Streamed
from parity.weights.rearranged import rearranged

_COARSER = {
    torch.float64: (torch.float32, torch.bfloat16, torch.float16),
    torch.float32: (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2),
    torch.bfloat16: (torch.float8_e4m3fn, torch.float8_e5m2),
    torch.float16: (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
}

_COARSE = 0.08
"""What a byte a value loses at most, of a tensor's norm: the coarsest, float8_e5m2, has two bits behind the point."""


@dataclass(frozen=True)
class Difference:
    """How a tensor differs.

    Args:
        rel_l2, max_abs, cosine: the distance; NaN where a side holds NaN or no floats.
        what: the most telling thing known of it, in words.
        rounded_to: the coarser dtype its values went through, in which it may be stored or not.
        stored, wanted: dtypes.
    """

    rel_l2: float
    max_abs: float
    cosine: float
    what: str
    rounded_to: str | None
    wanted: str
    stored: str


def difference_of(value: Tensor, held: Tensor) -> Difference:
    """Say how `held` differs from `value`, which it should be.

    Shapes: both any one shape.
    """
    rounded = _rounded_to(value, held)
    numbers = _numbers(value, held)
    wanted, stored = str(value.dtype).removeprefix("torch."), str(held.dtype).removeprefix("torch.")
    return Difference(*numbers, _what(value, held, rounded, numbers), rounded, wanted, stored)


def _rounded_to(value: Tensor, held: Tensor) -> str | None:
    if value.dtype != held.dtype and not (value.is_floating_point() and held.is_floating_point()):
        return None
    itself = () if value.dtype == held.dtype else (held.dtype,)
    for dtype in (*itself, *_COARSER.get(held.dtype, ())):
        if bit_equal(value.to(dtype).to(held.dtype), held):
            return str(dtype).removeprefix("torch.")
    return None


def _numbers(value: Tensor, held: Tensor) -> tuple[float, float, float]:
    if not value.numel() or value.is_complex() != held.is_complex():
        return math.nan, math.nan, math.nan
    if value.is_complex():  # a complex number counts as its two parts
        return _numbers(torch.view_as_real(value), torch.view_as_real(held))
    one, other = (t if t.is_floating_point() and t.element_size() > 1 else t.double() for t in (value, held))
    pair = Streamed(one, other)
    return rel_l2(pair), max_abs(pair), cosine(pair)


def _what(value: Tensor, held: Tensor, rounded: str | None, numbers: tuple[float, float, float]) -> str:
    if rounded is not None:
        return f"its values were rounded to {rounded} on the way"
    if held.is_floating_point() and bool(held.isnan().any()) and not bool(value.isnan().any()):
        return f"holds {int(held.isnan().sum())} NaN"
    if bit_equal(value.to(held.dtype), held):
        return f"{value.dtype} stored as {held.dtype}".replace("torch.", "")
    if held.numel() and bool((held == held.reshape(-1)[0]).all()):
        return f"holds {held.reshape(-1)[0].item():.4g} everywhere: never filled?"
    moved = _quantised(value, held) or rearranged(value.to(held.dtype), held)
    return moved or f"differs by {numbers[0]:.2g} of its norm"


def _quantised(value: Tensor, held: Tensor) -> str | None:
    """Recognise values that are stored in a byte each, by scales that lie elsewhere."""
    if held.element_size() > 1 or held.dtype == torch.bool or value.element_size() == 1 or not value.ndim:
        return None
    one, other = (t.double().reshape(t.shape[0], -1) for t in (value, held))
    scales = (one * other).sum(1, keepdim=True) / other.square().sum(1, keepdim=True).clamp_min(1e-300)
    apart = float((one - scales * other).norm() / one.norm().clamp_min(1e-300))
    dtype = str(held.dtype).removeprefix("torch.")
    return f"is right but for its scales and {dtype} ({apart:.1%} apart once scaled): dequantise it" \
        if apart < _COARSE else None  # fmt: skip

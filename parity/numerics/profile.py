"""The shape of a residual in a few numbers: along tokens, along channels, and its histogram.

What a report draws. Values are relative to the root mean square of the reference's exact value, with three digits.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from parity.numerics.evidence import Arranged, Measured

BINS = 48
"""Most points along tokens and channels: neighbours beyond that are put together."""
_COUNTS = 41
"""Columns of the histogram; odd, so that zero has one of its own."""


def residual_profile(m: Measured, logic: bool) -> dict[str, Any] | None:
    """Describe the shape of a tap's residual beside the reference's own rounding; None where no row is judged.

    Args:
        m: the two sides' values.
        logic: the residual is that of the exact values, `native_high - reference_high`; else the native's own
            rounding, `native - native_high`.
    """
    parts = Arranged(m)
    scale = _rms(parts.reference_high)
    if not len(parts.reference_high) or not scale or not math.isfinite(scale):
        return None
    own = (parts.reference - parts.reference_high) / scale
    theirs = parts.native_high - parts.reference_high if logic else parts.native - parts.native_high
    residual = theirs / scale
    if not bool(residual.isfinite().all()) or not bool(own.isfinite().all()):
        return None
    return {
        "of": "exact values" if logic else "rounding",
        "scale": _rounded(scale),
        "tokens": _along(residual, own, 1),
        "channels": {**_along(residual, own, 0), "mean": _means(residual), "reference_mean": _means(own)},
        "histogram": _histogram(residual, own),
    }


def _along(residual: Tensor, own: Tensor, over: int) -> dict[str, Any]:
    """Return the root mean square of each row (over=1) or column (over=0), neighbours put together."""
    count = residual.shape[1 - over]
    return {
        "count": count,
        "native": _listed(_binned(residual.square().mean(over)).sqrt()),
        "reference": _listed(_binned(own.square().mean(over)).sqrt()),
    }


def _means(residual: Tensor) -> list[float]:
    """Return the mean over tokens of each channel: what honest rounding averages out of."""
    return _listed(_binned(residual.mean(0)))


def _binned(values: Tensor) -> Tensor:
    parts = values.tensor_split(min(BINS, len(values)))
    return torch.stack([part.mean() for part in parts])


def _histogram(residual: Tensor, own: Tensor) -> dict[str, Any]:
    """Count values between minus and plus the larger 99.9 % magnitude; what is beyond is in the outermost columns."""
    edge = max(_most(residual), _most(own)) or 1.0
    return {"edge": _rounded(edge), "native": _counted(residual, edge), "reference": _counted(own, edge)}


def _most(values: Tensor) -> float:
    flat = values.abs().flatten()
    return float(flat.kthvalue(max(1, math.ceil(0.999 * flat.numel()))).values)


def _counted(values: Tensor, edge: float) -> list[int]:
    flat = values.flatten().clamp(-edge, edge)
    return [int(n) for n in torch.histc(flat, _COUNTS, -edge, edge)]


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt()) if values.numel() else 0.0


def _listed(values: Tensor) -> list[float]:
    return [_rounded(float(v)) for v in values]


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")

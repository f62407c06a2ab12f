"""Factors between two LoRA changes: named, with what usually makes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from parity.lora.adapter import LoraTarget


def worded_factor(factor: float) -> str:
    """Name a factor, as exactly as it deserves.

    >>> worded_factor(2.0000000001), worded_factor(0.33)
    ('exactly 2 x', '0.33 x')
    """
    for whole in (round(factor, 3), 1 / round(1 / factor, 3) if factor and round(1 / factor, 3) else factor):
        if whole and near(factor, whole, 1e-7) and _simple(whole):
            return f"exactly {whole:g} x"
    return f"{factor:.6g} x"


def near(value: float, wanted: float, tolerance: float) -> bool:
    """Whether a value is within a relative tolerance of another."""
    return abs(value - wanted) <= tolerance * max(abs(wanted), 1e-300)


def _simple(value: float) -> bool:
    return near(value, round(value * 4) / 4, 1e-9) or near(1 / value, round(4 / value) / 4, 1e-9)


_REASONS: tuple[tuple[str, Callable[[LoraTarget], float]], ...] = (
    ("alpha dropped: scaling 1", lambda t: 1 / t.scaling),
    ("applied twice", lambda t: 2.0),
    ("another sign", lambda t: -1.0),
    ("the scaling applied twice", lambda t: t.scaling),
    ("alpha made a whole number", lambda t: int(t.scaling * t.rank + 1e-9) / (t.scaling * t.rank)),
    ("alpha not divided by r", lambda t: float(t.rank)),
    ("alpha divided by r twice", lambda t: 1 / t.rank),
    ("alpha divided by the root of r on one side (rsLoRA)", lambda t: math.sqrt(t.rank)),
    ("alpha divided by r, by its root in the file (rsLoRA)", lambda t: 1 / math.sqrt(t.rank)),
)


def reason_for(ratio: float, targets: Sequence[LoraTarget], tolerance: float = 0.01) -> str:
    """Return what usually makes a factor on targets like these, "" where nothing known does."""
    for words, factor in _REASONS:
        if targets and all(near(ratio, factor(target), tolerance) for target in targets if target.scaling):
            return words
    return ""

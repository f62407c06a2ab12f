"""What a look at faulty taps needs of a draw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from parity.draws import Draw
from parity.execution.trace import Trace
from parity.lora.adapter import LoraAdapter
from parity.numerics.verdict import Judged
from parity.stage import DrawOf

MOST = 3
"""Taps that are repaired, the first faulty ones, each of another kind: what is behind them is mostly the same bug."""


@dataclass(frozen=True)
class Faulty:
    """A draw whose taps are to be repaired: what a recording has of it is enough.

    Args:
        of: the draw. reference, native: its lockstep passes.
        before: logic_error by tap. noise: size of the reference's own rounding by tap.
        adapter: the LoRA in the native's names, where it is on.
    """

    of: DrawOf
    reference: Trace
    native: Trace
    before: Mapping[str, float]
    noise: Mapping[str, float]
    adapter: LoraAdapter | None = None


def faulty_taps(draw: Draw, judged: Mapping[str, Judged]) -> list[str]:
    """Name the first faulty tap of each kind, where the functions differ."""
    names = [n for n, j in judged.items() if j.logic and math.isfinite(draw.evidence[n].logic_error)]
    kinds = {t.kind: t.name for t in reversed(draw.session.taps) if t.name in names}
    return sorted(kinds.values(), key=names.index)[:MOST]

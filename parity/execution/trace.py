"""What one pass of one side showed at its taps."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from parity.execution.decisions import Decisions


@dataclass
class TapValue:
    """The value one side had at one tap, calls concatenated along dim 0, in that side's own layout.

    Args:
        low: as computed.
        high: its shadow, NaN where not trusted; None in a plain pass.
        parts: dim-0 sizes of the calls it was seen in.
    """

    low: Tensor
    high: Tensor | None = None
    parts: tuple[int, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the side computed it in."""
        return self.low.dtype


@dataclass
class Trace:
    """One pass: tap values in the order they were reached, the final output last.

    Args:
        values: tap name to value.
        events: what made shadows untrusted, and how often.
        kernels: attention and custom ops that ran.
        ops: ops shadowed.
        decisions: what floats decided.
        dtypes: per segment, how often each op ran in which dtype ("addmm float32").
    """

    values: dict[str, TapValue] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)
    ops: int = 0
    decisions: Decisions = field(default_factory=Decisions)
    dtypes: dict[str, Counter[str]] = field(default_factory=dict)

    def segment_before(self, tap: str) -> Counter[str]:
        """Return the ops of the segment that ends at a tap, by dtype."""
        names = list(self.values)
        where = names.index(tap)
        return self.dtypes.get(names[where - 1] if where else "", Counter())

    def first_difference(self, other: Trace) -> str | None:
        """Name the first tap whose low values differ in any bit, None where all are the same."""
        for name, value in self.values.items():
            mine, theirs = value.low, other.values[name].low
            if mine.dtype != theirs.dtype or not same_bits(mine, theirs):
                return name
        return None


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Compare values bit for bit; NaN equals NaN."""
    if a.shape != b.shape:
        return False
    return bool(torch.equal(a, b) or ((a == b) | ((a != a) & (b != b))).all())

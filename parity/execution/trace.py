"""What one pass of one side showed at its taps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

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

    values: Mapping[str, TapValue] = field(default_factory=dict)
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


V = TypeVar("V")


class OnDemand(Mapping[str, V]):
    """A mapping whose values are made, or read, each time they are asked for, and never kept."""

    def __init__(self, makers: Mapping[str, Callable[[], V]]) -> None:
        self._makers = makers

    def __getitem__(self, key: str) -> V:
        return self._makers[key]()

    def __contains__(self, key: object) -> bool:
        return key in self._makers  # without making the value, as the mixin would

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


class Sink(Protocol):
    """Where the values of a pass go as they are seen: to memory, to disk, or into a comparison."""

    def put(self, name: str, low: Tensor, high: Tensor | None) -> None:
        """Take what one call showed at a tap: its values as computed and, under a shadow, their shadows."""

    def values(self) -> Mapping[str, TapValue]:
        """Return the values by tap, calls concatenated, in the order they were reached."""


class Kept:
    """Keeps every value in memory."""

    def __init__(self) -> None:
        self._lows: dict[str, list[Tensor]] = {}
        self._highs: dict[str, list[Tensor]] = {}

    def put(self, name: str, low: Tensor, high: Tensor | None) -> None:
        """Keep what one call showed."""
        self._lows.setdefault(name, []).append(low)
        if high is not None:
            self._highs.setdefault(name, []).append(high)

    def values(self) -> dict[str, TapValue]:
        """Return the values by tap."""
        return {name: joined(parts, self._highs.get(name)) for name, parts in self._lows.items()}


class Differing:
    """Compares a pass with an earlier one while it runs, and keeps nothing.

    Attributes:
        first: the first tap, in the order of the earlier pass, whose low values differ in any bit; None if none does.
    """

    def __init__(self, earlier: Trace) -> None:
        self._earlier = earlier.values
        self._rows = dict.fromkeys(earlier.values, 0)
        self._apart: set[str] = set()

    @property
    def first(self) -> str | None:
        """Name the first tap that differs."""
        return next((name for name in self._earlier if name in self._apart), None)

    def put(self, name: str, low: Tensor, high: Tensor | None) -> None:
        """Compare what one call showed."""
        whole, row = self._earlier[name].low, self._rows[name]
        rows = low.shape[0] if low.dim() else 1
        many = len(self._earlier[name].parts) > 1
        there = whole[row : row + rows].reshape(low.shape) if many else whole
        self._rows[name] = row + rows
        if low.dtype != there.dtype or not same_bits(low, there):
            self._apart.add(name)

    def values(self) -> Mapping[str, TapValue]:
        """Return the earlier pass's values: nothing was kept of this one."""
        return self._earlier


def joined(lows: list[Tensor], highs: list[Tensor] | None) -> TapValue:
    """Concatenate the values of several calls along dim 0; values without dims become one."""
    sizes = tuple(part.shape[0] if part.dim() else 1 for part in lows)
    return TapValue(_together(lows), None if highs is None else _together(highs), sizes)


def _together(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat([p.reshape(1) if p.dim() == 0 else p for p in parts])


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Compare values bit for bit; NaN equals NaN."""
    if a.shape != b.shape:
        return False
    return bool(torch.equal(a, b) or ((a == b) | ((a != a) & (b != b))).all())

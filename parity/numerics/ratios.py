"""Tests of the rounding ratio: one projection of one tap, and a projection pooled over the blocks of a kind."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parity.numerics.evidence import Evidence
from parity.numerics.limits import Limits
from parity.numerics.rounding import Excess

Pooled = tuple[int, float, float, int]
"""Of one projection over the blocks of a kind: direction, mean log ratio, standard error, blocks."""


@dataclass(frozen=True)
class TapFacts:
    """What a verdict must know of a tap besides its numbers."""

    name: str
    kind: str
    block: str
    attention: bool
    allowed: str | None = None
    """Reason of a declared approximation: logic is off here, and said."""


@dataclass
class RatioTest:
    """One projection of one tap, pooled over draws; `up` and `down` are mean log ratios."""

    tap: str
    projection: str
    up: float
    down: float
    se: float
    margin: float
    paired_up: float
    paired_down: float

    def exceeds(self, z: float) -> int:
        """Return +1 or -1 where the ratio is beyond the margin by z standard errors, 0 elsewhere."""
        if self.up - self.margin > z * self.se and self.paired_up > z * 0.5:
            return 1
        if -self.down - self.margin > z * self.se and self.paired_down > z * 0.5:
            return -1
        return 0


def tests_of(f: TapFacts, found: Sequence[Evidence], limits: Limits) -> list[RatioTest]:
    """Return a tap's tests, one a projection, pooled over draws."""
    names = sorted({p for e in found for p, x in e.excesses.items() if _testable(p, x, limits)})
    margin = math.log1p(margin_of(f, found, limits.margin, limits.margin_attention, limits))
    tests = []
    for p in names:
        xs = [e.excesses[p] for e in found if p in e.excesses]
        n = len(xs)
        m = math.exp(margin) - 1
        tests.append(
            RatioTest(
                tap=f.name,
                projection=p,
                up=sum(x.up for x in xs) / n,
                down=sum(x.down for x in xs) / n,
                se=math.sqrt(sum(x.se**2 for x in xs)) / n,
                margin=margin,
                paired_up=sum(x.paired(m) for x in xs) / math.sqrt(n),
                paired_down=-sum(x.paired(1 / (1 + m) - 1) for x in xs) / math.sqrt(n),
            )
        )
    return tests


def _testable(projection: str, excess: Excess, limits: Limits) -> bool:
    return projection == "identity" or excess.size >= limits.least_components


def margin_of(f: TapFacts, found: Sequence[Evidence], plain: float, attention: float, limits: Limits) -> float:
    """Return the margin in force at a tap: plain, of attention, or of a float32 segment."""
    if is_fine(found, limits):
        return limits.margin_fine
    return attention if f.attention else plain


def is_fine(found: Sequence[Evidence], limits: Limits) -> bool:
    """Say whether the reference computes in float32 here, where only a down-cast counts."""
    return bool(found) and max(e.noise for e in found) < limits.fine


def pooled_over_blocks(
    facts: Sequence[TapFacts], tests: Mapping[str, list[RatioTest]], found: Mapping[str, Sequence[Evidence]],
    limits: Limits,
) -> dict[tuple[str, str], Pooled]:  # fmt: skip
    """Pool each projection over the blocks of a kind: (direction, mean log ratio, standard error, blocks)."""
    groups: dict[tuple[str, str], list[RatioTest]] = defaultdict(list)
    margins: dict[str, float] = {}
    for f in facts:
        own = margin_of(f, found[f.name], limits.margin_pooled, limits.margin_pooled_attention, limits)
        margins[f.kind] = max(math.log1p(own), margins.get(f.kind, 0.0))
        for t in tests[f.name]:
            groups[f.kind, t.projection].append(t)
    out = {}
    for (kind, projection), ts in groups.items():
        margin = margins[kind]
        n = len(ts)
        se = math.sqrt(sum(t.se**2 for t in ts)) / n
        up, down = sum(t.up for t in ts) / n, sum(t.down for t in ts) / n
        direction = 0
        if n > 1 and up - margin > limits.z * se:
            direction = 1
        elif n > 1 and -down - margin > limits.z * se:
            direction = -1
        out[kind, projection] = (direction, up if direction >= 0 else down, se, n)
    return out

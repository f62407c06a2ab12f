"""Rounding excess: the native's rounding residual against the reference's own, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parity.numerics.projections import Rows, project

_FLOOR = 1e-8
_LEAST_FREEDOM = 1.0


@dataclass(frozen=True)
class Excess:
    """One projection at one tap.

    Args:
        native, reference: mean squares of the projected residuals.
        twins: the same of the lattice twins.
        freedom: effective degrees of freedom, estimated from the twins.
        paired_correlation: of the two sides' projected residuals: what they share.
        difference: mean square of the difference of the projected residuals.
        size: number of components.
    """

    native: float
    reference: float
    twins: tuple[float, ...]
    freedom: float
    paired_correlation: float
    difference: float
    size: int

    @property
    def pooled(self) -> float:
        """The null's mean square: the reference's own and its twins' together; heals a lucky denominator."""
        return (self.reference + sum(self.twins)) / (1 + len(self.twins))

    @property
    def ratio(self) -> float:
        """Native over reference, both as root mean squares; the number people read."""
        return _ratio(self.native, self.reference or self.pooled)

    @property
    def departure(self) -> float:
        """How far the native's residual is from the reference's, relative to it: bounds |ratio - 1| with certainty."""
        return _ratio(self.difference, self.reference)

    @property
    def up(self) -> float:
        """Log ratio against the larger of the reference and its null: stagnation at a residual add is no excess."""
        return math.log(max(_ratio(self.native, max(self.reference, self.pooled)), _FLOOR))

    @property
    def down(self) -> float:
        """Log ratio against the smaller of the two: evidence that the native rounds less."""
        return math.log(max(_ratio(self.native, min(self.reference, self.pooled)), _FLOOR))

    @property
    def se(self) -> float:
        """Standard error of the log ratio."""
        return math.sqrt((1 + 1 / max(1, len(self.twins))) / (2 * max(self.freedom, _LEAST_FREEDOM)))

    def paired(self, margin: float) -> float:
        """Return the Pitman-Morgan t of "native's variance exceeds (1 + margin)^2 times the reference's".

        Pitman 1939, Morgan 1939: with equal variances the sum and the difference of two correlated samples are
        uncorrelated. It uses the roundings the two sides share.
        """
        scale = 1 + margin
        a, b = math.sqrt(self.native) / scale, math.sqrt(self.reference)
        total = math.sqrt(max((a * a + b * b) ** 2 - 4 * (self.paired_correlation * a * b) ** 2, 0.0))
        if total == 0.0:
            return 0.0
        r = max(-0.999999, min(0.999999, (a * a - b * b) / total))
        return r * math.sqrt(max(self.freedom - 2, 1.0)) / math.sqrt(1 - r * r)


def _ratio(numerator: float, denominator: float) -> float:
    if denominator == 0.0:
        return 1.0 if numerator == 0.0 else 1e9
    return math.sqrt(numerator / denominator)


def excesses(native: Tensor, reference: Tensor, twins: Sequence[Tensor], rows: Rows) -> dict[str, Excess]:
    """Measure every projection of the residuals.

    Shapes: native, reference, each twin [T, C]: residuals against the side's own shadow, on the same rows.
    """
    n, r = project(native, rows), project(reference, rows)
    z = [project(twin, rows) for twin in twins]
    return {name: _excess(n[name], r[name], [t[name] for t in z]) for name in n}


def _excess(n: Tensor, r: Tensor, twins: list[Tensor]) -> Excess:
    return Excess(
        native=_mean_square(n),
        reference=_mean_square(r),
        twins=tuple(_mean_square(t) for t in twins),
        freedom=freedom([r, *twins]),
        paired_correlation=_correlation(n, r),
        difference=_mean_square(n - r),
        size=n.numel(),
    )


def _mean_square(v: Tensor) -> float:
    return float(v.square().mean())


def _correlation(a: Tensor, b: Tensor) -> float:
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm else 0.0


def freedom(replicates: Sequence[Tensor]) -> float:
    """Estimate effective degrees of freedom of a squared norm from independent replicates.

    Satterthwaite: (tr S)^2 / tr(S^2), with tr(S^2) from inner products between replicates. Never above the number of
    components; structure the replicates share lowers it, which widens the standard error, as it should.
    """
    size = replicates[0].numel()
    if len(replicates) < 2:
        return float(size) / 2
    gram = torch.stack([torch.stack([a @ b for b in replicates]) for a in replicates])
    trace = float(gram.diagonal().mean())
    count = len(replicates)
    off = float(gram.square().sum() - gram.diagonal().square().sum()) / (count * (count - 1))
    if trace == 0.0:
        return float(size)
    # A handful of inner products: shrink towards the nominal value with the weight of one of them.
    pairs = count * (count - 1) / 2
    shrunk = (off * pairs + trace * trace / size) / (pairs + 1)
    return float(min(size, max(_LEAST_FREEDOM, trace * trace / shrunk)))

"""Changes of weights in low-rank form, measured and compared in float64 without building them.

A and B of one and the same change differ at will (B M, M^-1 A); only `B @ A` is compared.
Letters in shapes: R rank, I inputs and O outputs of the layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from parity.lora.loaded import Factors, Target

_IN_FULL = {"diff_b": "{}.bias", "diff_m": "{}", "set_weight": "{}.weight (set)", "set_bias": "{}.bias (set)",
            "magnitude": "{}.lora_magnitude_vector"}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Delta:
    """A change: `B @ A` of the factors (scaling in B) plus `full`.

    Shapes: A [R, I], B [O, R], full [O, I].
    """

    factors: Factors | None = None
    full: Tensor | None = None

    def dense(self) -> Tensor:
        """Return the change itself.

        Shapes: [O, I].
        """
        low = None if self.factors is None else self.factors.B @ self.factors.A
        if low is None or self.full is None:
            value = self.full if low is None else low
            assert value is not None
            return value
        return low + self.full.reshape(low.shape)

    def norm(self) -> float:
        """Return the Frobenius norm, from R x R products where there are only factors."""
        if self.full is not None or self.factors is None:
            return float(self.dense().norm())
        A, B = self.factors
        return float(((B.t() @ B) * (A @ A.t()).t()).sum().clamp_min(0).sqrt())


@dataclass(frozen=True)
class Apart:
    """How far two changes are apart: relative distance, cosine, and how many times larger the second is."""

    rel_l2: float
    cosine: float
    ratio: float


def deltas_of(target: Target) -> dict[str, Delta]:
    """Return what a target changes, by name: its weight, its bias, what it replaces."""
    out: dict[str, Delta] = {}
    full = target.extras["diff"]().double().flatten(1) if "diff" in target.extras and _is_matrix(target) else None
    if full is None and "diff" in target.extras:
        full = target.extras["diff"]().double().reshape(-1, 1)
    if target.factors is not None or full is not None:
        out[target.module] = Delta(factors_in_float64(target), full)
    for role, name in _IN_FULL.items():
        if role in target.extras:
            out[name.format(target.module)] = Delta(full=target.extras[role]().double().reshape(-1, 1))
    return out


def changed_names(target: Target) -> list[str]:
    """Return the names of `deltas_of` without reading a tensor."""
    own = [target.module] if target.factors is not None or "diff" in target.extras else []
    return own + [name.format(target.module) for role, name in _IN_FULL.items() if role in target.extras]


def _is_matrix(target: Target) -> bool:
    return target.extras["diff"]().ndim > 1


def factors_in_float64(target: Target) -> Factors | None:
    """Return A and B in float64, the scaling in B; None where a target has none."""
    if target.factors is None:
        return None
    A, B = target.factors()
    return Factors(A.double(), B.double() * target.scaling)


def apart(a: Delta, b: Delta) -> Apart:
    """Compare two changes of one weight, exactly to float64."""
    first, second = _cores(a, b)
    size, other = float(first.norm()), float(second.norm())
    distance = float((second - first).norm())
    inner = float((first * second).sum())
    largest = max(size, other)
    return Apart(
        distance / size if size else (torch.inf if other else 0.0),
        inner / (size * other) if size and other else float(largest == 0),
        other / size if size else (torch.inf if other else 1.0),
    )


def _cores(a: Delta, b: Delta) -> tuple[Tensor, Tensor]:
    """Return two small matrices whose norms, distance and inner product are those of the changes.

    With B = [B1 B2] = Q_b R_b and A^T = [A1^T A2^T] = Q_a R_a each change is Q_b (R_b_i R_a_i^T) Q_a^T.
    """
    if a.factors is None or b.factors is None or a.full is not None or b.full is not None:
        return a.dense().reshape(-1, 1), b.dense().reshape(-1, 1)
    r = a.factors.A.shape[0]
    left = upper(torch.cat([a.factors.B, b.factors.B], 1))
    right = upper(torch.cat([a.factors.A.t(), b.factors.A.t()], 1))
    return left[:, :r] @ right[:, :r].t(), left[:, r:] @ right[:, r:].t()


def upper(matrix: Tensor) -> Tensor:
    """Return R of the QR decomposition."""
    found: Tensor = torch.linalg.qr(matrix, mode="r").R
    return found


def recompressed(factors: Factors, rank: int) -> tuple[Factors, float]:
    """Return the nearest factors of a lower rank and the relative error, by the SVD of the R x R core.

    Shapes: A [R, I], B [O, R] to A [rank, I], B [O, rank].
    """
    qb, rb = torch.linalg.qr(factors.B)
    qa, ra = torch.linalg.qr(factors.A.t())
    u, sizes, v = torch.linalg.svd(rb @ ra.t(), full_matrices=False)
    left = float(sizes[rank:].norm() / sizes.norm()) if bool(sizes.any()) else 0.0
    root = sizes[:rank].sqrt()
    return Factors((qa @ v.t()[:, :rank] * root).t(), qb @ u[:, :rank] * root), left

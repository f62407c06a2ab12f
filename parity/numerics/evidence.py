"""What was measured at one tap in one draw: plain data a verdict is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from parity.numerics.metrics import ClassicMetrics, classic_metrics
from parity.numerics.projections import Rows, coherence
from parity.numerics.rounding import Excess, excesses


@dataclass(frozen=True)
class Measured:
    """The two sides' values at one tap, all in the reference's layout.

    Shapes: reference, native low values and their shadows `reference_high`, `native_high`, each twin: one shape
    [B, ..., C] with channels at `channel_dim`; valid: bool, broadcast to that shape, or None.
    """

    reference: Tensor
    native: Tensor
    reference_high: Tensor
    native_high: Tensor
    twins: Sequence[Tensor] = ()
    valid: Tensor | None = None
    channel_dim: int = -1
    heads: int = 0
    upstream: Mapping[str, Tensor] = field(default_factory=dict)
    """Reference values of upstream taps, rows [T, C] as `rows_of` gives them, before masking."""


@dataclass
class Evidence:
    """The numbers at one tap in one draw.

    Args:
        logic_error: relative L2 distance of the two shadows.
        excesses: per projection, native against reference rounding.
        rounded: the same identity ratio after rounding both to the coarser dtype, where dtypes differ.
        rows: judged rows. width: channels. groups: samples.
        excluded: rows whose shadow is not defined or not trusted on either side.
        bit_exact: every valid element has the same bits in the same dtype.
        metrics: the classic ones, on valid elements.
        nonfinite: NaN and Inf of the low values, (reference, native), outside excluded rows.
        coherence: structure of the reference's own residual.
        noise: the reference's own relative rounding error. implausible: residual over the twins'.
    """

    logic_error: float
    excesses: dict[str, Excess]
    rounded: float | None
    rows: int
    width: int
    groups: int
    excluded: int
    bit_exact: bool
    metrics: ClassicMetrics
    nonfinite: tuple[int, int]
    coherence: float
    noise: float
    implausible: float
    reference_dtype: str
    native_dtype: str
    worst_index: tuple[int, ...] = ()
    stored_constants: float | None = None
    """Logic error before float32 tables were compared as stored on both sides; None where that was not needed."""


def rows_of(value: Tensor, channel_dim: int) -> Tensor:
    """Arrange a value as rows [T, C], float64."""
    if value.dim() == 0:
        value = value.reshape(1)
    if value.is_complex():
        value = torch.view_as_real(value.to(torch.complex128)).flatten(-2)
        channel_dim = -1
    if value.dim() == 1:
        return value.double().unsqueeze(0)
    moved = value.movedim(channel_dim, -1)
    return moved.reshape(-1, moved.shape[-1]).double()


def groups_of(value: Tensor) -> tuple[int, int]:
    """Return how many samples a value holds and how many rows each has."""
    samples = value.shape[0] if value.dim() > 2 else 1
    return max(1, samples), 0


def measure(m: Measured) -> Evidence:
    """Measure one tap."""
    parts = Arranged(m)
    n_star, r_star = parts.native_high, parts.reference_high
    e_n, e_r = parts.native - n_star, parts.reference - r_star
    e_z = [z - r_star for z in parts.twins]
    rows = Rows(r_star, parts.group, parts.groups, m.heads, parts.upstream)
    found = excesses(e_n, e_r, e_z, rows) if len(r_star) else {}
    metrics = classic_metrics(*parts.shown)
    return Evidence(
        logic_error=_relative(n_star - r_star, r_star),
        excesses=found,
        rounded=_after_rounding(m, parts),
        rows=len(r_star),
        width=r_star.shape[-1],
        groups=parts.groups,
        excluded=parts.excluded,
        bit_exact=m.reference.dtype == m.native.dtype and parts.same_bits,
        metrics=metrics,
        nonfinite=parts.nonfinite,
        coherence=coherence(e_r, rows) if len(e_r) else 1.0,
        noise=_relative(e_r, r_star),
        implausible=_implausible(e_n, e_r, e_z),
        reference_dtype=str(m.reference.dtype).removeprefix("torch."),
        native_dtype=str(m.native.dtype).removeprefix("torch."),
        worst_index=metrics.max_abs_index or (),
    )


class Arranged:
    """The values as rows, without padding, without rows that are undefined or not trusted."""

    def __init__(self, m: Measured) -> None:
        sides = (m.reference, m.native, m.reference_high, m.native_high, *m.twins)
        values = [rows_of(v, m.channel_dim) for v in sides]
        samples, _ = groups_of(m.reference)
        count = values[0].shape[0]
        group = torch.arange(count, device=values[0].device) // max(1, count // samples)
        keep = torch.ones(count, dtype=torch.bool, device=values[0].device)
        if m.valid is not None:
            keep = rows_of(m.valid.expand(m.reference.shape).to(torch.uint8), m.channel_dim)[:, 0] > 0
        untrusted = (values[2].isnan() & ~values[2].isinf()).any(-1) | values[3].isnan().any(-1)
        self.excluded = int((untrusted & keep).sum())
        judged = keep & ~untrusted
        finite = values[0][judged].isfinite().all(-1) & values[1][judged].isfinite().all(-1)
        self.nonfinite = _nonfinite(values[0][keep], values[1][keep])
        for z in values[4:]:
            finite &= z[judged].isfinite().all(-1)
        chosen = [v[judged][finite] for v in values]
        self.reference, self.native, self.reference_high, self.native_high = chosen[:4]
        self.twins = chosen[4:]
        self.group = group[judged][finite].clamp_max(samples - 1)
        self.groups = samples
        low_r, low_n = values[0][keep], values[1][keep]
        self.same_bits = bool(((low_r == low_n) | (low_r.isnan() & low_n.isnan())).all())
        self.shown = self._shown(m, keep, low_r, low_n)
        self.upstream = {k: v[judged][finite] for k, v in m.upstream.items() if v.shape == values[0].shape}

    def _shown(self, m: Measured, keep: Tensor, low_r: Tensor, low_n: Tensor) -> tuple[Tensor, Tensor]:
        """Return what classic metrics are taken of: whole tensors where nothing is padding, for real indices."""
        if m.reference.is_complex():
            return torch.view_as_real(m.reference.resolve_conj()), torch.view_as_real(m.native.resolve_conj())
        if not bool(keep.any()):  # all is padding: a text of no token
            return m.reference.new_zeros(1), m.native.new_zeros(1)
        return (m.reference, m.native) if bool(keep.all()) else (low_r, low_n)


def _nonfinite(reference: Tensor, native: Tensor) -> tuple[int, int]:
    """Count NaN and Inf, whatever their shadows say; -inf on both sides at the same place is a mask's."""
    on_purpose = (reference == -math.inf) & (native == -math.inf)
    return int((~reference.isfinite() & ~on_purpose).sum()), int((~native.isfinite() & ~on_purpose).sum())


def _relative(difference: Tensor, of: Tensor) -> float:
    top, base = float(difference.norm()), float(of.norm())
    if base == 0.0:
        return 0.0 if top == 0.0 else math.inf
    return top / base


def _after_rounding(m: Measured, parts: Arranged) -> float | None:
    """Return the identity ratio after rounding both sides to the coarser dtype; None where dtypes are the same."""
    if m.reference.dtype == m.native.dtype or not m.native.is_floating_point():
        return None
    coarse = min((m.reference.dtype, m.native.dtype), key=lambda d: -torch.finfo(d).eps)
    e_r = parts.reference.to(coarse).double() - parts.reference_high
    e_n = parts.native.to(coarse).double() - parts.native_high
    base = float(e_r.norm())
    return float(e_n.norm()) / base if base else (1.0 if float(e_n.norm()) == 0.0 else math.inf)


def _implausible(e_n: Tensor, e_r: Tensor, twins: list[Tensor]) -> float:
    """Return the reference's residual over its twins': far above 1, the low values were not made by rounding."""
    if not twins or not len(e_r):
        return 1.0
    base = math.sqrt(sum(float(z.square().sum()) for z in twins) / len(twins))
    own = float(e_r.norm())
    return own / base if base else 1.0

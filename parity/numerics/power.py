"""Whether the evidence could have shown a lost FP32 island: if not, agreement proves nothing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from parity.numerics.evidence import Evidence
from parity.numerics.limits import Limits
from parity.numerics.ratios import Pooled, RatioTest, TapFacts, is_fine


def no_power(
    f: TapFacts, found: Sequence[Evidence], tests: list[RatioTest],
    pooled: Mapping[tuple[str, str], Pooled], seen: float, token_rows: int, limits: Limits,
) -> str | None:  # fmt: skip
    """Say why the method cannot see a lost island: structured reference rounding, too few tokens or channels."""
    if is_fine(found, limits):
        return None  # any 16-bit rounding in a float32 segment towers above its noise: no tokens are needed
    if max((x.departure for e in found for x in e.excesses.values()), default=0.0) < limits.margin:
        return None  # almost bit-exact: on no structure can the ratio be outside the margin, whatever the noise
    worst = max(e.coherence for e in found)
    rows = sum(e.rows / e.groups for e in found) / len(found)
    # A tap of a few rows, or outside the blocks, is an island of its own: its whole rounding is judged.
    is_island = not f.block or max(e.rows for e in found) < limits.island_rows * token_rows
    if not is_island and worst > limits.coherence:
        limit = f"(limit {limits.coherence:.0f})"
        return f"no power: the reference's own rounding is structured: coherence {worst:.1f} {limit}"
    if is_island:
        return None
    per_channel = [t for t in tests if t.projection in ("channel_mean", "channel_slope")]
    se = min((pooled[f.kind, t.projection][2] for t in per_channel), default=1.0)
    margin = limits.margin_pooled_attention if f.attention else limits.margin_pooled
    least = math.log1p(margin) + (limits.z + limits.z_power) * se
    if seen < least:
        needed = rows * math.expm1(2 * least) / math.expm1(2 * seen) if seen else math.inf
        return f"no power: {rows:.0f} tokens a sample, a lost FP32 island needs {needed:.0f} here (logic agrees)"
    return None


def shown_by_island(
    facts: Sequence[TapFacts], found: Mapping[str, Sequence[Evidence]], limits: Limits
) -> dict[str, float]:
    """Return, by kind, the mean log ratio over its taps that a lost FP32 island would cause.

    rho^2 = 1 + tokens / (T0 c^2): what the reference rounds coherently (c above 1) hides a part of the island.
    """
    ratios: dict[str, list[float]] = defaultdict(list)
    for f in facts:
        for e in found[f.name]:
            hidden = limits.lost_island_tokens * max(1.0, e.coherence) ** 2
            ratios[f.kind].append(0.5 * math.log1p(e.rows / e.groups / hidden))
    return defaultdict(float, {kind: sum(r) / len(r) for kind, r in ratios.items()})

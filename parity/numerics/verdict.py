"""From evidence to a verdict: bit-exact, same function, different and drowned, different and felt, or not judged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from parity.numerics.evidence import Evidence
from parity.numerics.limits import Limits
from parity.numerics.power import no_power, shown_by_island
from parity.numerics.ratios import Pooled, RatioTest, TapFacts, margin_of, pooled_over_blocks, tests_of

__all__ = ["Judged", "TapFacts", "VerdictClass", "judge", "settle"]


class VerdictClass(str, Enum):
    """The five classes."""

    BIT_EXACT = "bit-exact"
    SAME = "same function, as precise"
    DROWNED = "different, drowned"
    FELT = "different, felt"
    NOT_JUDGED = "not judged"


@dataclass
class Judged:
    """The verdict of one tap over all draws, with what it rests on.

    Args:
        cls: the class. reasons: why, in words, most important first.
        logic: the two sides are different functions. direction: +1 rounds more, -1 rounds less, 0 neither.
        projection: the projection that shows it best. log_ratio, margin, se: of that projection.
        amber: one projection at one tap alone is above its limit.
        impact: relative to the reference's own output noise; None where not computed.
        fails: the case fails.
    """

    name: str
    cls: VerdictClass
    reasons: list[str] = field(default_factory=list)
    logic: bool = False
    direction: int = 0
    projection: str = ""
    log_ratio: float = 0.0
    margin: float = 0.0
    se: float = 0.0
    amber: bool = False
    impact: float | None = None
    tests: int = 0

    @property
    def different(self) -> bool:
        """Whether the sides differ in logic or precision."""
        return self.logic or self.direction != 0

    @property
    def fails(self) -> bool:
        """Whether the case fails: a different function always does, a lost precision where it is felt."""
        return self.cls is VerdictClass.FELT or (self.cls is VerdictClass.DROWNED and self.logic)


def judge(facts: Sequence[TapFacts], draws: Sequence[Mapping[str, Evidence]], limits: Limits) -> dict[str, Judged]:
    """Judge every tap from the evidence of all draws; impact is filled in later by `settle`."""
    inner = {f.name for f in facts if f.block} or {f.name for f in facts}
    token_rows = max((e.rows + e.excluded for d in draws for n, e in d.items() if n in inner), default=0)
    found = {f.name: [d[f.name] for d in draws if f.name in d] for f in facts}
    tests = {f.name: tests_of(f, found[f.name], limits) for f in facts}
    pooled = pooled_over_blocks(facts, tests, found, limits)
    seen = shown_by_island(facts, found, limits)
    # Where the functions differ, a ratio of roundings says nothing: it must not second that of another tap.
    same = {f.name for f in facts if f.allowed or all(e.logic_error <= limits.logic_error for e in found[f.name])}
    singles = {n: [t for t in ts if n in same and t.exceeds(limits.z)] for n, ts in tests.items()}
    return {
        f.name: _judge_tap(f, found[f.name], tests[f.name], singles, pooled, seen[f.kind], token_rows, facts, limits)
        for f in facts
    }


def _judge_tap(
    f: TapFacts, found: Sequence[Evidence], tests: list[RatioTest], singles: Mapping[str, list[RatioTest]],
    pooled: Mapping[tuple[str, str], Pooled], seen: float, token_rows: int,
    facts: Sequence[TapFacts], limits: Limits,
) -> Judged:  # fmt: skip
    if not found:
        return Judged(f.name, VerdictClass.NOT_JUDGED, ["no draw reached this tap"])
    broken = _broken(f, found, limits)
    if broken is not None:
        return broken
    logic = max(e.logic_error for e in found)
    if logic > limits.logic_error and f.allowed is None:
        return Judged(
            f.name, VerdictClass.FELT, [f"logic_error {logic:.1e} (limit {limits.logic_error:.0e})"],
            logic=True, tests=len(tests),
        )  # fmt: skip
    if all(e.bit_exact for e in found):
        return Judged(f.name, VerdictClass.BIT_EXACT, tests=len(tests))
    red = _red(f, found, tests, singles, pooled, facts, limits)
    if red is not None:
        red.tests = len(tests)
        return red
    apart = _dtypes_apart(f, found)
    if apart is not None:
        apart.tests = len(tests)
        return apart
    blind = no_power(f, found, tests, pooled, seen, token_rows, limits)
    if blind is not None:
        return Judged(f.name, VerdictClass.NOT_JUDGED, [blind], tests=len(tests))
    if singles[f.name]:
        t = max(singles[f.name], key=lambda t: abs(t.up))
        return Judged(
            f.name, VerdictClass.NOT_JUDGED,
            [f"amber: {t.projection} is outside its limit at this tap alone; draw more inputs to decide"],
            projection=t.projection, log_ratio=t.up, margin=t.margin, se=t.se, amber=True, tests=len(tests),
        )  # fmt: skip
    why = [f"declared: {f.allowed}"] if f.allowed else []
    return Judged(f.name, VerdictClass.SAME, why, tests=len(tests))


def _broken(f: TapFacts, found: Sequence[Evidence], limits: Limits) -> Judged | None:
    """Judge what stands before any statistics: NaN, Inf, untrusted shadows."""
    bad_r, bad_n = (sum(e.nonfinite[i] for e in found) for i in (0, 1))
    if bad_n or bad_r:
        where = "on both sides" if bad_r and bad_n else ("on the native" if bad_n else "on the reference")
        text = f"NaN or Inf {where}: {bad_r} reference, {bad_n} native values"
        return Judged(f.name, VerdictClass.FELT, [text], logic=True)
    judged = sum(e.rows for e in found)
    lost = sum(e.excluded for e in found)
    if judged + lost == 0 and not (bad_n or bad_r):
        return Judged(f.name, VerdictClass.NOT_JUDGED, ["all is padding in these inputs"])
    if judged == 0 or lost / (judged + lost) > limits.excluded:
        if all(e.bit_exact for e in found) and judged + lost:
            return Judged(f.name, VerdictClass.BIT_EXACT, [f"{lost} rows have no trusted shadow"])
        text = f"tainted: {lost} of {judged + lost} rows have no trusted shadow"
        return Judged(f.name, VerdictClass.NOT_JUDGED, [text])
    if (worst := max(e.implausible for e in found)) > limits.implausible:
        return Judged(
            f.name, VerdictClass.NOT_JUDGED,
            [f"tainted: the reference is {worst:.0f}x farther from its shadow than rounding explains (a raw kernel?)"],
        )  # fmt: skip
    return None


def _red(
    f: TapFacts, found: Sequence[Evidence], tests: list[RatioTest], singles: Mapping[str, list[RatioTest]],
    pooled: Mapping[tuple[str, str], Pooled], facts: Sequence[TapFacts], limits: Limits,
) -> Judged | None:  # fmt: skip
    """Find what makes a rounding difference certain: one strong ratio, the pooled test, or two taps."""
    margin = math.log1p(margin_of(f, found, limits.margin_pooled, limits.margin_pooled_attention, limits))
    strong = math.log(limits.strong)
    candidates: list[tuple[float, RatioTest, int, float, str]] = []
    for t in tests:
        direction = 1 if t.up > 0 else -1
        ratio = t.up if direction > 0 else -t.down
        if t.projection == "identity" and ratio - strong > limits.z * t.se:
            candidates.append((ratio, t, direction, strong + limits.z * t.se, "total rounding"))
        pool = pooled[f.kind, t.projection]
        if pool[0] and (t.up if pool[0] > 0 else -t.down) > margin:
            candidates.append((ratio, t, pool[0], margin, f"pooled over {pool[3]} blocks"))
        single = t.exceeds(limits.z)
        if single and _seconded(f, single, singles, facts, limits):
            candidates.append((ratio, t, single, t.margin + limits.z * t.se, "seconded by another tap"))
    if not candidates:
        return None
    _, t, direction, bound, how = max(candidates, key=lambda c: c[0])
    value = math.exp(t.up if direction > 0 else t.down)
    limit = math.exp(bound if direction > 0 else -bound)
    word = "less" if direction > 0 else "more"
    return Judged(
        f.name, VerdictClass.DROWNED,
        [f"rounding_excess {value:.3g} ({t.projection}, limit {limit:.2f}, {how}): "
         f"the native is {word} precise than the reference"],
        direction=direction, projection=t.projection, log_ratio=math.log(value), margin=t.margin, se=t.se,
    )  # fmt: skip


_SIGNIFICAND = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}


def _dtypes_apart(f: TapFacts, found: Sequence[Evidence]) -> Judged | None:
    """A value kept in float32 on one side and not on the other is a finding that needs no statistics."""
    e = found[0]
    r, n = (_SIGNIFICAND.get(d, 0) for d in (e.reference_dtype, e.native_dtype))
    if r == n or not r or not n:
        return None
    word = "less" if n < r else "more"
    return Judged(
        f.name, VerdictClass.DROWNED,
        [f"the value is {e.native_dtype} here, {e.reference_dtype} in the reference: the native is {word} precise"],
        direction=1 if n < r else -1, projection="dtype",
    )  # fmt: skip


def _seconded(
    f: TapFacts, direction: int, singles: Mapping[str, list[RatioTest]], facts: Sequence[TapFacts], limits: Limits
) -> bool:
    """Say whether another tap is above its limit in the same direction: two at once are not luck."""
    others = (o.name for o in facts if o.name != f.name)
    return any(t.exceeds(limits.z) == direction for name in others for t in singles[name])


def settle(judged: Judged, impact: float | None, limits: Limits, how: str = "") -> Judged:
    """Decide felt or drowned from the impact; without one, a difference counts as felt."""
    judged.impact = impact
    if not judged.different or any("NaN or Inf" in r for r in judged.reasons):
        return judged
    if impact is None or impact >= limits.felt or not math.isfinite(impact):
        judged.cls = VerdictClass.FELT
    else:
        judged.cls = VerdictClass.DROWNED
    if impact is not None:
        judged.reasons.append(f"impact {impact:.2g} of the reference's own output noise (limit {limits.felt:.2f}){how}")
    return judged

"""From evidence to a verdict: bit-exact, same function, different and drowned, different and felt, or not judged."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from parity.numerics.evidence import Evidence
from parity.numerics.limits import Limits
from parity.numerics.rounding import Excess


class VerdictClass(str, Enum):
    """The five classes."""

    BIT_EXACT = "bit-exact"
    SAME = "same function, as precise"
    DROWNED = "different, drowned"
    FELT = "different, felt"
    NOT_JUDGED = "not judged"


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


@dataclass
class _Test:
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


def judge(facts: Sequence[TapFacts], draws: Sequence[Mapping[str, Evidence]], limits: Limits) -> dict[str, Judged]:
    """Judge every tap from the evidence of all draws; impact is filled in later by `settle`."""
    inner = {f.name for f in facts if f.block} or {f.name for f in facts}
    token_rows = max((e.rows + e.excluded for d in draws for n, e in d.items() if n in inner), default=0)
    found = {f.name: [d[f.name] for d in draws if f.name in d] for f in facts}
    tests = {f.name: _tests(f, found[f.name], limits) for f in facts}
    pooled = _pooled(facts, tests, found, limits)
    seen = _shown_by_island(facts, found, limits)
    singles = {name: [t for t in ts if t.exceeds(limits.z)] for name, ts in tests.items()}
    return {
        f.name: _judge_tap(f, found[f.name], tests[f.name], singles, pooled, seen[f.kind], token_rows, facts, limits)
        for f in facts
    }


def _tests(f: TapFacts, found: Sequence[Evidence], limits: Limits) -> list[_Test]:
    names = sorted({p for e in found for p, x in e.excesses.items() if _testable(p, x, limits)})
    margin = math.log1p(_margin(f, found, limits.margin, limits.margin_attention, limits))
    tests = []
    for p in names:
        xs = [e.excesses[p] for e in found if p in e.excesses]
        n = len(xs)
        m = math.exp(margin) - 1
        tests.append(
            _Test(
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


def _margin(f: TapFacts, found: Sequence[Evidence], plain: float, attention: float, limits: Limits) -> float:
    if _is_fine(found, limits):
        return limits.margin_fine
    return attention if f.attention else plain


def _is_fine(found: Sequence[Evidence], limits: Limits) -> bool:
    """Say whether the reference computes in float32 here, where only a down-cast counts."""
    return bool(found) and max(e.noise for e in found) < limits.fine


def _pooled(
    facts: Sequence[TapFacts], tests: Mapping[str, list[_Test]], found: Mapping[str, Sequence[Evidence]], limits: Limits
) -> dict[tuple[str, str], tuple[int, float, float, int]]:
    """Pool each projection over the blocks of a kind: (direction, mean log ratio, standard error, blocks)."""
    groups: dict[tuple[str, str], list[_Test]] = defaultdict(list)
    margins: dict[str, float] = {}
    for f in facts:
        own = _margin(f, found[f.name], limits.margin_pooled, limits.margin_pooled_attention, limits)
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


def _judge_tap(
    f: TapFacts, found: Sequence[Evidence], tests: list[_Test], singles: Mapping[str, list[_Test]],
    pooled: Mapping[tuple[str, str], tuple[int, float, float, int]], seen: float, token_rows: int,
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
    blind = _blind(f, found, tests, pooled, seen, token_rows, limits)
    if blind is not None:
        blind.tests = len(tests)
        return blind
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
    f: TapFacts, found: Sequence[Evidence], tests: list[_Test], singles: Mapping[str, list[_Test]],
    pooled: Mapping[tuple[str, str], tuple[int, float, float, int]], facts: Sequence[TapFacts], limits: Limits,
) -> Judged | None:  # fmt: skip
    """Find what makes a rounding difference certain: one strong ratio, the pooled test, or two taps."""
    margin = math.log1p(_margin(f, found, limits.margin_pooled, limits.margin_pooled_attention, limits))
    strong = math.log(limits.strong)
    candidates: list[tuple[float, _Test, int, float, str]] = []
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
    f: TapFacts, direction: int, singles: Mapping[str, list[_Test]], facts: Sequence[TapFacts], limits: Limits
) -> bool:
    """Say whether another tap is above its limit in the same direction: two at once are not luck."""
    others = (o.name for o in facts if o.name != f.name)
    return any(t.exceeds(limits.z) == direction for name in others for t in singles[name])


def _blind(
    f: TapFacts, found: Sequence[Evidence], tests: list[_Test],
    pooled: Mapping[tuple[str, str], tuple[int, float, float, int]], seen: float, token_rows: int, limits: Limits,
) -> Judged | None:  # fmt: skip
    """Say where the method cannot see a lost island: structured reference rounding, too few tokens or channels."""
    if _is_fine(found, limits):
        return None  # any 16-bit rounding in a float32 segment towers above its noise: no tokens are needed
    if max((x.departure for e in found for x in e.excesses.values()), default=0.0) < limits.margin:
        return None  # almost bit-exact: on no structure can the ratio be outside the margin, whatever the noise
    worst = max(e.coherence for e in found)
    rows = sum(e.rows / e.groups for e in found) / len(found)
    # A tap of a few rows, or outside the blocks, is an island of its own: its whole rounding is judged.
    is_island = not f.block or max(e.rows for e in found) < limits.island_rows * token_rows
    if not is_island and worst > limits.coherence:
        limit = f"(limit {limits.coherence:.0f})"
        text = f"no power: the reference's own rounding is structured: coherence {worst:.1f} {limit}"
        return Judged(f.name, VerdictClass.NOT_JUDGED, [text])
    if is_island:
        return None
    per_channel = [t for t in tests if t.projection in ("channel_mean", "channel_slope")]
    se = min((pooled[f.kind, t.projection][2] for t in per_channel), default=1.0)
    margin = limits.margin_pooled_attention if f.attention else limits.margin_pooled
    least = math.log1p(margin) + (limits.z + limits.z_power) * se
    if seen < least:
        needed = rows * math.expm1(2 * least) / math.expm1(2 * seen) if seen else math.inf
        return Judged(
            f.name, VerdictClass.NOT_JUDGED,
            [f"no power: {rows:.0f} tokens a sample, a lost FP32 island needs {needed:.0f} here (logic agrees)"],
        )  # fmt: skip
    return None


def _shown_by_island(
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

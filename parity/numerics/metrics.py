"""Classic metrics of two tensors. Adding one is one function: `@metric(...)` over `Streamed`.

NaN in gives NaN out in every metric it touches, and the counts say on which side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from torch import Tensor

from parity.numerics.chunks import CHUNK, chunks_of
from parity.numerics.streamed import Streamed, unequal
from parity.registry import Registry


@dataclass(frozen=True)
class Metric:
    """A registered metric.

    Args:
        compute: from the streamed pair to the value.
        at_equality: the exact value where both tensors are equal, finite and not constant.
        better: whether a lower or a higher value is nearer; None where it is no distance.
        unit: shown behind the number.
    """

    compute: Callable[[Streamed], float]
    at_equality: float | None
    better: Literal["lower", "higher"] | None
    unit: str


METRICS: Registry[Metric] = Registry("metric")


def metric(
    *, at_equality: float | None, better: Literal["lower", "higher"] | None = "lower", unit: str = ""
) -> Callable[[Callable[[Streamed], float]], Callable[[Streamed], float]]:
    """Register the decorated function as a metric under its own name.

    Raises:
        ParityError: the name is taken.
    """

    def register(compute: Callable[[Streamed], float]) -> Callable[[Streamed], float]:
        METRICS.add(compute.__name__, Metric(compute, at_equality, better, unit))
        return compute

    return register


@metric(at_equality=0.0)
def mse(pair: Streamed) -> float:
    """Mean of the squared difference."""
    return pair.sums["dd"] / pair.numel


@metric(at_equality=0.0)
def max_abs(pair: Streamed) -> float:
    """Largest difference."""
    return pair.maxima["d"]


@metric(at_equality=0.0)
def mean_abs(pair: Streamed) -> float:
    """Mean of the difference's magnitude."""
    return pair.sums["abs_d"] / pair.numel


@metric(at_equality=0.0)
def rel_l2(pair: Streamed) -> float:
    """Norm of the difference over the norm of expected; inf where expected is zero and actual is not."""
    return _ratio(math.sqrt(pair.sums["dd"]), math.sqrt(pair.sums["ee"]))


@metric(at_equality=0.0)
def one_minus_cosine(pair: Streamed) -> float:
    """`(|d|^2 - (|x| - |y|)^2) / (2 |x| |y|)`, exact where `1 - cosine` cancels; NaN against a zero vector."""
    x, y = math.sqrt(pair.sums["ee"]), math.sqrt(pair.sums["aa"])
    if pair.sums["dd"] == 0:
        return 0.0
    if x == 0 or y == 0:
        return math.nan
    return _clamp((pair.sums["dd"] - (x - y) ** 2) / (2 * x * y), 0.0, 2.0)


@metric(at_equality=1.0, better="higher")
def cosine(pair: Streamed) -> float:
    """One minus `one_minus_cosine`."""
    return 1.0 - one_minus_cosine(pair)


@metric(at_equality=math.inf, better="higher", unit="dB")
def psnr(pair: Streamed) -> float:
    """Peak signal to noise in dB, the peak being the largest magnitude of expected; inf at equality."""
    error, peak = mse(pair), pair.maxima["e"]
    if math.isnan(error) or math.isnan(peak):
        return math.nan
    if error == 0 or peak == 0 or math.isinf(error):
        return math.inf if error == 0 else -math.inf
    return 20 * math.log10(peak) - 10 * math.log10(error)


@metric(at_equality=1.0, better="higher")
def pearson(pair: Streamed) -> float:
    """Correlation about the means, in two passes; NaN where a side is constant and they differ."""
    if pair.sums["dd"] == 0:
        return 1.0
    ee, aa, ea = pair.centred
    return _clamp(ea / math.sqrt(ee * aa), -1.0, 1.0) if ee > 0 and aa > 0 else math.nan


@metric(at_equality=None, better=None)
def expected_norm(pair: Streamed) -> float:
    """Norm of expected."""
    return math.sqrt(pair.sums["ee"])


@metric(at_equality=0.0)
def smallest_atol(pair: Streamed) -> float:
    """Smallest atol that passes `|a - e| <= atol` everywhere."""
    return pair.maxima["d"]


@metric(at_equality=0.0)
def smallest_rtol(pair: Streamed) -> float:
    """Smallest rtol that passes `|a - e| <= rtol |e|` everywhere; inf where a zero is expected and missed."""
    return pair.maxima["d_over_e"]


@metric(at_equality=0.0)
def smallest_tol(pair: Streamed) -> float:
    """Smallest x that passes `|a - e| <= x + x |e|` everywhere, as `atol=x, rtol=x`."""
    return pair.maxima["d_over_1e"]


@metric(at_equality=0.0, unit="ulp")
def rms_ulp(pair: Streamed) -> float:
    """Root mean square of the difference in units in the last place of expected's dtype; one rounding gives 0.29."""
    return math.sqrt(pair.sums["ulp"] / pair.numel)


@dataclass(frozen=True)
class ClassicMetrics:
    """The registered metrics of one comparison.

    `bit_equal`: one dtype, every value equal, -0.0 and 0.0 distinct, NaN equal to NaN whatever its payload.
    `extra` holds registered metrics that have no field here.
    """

    numel: int
    bit_equal: bool
    max_abs_index: tuple[int, ...]
    expected_nan: int
    expected_inf: int
    actual_nan: int
    actual_inf: int
    mse: float
    max_abs: float
    mean_abs: float
    rel_l2: float
    cosine: float
    one_minus_cosine: float
    psnr: float
    pearson: float
    expected_norm: float
    smallest_atol: float
    smallest_rtol: float
    smallest_tol: float
    rms_ulp: float
    extra: Mapping[str, float] = field(default_factory=dict)

    @property
    def finite(self) -> bool:
        """Whether neither side holds NaN or inf."""
        return not (self.expected_nan or self.expected_inf or self.actual_nan or self.actual_inf)

    def as_dict(self) -> dict[str, object]:
        """Return all values flat, extra metrics beside the others."""
        out = asdict(self)
        return {**out, **out.pop("extra")}


def classic_metrics(expected: Tensor, actual: Tensor, *, chunk: int = CHUNK) -> ClassicMetrics:
    """Compute every registered metric of two tensors.

    Shapes: expected and actual any one shape.

    Raises:
        ParityError: shapes differ, the tensors are empty or hold no floats.
    """
    pair = Streamed(expected, actual, chunk)
    values = {name: entry.compute(pair) for name, entry in METRICS.items()}
    fixed = {f.name: values.pop(f.name) for f in fields(ClassicMetrics) if f.name in values}
    rest: dict[str, Any] = {**fixed, **_counts(pair)}
    return ClassicMetrics(numel=pair.numel, max_abs_index=pair.max_abs_index, extra=values, **rest)


def _counts(pair: Streamed) -> dict[str, int | bool]:
    """Count NaN, inf and unequal elements, in a pass of its own only where the sums leave it open."""
    if pair.sums["dd"] > 0 and math.isfinite(pair.sums["ee"] + pair.sums["aa"]):
        return {"expected_nan": 0, "expected_inf": 0, "actual_nan": 0, "actual_inf": 0, "bit_equal": False}
    counts = dict(pair.counts)
    equal = counts.pop("unequal") == 0 and pair.expected.dtype == pair.actual.dtype
    return {**counts, "bit_equal": equal}


def bit_equal(expected: Tensor, actual: Tensor) -> bool:
    """Whether both have one shape and dtype and equal values: -0.0 is not 0.0, NaN is NaN whatever its payload."""
    if expected.dtype != actual.dtype or expected.shape != actual.shape:
        return False
    return not expected.numel() or not any(bool(unequal(c).any()) for c in chunks_of(expected, actual))


def _ratio(top: float, bottom: float) -> float:
    if bottom == 0:
        return top if top == 0 or math.isnan(top) else math.inf
    return top / bottom


def _clamp(value: float, low: float, high: float) -> float:
    return value if math.isnan(value) else min(max(value, low), high)


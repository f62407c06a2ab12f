"""False alarms of benign runs: limits from two thirds of seeds and shapes, rates from the third held out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from parity.numerics.limits import Limits

Row = dict[str, Any]


def upper_bound(events: int, runs: int, doubt: float = 0.05) -> float:
    """Return the exact (Clopper-Pearson) upper bound of a rate.

    >>> round(upper_bound(0, 2000), 4)
    0.0015
    """
    if not runs:
        return math.nan
    low, high = events / runs, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(events, runs, middle) > doubt else (low, middle)
    return high


def _at_most(events: int, runs: int, rate: float) -> float:
    """Return the probability of at most so many events."""
    if rate >= 1.0:
        return 0.0
    logs = [
        math.lgamma(runs + 1) - math.lgamma(k + 1) - math.lgamma(runs - k + 1)
        + k * math.log(max(rate, 1e-300)) + (runs - k) * math.log1p(-rate)
        for k in range(events + 1)
    ]  # fmt: skip
    return sum(map(math.exp, logs))


def quantile(rows: Sequence[Row], rate: float) -> float:
    """Return the distance beyond the margin, in standard errors, that this share of live tests exceeds.

    Each run keeps its eight farthest tests; a rate that asks for more of them than were kept gives NaN.
    """
    tests = sum(r["live_tests"] for r in rows)
    beyond = sorted((z for r in rows for z in r["beyond"]), reverse=True)
    place = int(rate * tests)
    return beyond[place] if place < min(len(beyond), len(rows)) else math.nan


def held_out_table(rows: Iterable[Row]) -> list[str]:
    """Set the two parts side by side: what the limits were taken from, and what they were not."""
    benign = [r for r in rows if r["source"] == "benign" and "tests" in r]
    if not benign:
        return ["No benign run yet."]
    limits = Limits()
    parts = {"calibration (two thirds)": [r for r in benign if not r["held_out"]],
             "held out (one third)": [r for r in benign if r["held_out"]]}  # fmt: skip
    lines = [
        "| part | runs | cases | ratio tests with bits that differ | beyond the limit | per test (95 % bound; stated) "
        "| amber taps | runs with a failing case (95 % bound) | nearest variant, lowest (limit 0.75) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    told = [_part(name, part, limits) for name, part in parts.items() if part]
    return [*lines, *told, "", *_quantiles(parts, limits)]


def _part(name: str, rows: list[Row], limits: Limits) -> str:
    tests, beyond = sum(r["live_tests"] for r in rows), sum(r["exceeding"] for r in rows)
    fails, cases = sum(bool(r["different"]) for r in rows), sum(r["cases"] for r in rows)
    near = [r["nearest"] for r in rows if r["nearest"] is not None]
    stated = f"{upper_bound(beyond, tests):.1e}; {limits.false_alarm_per_test:.0e}"
    rate = f"{beyond / tests:.1e} ({stated})" if tests else "-"
    return (
        f"| {name} | {len(rows)} | {cases:,} | {tests:,} | {beyond} | {rate} | {sum(len(r['amber']) for r in rows)} "
        f"| {fails} ({upper_bound(fails, len(rows)):.2%}) | {f'{min(near):.2f}' if near else '-'} |"
    )


def _quantiles(parts: dict[str, list[Row]], limits: Limits) -> list[str]:
    """Say what limit the calibrating part alone would give, and what it would cost on the other."""
    calibrating, held_out = parts.values()
    rate = limits.false_alarm_per_test
    wanted = quantile(calibrating, rate)
    over = sum(z > wanted for r in held_out for z in r["beyond"])
    tests = sum(r["live_tests"] for r in held_out)
    if math.isnan(wanted) or not tests:
        return [f"Too few runs for a quantile of {rate:.0e}."]
    return [
        f"The calibrating part alone gives z = {wanted:.2f} for a rate of {rate:.0e} per test (in force: {limits.z}); "
        f"with it {over} of {tests:,} held-out tests ({over / tests:.1e}) are beyond."
    ]

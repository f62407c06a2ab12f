"""Rounding excess: ratios, standard errors and tests that hold what they promise on simulated nulls."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from parity.numerics.limits import Limits
from parity.numerics.projections import Rows
from parity.numerics.rounding import Excess, excesses, freedom

pytestmark = pytest.mark.usefixtures("one_thread")
T, C = 64, 48
SIMULATIONS = 2000


def draw(seed: int, count: int, size: int = C) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(count: int = T) -> Rows:
    return Rows(draw(1, count), torch.zeros(count, dtype=torch.long), 1)


SPECTRA = {"equal": torch.ones(C, dtype=torch.float64), "falling": torch.logspace(0, -1, C, dtype=torch.float64)}
"""Standard deviations of components: equal, or falling off as channels of a real model do."""


@cache
def simulated(shared: float, spectrum: str = "equal", ratio: float = 1.0, count: int = SIMULATIONS) -> list[Excess]:
    """Null draws: residuals of the two sides with a shared part, and three twins that share nothing."""
    one = Rows(torch.ones(1, C, dtype=torch.float64), torch.zeros(1, dtype=torch.long), 1)

    def simulate(seed: int) -> Excess:
        common, own, other, *twins = (draw(seed, 6) * SPECTRA[spectrum]).unbind()
        reference, native = (math.sqrt(shared) * common + math.sqrt(1 - shared) * z for z in (own, other))
        return excesses(ratio * native[None], reference[None], [z[None] for z in twins], one)["channel_mean"]

    return [simulate(seed) for seed in range(count)]


# --- ratios -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.25, 1.0, 3.0])
def test_ratio_is_the_factor_on_every_projection(factor: float) -> None:
    e = draw(3, T)
    found = excesses(factor * e, e, [draw(4, T), draw(5, T)], rows())
    assert {round(x.ratio, 12) for x in found.values()} == {factor}
    assert {round(x.departure, 12) for x in found.values()} == {abs(factor - 1)}


def test_equal_residuals_differ_nowhere() -> None:
    e = draw(3, T)
    for x in excesses(e, e, [draw(4, T)], rows()).values():
        assert (x.ratio, x.departure, x.difference) == (1.0, 0.0, 0.0)
        assert x.paired_correlation == pytest.approx(1.0)
        assert x.paired(0.0) == pytest.approx(0.0)


def test_nothing_against_nothing_is_equal() -> None:
    zero = torch.zeros(T, C, dtype=torch.float64)
    for x in excesses(zero, zero, [zero, zero], rows()).values():
        assert (x.ratio, x.up, x.down, x.paired(0.1)) == (1.0, 0.0, 0.0, 0.0)


def test_twins_heal_a_reference_that_happens_to_be_exact() -> None:
    x = Excess(1.0, 0.0, (1.0, 1.0, 1.0), 100.0, 0.0, 1.0, 100)
    assert x.ratio == pytest.approx(math.sqrt(4 / 3))
    assert x.up == pytest.approx(math.log(math.sqrt(4 / 3)))
    assert Excess(1.0, 0.0, (), 100.0, 0.0, 1.0, 100).ratio == 1e9


def test_up_and_down_take_the_denominator_that_accuses_least() -> None:
    stagnating = Excess(4.0, 4.0, (1.0, 1.0, 1.0), 100.0, 1.0, 0.0, 100)
    assert stagnating.up == 0.0, "the reference itself is as coherent"
    lucky = Excess(1.0, 0.25, (1.0, 1.0, 1.0), 100.0, 0.0, 1.0, 100)
    assert lucky.up == pytest.approx(math.log(math.sqrt(1.0 / 0.8125)))
    assert lucky.down == pytest.approx(math.log(2.0))


# --- standard error and freedom ---------------------------------------------------------------------------------------


def test_standard_error_narrows_with_freedom_and_twins() -> None:
    def se(freedom: float, twins: int) -> float:
        return Excess(1.0, 1.0, (1.0,) * twins, freedom, 0.0, 1.0, 100).se

    assert se(400, 3) == pytest.approx(se(100, 3) / 2)
    assert se(100, 1) > se(100, 3) > se(100, 30)
    assert se(0.1, 3) == se(1.0, 3), "never below one degree"


@pytest.mark.parametrize("size", [16, 256])
def test_freedom_of_independent_components_is_their_number(size: int) -> None:
    estimates = torch.tensor([freedom(list(draw(seed, 4, size))) for seed in range(200)])
    assert size * 0.7 < float(estimates.mean()) <= size


@pytest.mark.parametrize("twins", [3, 7])
def test_freedom_of_unequal_components_is_satterthwaites(twins: int) -> None:
    variances = SPECTRA["falling"].square()
    expected = float(variances.sum().square() / variances.square().sum())
    estimates = [freedom(list(draw(seed, 1 + twins) * SPECTRA["falling"])) for seed in range(400)]
    assert 0.8 * expected < sum(estimates) / len(estimates) < 2.0 * expected
    assert expected < 0.5 * C


def test_what_replicates_share_lowers_freedom() -> None:
    shared = draw(1, 1)[0]
    apart = freedom([shared * 0 + z for z in draw(2, 4)])
    together = freedom([3 * shared + z for z in draw(2, 4)])
    assert together < 0.2 * apart
    assert together >= 1.0


def test_freedom_without_twins_is_cautious() -> None:
    assert freedom([draw(0, 1)[0]]) == C / 2
    assert freedom([torch.zeros(C), torch.zeros(C)]) == C


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_standard_error_is_the_spread_of_the_log_ratio(spectrum: str) -> None:
    found = simulated(0.0, spectrum)
    logs = torch.tensor([0.5 * math.log(x.native / x.pooled) for x in found])
    typical = sum(x.se for x in found) / len(found)
    assert abs(float(logs.mean())) < 0.04  # of a logarithm: a little below zero
    assert 0.75 * typical < float(logs.std()) < 1.4 * typical


# --- false alarms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [0.0, 0.8])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_paired_test_keeps_its_size(shared: float, spectrum: str) -> None:
    nominal, quantile = 0.01, 2.42  # one-sided, of Student's t with about 40 degrees of freedom
    found = simulated(shared, spectrum)
    less = sum(x.paired(0.0) > quantile for x in found) / SIMULATIONS
    more = sum(-x.paired(0.0) > quantile for x in found) / SIMULATIONS
    assert max(less, more) < 3 * nominal


@pytest.mark.parametrize("shared", [0.0, 0.8])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_ratio_test_keeps_its_size(shared: float, spectrum: str) -> None:
    nominal, z = 0.01, 2.33
    found = simulated(shared, spectrum)
    assert sum(x.up > z * x.se for x in found) / SIMULATIONS < 3 * nominal
    assert sum(-x.down > z * x.se for x in found) / SIMULATIONS < 3 * nominal


@pytest.mark.parametrize("ratio", [1.0, 1.1])
def test_with_margin_and_limit_there_is_no_false_alarm(ratio: float) -> None:
    limits = Limits()
    margin = math.log1p(limits.margin)
    found = simulated(0.8, "falling", ratio)
    alarms = sum(x.up - margin > limits.z * x.se and x.paired(limits.margin) > limits.z * 0.5 for x in found)
    assert alarms <= 3 * SIMULATIONS * limits.false_alarm_per_test


def test_paired_test_sees_what_the_ratio_test_cannot() -> None:
    found = simulated(0.95, "equal", 1.15, 200)
    paired = sum(x.paired(0.0) > 2.42 for x in found)
    ratio = sum(x.up > 2.42 * x.se for x in found)
    assert paired > 100 > 20 > ratio


def test_lost_island_is_found_on_its_structure_only() -> None:
    shift = 0.5 * draw(9, 1)
    e, twins = draw(3, 1024), [draw(seed, 1024) for seed in (4, 5, 6)]
    found = excesses(draw(7, 1024) + shift, e, twins, rows(1024))
    assert found["channel_mean"].ratio > 5
    assert found["identity"].ratio < 1.3
    assert found["channel_slope"].ratio < 1.5

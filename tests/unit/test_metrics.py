"""Every trap of comparing tensors: what the naive way says, and what ours says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from parity.errors import ParityError
from parity.numerics.chunks import norm
from parity.numerics.metrics import METRICS, bit_equal, classic_metrics, metric
from parity.numerics.streamed import Streamed, ulp

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def at_cosine(one_minus: float, n: int = 4096) -> tuple[Tensor, Tensor]:
    """Two float64 vectors of one norm whose cosine is 1 - one_minus."""
    x, z = randn(n), randn(n, seed=1)
    z = z - x * (z @ x) / (x @ x)
    cosine = 1 - one_minus
    sine = math.sqrt(one_minus * (2 - one_minus))
    return x, cosine * x + sine * z * x.norm() / z.norm()


def test_bf16_cosine_rounds_a_visible_angle_away() -> None:
    x, y = (value.bfloat16() for value in at_cosine(5e-5))
    naive = float((x @ y) / (x.norm() * y.norm()))
    found = classic_metrics(x, y)
    assert naive == 1.0
    assert found.one_minus_cosine == pytest.approx(5e-5, rel=0.2)  # bf16 storage of x and y adds its own angle
    assert found.cosine < 1.0


def test_one_minus_cosine_survives_five_e_minus_13() -> None:
    x, y = at_cosine(5e-13)
    naive = 1 - float(torch.nn.functional.cosine_similarity(x.float(), y.float(), dim=0))
    assert abs(naive - 5e-13) > 1e-8
    assert classic_metrics(x, y).one_minus_cosine == pytest.approx(5e-13, rel=1e-3, abs=0)
    assert classic_metrics(*at_cosine(1e-18)).one_minus_cosine == pytest.approx(1e-18, rel=1e-6, abs=0)


def test_norm_of_four_million_elements() -> None:
    x = torch.full((4_000_000,), 0.1)
    true = 2000 * float(x[0].double())
    naive = float(torch.linalg.vector_norm(x))
    assert abs(naive / true - 1) > 1e-6
    assert norm(x) == pytest.approx(true, rel=1e-13)
    assert classic_metrics(x, x).expected_norm == pytest.approx(true, rel=1e-13)


def test_near_equality_is_not_lost_in_expanded_squares() -> None:
    x = randn(100_000).add_(100)
    y = x + 1e-9 * randn(100_000, seed=1)
    naive = float(x @ x + y @ y - 2 * (x @ y)) / x.numel()
    true = float((y - x).square().mean())
    assert naive != pytest.approx(true, rel=0.5, abs=0)
    assert classic_metrics(x, y).mse == pytest.approx(true, rel=1e-6, abs=0)


def test_pearson_with_a_mean() -> None:
    x = randn(100_000).mul_(1e-2).add_(1000).float()
    y = (x.double() + 1e-2 * randn(100_000, seed=1)).float()
    n, a, b = x.numel(), x, y
    top = n * (a * b).sum() - a.sum() * b.sum()
    naive = float(top / ((n * (a * a).sum() - a.sum() ** 2) * (n * (b * b).sum() - b.sum() ** 2)).sqrt())
    true = float(torch.corrcoef(torch.stack((x.double(), y.double())))[0, 1])
    assert not abs(naive - true) < 0.05
    assert classic_metrics(x, y).pearson == pytest.approx(true, abs=1e-9)
    assert classic_metrics(x, y).cosine > 0.99999999  # cosine sees the mean only


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", METRICS.names())
def test_value_at_equality_is_exact(name: str, dtype: torch.dtype) -> None:
    x = randn(7, 33, dtype=dtype)
    entry = METRICS[name]
    assert entry.at_equality is None or entry.compute(Streamed(x, x.clone())) == entry.at_equality


@pytest.mark.parametrize("name", METRICS.names())
def test_monotone_under_noise(name: str) -> None:
    x, noise, entry = randn(5000), randn(5000, seed=1), METRICS[name]
    values = [entry.compute(Streamed(x, x + size * noise)) for size in (1e-8, 1e-5, 1e-2, 1.0)]
    order = {"lower": sorted(values), "higher": sorted(values, reverse=True), None: [values[0]] * 4}[entry.better]
    assert values == order


@pytest.mark.parametrize("name", [name for name in METRICS if name != "expected_norm"])
@pytest.mark.parametrize("side", [0, 1])
def test_nan_in_nan_out(name: str, side: int) -> None:
    pair = [randn(100), randn(100)]
    pair[side] = pair[side].index_fill(0, torch.tensor(17), math.nan)
    assert math.isnan(METRICS[name].compute(Streamed(*_two(pair))))


def _two(pair: list[Tensor]) -> tuple[Tensor, Tensor]:
    return pair[0], pair[1]


def test_nan_and_inf_are_counted_and_located() -> None:
    x = randn(4, 5)
    y = x.clone()
    y[2, 3], y[3, 3], x[0, 0] = math.nan, math.inf, -math.inf
    found = classic_metrics(x, y)
    assert (found.expected_nan, found.expected_inf, found.actual_nan, found.actual_inf) == (0, 1, 1, 1)
    assert found.max_abs_index == (2, 3)
    assert not found.bit_equal
    assert not found.finite


def test_tolerances_are_the_smallest_that_allclose_passes() -> None:
    x, y = randn(1000), randn(1000, seed=1)
    found = classic_metrics(x, y)
    for atol, rtol in ((found.smallest_atol, 0), (0, found.smallest_rtol), (found.smallest_tol,) * 2):
        assert torch.allclose(y, x, atol=atol * (1 + 1e-12), rtol=rtol * (1 + 1e-12))
        assert not torch.allclose(y, x, atol=atol * (1 - 1e-9), rtol=rtol * (1 - 1e-9))


def test_rtol_is_infinite_where_a_zero_is_missed_and_zero_where_it_is_met() -> None:
    assert classic_metrics(torch.tensor([0.0, 1.0]), torch.tensor([1e-9, 1.0])).smallest_rtol == math.inf
    assert classic_metrics(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])).smallest_rtol == 0


def test_one_rounding_is_an_ulp_over_root_twelve() -> None:
    x = randn(200_000)
    rounded = x.bfloat16()
    assert classic_metrics(rounded, x).rms_ulp == pytest.approx(12**-0.5, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_ulp_is_the_step_to_the_next_value(dtype: torch.dtype) -> None:
    x = torch.tensor([1.0, 1.5, 2.0, -3.0, 0.0, 1000.0], dtype=dtype)
    step = torch.nextafter(x.abs(), torch.tensor(math.inf, dtype=dtype)).double() - x.abs().double()
    assert ulp(x.double(), dtype).tolist() == step.tolist()


def test_psnr_peak_is_the_largest_expected() -> None:
    assert classic_metrics(torch.tensor([10.0, 0.0]), torch.tensor([10.0, 1.0])).psnr == pytest.approx(23.0103)


def test_against_plain_formulas() -> None:
    x, y = randn(3, 40, 50), randn(3, 40, 50, seed=1)
    found, d = classic_metrics(x, y), y - x
    assert found.mse == pytest.approx(float(d.square().mean()))
    assert found.mean_abs == pytest.approx(float(d.abs().mean()))
    assert found.max_abs == float(d.abs().max())
    assert found.rel_l2 == pytest.approx(float(d.norm() / x.norm()))
    assert found.cosine == pytest.approx(float((x * y).sum() / (x.norm() * y.norm())))
    assert abs(float(d[found.max_abs_index])) == found.max_abs


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000, 1 << 18])
def test_chunks_change_nothing(chunk: int) -> None:
    x, y = randn(6, 10, 11), randn(6, 10, 11, seed=1)
    whole, found = classic_metrics(x, y).as_dict(), classic_metrics(x, y, chunk=chunk).as_dict()
    assert found.pop("max_abs_index") == whole.pop("max_abs_index")
    assert found.pop("extra", None) == whole.pop("extra", None)
    assert found == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_any_strides_without_a_copy(order: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = randn(30, 20, 11).permute(order), randn(30, 20, 11, seed=1).permute(order)
    plain = classic_metrics(x.contiguous(), y.contiguous(), chunk=50)
    monkeypatch.setattr(Tensor, "contiguous", lambda *_: pytest.fail("copied"))
    found = classic_metrics(x, y, chunk=50)
    assert found.max_abs_index == plain.max_abs_index
    assert found.mse == pytest.approx(plain.mse, rel=1e-12)


def test_different_dtypes_compare_by_value_and_are_not_bit_equal() -> None:
    x = randn(50, dtype=torch.bfloat16)
    found = classic_metrics(x, x.float())
    assert found.max_abs == 0
    assert not found.bit_equal


def test_bit_equal_tells_the_sign_of_zero_and_takes_nan_for_nan() -> None:
    zero, nan = torch.tensor([0.0, 1.0]), torch.tensor([math.nan, 1.0])
    assert not bit_equal(zero, torch.tensor([-0.0, 1.0]))
    assert not classic_metrics(zero, torch.tensor([-0.0, 1.0])).bit_equal
    assert bit_equal(nan, nan.clone())
    assert not bit_equal(nan, zero)
    assert classic_metrics(nan, nan).bit_equal
    assert math.isnan(classic_metrics(nan, nan).mse)


def test_zero_vectors() -> None:
    zero, one = torch.zeros(3), torch.ones(3)
    assert classic_metrics(zero, zero).cosine == 1.0
    assert classic_metrics(zero, one).rel_l2 == math.inf
    assert math.isnan(classic_metrics(zero, one).cosine)
    assert math.isnan(classic_metrics(one, randn(3)).pearson)


@pytest.mark.parametrize(
    ("expected", "actual", "words"),
    [
        (torch.ones(2, 3), torch.ones(3, 2), r"shapes differ: expected \(2, 3\), actual \(3, 2\)"),
        (torch.ones(0), torch.ones(0), "empty"),
        (torch.ones(2, dtype=torch.int64), torch.ones(2), "expected holds torch.int64"),
        (torch.ones(2), torch.ones(2, dtype=torch.complex64), "actual holds torch.complex64"),
        (torch.ones(2), torch.ones(2, device="meta"), "meta"),
    ],
)
def test_bad_input_is_an_error(expected: Tensor, actual: Tensor, words: str) -> None:
    with pytest.raises(ParityError, match=words):
        classic_metrics(expected, actual)


def test_a_metric_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))

    @metric(at_equality=0.0)
    def signed_mean(pair: Streamed) -> float:
        return (pair.sums["a"] - pair.sums["e"]) / pair.numel

    assert classic_metrics(torch.zeros(4), torch.ones(4)).extra == {"signed_mean": 1.0}
    assert classic_metrics(torch.zeros(4), torch.ones(4)).as_dict()["signed_mean"] == 1.0
    with pytest.raises(ParityError, match="signed_mean"):
        metric(at_equality=0.0)(signed_mean)

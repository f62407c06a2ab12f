"""The shape of residuals, and what a LoRA does to each side: planted shapes come out where they were put."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from parity.execution.passes import OUTPUT
from parity.execution.tap import Point, Tap
from parity.execution.trace import TapValue, Trace
from parity.four import four_comparisons
from parity.numerics.evidence import Measured
from parity.numerics.profile import BINS, residual_profile

T, C = 480, 96
EXACT = torch.randn(1, T, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LOW = EXACT.bfloat16()


def profile(native: Tensor, native_high: Tensor, logic: bool, **given: Any) -> dict[str, Any]:
    found = residual_profile(
        Measured(reference=LOW, native=native, reference_high=EXACT, native_high=native_high, **given), logic
    )
    assert found is not None
    return found


def changed(where: tuple[Any, ...]) -> Tensor:
    other = EXACT.clone()
    other[where] += 1.0
    return other


def peak(values: list[float]) -> int:
    return max(range(len(values)), key=lambda n: values[n])


@pytest.mark.parametrize("token", [0, 137, T - 1])
def test_a_wrong_token_is_a_peak_along_tokens(token: int) -> None:
    other = changed((0, token))
    found = profile(other.bfloat16(), other, logic=True)
    assert peak(found["tokens"]["native"]) == token * BINS // T
    assert found["of"] == "exact values"
    assert found["tokens"]["count"] == T


@pytest.mark.parametrize("channel", [0, 40, C - 1])
def test_a_wrong_channel_is_a_peak_along_channels(channel: int) -> None:
    other = changed((0, slice(None), channel))
    found = profile(other.bfloat16(), other, logic=True)["channels"]
    assert peak(found["native"]) == peak(found["mean"]) == channel * BINS // C
    assert max(map(abs, found["mean"])) > 20 * max(map(abs, found["reference_mean"]))


def test_rounding_is_that_of_each_side() -> None:
    coarse = (EXACT * 8).round() / 8
    found = profile(coarse.bfloat16(), EXACT, logic=False)
    ratio = found["tokens"]["native"][3] / found["tokens"]["reference"][3]
    expected = float((coarse.bfloat16() - EXACT)[0, 30:40].norm() / (LOW - EXACT)[0, 30:40].norm())
    assert ratio == pytest.approx(expected, rel=0.05)
    assert found["of"] == "rounding"


def test_histogram_counts_every_value() -> None:
    found = profile(LOW, EXACT, logic=False)["histogram"]
    assert sum(found["native"]) == sum(found["reference"]) == T * C
    assert found["native"] == found["reference"]
    assert len(found["native"]) % 2 == 1


def test_padding_is_left_out() -> None:
    other = changed((0, slice(400, None)))
    valid = torch.ones(1, T, 1, dtype=torch.bool)
    valid[:, 400:] = False
    found = profile(other.bfloat16(), other, logic=True, valid=valid)
    assert found["tokens"]["count"] == 400
    assert max(found["tokens"]["native"]) == 0.0


def test_few_tokens_are_not_put_together_and_nothing_gives_nothing() -> None:
    few = Measured(LOW[:, :4], LOW[:, :4], EXACT[:, :4], EXACT[:, :4])
    found = residual_profile(few, False)
    assert found is not None
    assert len(found["tokens"]["native"]) == 4
    zero = torch.zeros(1, 4, 4)
    assert residual_profile(Measured(zero, zero, zero.double(), zero.double()), True) is None
    broken = torch.full((1, 4, 4), math.nan)
    assert residual_profile(Measured(broken, broken, broken.double(), broken.double()), True) is None


# --- LoRA -------------------------------------------------------------------------------------------------------------

TAP = Tap(OUTPUT, Point(""), Point(""), replace=False)


def trace(value: Tensor) -> Trace:
    return Trace({OUTPUT: TapValue(value, None, (1,))})


@pytest.mark.parametrize("factor", [1.0, 0.5, 0.0, -1.0])
def test_lora_effect_says_how_far_it_moves_each_side(factor: float) -> None:
    delta = torch.randn(1, T, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sides = (trace(EXACT), trace(EXACT + delta)), (trace(EXACT), trace(EXACT + factor * delta))
    (row,) = four_comparisons([TAP], *sides, {}).rows
    found = row.as_dict()
    assert found["tap"] == OUTPUT
    assert found["base"] == 0.0
    assert found["ratio"] == pytest.approx(abs(factor), abs=1e-9)
    assert found["on_reference"] == pytest.approx(float(delta.norm() / EXACT.norm()))
    assert found["lora"] == pytest.approx(abs(1 - factor) * float(delta.norm() / (EXACT + delta).norm()), abs=1e-9)
    if factor:
        assert found["alignment"] == pytest.approx(math.copysign(1, factor))
    else:
        assert math.isnan(found["alignment"])


def test_what_a_padded_token_holds_is_no_difference_of_the_bases() -> None:
    valid = torch.ones(1, T, dtype=torch.bool)
    valid[:, 4:] = False
    tap = Tap(OUTPUT, Point(""), Point(""), replace=False, valid=lambda inputs: valid)
    other = torch.where(valid.unsqueeze(-1), EXACT, 7.0)
    (row,) = four_comparisons([tap], (trace(EXACT), trace(2 * EXACT)), (trace(other), trace(2 * other)), {}).rows
    assert (row.base.rel_l2, row.base.mse, row.lora.rel_l2, row.ratio) == (0.0, 0.0, 0.0, 1.0)
    assert row.on_reference.mse == pytest.approx(float(EXACT[:, :4].square().mean()))


def test_taps_that_a_recording_lacks_are_left_out() -> None:
    found = four_comparisons([TAP], (Trace(), trace(EXACT)), (trace(EXACT), trace(EXACT)), {})
    assert not found.rows

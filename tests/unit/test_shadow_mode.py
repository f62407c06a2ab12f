"""The shadow mode itself: everyday ops, float64 in the model, life of shadows, and failures."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack

from fixtures.shadowed import Program, cases, distance, draw, in_double, shadowed
from parity.execution.shadow import Shadow

X, W = draw(32, 16), draw(16, 16, seed=1, scale=0.25)


# --- float64 in the model: no observer effect -------------------------------------------------------------------------

DOUBLE = torch.float64


def double_table(x: Tensor, w: Tensor) -> Tensor:
    table = torch.arange(16, dtype=DOUBLE)
    table.mul_(0.1).add_(w[0])
    return x.double() * table


def double_root(x: Tensor, w: Tensor) -> Tensor:
    x.mul_(3)
    x[:4].add_(x[4:8])
    return x.t().contiguous().t().add_(1)


def double_noise(x: Tensor, w: Tensor) -> Tensor:
    return torch.randn(32, 16, dtype=DOUBLE).mul_(2) + torch.rand_like(x.double()).add_(1)


def double_normal(x: Tensor, w: Tensor) -> Tensor:
    return torch.empty(32, 16, dtype=DOUBLE).normal_().mul_(2)


def complex_zeros(x: Tensor, w: Tensor) -> Tensor:
    return torch.view_as_real(torch.zeros(8, dtype=torch.complex128).add_(1 + 2j)).mul_(3)


def floor_division(x: Tensor, w: Tensor) -> Tensor:
    return torch.div(x.double(), 0.1, rounding_mode="floor").add_(1)


def filled_with_nan(x: Tensor, w: Tensor) -> Tensor:
    return torch.full((4,), math.nan, dtype=DOUBLE).fill_(1).add_(1)


@pytest.mark.parametrize(
    "program",
    cases(double_table, double_root, double_normal, double_noise, complex_zeros, floor_division, filled_with_nan),
)
def test_what_is_float64_in_the_model_is_computed_once(program: Program) -> None:
    ran = shadowed(program, X.double(), W.double())
    assert torch.equal(ran.high, ran.low)


def test_float32_draws_under_a_float32_shadow_are_made_once() -> None:
    shadowed(lambda x: torch.randn(8, 16).mul_(2) + torch.rand(16).add_(1), X, dtype=torch.float32)


def test_what_is_float64_in_the_model_stays_so_in_a_float32_shadow() -> None:
    def islands(x: Tensor, w: Tensor) -> Tensor:
        h = x.double() * 0.3
        h = torch.polar(torch.ones_like(h), h).real @ w.double()
        return h.cumsum(0)

    ran = shadowed(islands, X, W, dtype=torch.float32)
    assert ran.high.dtype == DOUBLE
    assert distance(ran.high, in_double(islands, X, W)) < 1e-14


# --- life of shadows --------------------------------------------------------------------------------------------------


def test_shadows_live_as_long_as_their_memory() -> None:
    with torch.no_grad(), Shadow(roots=[X, W]) as shadow:
        h = F.linear(X, W)
        view, other = h[3:], h * 0.3
        entries = shadow.table.entries
        assert len(entries) == 2
        del h
        gc.collect()
        assert len(entries) == 2, "a view holds the memory"
        assert distance(shadow.high(view), (X.double() @ W.double().T)[3:]) < 1e-14
        del other
        assert len(entries) == 1
        del view
        assert not entries


def test_memory_that_is_used_again_gets_a_shadow_of_its_own() -> None:
    addresses = set()
    with torch.no_grad(), Shadow(roots=[X, W]) as shadow:
        for i in range(200):
            t = X.new_empty(32, 16) if i % 2 else F.linear(X, W)
            addresses.add(t.data_ptr())
            with _disable_current_modes():
                assert bool(shadow.high(t).isnan().all()) == bool(i % 2)
            del t
        assert not shadow.table.entries
    assert len(addresses) < 100


def test_a_shadow_does_not_keep_its_own_tensor_alive() -> None:
    with Shadow() as shadow:
        for _ in range(5):
            assert bool(torch.full((4,), math.nan, dtype=torch.float64).isnan().all())
        gc.collect()
        assert not shadow.table.entries


def test_values_may_be_assigned_from_outside() -> None:
    with torch.no_grad(), Shadow(roots=[X, W]) as shadow:
        h = F.linear(X, W)
        shadow.assign(h[:4], torch.full((4, 16), 7.0, dtype=torch.float64))
        shadow.exact(h[4:8])
        out = h * 2
    assert bool((shadow.high(out)[:4] == 14).all())
    assert torch.equal(shadow.high(out)[4:8], h[4:8].double() * 2)
    assert distance(shadow.high(out)[8:], 2 * X[8:].double() @ W.double().T) < 1e-14


def test_ops_are_counted_by_segment_and_dtype() -> None:
    with torch.no_grad(), Shadow(roots=[X, W]) as shadow:
        F.linear(X, W)
        shadow.begin_segment("next")
        F.linear(X.float(), W.float()).exp()
    assert dict(shadow.dtypes[""]) == {"mm bfloat16": 1}
    assert dict(shadow.dtypes["next"]) == {"mm float32": 1, "exp float32": 1}
    assert shadow.ops == 3


# --- failures ---------------------------------------------------------------------------------------------------------


def raise_here() -> None:
    raise ValueError("stop")


@pytest.mark.parametrize("fail", [raise_here, lambda: torch.ones(2, 3) @ torch.ones(2, 3), lambda: X.double().view(7)])
def test_an_exception_leaves_nothing_behind(fail: Callable[[], object]) -> None:
    before = torch.from_numpy
    with pytest.raises((ValueError, RuntimeError)) as plain:
        fail()
    with pytest.raises(type(plain.value)) as under, torch.no_grad(), Shadow(roots=[X]):
        fail()
    assert str(under.value) == str(plain.value)
    assert torch.from_numpy is before
    assert not _get_current_dispatch_mode_stack()
    assert not _get_current_function_mode_stack()
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(torch.from_numpy(np.ones(2)), torch.ones(2, dtype=torch.float64))


def test_running_out_of_memory_in_high_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with torch.no_grad(), Shadow(roots=[X, W]) as shadow:
        monkeypatch.setattr(shadow, "_high_outputs", full)
        with pytest.raises(torch.OutOfMemoryError):
            F.linear(X, W)

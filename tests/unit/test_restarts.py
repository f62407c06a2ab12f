"""Lockstep: both sides go on from one number at every tap, in their own layout; padding keeps its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fixtures.lockstep import LAYOUTS, Side, W, X, from_trace, high_of, run, tap
from fixtures.shadowed import distance, draw
from parity.errors import TapError
from parity.execution.passes import OUTPUT, ExactAt, FromReference
from parity.execution.tap import SAME, Layout, Point, Tap


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_and_its_way_back_undo_each_other(name: str) -> None:
    layout, native, _ = LAYOUTS[name]
    mine = native(X)
    assert layout.backward is not None
    assert torch.equal(layout.forward(mine, X.shape), X)
    assert torch.equal(layout.backward(X, mine.shape), mine)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_native_goes_on_from_the_references_value_in_its_own_layout(name: str) -> None:
    layout, between, back = LAYOUTS[name]
    model, value = Side(between, back), draw(2, 6, 4, seed=5)
    plain = run("native", model, [tap(layout)], shadow=False)
    strides: list[tuple[int, ...]] = []

    def watched_back(v: Tensor) -> Tensor:
        strides.append(v.stride())
        return back(v)

    model.back = watched_back
    trace = run("native", model, [tap(layout)], from_trace({"fc1": value}, plain))
    own = between(F.linear(X, W))
    assert torch.equal(trace.values["fc1"].low, own), "what is recorded is the value the side reached"
    assert distance(high_of(trace, "fc1"), between(F.linear(X.double(), W.double()))) < 1e-15
    assert torch.equal(trace.values[OUTPUT].low, F.linear(value, W))
    assert distance(high_of(trace), F.linear(value.double(), W.double())) < 1e-15, "high restarts from the same number"
    assert strides == [own.stride()]


def test_a_value_that_does_not_fit_is_an_error() -> None:
    layout = Layout("wrong", lambda v, s: v, lambda v, s: v.flatten())
    plain = run("native", Side(), [tap()], shadow=False)
    with pytest.raises(TapError, match=r"tap fc1: the layout 'wrong' gives \(48,\), the native has \(2, 6, 4\)"):
        run("native", Side(), [tap(layout)], from_trace({"fc1": X}, plain))


@pytest.mark.parametrize("how", ["free", "replace=False", "no way back", "absent on the other side"])
@pytest.mark.parametrize("side", ["reference", "native"])
def test_where_one_side_cannot_go_on_from_a_tap_neither_does(side: str, how: str) -> None:
    """Else the rounding made before the tap shows as a logic error at the next one."""
    layout = Layout("sum", lambda v, s: v, None) if how == "no way back" else SAME
    tapped = tap(layout, replace=how != "replace=False")
    if how.startswith("absent"):
        here = Point("fc1")
        tapped = Tap("fc1", here if side == "reference" else None, here if side == "native" else None, absent="fused")
    plain = run(side, Side(), [tapped], shadow=False)
    restart: Any = FromReference({}, {"x": X})
    if side == "native":
        restart = from_trace({} if how.startswith("absent") else {"fc1": X * 100}, plain)
    trace = run(side, Side(), [tapped], None if how == "free" else restart)
    assert torch.equal(trace.values[OUTPUT].low, plain.values[OUTPUT].low)
    assert torch.equal(trace.values["fc1"].low, plain.values["fc1"].low)
    assert distance(high_of(trace), F.linear(F.linear(X.double(), W.double()), W.double())) < 1e-15


# --- dtypes -----------------------------------------------------------------------------------------------------------


def test_both_sides_go_on_from_the_reference_rounded_to_the_coarser_dtype() -> None:
    """The reference is float32 at the tap, the native bf16; and the other way round."""
    wide, narrow = Side(lambda v: v.float() * 1.01), Side(lambda v: v * 1.01)
    for reference, native in ((wide, narrow), (narrow, wide)):
        free = run("native", native, [tap()], shadow=False)
        coarser = {"fc1": free.values["fc1"].dtype}
        mine = run("reference", reference, [tap()], FromReference(coarser, {"x": X}))
        value = mine.values["fc1"].low.bfloat16()
        theirs = run("native", native, [tap()], from_trace({"fc1": value}, free))
        for trace in (mine, theirs):
            assert torch.equal(trace.values[OUTPUT].low, F.linear(value, W))
            assert distance(high_of(trace), F.linear(value.double(), W.double())) < 1e-15
        assert mine.values["fc1"].dtype == (torch.float32 if reference is wide else torch.bfloat16)
        assert distance(high_of(mine, "fc1"), F.linear(X.double(), W.double()) * 1.01) < 1e-15


def test_a_tap_on_integers_goes_on_as_it_is() -> None:
    model = Side(lambda v: (v * 10).long(), lambda v: v.to(W.dtype))
    trace = run("reference", model, [tap()], FromReference({"fc1": torch.float32}, {"x": X}))
    assert torch.equal(trace.values["fc1"].low, (F.linear(X, W) * 10).long())
    assert torch.equal(high_of(trace, "fc1"), trace.values["fc1"].low.double()), "low decides"


def test_exact_at_restarts_only_the_shadow() -> None:
    for names in ({"fc1"}, set()):
        trace = run("reference", Side(), [tap()], ExactAt(frozenset(names)))
        low = F.linear(X, W)
        assert torch.equal(trace.values[OUTPUT].low, F.linear(low, W))
        start = low.double() if names else F.linear(X.double(), W.double())
        assert distance(high_of(trace), F.linear(start, W.double())) < 1e-15


# --- what a restart heals ---------------------------------------------------------------------------------------------


def test_what_was_not_trusted_ends_at_the_next_tap() -> None:
    model = Side(lambda v: v * v.abs().max().item())
    free = run("reference", model, [tap()])
    assert bool(high_of(free).isnan().all())
    lockstep = run("reference", model, [tap()], FromReference({}, {"x": X}))
    assert bool(high_of(lockstep, "fc1").isnan().all())
    assert distance(high_of(lockstep), F.linear(lockstep.values["fc1"].low.double(), W.double())) < 1e-15

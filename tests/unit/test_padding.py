"""Lockstep with padding, and with several calls of one module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fixtures.lockstep import LAYOUTS, Linear, Side, W, X, from_trace, high_of, run, tap
from fixtures.shadowed import distance, draw
from parity.errors import TapError
from parity.execution.passes import OUTPUT, FromReference, Runner
from parity.execution.tap import Point, Tap
from parity.numerics.evidence import Measured, measure

VALID = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
Mask = Callable[[dict[str, Any]], Tensor]
MASKS: dict[str, Tensor] = {
    "per token": VALID,
    "per element": VALID[..., None].expand(2, 6, 4),
    "one row for all": VALID[:1],
    "tokens only": VALID[0],
}


@pytest.mark.parametrize("layout", ["same", "reshaped", "permuted", "heads first"])
@pytest.mark.parametrize("name", MASKS)
def test_padding_keeps_the_sides_own_value(name: str, layout: str) -> None:
    mask = MASKS[name]
    kind, between, back = LAYOUTS[layout]
    tapped = tap(kind, valid=lambda inputs: inputs["mask"])
    valid = VALID[:1].expand(2, 6) if name in ("one row for all", "tokens only") else VALID
    keep = ~valid[..., None].expand(2, 6, 4)
    own, own_high = F.linear(X, W), F.linear(X.double(), W.double())

    value = draw(2, 6, 4, seed=5)
    plain = run("native", Side(between, back), [tapped], shadow=False, mask=mask)
    trace = run("native", Side(between, back), [tapped], from_trace({"fc1": value}, plain, mask=mask), mask=mask)
    assert torch.equal(trace.values[OUTPUT].low, F.linear(torch.where(keep, own, value), W))
    assert distance(high_of(trace), F.linear(torch.where(keep, own_high, value.double()), W.double())) < 1e-15

    wide = Side(lambda v: v.float() * 1.01)
    restart = FromReference({"fc1": torch.bfloat16}, {"x": X, "mask": mask})
    trace = run("reference", wide, [tap(valid=lambda inputs: inputs["mask"])], restart, mask=mask)
    rounded = (own.float() * 1.01).bfloat16()
    start = torch.where(keep, own_high * 1.01, rounded.double())
    assert distance(high_of(trace), F.linear(start, W.double())) < 1e-15


# --- several calls ----------------------------------------------------------------------------------------------------


class Rows(nn.Module):
    """Calls one layer once per batch row."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = Linear(lambda v: v), Linear(lambda v: v)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(torch.cat([self.fc1(row) for row in x.split(1)]))
        return out


@pytest.mark.parametrize("masked", [False, True])
def test_each_call_goes_on_from_its_own_part(masked: bool) -> None:
    tapped = Tap("fc1", Point("fc1"), Point("fc1", call="all"), valid=(lambda i: VALID) if masked else None)
    value = draw(2, 6, 4, seed=5)
    plain = run("native", Rows(), [tapped], shadow=False)
    assert plain.values["fc1"].parts == (1, 1)
    trace = run("native", Rows(), [tapped], from_trace({"fc1": value}, plain))
    keep = ~VALID[..., None].expand(2, 6, 4) & masked
    assert torch.equal(trace.values[OUTPUT].low, F.linear(torch.where(keep, F.linear(X, W), value), W))
    start = torch.where(keep, F.linear(X.double(), W.double()), value.double())
    assert distance(high_of(trace), F.linear(start, W.double())) < 1e-15


def test_more_calls_than_in_the_plain_pass_are_an_error() -> None:
    tapped = Tap("fc1", Point("fc1"), Point("fc1", call="all"))
    plain = run("native", Rows(), [tapped], shadow=False)
    restart = from_trace({"fc1": X}, plain)
    runner = Runner("native", Rows(), lambda m, i: m(torch.cat([i["x"], i["x"]])), lambda out: out, [tapped])
    with pytest.raises(TapError, match="the native reached it 3 times, 2 in its plain pass"):
        runner.run({"x": X}, restart)


@pytest.mark.parametrize("name", ["per token", "per element"])
def test_padding_of_several_calls_is_each_calls_own(name: str) -> None:
    mask, value = MASKS[name], draw(2, 6, 4, seed=5)
    tapped = Tap("fc1", Point("fc1", call="all"), Point("fc1", call="all"), valid=lambda inputs: inputs["mask"])
    plain = run("native", Rows(), [tapped], shadow=False, mask=mask)
    trace = run("native", Rows(), [tapped], from_trace({"fc1": value}, plain, mask=mask), mask=mask)
    keep, own = ~VALID[..., None].expand(2, 6, 4), F.linear(X, W)
    assert torch.equal(trace.values[OUTPUT].low, F.linear(torch.where(keep, own, value), W))

    rounding = FromReference({"fc1": torch.float16}, {"x": X, "mask": mask})
    rows = run("reference", Rows(), [tapped], rounding, mask=mask)
    whole = run("reference", Side(), [tapped], rounding, mask=mask)
    assert torch.equal(high_of(rows), high_of(whole))


def test_text_without_a_token_is_measured_as_nothing() -> None:
    r, n = draw(2, 6, 4, seed=0), draw(2, 6, 4, seed=1)
    found = measure(Measured(r, n, r.double(), n.double(), valid=torch.zeros(2, 6, 1, dtype=torch.bool)))
    assert (found.rows, found.excluded, found.logic_error) == (0, 0, 0.0)


def test_expanded_value_goes_on_from_another() -> None:
    """One number at many places, as an expanded timestep is, cannot be written to in place."""
    expanded = Side(lambda v: v[:, :1].expand(-1, 6, -1), lambda v: v)
    value = draw(2, 6, 4, seed=5)
    plain = run("native", expanded, [tap()], shadow=False)
    trace = run("native", expanded, [tap()], from_trace({"fc1": value}, plain))
    assert torch.equal(trace.values[OUTPUT].low, F.linear(value, W))
    assert distance(high_of(trace), F.linear(value.double(), W.double())) < 1e-15

"""Shadow execution, case by case: custom ops, trusted through a registered equivalent only."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fixtures.shadowed import Program, cases, distance, draw, in_double, judged, shadowed, untrusted
from parity.errors import UsageError
from parity.execution.equivalents import EQUIVALENTS, Call, Equivalent, equivalent
from parity.execution.rules import rule_of

X, W = draw(32, 16), draw(16, 16, seed=1, scale=0.25)


@torch.library.custom_op("parity_cases::casting", mutates_args=())
def casting(x: Tensor, w: Tensor) -> Tensor:
    return (x.bfloat16() @ w.bfloat16().t()).to(x.dtype)


@torch.library.custom_op("parity_cases::refusing", mutates_args=())
def refusing(x: Tensor, w: Tensor) -> Tensor:
    assert x.dtype == torch.bfloat16
    return x @ w.t()


@torch.library.custom_op("parity_cases::writing", mutates_args=("x",))
def writing(x: Tensor, w: Tensor) -> None:
    x.copy_((x.bfloat16() @ w.bfloat16().t()).to(x.dtype))


@torch.library.custom_op("parity_cases::two", mutates_args=())
def two(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    return x @ w.t(), x @ w


def call_casting(x: Tensor, w: Tensor) -> Tensor:
    out: Tensor = casting(x * 0.3, w)
    return out + 1


def call_refusing(x: Tensor, w: Tensor) -> Tensor:
    out: Tensor = refusing(x * 0.3, w)
    return out + 1


def call_writing(x: Tensor, w: Tensor) -> Tensor:
    h = x * 0.3
    writing(h, w)
    return h + 1


def call_two(x: Tensor, w: Tensor) -> Tensor:
    first, second = two(x * 0.3, w)
    return torch.stack([first, second]) + 1


def truth_linear(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x * 0.3, w) + 1


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Equivalent], None]:
    """Register equivalents for one test."""
    rule_of.cache_clear()

    def put(name: str, function: Equivalent) -> None:
        monkeypatch.setitem(EQUIVALENTS, name, function)
        rule_of.cache_clear()

    return put


@pytest.fixture(autouse=True)
def forget_rules() -> Iterator[None]:
    yield
    rule_of.cache_clear()


@pytest.mark.parametrize("program", cases(call_casting, call_refusing, call_writing, call_two))
def test_a_custom_op_is_not_trusted(program: Program) -> None:
    untrusted(program, X, W, because="registered")


@pytest.mark.parametrize("program", cases(call_casting, call_refusing))
def test_a_registered_equivalent_makes_it_judged(
    program: Program, register: Callable[[str, Equivalent], None]
) -> None:
    def linear(call: Call) -> list[Tensor]:
        assert call.low[0].dtype == torch.bfloat16
        return [call.high[0] @ call.high[1].t()]

    register(f"parity_cases::{program.__name__.removeprefix('call_')}", linear)
    judged(program, X, W, exact=truth_linear)


def test_a_registered_equivalent_of_an_op_that_writes_is_used(
    register: Callable[[str, Equivalent], None],
) -> None:
    register("parity_cases::writing", lambda call: [call.high[0] @ call.high[1].t()])
    ran = shadowed(call_writing, X, W)
    assert bool(ran.high.isnan().all()) or distance(ran.high, in_double(truth_linear, X, W)) < 1e-14


def test_an_equivalent_of_another_shape_or_too_few_outputs_is_not_trusted(
    register: Callable[[str, Equivalent], None],
) -> None:
    register("parity_cases::casting", lambda call: [call.high[0][:1]])
    untrusted(call_casting, X, W, because="gives another shape")
    register("parity_cases::two", lambda call: [call.high[0] @ call.high[1].t()])
    ran = shadowed(call_two, X, W)
    assert distance(ran.high[0], in_double(truth_linear, X, W)) < 1e-14
    assert bool(ran.high[1].isnan().all())


def test_an_equivalent_is_registered_once() -> None:
    with pytest.raises(UsageError, match="registered twice"):
        equivalent("aten::_softmax")(lambda call: [])

"""Precision edits: what they change, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fixtures.shadowed import draw
from parity.diagnose.candidates import attention_interior
from parity.execution.edits import Edit, EditedForward, EditTracer, Kind
from parity.execution.ops import Op, OpTracer

LOW, WIDE = torch.bfloat16, torch.float32
X, W, B = draw(6, 8), draw(8, 8, seed=1, scale=0.3), draw(8, seed=2)
Program = Callable[[], Tensor]


def traced(program: Program) -> EditTracer:
    tracer = EditTracer(LOW)
    with torch.no_grad(), tracer:
        tracer.reached("end", program())
    return tracer


def op_named(tracer: EditTracer, name: str) -> Op:
    return next(o for o in tracer.trace.ops.values() if o.name == name)


def edited(program: Program, name: str, kind: Kind) -> Tensor:
    tracer = traced(program)
    op = op_named(tracer, name)
    assert kind in tracer.possible[op.number], tracer.possible[op.number]
    with torch.no_grad(), EditedForward({op.number: Edit(op.number, kind, LOW)}):
        return program()


def wide_product() -> Tensor:
    return (X.float().sin() * W[:6].float()).exp().to(LOW)


def swiglu() -> Tensor:
    out: Tensor = F.silu(X).unflatten(-1, (2, 4)).flatten(-2) * W[:6]
    return out


def two_casts() -> Tensor:
    return (X.float() * 0.3).to(LOW).float() * 0.7


CASES: list[tuple[str, Program, str, Kind, Program]] = [
    ("round", wide_product, "mul", "round", lambda: (X.float().sin() * W[:6].float()).to(LOW).float().exp().to(LOW)),
    ("low", wide_product, "mul", "low", lambda: (X.float().sin().to(LOW) * W[:6]).float().exp().to(LOW)),
    ("keep through views", swiglu, "silu", "keep", lambda: (F.silu(X.float()) * W[:6].float()).to(LOW)),
    ("keep of a cast", two_casts, "_to_copy", "keep", lambda: X.float() * 0.3 * 0.7),
    ("split", lambda: F.linear(X, W, B), "addmm", "split", lambda: F.linear(X, W) + B),
]


@pytest.mark.parametrize(("program", "name", "kind", "same"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_an_edit_gives_what_a_program_written_so_gives(program: Program, name: str, kind: Kind, same: Program) -> None:
    if kind == "keep" and name == "_to_copy":  # the second cast: the first one widens
        tracer = traced(program)
        op = next(o for o in tracer.trace.ops.values() if o.name == name and o.dtype == LOW)
        with torch.no_grad(), EditedForward({op.number: Edit(op.number, kind, LOW)}):
            found = program()
    else:
        found = edited(program, name, kind)
    assert torch.equal(found, same())
    assert not torch.equal(found, program()), "the edit changes nothing: this case proves nothing"


@pytest.mark.parametrize("program", [wide_product, swiglu, two_casts, lambda: F.linear(X, W, B)])
def test_without_edits_no_bit_changes(program: Program) -> None:
    with torch.no_grad(), EditedForward({}):
        found = program()
    assert torch.equal(found, program())


def test_edited_values_keep_dtype_and_strides() -> None:
    def program() -> Tensor:
        return (X.float().t() * 1.1).neg()

    found = edited(program, "mul", "low")
    assert (found.dtype, found.stride()) == (program().dtype, program().stride())


def test_keeping_a_chain_rounds_nowhere_inside() -> None:
    x = torch.linspace(0.1, 900.0, 64)

    def program() -> Tensor:
        return torch.cat([(x * 1.37 / 2 * 0.11).exp().log().cos(), x])

    tracer = traced(program)
    chain = {o.number: Edit(o.number, "keep") for o in tracer.trace.ops.values() if o.name != "cat"}
    with torch.no_grad(), EditedForward(chain):
        found = program()
    wide = x.double()
    assert torch.equal(found[:64], (wide * 1.37 / 2 * 0.11).exp().log().cos().float())
    assert not torch.equal(found, program())


def test_what_would_change_nothing_is_no_edit() -> None:
    def program() -> Tensor:
        return torch.arange(8, dtype=WIDE) * 2.0 + X.float()[0] * 0.3

    tracer = traced(program)
    first = op_named(tracer, "mul")
    assert tracer.possible[first.number] == frozenset()
    assert "round" in tracer.possible[op_named(tracer, "add").number]


def test_a_tap_is_made_of_the_ops_since_the_replaced_values() -> None:
    tracer = OpTracer()
    with torch.no_grad(), tracer:
        before = X.float() * 2.5
        tracer.reached("first", before)
        tracer.replaced(before)
        aside = W.float().exp()
        middle = before + 1.0
        tracer.reached("second", middle.view(-1))
        tracer.reached("third", aside[:6] * middle)
    assert [o.name for o in tracer.trace.of("first")] == ["_to_copy", "mul"]
    assert [o.name for o in tracer.trace.of("second")] == ["add"]
    assert [o.name for o in tracer.trace.of("third")] == ["_to_copy", "exp", "add", "mul"]
    assert tracer.trace.of("third")[0].source.function.endswith("replaced_values")


def test_writes_in_place_belong_to_what_they_write() -> None:
    tracer = OpTracer()
    with torch.no_grad(), tracer:
        out = torch.empty(6, 8)
        out[:, ::2] = X.float()[:, ::2].sin()
        out[:, 1::2] = 0.0
        tracer.reached("end", out)
    assert "sin" in [o.name for o in tracer.trace.of("end")]


def test_the_inside_of_an_attention_kernel_is_told_from_what_surrounds_it() -> None:
    q = draw(2, 4, 8).float()

    def program() -> Tensor:
        scores = (q * 0.7) @ q.mT
        return (scores * 0.3).softmax(-1) @ q * 1.7

    tracer = traced(program)
    ops = tracer.trace.of("end")
    inside = attention_interior(ops)
    names = [o.name for o in ops if o.bit & inside]
    assert names == ["bmm", "mul", "_softmax"]

"""The changes of a native that take values of the reference: in the place of what an op gives, or of what it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parity.diagnose.layouts import nearest_layout
from parity.execution.changes import Call, Change, OpChange
from parity.execution.memory import leaves
from parity.execution.op_values import OpValue

Finer = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Spot:
    """A native value and the reference's of the same step.

    Args:
        native: the op whose output or operand it is. made: the native op that makes it. reference: the reference's.
        theirs: the reference's exact value, in the native's layout for an output. ours: the native's.
        place: of an operand among all that the op is called with; None for an output. alike: cosine of the two.
    """

    native: OpValue
    made: OpValue
    reference: OpValue
    theirs: Tensor
    ours: Tensor
    place: int | None = None
    alike: float = 1.0

    @property
    def number(self) -> int:
        """The op's number."""
        return self.native.op.number


def grafted(spots: Sequence[Spot], words: str = "the reference's value") -> Change:
    """Set the reference's values in the place of the native's."""
    ops: dict[int, OpChange] = {}
    finer: Finer = []
    for spot in spots:
        operands = [s for s in spots if s.number == spot.number and s.place is not None]
        outputs = [s for s in spots if s.number == spot.number and s.place is None]
        call = _reading(operands, finer) if operands else None
        ops[spot.number] = OpChange(spot.native.op.name, call, _giving(outputs[0], finer) if outputs else None)
    return Change(words, (), ops, finer=finer)


def _giving(spot: Spot, finer: Finer) -> Callable[[Any], Any]:
    dtype = spot.native.op.dtype
    high = torch.view_as_complex(spot.theirs.contiguous()) if dtype.is_complex else spot.theirs
    low = high.to(dtype)
    finer.append((low, high))

    def result(out: Any) -> Any:
        first = out if isinstance(out, Tensor) else out[0]
        if first.dtype != low.dtype:
            raise RuntimeError("the op gives another dtype now")
        new = low.clone().reshape(first.shape)
        if spot.native.op.rule.writes:  # what it wrote is read again, not what it returned
            return first.copy_(new)
        return new if isinstance(out, Tensor) else type(out)((new, *out[1:]))

    return result


def _reading(spots: Sequence[Spot], finer: Finer) -> Callable[[Call], Call]:
    """Call with other values of some operands; they take the layout of what they stand for when it is first seen."""
    wanted = {s.place: s for s in spots if s.place is not None}
    lows: dict[int, Tensor] = {}

    def call(held: Call) -> Call:
        for place, one in enumerate(leaves((held[1], held[2]))):
            if place in wanted and place not in lows:
                lows[place] = _laid(wanted[place], one, finer)
        count = iter(range(1 << 20))
        args, kwargs = mapped((held[1], held[2]), lambda one: lows[n].clone() if (n := next(count)) in lows else one)
        return held[0], args, kwargs

    return call


def _laid(spot: Spot, operand: Any, finer: Finer) -> Tensor:
    # The native's own exact value says how the operand lies: the reference's lies as that does.
    real = torch.view_as_real(operand.resolve_conj()) if operand.is_complex() else operand
    _, theirs = nearest_layout(spot.theirs, spot.ours)
    ours_now = real.detach().double()
    _, turned = nearest_layout(spot.theirs if theirs is None else theirs, ours_now)
    if turned is None:
        raise RuntimeError("the reference's operand has another size")
    high = torch.view_as_complex(turned.contiguous()) if operand.is_complex() else turned.contiguous()
    low: Tensor = high.to(operand.dtype)
    finer.append((low, high))
    return low


def mapped(held: Any, change: Callable[[Any], Any]) -> Any:
    """Change the leaves of a call, in the order of `leaves`."""
    if isinstance(held, (list, tuple)):
        return type(held)(mapped(one, change) for one in held)
    if isinstance(held, dict):
        return {key: mapped(one, change) for key, one in held.items()}
    return change(held)

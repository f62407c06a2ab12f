"""What could be wrong with an operand of a sum: another value stands there, the residual of a wrong tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor

from parity.diagnose.calls import remembered
from parity.diagnose.segment import Segment
from parity.execution.changes import Call, Change, OpChange
from parity.execution.memory import leaves
from parity.execution.op_values import Fingerprint, OpValue, values_of

_SUMS, _VALUES = 3, 6
_ORDER = ("first", "second")


def other_operands(segment: Segment) -> Iterator[Change]:
    """Add what both sides have in the place of an operand that only the native has: the residual of another tensor."""
    region = {op.op.number for op in segment.region}
    sums = [op for op in segment.region if op.op.base == "add" and not op.scalars and len(op.inputs) == 2]
    for op in sums[:_SUMS]:
        apart = [i for i, (_, made) in enumerate(op.inputs) if made in region]
        # Where both differ, what made them does; where none does, one of them is not meant.
        for place in {0: (0, 1), 1: apart}.get(len(apart), ()):
            if (size := op.inputs[place][0]) is not None:
                yield from _instead(op, place, size.elements, segment, region)


def _instead(op: OpValue, place: int, elements: int, segment: Segment, region: set[int]) -> Iterator[Change]:
    seen = [value for value, _ in op.inputs if value is not None]
    for number, value, words, taken in (*_elsewhere(op, elements, segment), *_read(op, elements, segment, region)):
        if len(seen) > _VALUES + 1 or any(value.same(other) for other in seen):
            continue
        seen.append(value)
        held: list[Tensor] = []
        ops = {number: taken(held), op.op.number: OpChange(op.op.name, _adding(place, held))}
        said = f"{words} for the {_ORDER[place]} operand of `add` at {segment.line(op)}"
        yield Change(said, (), ops, bug="step_missing")


Candidate = tuple[int, Fingerprint, str, Callable[[list[Tensor]], OpChange]]
"""An op, a value at it, what that is in words, and the change that keeps the value for another op."""


def _elsewhere(op: OpValue, elements: int, segment: Segment) -> Iterator[Candidate]:
    """Yield what the reference has here and the native made before, for something else."""
    theirs, own = values_of(segment.theirs), {o.op.number for o in segment.ops}
    for number, made in sorted(segment.native.given.items(), reverse=True):
        value = made.value
        if value is None or number >= op.op.number or number in own:
            continue
        if value.elements == elements and theirs.has(value):
            yield number, value, f"`{made.op.name}` at {segment.line(made)}", partial(_kept, made.op.name)


def _read(op: OpValue, elements: int, segment: Segment, region: set[int]) -> Iterator[Candidate]:
    """Yield what ops of the segment read before, and both sides have."""
    for reader in segment.ops:
        if reader.op.number < op.op.number:
            for k, (value, made) in enumerate(reader.inputs):
                if value is not None and value.elements == elements and made not in region:
                    words = f"what `{reader.op.name}` at {segment.line(reader)} reads"
                    yield reader.op.number, value, words, partial(_keeping, reader.op.name, reader.places[k])


def _kept(name: str, held: list[Tensor]) -> OpChange:
    return OpChange(name, result=remembered(held))


def _keeping(name: str, place: int, held: list[Tensor]) -> OpChange:
    def call(given: Call) -> Call:
        held[:] = [leaf for n, leaf in enumerate(leaves((given[1], given[2]))) if n == place]
        return given

    return OpChange(name, call)


def _adding(place: int, held: list[Tensor]) -> Callable[[Call], Call]:
    def call(given: Call) -> Call:
        args: list[Any] = list(given[1])
        if not held or held[-1].shape != args[place].shape:
            raise RuntimeError("the value has another shape")
        args[place] = held[-1].to(args[place].dtype)
        return given[0], tuple(args), given[2]

    return call

"""What a set of values that restores a tap tells, in words."""

from __future__ import annotations

from collections.abc import Sequence

from parity.diagnose.graft_changes import Spot
from parity.diagnose.segment import Segment
from parity.execution.op_values import OpValue

_NAMED, _FEW = 5, 16


def words_of(segment: Segment, spots: Sequence[Spot], lines: int, relation: str, kind: str) -> str:
    """Say which values of the reference restore a tap, and how the native's differ from them.

    Args:
        segment: the faulty segment.
        spots: the values.
        lines: on how many lines of the native they are.
        relation: what the native's are of the reference's, "" where unknown.
        kind: "step_missing" where the native hands on what the reference goes on from, "step_extra" for the reverse.
    """
    first = spots[0]
    theirs = " and ".join(dict.fromkeys(str(segment.reference.step(s.reference)) for s in spots[:2]))
    name, line = first.native.op.name, segment.line(first.native)
    steps = dict.fromkeys(op for s in spots for op in part_of(s.reference, segment.their_region))
    ours = dict.fromkeys(op for s in spots for op in part_of(s.made, segment.region))
    if kind == "step_missing":
        return f"the step that is missing before `{name}` at {line}, the reference's {theirs}{_made_of(list(steps))}"
    if kind == "step_extra":
        what = f" (the native's: {relation})" if relation else ""
        return f"no {_names(list(ours))} at {segment.line(first.made)}: the value the reference has by {theirs}{what}"
    read = f"what `{name}` reads" if first.place is not None else f"`{name}`"
    words = f"the reference's {theirs} for {read} at {line}" + (f" and on {lines - 1} more lines" if lines > 1 else "")
    if relation:
        return f"{words} (the native's: {relation})"
    if ours and steps and max(len(ours), len(steps)) <= _FEW:
        return f"{words} (made of {_names(list(ours))}, in the reference of {_names(list(steps))})"
    return words


def part_of(op: OpValue, region: Sequence[OpValue]) -> list[OpValue]:
    """Return the ops of a region that an op's value is made by, itself included."""
    by_number = {o.op.number: o for o in region}
    found: dict[int, OpValue] = {}
    left = [op.op.number]
    while left:
        one = by_number.get(left.pop())
        if one is not None and one.op.number not in found:
            found[one.op.number] = one
            left += [made for _, made in one.inputs]
    return [found[n] for n in sorted(found)]


def _made_of(ops: Sequence[OpValue]) -> str:
    names = [op.op.source.function.replace(".<locals>", "") for op in ops if op.op.source.function]
    most = max(dict.fromkeys(names), key=names.count, default="")
    return f" ({most}: {_names(ops)})" if most else f" ({_names(ops)})"


def _names(ops: Sequence[OpValue]) -> str:
    names = list(dict.fromkeys(f"`{op.op.name}`" for op in ops))
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")

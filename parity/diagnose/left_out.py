"""Steps that the native runs and the reference does not: moved, cut, padded, clamped or rounded on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

from parity.diagnose.segment import Segment, by_line
from parity.execution.changes import Call, Change, OpChange

aten = torch.ops.aten
_STEPS = frozenset({
    "roll", "flip", "constant_pad_nd", "clamp", "clamp_min", "clamp_max", "round", "floor", "ceil", "trunc", "abs",
    "masked_fill", "nan_to_num", "index_select", "index", "gather", "cumsum", "relu", "tanh", "reflection_pad1d",
    "replication_pad1d", "hardtanh", "sign", "remainder", "fmod",
})  # fmt: skip
"""Ops that take one tensor and leave its meaning: without them the forward goes on."""


def left_out(segment: Segment) -> Iterator[Change]:
    """List the steps that only the native has, each left out: one by one, by line, then all of a name."""
    theirs = Counter(op.op.name for op in segment.theirs)
    ours = Counter(op.op.name for op in segment.ops)
    extra = [op for op in segment.ops if op.op.name in _STEPS and ours[op.op.name] > theirs[op.op.name]]
    names = dict.fromkeys(op.op.name for op in extra)
    groups = [*by_line(extra), *([op for op in extra if op.op.name == name] for name in names), *([op] for op in extra)]
    for group in groups:
        name = group[0].op.name
        calls = {op.op.number: OpChange(name, _as_is) for op in group}
        yield Change(f"no `{name}` at {segment.line(group[0])}", (), calls, bug="step_extra")
    yield from _cuts(segment)


def _as_is(held: Call) -> Call:
    """Hand on what the op was given."""
    return aten.clone.default, held[1][:1], {}


def _cuts(segment: Segment) -> Iterator[Change]:
    """List the cuts to fewer rows in the segment, each left out with all that cut alike."""
    numbers = [op.op.number for op in segment.ops]
    if not numbers:
        return
    inside = range(min(numbers), max(numbers) + 1)
    cuts = {n: args for group in segment.native.slices for n, args in group.items() if n in inside}
    alike: dict[tuple[Any, ...], list[int]] = {}
    for number, args in cuts.items():
        alike.setdefault(tuple(args[1:]), []).append(number)
    for bounds, group in alike.items():
        start, end = bounds[0] if bounds else None, bounds[1] if len(bounds) > 1 else None
        words = f"no cut to {_bounds(start, end)} at {segment.native.lines[group[0]]}"
        yield Change(words, (), {n: OpChange("slice", _whole) for n in group}, bug="step_extra")


def _whole(held: Call) -> Call:
    """Take the whole dimension."""
    return held[0], (held[1][0], held[1][1], 0, torch.iinfo(torch.int64).max), {}


def _bounds(start: Any, end: Any) -> str:
    last = "" if not isinstance(end, int) or end > 1 << 40 else str(end)
    return f"[{start or ''}:{last}]"

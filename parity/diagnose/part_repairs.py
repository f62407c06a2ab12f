"""What could be wrong with parts of tensors: taken in another order, left out as a gate, scaled by another number."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from parity.diagnose.calls import exchanged, remembered, with_arguments, with_factor, with_found_factor
from parity.diagnose.segment import Segment
from parity.execution.changes import Change, OpChange
from parity.execution.op_values import OpValue

Lines = Mapping[int, object]


def slice_changes(groups: Iterable[Mapping[int, tuple[Any, ...]]], bug: str, lines: Lines) -> Iterator[Change]:
    """Exchange two slices of one shape of one tensor, in each group of such."""
    for group in groups:
        for (n, one), (m, other) in itertools.combinations(list(group.items())[:6], 2):
            places = [list(group).index(k) for k in (n, m)]
            ops = {k: OpChange("slice", with_arguments(v)) for k, v in ((n, other), (m, one))}
            words = f"parts {places[0]} and {places[1]} of {len(group)} exchanged at {lines[n]}"
            yield Change(words, (), ops, bug=bug)


def found_factor(op: OpValue, wanted: Tensor, line: str, bug: str) -> Change:
    """Multiply the second operand of a segment's last addition by the number that brings its sum to what is wanted.

    Args:
        op: the addition.
        wanted: its right value, exact.
        line: of the op.
        bug: what it is called.
    """
    found: list[float] = []
    words = f"the second operand of `add` times {{0:.6g}} at {line}"
    return Change(words, (), {op.op.number: OpChange(op.op.name, with_found_factor(wanted, found))}, found, bug)


def factor_changes(additions: Sequence[OpValue], groups: Iterable[Mapping[int, Any]]) -> Iterator[Change]:
    """Multiply an operand of an addition by a part of a tensor that was taken apart before: a gate left out."""
    for group, op, place in itertools.product(groups, additions, (1, 0)):
        for position, number in enumerate(list(group)[:6]):
            if number >= op.op.number:
                continue
            held: list[Tensor] = []
            part = OpChange("slice", result=remembered(held))
            words = f"part {position} of {len(group)} times operand {place + 1} of `add` at {op.op.source}"
            ops = {number: part, op.op.number: OpChange(op.op.name, with_factor(place, held))}
            yield Change(words, (), ops, bug="gate_missing")


def split_changes(splits: Mapping[int, tuple[str, int]], bug: str, lines: Lines) -> Iterator[Change]:
    """List the orders in which the parts of a tensor could have been meant: of each, then of all taken apart alike."""
    alike = [{n: s for n, s in splits.items() if s == kind} for kind in dict.fromkeys(splits.values())]
    for group in [*({n: s} for n, s in splits.items()), *(g for g in alike if len(g) > 1)]:
        (name, count), *_ = group.values()
        for i, k in itertools.combinations(range(min(count, 6)), 2):
            words = f"parts {i} and {k} of {count} exchanged at {lines[next(iter(group))]}"
            yield Change(words, (), {n: OpChange(name, result=exchanged(i, k)) for n in group}, bug=bug)


def changes_of_parts(segment: Segment) -> Iterable[Change]:
    """List the orders in which the parts of tensors that are taken apart could have been meant."""
    native, last = segment.native, max((op.op.number for op in segment.ops), default=0)
    bug = "parts_order" if segment.tap.has_attention else "modulation_order"
    splits = dict([(n, s) for n, s in native.splits.items() if n <= last][-8:])
    # Two parts that are turned into each other: to exchange them is to turn the other way.
    pairs = {n: s for n, s in splits.items() if s == ("unbind", 2) and any(map(segment.turns, segment.ops))}
    yield from split_changes(pairs, "rope_direction", native.lines)
    yield from split_changes({n: s for n, s in splits.items() if n not in pairs}, bug, native.lines)
    slices = [g for g in native.slices if len(g) > 1 and max(g) <= last][-4:]
    yield from slice_changes(slices, bug, native.lines)

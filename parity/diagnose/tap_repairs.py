"""What could be wrong with an operand that lockstep sets: the value of another tap was meant, or two are exchanged."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from parity.diagnose.graft_changes import mapped
from parity.diagnose.segment import Segment
from parity.execution.changes import Call, Change, OpChange
from parity.execution.memory import leaves
from parity.execution.op_values import Fingerprint, OpValue, fingerprint
from parity.execution.tap import Tap
from parity.execution.trace import Trace

_TAPS, _MOST = 24, 12
"""Taps before the faulty one that are looked at, and changes that are tried."""
Places = Mapping[int, Mapping[int, Tensor]]
"""By op number and place among what the op is called with, what is read there instead."""


@dataclass(frozen=True)
class Held:
    """The value lockstep sets at a tap, in the native's layout, and where ops of the segment read it."""

    name: str
    value: Tensor
    fingerprint: Fingerprint
    reads: tuple[tuple[OpValue, int], ...]

    @property
    def lines(self) -> object:
        """Which ops read it."""
        return frozenset(op.op.number for op, _ in self.reads)


def other_taps(segment: Segment, taps: Sequence[Tap], reference: Trace, native: Trace) -> Iterator[Change]:
    """Exchange the values of two taps that a segment reads, or read that of another tap of one size instead.

    Args:
        segment: the faulty segment.
        taps: the pair's.
        reference: its lockstep pass.
        native: its lockstep pass.
    """
    held = _held(segment, taps, reference, native)
    read = [one for one in held if one.reads]
    both = [(a, b) for a, b in itertools.combinations(read, 2) if _alike(a, b)]
    for group in _together(both):
        yield _exchanged(group, segment)
    for a, b in both[:_MOST]:
        yield _exchanged([(a, b)], segment)
    pairs = ((a, b) for a in read for b in held if a is not b and _alike(a, b))
    for a, b in itertools.islice(pairs, _MOST):
        words = f"the value of {b.name} for that of {a.name}, which `{a.reads[0][0].op.name}` reads"
        yield _change(f"{words} at {segment.line(a.reads[0][0])}", segment, _reading(a, b))


def _held(segment: Segment, taps: Sequence[Tap], reference: Trace, native: Trace) -> list[Held]:
    """Return what lockstep sets before the segment ends and could stand for what it reads, the nearest tap first."""
    wanted = {value.elements for op in segment.ops for value, _ in op.inputs if value is not None}
    before = list(itertools.takewhile(lambda tap: tap.name != segment.tap.name, taps))
    found = []
    for tap in before[:-_TAPS - 1:-1]:
        value = _set_at(tap, reference, native)
        if value is None or value.numel() not in wanted or (print_ := fingerprint(value.double())) is None:
            continue
        reads = tuple(
            (op, place)
            for op in segment.ops for place, (read, _) in zip(op.places, op.inputs, strict=True)
            if read is not None and read.same(print_)
        )  # fmt: skip
        found.append(Held(tap.name, value, print_, reads))
    return found


def _set_at(tap: Tap, reference: Trace, native: Trace) -> Tensor | None:
    """Return what the native goes on with at a tap, None where it is not one value of both sides."""
    theirs, ours = reference.values.get(tap.name), native.values.get(tap.name)
    if tap.reference is None or tap.native is None or tap.valid is not None or not tap.restarts:
        return None
    if theirs is None or ours is None or tap.layout.backward is None or len(ours.parts) > 1 or theirs.low.is_complex():
        return None
    return tap.layout.backward(theirs.low, ours.low.shape).to(ours.low.dtype).clone()


def _alike(one: Held, other: Held) -> bool:
    return one.value.shape == other.value.shape and not one.fingerprint.same(other.fingerprint)


def _together(pairs: Iterable[tuple[Held, Held]]) -> Iterator[list[tuple[Held, Held]]]:
    """Group pairs that the same two ops read at places of their own: text and video, joined after each was made."""
    groups: dict[object, list[tuple[Held, Held]]] = {}
    for a, b in pairs:
        places = [{place for _, place in one.reads} for one in (a, b)]
        if places[0] == places[1]:
            groups.setdefault((a.lines, b.lines), []).append((a, b))
    return (group for group in groups.values() if len(group) > 1)


def _reading(one: Held, other: Held) -> Places:
    found: dict[int, dict[int, Tensor]] = {}
    for op, place in one.reads:
        found.setdefault(op.op.number, {})[place] = other.value
    return found


def _exchanged(pairs: Sequence[tuple[Held, Held]], segment: Segment) -> Change:
    places: dict[int, dict[int, Tensor]] = {}
    for a, b in pairs:
        for number, wanted in (*_reading(a, b).items(), *_reading(b, a).items()):
            places.setdefault(number, {}).update(wanted)
    said = ", ".join(f"{a.name} and {b.name}" for a, b in pairs)
    line = segment.line(pairs[0][0].reads[0][0])
    return _change(f"the values of {said} exchanged where they are read, first at {line}", segment, places)


def _change(words: str, segment: Segment, places: Places) -> Change:
    names = {op.op.number: op.op.name for op in segment.ops}
    ops = {number: OpChange(names[number], _with(wanted)) for number, wanted in places.items()}
    roots = {id(value): value for wanted in places.values() for value in wanted.values()}
    return Change(words, (), ops, bug="operands_exchanged", roots=tuple(roots.values()))


def _with(wanted: Mapping[int, Tensor]) -> Callable[[Call], Call]:
    """Call with other values at some places, each in the shape and dtype of what it stands for."""

    def call(given: Call) -> Call:
        held: list[Any] = list(leaves((given[1], given[2])))
        if any(held[place].numel() != value.numel() for place, value in wanted.items()):
            raise RuntimeError("the value has another size")
        new = {place: value.reshape(held[place].shape).to(held[place].dtype) for place, value in wanted.items()}
        count = itertools.count()
        args, kwargs = mapped((given[1], given[2]), lambda one: new.get(next(count), one))
        return given[0], args, kwargs

    return call

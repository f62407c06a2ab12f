"""Where in the code a difference is made: the two sides' ops are matched by their exact values.

Two ops that give the same value are the same step, whatever they are called and however they lay it out. Walking back
from a faulty tap to where the values agree gives the first op that differs, with its line and module; steps that agree
in value but not in dtype are the dtype trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from parity.diagnose.side_ops import SideOps
from parity.diagnose.steps import Step, code_of
from parity.execution.op_values import OpValue, Values, values_of

_LARGE = 64
"""Elements from which that a value holds 16-bit numbers alone is no chance."""
_PLAIN = frozenset({"t", "view", "clone", "copy_", "cat", "stack"})


@dataclass(frozen=True)
class Place:
    """Where a tap's difference is made.

    Args:
        native: the first native op whose value the reference does not have; None where all agree in value.
        reference: the first of the reference's that the native does not have.
        dtypes: steps of one value that the two sides run in different dtypes, in order: native, reference.
        weights: native parameters the tap's segment reads.
        notes: what else differs: autocast, 16-bit content of wide values, TF32.
    """

    native: Step | None = None
    reference: Step | None = None
    dtypes: tuple[tuple[Step, Step], ...] = ()
    weights: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """Say it: where the functions part, then where the dtypes do."""
        found = []
        if self.native is not None:
            other = f"; the reference has {self.reference}" if self.reference is not None else ""
            found.append(f"differs from {self.native} on{other}")
        elif self.reference is not None:
            found.append(f"the native has nothing for {self.reference}")
        for native, reference in self.dtypes[:1]:
            more = f", and {len(self.dtypes) - 1} more ops" if len(self.dtypes) > 1 else ""
            found.append(f"{native} runs in {native.dtype}, in {reference.dtype} in the reference{more}")
        return [*found, *self.notes]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for a record."""
        return {
            "native": None if self.native is None else str(self.native),
            "reference": None if self.reference is None else str(self.reference),
            "dtypes": [[str(n), n.dtype, str(r), r.dtype] for n, r in self.dtypes[:8]],
            "code": {
                "native": [list(c) for c in code_of(self.native, *(n for n, _ in self.dtypes))],
                "reference": [list(c) for c in code_of(self.reference, *(r for _, r in self.dtypes))],
            },
            "notes": list(self.notes),
        }


def place_of_difference(tap: str, native: SideOps, reference: SideOps, logic: bool = True) -> Place:
    """Say where the two sides part in a tap's segment.

    Args:
        tap: its name.
        native: the native's ops.
        reference: the reference's.
        logic: whether the two are different functions.
    """
    theirs, ours = reference.of(tap), native.of(tap)
    their_values = values_of(theirs)
    dtypes = tuple(
        (a, b) for n, r in _apart(ours, their_values)
        if (a := native.step(n)) is not None and (b := reference.step(r)) is not None
    )  # fmt: skip
    parted = first_unmatched(ours, their_values) if logic else None
    without = first_unmatched(theirs, values_of(ours)) if logic else None
    reordered = logic and parted is None and without is None and ours and theirs
    return Place(
        native=native.step(parted),
        reference=reference.step(without),
        dtypes=dtypes,
        weights=tuple(dict.fromkeys(w for op in ours for w in op.weights)),
        notes=(
            *(["the values are the reference's, in another order"] if reordered else []),
            *_notes(ours, theirs, their_values, native, reference),
        ),
    )


def unmatched(ops: Sequence[OpValue], others: Values) -> dict[int, OpValue]:
    """Walk back from the last op of every call to values the other side has; return the ops on the way, by number."""
    by_number = {o.op.number: o for o in ops}
    region: dict[int, OpValue] = {}
    left = ends_of(ops)
    while left:
        op = by_number.get(left.pop())
        if op is None or op.op.number in region or op.value is None or others.has(op.value):
            continue
        region[op.op.number] = op
        left += [made for value, made in op.inputs if value is not None and not others.has(value)]
    return region


def ends_of(ops: Sequence[OpValue]) -> list[int]:
    """Return the numbers of the ops that end a segment: the last one, and its like in other calls of the module."""
    if not ops:
        return []
    read = {made for op in ops for _, made in op.inputs}
    last = ops[-1].op
    alike = (o.op for o in ops if (o.op.name, o.op.source) == (last.name, last.source))
    return [op.number for op in alike if op.number not in read]


def innocent(ops: Sequence[OpValue], others: Values) -> int:
    """Return the bits of the ops that make a value the other side has: what only one has of them is laid out otherwise.

    The table that turns k rightly is not what turns q wrongly.
    """
    bits = 0
    for op in ops:
        bits |= op.op.inputs if others.has(op.value) else 0
    return bits


def first_unmatched(ops: Sequence[OpValue], others: Values) -> OpValue | None:
    """Return the first op on the way back that reads a value both sides have."""
    region = unmatched(ops, others)
    free = innocent(ops, others)
    region = {n: op for n, op in region.items() if not op.op.bit & free} or region
    # Where data both sides have enters is where they part; a table may merely be laid out otherwise.
    entered = [n for n, op in region.items() if any(made < 0 or others.has(value) for value, made in op.inputs)]
    return region[min(entered or region)] if region else None


def _apart(ops: Sequence[OpValue], others: Values) -> Iterator[tuple[OpValue, OpValue]]:
    """Yield ops of one value whose dtypes differ, casts and moves left out."""
    for op in ops:
        if _moves(op):
            continue
        same = [o for o in others.find(op.value) if o is not None and not _moves(o)]
        if same and all(o.op.dtype != op.op.dtype for o in same):
            yield op, same[0]


def _moves(op: OpValue) -> bool:
    return op.op.rule.cast or op.op.rule.moves or op.op.name in _PLAIN


def _as_large(other: OpValue, op: OpValue) -> bool:
    """Say whether a value is as large as another, or as several calls of it, or holds several of its parts."""
    if other.value is None or op.value is None or op.value.elements < _LARGE:
        return False
    return other.op.dtype == op.op.dtype and other.value.elements % op.value.elements == 0


def _notes(
    ours: Sequence[OpValue], theirs: Sequence[OpValue], values: Values, native: SideOps, reference: SideOps
) -> Iterator[str]:
    if any(o.autocast for o in ours) != any(o.autocast for o in theirs):
        yield f"autocast is on in the {'native' if any(o.autocast for o in ours) else 'reference'} only"
    for op in ours:
        same = [o for o in values.find(op.value) if o is not None and o.op.dtype == op.op.dtype]
        # A value that is rounded is one that both have no more: then none of its size may hold such in the reference.
        others = same or [o for o in theirs if _as_large(o, op)] if op.op.rule.cast else same
        if op.holds_low and others and not any(o.holds_low for o in others):
            dtype = str(op.op.dtype).removeprefix("torch.")
            yield f"{native.step(op)} is {dtype} and holds 16-bit values only: it was rounded"
            break
    sides = native.matmul, reference.matmul
    if sides[0] != sides[1]:
        yield f"float32 matmul precision is {sides[0]!r} in the native, {sides[1]!r} in the reference"

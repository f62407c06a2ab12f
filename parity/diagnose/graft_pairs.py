"""The ops of a faulty segment beside the reference's of the same step: paired by their exact values, in any layout."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from parity.diagnose.graft_changes import Spot
from parity.diagnose.layouts import layouts, likeness, nearest_layout
from parity.diagnose.places import ends_of
from parity.diagnose.segment import Segment, by_line
from parity.execution.op_values import Fingerprint, OpValue, Values, fingerprint, values_of

_ALIKE, _SAME_NAME, _PAIRS, _COMPARED = 0.02, 0.05, 48, 1 << 28
"""Cosine from which two values may be one step, what a common name adds to it, ops that are paired and elements that
are compared at most."""
_PLAIN_OPS = frozenset({
    "mul", "add", "sub", "div", "neg", "pow", "clone", "_to_copy", "copy_", "cat", "stack", "roll",
    "index",
})  # fmt: skip
"""Ops of which any may be any other's step; of the others one is paired with one of its name, if there is one."""
Group = list[Spot]


@dataclass
class Pairs:
    """Finds for native values the reference's of the same step.

    Args:
        segment: the segment.
    """

    segment: Segment
    _compared: int = 0

    @cached_property
    def shared(self) -> Values:
        """What the reference's ops gave and read."""
        return values_of(self.segment.theirs)

    @cached_property
    def theirs(self) -> Mapping[int, Tensor]:
        """The reference's values by op number."""
        return _finite(self.segment.reference.values)

    @cached_property
    def ours(self) -> Mapping[int, Tensor]:
        """The native's values by op number."""
        return _finite(self.segment.native.values)

    def outputs(self, pool: Sequence[OpValue]) -> Mapping[int, Spot]:
        """Return the ops that differ with the reference's of the same step, by number."""
        region = [op for op in self.segment.region if op.op.number in self.ours][:_PAIRS]
        theirs = [op for op in pool if op.op.number in self.theirs]
        spots = {op.op.number: spot for op in region if (spot := self._paired(op, theirs)) is not None}
        spots.update({spot.number: spot for spot in self._reordered()})
        return dict(sorted(spots.items()))

    def of_outputs(self, outputs: Mapping[int, Spot]) -> list[Group]:
        """Return the pairs of one line together."""
        lines = by_line([spot.native for spot in outputs.values()])
        return [[outputs[op.op.number] for op in line] for line in lines]

    def _paired(self, op: OpValue, theirs: Sequence[OpValue]) -> Spot | None:
        """Pair an op with the one whose value is most like its own; the last one with the last one."""
        ours, best, found = self.ours[op.op.number], _ALIKE, None
        ends = self._ends.get(op.op.number)
        named = [o for o in theirs if o.op.name == op.op.name and o.op.name not in _PLAIN_OPS]
        for other in [ends] if ends is not None else named or theirs:
            if self._compared > _COMPARED:
                break
            for part in self._parts(op, self.theirs[other.op.number], ours.numel()):
                self._compared += ours.numel()
                alike, laid = self._laid(part, ours)
                alike += _SAME_NAME * (other.op.name == op.op.name)
                if laid is not None and (alike > best or ends is not None):
                    best, found = alike, Spot(op, op, other, laid, ours, alike=alike)
        return found

    @cached_property
    def _ends(self) -> Mapping[int, OpValue]:
        """The reference's last op by the number of the native's last one, of each call."""
        theirs = {op.op.number: op for op in self.segment.theirs}
        last = [theirs[n] for n in sorted(ends_of(self.segment.theirs)) if n in self.theirs]
        ours = sorted(ends_of(self.segment.ops))
        pairs = zip(ours, last * len(ours) if len(last) == 1 else last, strict=False)
        return {n: other for n, other in pairs if len(last) in (1, len(ours))}

    @cached_property
    def _known(self) -> Mapping[tuple[torch.Size, torch.Size], int]:
        """Which layout takes a shape of the reference's to one of the native's, from values both sides have."""
        found: dict[tuple[torch.Size, torch.Size], int] = {}
        for op in self.segment.ops:
            ours = self.ours.get(op.op.number)
            for other in self.shared.find(op.value) if ours is not None else ():
                theirs = None if other is None else self.theirs.get(other.op.number)
                if ours is None or theirs is None or (theirs.shape, ours.shape) in found:
                    continue
                fits = (n for n, laid in enumerate(layouts(theirs, ours.shape)) if _near(laid, ours))
                if (number := next(fits, None)) is not None:
                    found[theirs.shape, ours.shape] = number
        return found

    def _laid(self, theirs: Tensor, ours: Tensor) -> tuple[float, Tensor | None]:
        """Return a reference value as the native would hold it, and how alike the two are."""
        number = self._known.get((theirs.shape, ours.shape))
        if number is None:
            return nearest_layout(theirs, ours)
        laid = next(itertools.islice(layouts(theirs, ours.shape), number, None))
        size = float(torch.linalg.vector_norm(laid)) * float(torch.linalg.vector_norm(ours))
        return (likeness(laid, ours) / size if size > 0 else 0.0), laid

    def before(self, spot: Spot, outputs: Mapping[int, Spot]) -> list[Group]:
        """Return what a value that differs is made of, as sets of values: what its op reads, paired in several ways."""
        if (handed := self._handed_on(spot)) is not None:
            return [[handed]]
        ways = [self._operands(spot.made, spot.reference), self._by_value(spot, outputs)]
        return [way for way in (ways if spot.made.op.name not in _PLAIN_OPS else ways[::-1]) if way]

    def _by_value(self, spot: Spot, outputs: Mapping[int, Spot]) -> Group:
        """Return the values the reference does not have that an op reads; none where one has no pair."""
        left = [(v, made) for v, made in spot.made.inputs if made >= 0 and not self.shared.has(v)]
        found = [one for v, made in left if (one := outputs.get(made)) is not None and _holds(one, v)]
        return found if len(found) == len(left) else []

    def _handed_on(self, spot: Spot) -> Spot | None:
        """Return the value an op hands on, as padding to no more, or a cat of which a part is read, does."""
        mine, ops = fingerprint(spot.ours), {op.op.number: op for op in self.segment.region}
        for value, made in spot.made.inputs:
            ours = self.ours.get(made)
            if mine is None or value is None or not value.same(mine) or made not in ops or ours is None:
                continue
            laid = self._laid(spot.theirs, ours)[1] if ours.numel() == spot.theirs.numel() else None
            if laid is not None:
                return Spot(ops[made], ops[made], spot.reference, laid, ours, alike=spot.alike)
        return None

    def _parts(self, op: OpValue, theirs: Tensor, elements: int) -> Sequence[Tensor]:
        """Return the reference's value, or the part of it where the native runs several calls for its one."""
        if theirs.numel() == elements:
            return (theirs,)
        times, rest = divmod(theirs.numel(), max(1, elements))
        for axis, size in enumerate(theirs.shape if times and not rest else ()):
            if size == times and bool((theirs == theirs.narrow(axis, 0, 1)).all()):
                return (theirs.select(axis, 0),)  # one value held for each token, or each sample
        calls = self.segment.calls
        if theirs.numel() != calls * elements or not theirs.dim() or theirs.shape[0] % calls:
            return ()
        return (theirs.chunk(calls)[self.segment.call_of(op)],)

    def _reordered(self) -> Iterable[Spot]:
        """Pair ops that give one value in another order, which no layout explains."""
        for op in self.segment.boundary:
            ours = self.ours.get(op.op.number)
            same = [o for o in self.shared.find(op.value) if o is not None and o.op.number in self.theirs]
            if ours is None or not same:
                continue
            values = [v for o in same for v in self._parts(op, self.theirs[o.op.number], ours.numel())]
            laid = [one for value in values for one in layouts(value, ours.shape)]
            if laid and not any(_near(one, ours) for one in laid):
                yield Spot(op, op, same[0], max(laid, key=lambda one: likeness(one, ours)), ours)

    def of_operands(self, outputs: Mapping[int, Spot]) -> list[Group]:
        """Return the operands that differ of ops that both sides run."""
        pairs = [(s.native, s.reference) for s in outputs.values() if s.native in self.segment.region]
        spots = {n.op.number: self._operands(n, r) for n, r in pairs}
        lines = by_line([n for n, _ in sorted(pairs, key=lambda pair: pair[0].op.number)])
        groups = ([spot for op in line for spot in spots[op.op.number]] for line in lines)
        return [group for group in groups if group]

    def _operands(self, op: OpValue, other: OpValue) -> Group:
        """Pair the operands of an op with those of the reference's op, by their place."""
        if op.op.name != other.op.name or len(op.inputs) != len(other.inputs):
            return []
        found = (self._operand(op, other, place) for place in range(len(op.inputs)))
        return [spot for spot in found if spot is not None]

    def _operand(self, op: OpValue, other: OpValue, place: int) -> Spot | None:
        ours_of, theirs_of = ({o.op.number: o for o in side} for side in (self.segment.ops, self.segment.theirs))
        (value, made), (their_value, their_made) = op.inputs[place], other.inputs[place]
        if value is None or their_value is None or made not in ours_of or their_made not in theirs_of:
            return None
        if any(v is not None and v.same(value) for v in (their_value, *their_value.in_parts(self.segment.calls))):
            return None
        theirs = self.segment.reference.operands.get((other.op.number, place), self.theirs.get(their_made))
        ours = self.segment.native.operands.get((op.op.number, place), self.ours.get(made))
        parts = () if theirs is None else self._parts(op, theirs, value.elements)
        if not parts or ours is None or ours.numel() != value.elements:
            return None
        return Spot(op, ours_of[made], theirs_of[their_made], parts[0], ours, op.places[place])


def _holds(spot: Spot, value: Fingerprint | None) -> bool:
    return value is not None and spot.ours.numel() == value.elements


def _near(one: Tensor, other: Tensor) -> bool:
    """Say whether two values are one but for what tables of few digits make of them; another order is far."""
    return float(torch.linalg.vector_norm(one - other)) <= 1e-3 * float(torch.linalg.vector_norm(other))


def _finite(values: Mapping[int, Tensor]) -> Mapping[int, Tensor]:
    return {number: value for number, value in values.items() if bool(value.isfinite().all())}

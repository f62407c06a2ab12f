"""Values of the reference set into the native's forward: where that restores a tap, the fault lies before, no earlier.

Every other change asks whether the fault is one that is known. This one asks nothing of it: the ops of both sides that
differ are paired by their exact values, the reference's value is set in the place of the native's, and the forward
goes on. The smallest such set is where the functions part, whatever was done there; how its values are related says
what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from parity.diagnose.graft_changes import Spot, grafted
from parity.diagnose.graft_words import words_of
from parity.diagnose.layouts import layouts, likeness, nearest_layout
from parity.diagnose.segment import Segment, by_line
from parity.diagnose.signature import Found, Seen, close, recognised
from parity.execution.changes import Change
from parity.execution.op_values import OpValue, Values, values_of

_ALIKE, _SURE, _SAME_NAME, _PAIRS, _GROUPS, _FEW = 0.02, 0.3, 0.05, 48, 16, 8
"""Cosine from which two values may be one step, and from which they are; what a common name adds to it; ops that are
paired and sets that are tried at most; ops of a part that are few enough to say what it computes."""
Group = list[Spot]
Tries = Callable[[Change], "float | None"]
"""From a change to logic_error with it where it restores the tap."""


@dataclass(frozen=True)
class Graft:
    """A set of values that restores a tap.

    Args:
        change: it, in words. after: logic_error with it. ops: whose values are taken.
        bug: the signature they have. tells: whether it says what to change, and not only that all of it differs.
    """

    change: Change
    after: float
    ops: tuple[OpValue, ...]
    bug: str
    tells: bool


@dataclass
class Grafter:
    """Pairs the ops of a faulty segment and finds the smallest set of values that restores it.

    Args:
        segment: the segment. tries: tells what a change restores the tap to.
    """

    segment: Segment
    tries: Tries

    def found(self) -> Graft | None:
        """Return the smallest set of values that restores the tap, None where none does.

        First what the reference alone has is set in; then what both sides have, which the native ought to hand on.
        """
        found = None
        for pool in (self.segment.their_region, self.segment.theirs):
            graft = self._found(self._outputs(pool))
            if graft is not None and graft.tells:
                return graft
            found = found or graft
        return found

    def _found(self, outputs: Mapping[int, Spot]) -> Graft | None:
        groups = [*self._of_outputs(outputs), *self._of_operands(outputs)]
        groups.sort(key=lambda g: (g[0].number, g[0].place is None))
        found = []
        alone = next(((g, after) for g in groups[:_GROUPS] if (after := self._tried([g])) is not None), None)
        if alone is not None:
            found.append(([alone[0]], alone[1]))
        first = [g for g in groups if any(self._enters(spot) for spot in g)]
        # Where a pair is wrong the whole set fails: without those that are little alike it may not.
        for several in (first, [g for g in first if all(spot.alike >= _SURE for spot in g)]):
            if len(several) < 2 or (alone is not None and alone[0] in first):
                continue
            if (after := self._tried(several)) is not None:
                found.append(self._fewest(several, after))
                break
        return self._told(*min(found, key=lambda one: self._size(one[0]))) if found else None

    def _size(self, groups: Sequence[Group]) -> int:
        """Return how many of the native's ops that differ lie behind a set of values."""
        region = {op.op.number for op in self.segment.region}
        return len(region & self.segment.behind([spot.made for group in groups for spot in group]))

    def _tried(self, groups: Sequence[Group]) -> float | None:
        return self.tries(grafted([spot for group in groups for spot in group]))

    def _fewest(self, groups: list[Group], after: float) -> tuple[list[Group], float]:
        """Leave out what is not needed, the last ones first."""
        kept = list(groups)
        for group in reversed(groups):
            fewer = [g for g in kept if g is not group]
            if fewer and (found := self._tried(fewer)) is not None:
                kept, after = fewer, found
        return kept, after

    # --- pairs --------------------------------------------------------------------------------------------------------

    @cached_property
    def _shared(self) -> Values:
        return values_of(self.segment.theirs)

    @cached_property
    def _theirs(self) -> Mapping[int, Tensor]:
        return _finite(self.segment.reference.values)

    @cached_property
    def _ours(self) -> Mapping[int, Tensor]:
        return _finite(self.segment.native.values)

    def _outputs(self, pool: Sequence[OpValue]) -> Mapping[int, Spot]:
        """Return the ops that differ with the reference's of the same step, by number."""
        region = [op for op in self.segment.region if op.op.number in self._ours][:_PAIRS]
        theirs = [op for op in pool if op.op.number in self._theirs]
        spots = {op.op.number: spot for op in region if (spot := self._paired(op, theirs)) is not None}
        spots.update({spot.number: spot for spot in self._reordered()})
        return dict(sorted(spots.items()))

    def _of_outputs(self, outputs: Mapping[int, Spot]) -> list[Group]:
        """Return the pairs of one line together."""
        lines = by_line([spot.native for spot in outputs.values()])
        return [[outputs[op.op.number] for op in line] for line in lines]

    def _paired(self, op: OpValue, theirs: Sequence[OpValue]) -> Spot | None:
        """Pair an op with the one whose value is most like its own."""
        ours, best, found = self._ours[op.op.number], _ALIKE, None
        for other in theirs:
            for part in self._parts(op, self._theirs[other.op.number], ours.numel()):
                alike, laid = nearest_layout(part, ours)
                alike += _SAME_NAME * (other.op.name == op.op.name)
                if laid is not None and alike > best:
                    best, found = alike, Spot(op, op, other, laid, ours, alike=alike)
        return found

    def _parts(self, op: OpValue, theirs: Tensor, elements: int) -> Sequence[Tensor]:
        """Return the reference's value, or the part of it where the native runs several calls for its one."""
        if theirs.numel() == elements:
            return (theirs,)
        times, rest = divmod(theirs.numel(), max(1, elements))
        for axis, size in enumerate(theirs.shape if not rest else ()):
            if size == times and bool((theirs == theirs.narrow(axis, 0, 1)).all()):
                return (theirs.select(axis, 0),)  # one value held for each token, or each sample
        calls = self.segment.calls
        if theirs.numel() != calls * elements or not theirs.dim() or theirs.shape[0] % calls:
            return ()
        return (theirs.chunk(calls)[self.segment.call_of(op)],)

    def _reordered(self) -> Iterable[Spot]:
        """Pair ops that give one value in another order, which no layout explains."""
        for op in self.segment.boundary:
            ours = self._ours.get(op.op.number)
            same = [o for o in self._shared.find(op.value) if o is not None and o.op.number in self._theirs]
            if ours is None or not same:
                continue
            values = [v for o in same for v in self._parts(op, self._theirs[o.op.number], ours.numel())]
            laid = [one for value in values for one in layouts(value, ours.shape)]
            if laid and not any(close(one, ours) for one in laid):
                yield Spot(op, op, same[0], max(laid, key=lambda one: likeness(one, ours)), ours)

    def _of_operands(self, outputs: Mapping[int, Spot]) -> list[Group]:
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
        theirs = self.segment.reference.operands.get((other.op.number, place), self._theirs.get(their_made))
        ours = self.segment.native.operands.get((op.op.number, place), self._ours.get(made))
        parts = () if theirs is None else self._parts(op, theirs, value.elements)
        if not parts or ours is None or ours.numel() != value.elements:
            return None
        return Spot(op, ours_of[made], theirs_of[their_made], parts[0], ours, op.places[place])

    def _enters(self, spot: Spot) -> bool:
        """Say whether what makes a value reads what both sides have."""
        if spot.made not in self.segment.region:
            return True
        return any(made < 0 or self._shared.has(value) for value, made in spot.made.inputs)

    # --- what it tells ------------------------------------------------------------------------------------------------

    def _told(self, groups: Sequence[Group], after: float) -> Graft:
        spots = [spot for group in groups for spot in group]
        bug, relation = self._relation(spots)
        kind = self._kind(spots)
        words = words_of(self.segment, spots, len(groups), relation, kind)
        behind = self._size(groups)
        few = behind <= _FEW and behind < max(2, len(self.segment.region))
        bug = bug or kind
        ops = tuple(dict.fromkeys(op for spot in spots for op in (spot.made, spot.native)))
        return Graft(grafted(spots, words), after, ops, bug, bool(relation or kind) or few)

    def _kind(self, spots: Sequence[Spot]) -> str:
        """Say whether the native lacks a step, or has one too many: one side hands on what both have."""
        if all(spot.made not in self.segment.region for spot in spots):
            return "step_missing" if all(s.reference in self.segment.their_region for s in spots) else ""
        return "step_extra" if all(s.reference not in self.segment.their_region for s in spots) else ""

    def _relation(self, spots: Sequence[Spot]) -> tuple[str, str]:
        """Name what a native value is of the reference's."""
        for spot in spots:
            _, theirs = nearest_layout(spot.theirs, spot.ours)
            if theirs is None or not theirs.dim() or close(spot.ours, theirs):
                continue
            seen = Seen(spot.ours, theirs, self._read(spot), None, Found(heads=self.segment.tap.heads))
            if names := recognised(seen):
                return names[0]
        return "", ""

    def _read(self, spot: Spot) -> dict[str, Tensor]:
        """Return the values that both sides have and that a value is made of, in its layout."""
        region, held = {op.op.number for op in self.segment.region}, {op.op.number: op for op in self.segment.ops}
        found = {}
        for number in sorted(self.segment.behind([spot.made]) - region - {spot.made.op.number}):
            value = self._ours.get(number)
            if value is not None and number in held and value.numel() == spot.ours.numel():
                laid = next(iter(layouts(value, spot.ours.shape)))
                found[f"`{held[number].op.name}` at {self.segment.line(held[number])}"] = laid
        return found


def _finite(values: Mapping[int, Tensor]) -> Mapping[int, Tensor]:
    return {number: value for number, value in values.items() if bool(value.isfinite().all())}

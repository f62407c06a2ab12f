"""Values of the reference set into the native's forward: where that restores a tap, the fault lies before, no earlier.

Every other change asks whether the fault is one that is known. This one asks nothing of it: the ops of both sides that
differ are paired by their exact values, the reference's value is set in the place of the native's, and the forward
goes on. The smallest such set is where the functions part, whatever was done there; how its values are related says
what.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from parity.diagnose.graft_changes import Spot, grafted
from parity.diagnose.graft_pairs import Group, Pairs
from parity.diagnose.graft_words import words_of
from parity.diagnose.layouts import layouts, nearest_layout
from parity.diagnose.segment import Segment
from parity.diagnose.signature import Found, Seen, close, recognised
from parity.execution.changes import Change
from parity.execution.op_values import OpValue

_SURE, _GROUPS, _FEW = 0.3, 16, 8
"""Cosine from which two values surely are one step, sets that are tried at most, ops of a part that are few enough to
say what it computes."""
_VAGUE = frozenset({"low_rank"})
"""Relations that hold of any table."""
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

    @cached_property
    def _pairs(self) -> Pairs:
        return Pairs(self.segment)

    def found(self) -> Graft | None:
        """Return the smallest set of values that restores the tap, None where none does.

        First what the reference alone has is set in; then what both sides have, which the native ought to hand on.
        """
        found = None
        for pool in (self.segment.their_region, self.segment.theirs):
            graft = self._found(self._pairs.outputs(pool))
            if graft is not None and graft.tells:
                return graft
            found = found or graft
        return found

    def _found(self, outputs: Mapping[int, Spot]) -> Graft | None:
        groups = [*self._pairs.of_outputs(outputs), *self._pairs.of_operands(outputs)]
        groups.sort(key=lambda g: (g[0].number, g[0].place is None))
        found = []
        alone = next(((g, after) for g in groups[:_GROUPS] if (after := self._tried([g])) is not None), None)
        if alone is not None:
            found.append(self._upstream(alone[0], alone[1], outputs))
        first = [g for g in groups if any(self._enters(spot) for spot in g)]
        # Where a pair is wrong the whole set fails: without those that are little alike it may not.
        for several in (first, [g for g in first if all(spot.alike >= _SURE for spot in g)]):
            if len(several) < 2 or (alone is not None and alone[0] in first):
                continue
            if (after := self._tried(several)) is not None:
                found.append(self._fewest(several, after))
                break
        return self._told(*min(found, key=lambda one: self._size(one[0]))) if found else None

    def _upstream(self, group: Group, after: float, outputs: Mapping[int, Spot]) -> tuple[list[Group], float]:
        """Move a set of values that restores the tap up, one op at a time, as long as it does."""
        cut, closed = list(group), set()
        for _ in range(_GROUPS):
            open_ = [s for s in cut if (s.number, s.place) not in closed and s.made in self.segment.region]
            if not open_:
                break
            last = max(open_, key=lambda s: s.made.op.number)
            before = self._pairs.before(last, outputs)
            kept = {(s.number, s.place): s for s in cut if s is not last}
            moved = [*kept.values(), *(s for s in before or () if (s.number, s.place) not in kept)]
            if not before or (found := self._tried([moved])) is None:
                closed.add((last.number, last.place))
            else:
                cut, after = moved, found
        lines: dict[object, Group] = {}
        for spot in sorted(cut, key=lambda s: s.number):
            lines.setdefault((spot.native.op.source, spot.native.op.name), []).append(spot)
        return list(lines.values()), after

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

    def _enters(self, spot: Spot) -> bool:
        """Say whether what makes a value reads what both sides have."""
        if spot.made not in self.segment.region:
            return True
        return any(made < 0 or self._pairs.shared.has(value) for value, made in spot.made.inputs)

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
            if names := [one for one in recognised(seen) if one[0] not in _VAGUE]:
                return names[0]
        return "", ""

    def _read(self, spot: Spot) -> dict[str, Tensor]:
        """Return the values that both sides have and that a value is made of, in its layout."""
        region, held = {op.op.number for op in self.segment.region}, {op.op.number: op for op in self.segment.ops}
        found = {}
        for number in sorted(self.segment.behind([spot.made]) - region - {spot.made.op.number}):
            value = self._pairs.ours.get(number)
            if value is not None and number in held and value.numel() == spot.ours.numel():
                laid = next(iter(layouts(value, spot.ours.shape)))
                found[f"`{held[number].op.name}` at {self.segment.line(held[number])}"] = laid
        return found

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
from parity.diagnose.places import ends_of
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
        segment: the segment. near: tells whether a change restores the tap, as near as rounding lets that be seen.
        tries: tells what it restores the tap to.
    """

    segment: Segment
    near: Callable[[Change], bool]
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
        ends = [outputs[n] for n in sorted(ends_of(self.segment.ops)) if n in outputs]
        if ends and (moved := self._verified(self._upstream(ends, outputs))) is not None and moved.tells:
            return moved
        groups = [*self._pairs.of_outputs(outputs), *self._pairs.of_operands(outputs)]
        groups.sort(key=lambda g: (g[0].number, g[0].place is None))
        alone = next((g for g in groups[:_GROUPS] if self.near(grafted(g))), None)
        found = [] if alone is None else [self._verified(self._upstream(alone, outputs))]
        first = [g for g in groups if any(self._enters(spot) for spot in g)]
        # Where a pair is wrong the whole set fails: without those that are little alike it may not.
        for several in (first, [g for g in first if all(spot.alike >= _SURE for spot in g)]):
            if len(several) > 1 and alone not in first and self.near(grafted([s for g in several for s in g])):
                found.append(self._verified([s for g in self._fewest(several) for s in g]))
                break
        return min((one for one in found if one is not None), key=lambda one: self._size(one.ops), default=None)

    def _verified(self, spots: Sequence[Spot]) -> Graft | None:
        """Return the graft of values whose exact forward restores the tap."""
        after = self.tries(grafted(spots))
        return None if after is None else self._told(sorted(spots, key=lambda s: s.number), after)

    def _upstream(self, spots: Sequence[Spot], outputs: Mapping[int, Spot]) -> list[Spot]:
        """Move a set of values that restores the tap up, all of it or one op at a time, as long as it does."""
        cut, closed = list(spots), set()
        for _ in range(2 * _GROUPS):
            open_ = [s for s in cut if _key(s) not in closed and s.made in self.segment.region]
            before = {_key(s): self._pairs.before(s, outputs) for s in open_}
            able = [s for s in open_ if before[_key(s)]]
            closed |= {_key(s) for s in open_ if s not in able}
            if not able:
                break
            last = max(able, key=lambda s: s.made.op.number)
            together = [(able, [one for s in able for one in before[_key(s)][0]])] if len(able) > 1 else []
            for moving, wanted in [*together, *(([last], way) for way in before[_key(last)])]:
                kept = {_key(s): s for s in cut if s not in moving}
                moved = {**kept, **{_key(one): one for one in wanted}}
                if self.near(grafted(list(moved.values()))):
                    cut = list(moved.values())
                    break
            else:
                closed.add(_key(last))
        return cut

    def _size(self, ops: Sequence[OpValue]) -> int:
        """Return how many of the native's ops that differ lie behind some."""
        return len({op.op.number for op in self.segment.region} & self.segment.behind(ops))

    def _fewest(self, groups: list[Group]) -> list[Group]:
        """Leave out what is not needed, the last ones first."""
        kept = list(groups)
        for group in reversed(groups):
            fewer = [g for g in kept if g is not group]
            if fewer and self.near(grafted([s for g in fewer for s in g])):
                kept = fewer
        return kept

    def _enters(self, spot: Spot) -> bool:
        """Say whether what makes a value reads what both sides have."""
        if spot.made not in self.segment.region:
            return True
        return any(made < 0 or self._pairs.shared.has(value) for value, made in spot.made.inputs)

    # --- what it tells ------------------------------------------------------------------------------------------------

    def _told(self, spots: Sequence[Spot], after: float) -> Graft:
        bug, relation = self._relation(spots)
        kind = self._kind(spots)
        lines = len({(spot.native.op.source, spot.native.op.name) for spot in spots})
        words = words_of(self.segment, spots, lines, relation, kind)
        behind = self._size([spot.made for spot in spots])
        few = behind <= _FEW and behind < max(2, len(self.segment.region))
        ops = tuple(dict.fromkeys(op for spot in spots for op in (spot.made, spot.native)))
        return Graft(grafted(spots, words), after, ops, bug or kind, bool(relation or kind) or few)

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


def _key(spot: Spot) -> tuple[int, int | None]:
    return spot.number, spot.place

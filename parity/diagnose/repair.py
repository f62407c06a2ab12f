"""Counterfactual repair: changes tried on the native at a faulty tap, until one makes it the reference's function.

Only forwards are run, as far as the tap; the model is never written to, so it is left as it was whatever happens.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from parity.diagnose.adapter_repairs import adapted
from parity.diagnose.counterfactual import Counterfactual
from parity.diagnose.faulty import Faulty
from parity.diagnose.grafts import Graft, Grafter
from parity.diagnose.inserts import factors, inserted, instead, masked, never_run, turned
from parity.diagnose.left_out import left_out
from parity.diagnose.operand_repairs import other_operands
from parity.diagnose.part_repairs import changes_of_parts, factor_changes, found_factor
from parity.diagnose.repaired import Repair
from parity.diagnose.repairs import changes_of_ops
from parity.diagnose.segment import Segment
from parity.diagnose.side_ops import SideOps
from parity.diagnose.tap_repairs import other_taps
from parity.diagnose.weight_repairs import exchanged_modules, other_forms, parameter_changes
from parity.execution.changes import Change
from parity.execution.passes import Restart
from parity.execution.tap import Tap
from parity.live import LiveNative

SECONDS = 3.0
"""How long the taps of a draw together may take to be repaired."""
Tried = tuple[str, frozenset[int]]
"""A change that was tried: its words and ops."""
_SHORT, _HELPS, _CONFIRMED, _DROWNED, _LEAST = 1.5, 0.5, 6, 8.0, 12


@dataclass
class RepairShop:
    """Tries changes on the native in one draw.

    Args:
        draw: the draw. live: the native. native, reference: the two sides' ops. restart: makes the restart of a pass.
        limit: of logic_error. wrong: native parameters that are not the reference's, tried first.
        seconds: of this process's time that all taps together may take, so that what is found does not depend on what
            else runs; `_LEAST` changes of a tap are tried in any case.
        spent: how long they took. known: the kinds of bugs found by now.
    """

    draw: Faulty
    live: LiveNative
    native: SideOps
    reference: SideOps
    restart: Callable[[], Restart]
    limit: float
    wrong: frozenset[str] = frozenset()
    seconds: float = field(default_factory=lambda: SECONDS)
    spent: float = 0.0
    known: set[str] = field(default_factory=set)
    _seen: defaultdict[str, set[Tried]] = field(default_factory=lambda: defaultdict(set))

    @cached_property
    def _runs(self) -> Counterfactual:
        return Counterfactual(self.draw, self.live, self.restart)

    def repairs(self, taps: Iterable[Tap]) -> dict[str, Repair]:
        """Return what restores taps, by name; those that nothing restores are left out."""
        tried = {tap.name: self.repair(tap) for tap in taps}
        return {name: found for name, found in tried.items() if found is not None}

    def repair(self, tap: Tap) -> Repair | None:
        """Return the first change that restores a tap, None where none does."""
        started = time.process_time()
        try:
            found = self._repaired(tap, started - self.spent)
            self.known |= {found.bug} if found is not None else set()
            return found
        finally:
            self.spent += time.process_time() - started

    def _repaired(self, tap: Tap, started: float) -> Repair | None:
        segment = Segment(tap, self.native, self.reference, self.live.side.model, self.draw.of.inputs)
        wrong = parameter_changes([n for n in segment.read if n in self.wrong], segment.held, tap.heads)
        if (found := self._searched(tap, segment, wrong, started)) is not None:
            return found
        graft = self._graft(tap, segment, started)
        focus = None if graft is None else segment.behind(graft.ops)
        told = graft is not None and graft.tells
        # What a set of values tells needs no long search for what else would restore the tap.
        since = time.process_time() - (self.seconds - _SHORT) if told else started
        found = self._searched(tap, segment, self._changes(tap, segment, focus), since)
        if found is None and graft is not None and told:
            return Repair(graft.change.words, self.draw.before[tap.name], graft.after, graft.bug)
        if found is None and graft is not None:
            found = self._searched(tap, segment, self._changes(tap, segment, None), started)
        return found

    def _graft(self, tap: Tap, segment: Segment, started: float) -> Graft | None:
        tried = itertools.count()

        def near(change: Change) -> bool:
            late = time.process_time() - started > self.seconds
            return not (next(tried) >= _LEAST and late) and self._is_near(tap, change)

        return Grafter(segment, near, lambda change: self._restored(tap, change)).found()

    def _searched(self, tap: Tap, segment: Segment, changes: Iterable[Change], started: float) -> Repair | None:
        """Try changes of every call of the segment, none that was tried at the tap before, as long as there is time."""
        before, noise = self.draw.before[tap.name], self.draw.noise[tap.name]
        tried: list[tuple[float, int, Change]] = []
        drowned, helps = before < _DROWNED * noise, _HELPS * self._runs.low_error(tap)
        seen = self._seen[tap.name]
        fresh = (change for change in map(segment.in_all_calls, changes) if _key(change) not in seen)
        for number, change in enumerate(fresh):
            if number >= _LEAST and time.process_time() - started > self.seconds:
                break
            seen.add(_key(change))
            error = self._runs.error(tap, change, exact=drowned)
            if not drowned and error < _DROWNED * noise:  # as near as rounding lets it come: ask for the exact value
                error = self._runs.error(tap, change, exact=True)
            elif not drowned:
                if error < helps:
                    tried.append((error, number, change))
                continue
            if error <= self.limit:
                return Repair(change.said(), before, error, _bug_of(change))
        for _, _, change in sorted(tried, key=lambda t: t[:2])[:_CONFIRMED]:
            if (after := self._runs.error(tap, change, exact=True)) <= self.limit:
                return Repair(change.said(), before, after, _bug_of(change))
        return None

    def _is_near(self, tap: Tap, change: Change) -> bool:
        """Say whether a change restores a tap, as near as what is computed tells; where rounding hides it, exactly."""
        noise = self.draw.noise[tap.name]
        if self.draw.before[tap.name] < _DROWNED * noise:
            return self._restored(tap, change) is not None
        return self._runs.error(tap, change, exact=False) < max(_DROWNED * noise, self.limit)

    def _restored(self, tap: Tap, change: Change) -> float | None:
        """Return logic_error with a change that restores a tap, None with one that does not."""
        if self._runs.error(tap, change, exact=False) == math.inf:  # it cannot run, or operands are not known yet
            return None
        exact = self._runs.error(tap, change, exact=True)
        return exact if exact <= self.limit else None

    def _changes(self, tap: Tap, segment: Segment, focus: frozenset[int] | None) -> Iterable[Change]:
        """List what could be wrong; with a focus, at the ops in it alone."""
        inside = {op.op.number for op in segment.ops} - (focus or set())
        read = list(dict.fromkeys(w for op in segment.ops if op.op.number not in inside for w in op.weights))
        right = [n for n in (segment.read if focus is None else read) if n not in self.wrong]
        for change in self._all_changes(tap, segment, right):
            if focus is None or not change.ops or not inside.issuperset(change.ops):
                yield change

    def _all_changes(self, tap: Tap, segment: Segment, right: Sequence[str]) -> Iterable[Change]:
        if self.known:  # the same bug in another segment, mostly
            yield from (change for change in self._of_ops(tap, segment) if change.bug in self.known)
        yield from self._of_ops(tap, segment)
        yield from changes_of_ops(segment, generic=True)
        # Weights that are what the key map says: the key map may be wrong.
        yield from other_forms(right, segment.held, tap.heads)

    def _of_ops(self, tap: Tap, segment: Segment) -> Iterable[Change]:
        """List the changes of the code that few ops allow."""
        yield from self._adapters(tap, segment)
        # What a change rests on comes first: a norm that never runs, an op that few changes suit.
        yield from left_out(segment)
        yield from never_run(segment)
        yield from instead(segment)
        yield from factors(segment)
        yield from changes_of_ops(segment, generic=False)
        yield from masked(segment)
        yield from turned(segment)
        yield from changes_of_parts(segment)
        # The key map may be wrong; values of two modules that are exchanged are values both sides have.
        yield from exchanged_modules([n for n in segment.read if n not in self.wrong], segment.held)
        yield from other_operands(segment)
        yield from other_taps(segment, self.live.taps, self.draw.reference, self.draw.native)
        yield from self._gates(segment)
        yield from inserted(segment)

    def _adapters(self, tap: Tap, segment: Segment) -> Iterable[Change]:
        """List what could be wrong with a LoRA that is on."""
        if not self.draw.of.lora:
            return
        last = segment.region[-1] if segment.region else None
        if last is not None and last is segment.ops[-1] and last.op.base == "add":
            whole = self._wanted(tap)
            if whole is not None:
                yield found_factor(last, whole, segment.line(last), "lora_scale")
        yield from adapted(segment, self.draw.adapter)

    def _gates(self, segment: Segment) -> Iterable[Change]:
        region, last = segment.region, max((op.op.number for op in segment.ops), default=0)
        groups = [g for g in self.native.slices if len(g) > 1 and min(g) <= last][-3:]
        yield from factor_changes([op for op in region if op.op.base == "add"], groups)
        if not self.draw.of.lora and region and segment.ops[-1] is region[-1] and region[-1].op.base == "add":
            whole = self._wanted(segment.tap)
            if whole is not None:
                yield found_factor(region[-1], whole, segment.line(region[-1]), "number")

    def _wanted(self, tap: Tap) -> Tensor | None:
        """Return the reference's exact value in the native's layout, None where it cannot be had."""
        high, value = self.draw.reference.values[tap.name].high, self.draw.native.values[tap.name]
        if high is None or tap.layout.backward is None or len(value.parts) > 1:
            return None
        return tap.layout.backward(high, value.low.shape)


def _key(change: Change) -> Tried:
    return change.words, frozenset(change.ops)


def _bug_of(change: Change) -> str:
    """Name what a change undoes; a factor that is found to be -1 is a sign."""
    return "operand_sign" if change.bug == "number" and change.found == [-1.0] else change.bug

"""Counterfactual repair: changes tried on the native at a faulty tap, until one makes it the reference's function.

Only forwards are run, as far as the tap; the model is never written to, so it is left as it was whatever happens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from parity.diagnose.forwards import Enough
from parity.diagnose.places import unmatched
from parity.diagnose.repairs import (
    bias_changes,
    factor_changes,
    found_factor,
    line_changes,
    op_changes,
    slice_changes,
    split_changes,
)
from parity.diagnose.side_ops import SideOps
from parity.diagnose.weight_repairs import parameter_changes
from parity.draws import aligned
from parity.errors import ModelFailed, TapError
from parity.execution.changes import Change, ChangedForward
from parity.execution.decisions import Decisions
from parity.execution.op_values import OpValue, values_of
from parity.execution.passes import Restart, mask_of
from parity.execution.shadow import Shadow
from parity.execution.tap import Inputs, Tap
from parity.execution.trace import TapValue, Trace, joined
from parity.live import LiveNative
from parity.stage import DrawOf

SECONDS = 3.0
"""How long the taps of a draw together may take to be repaired."""
_HELPS, _CONFIRMED, _DROWNED, _LEAST = 0.5, 6, 8.0, 12


@dataclass(frozen=True)
class Repair:
    """A change of the native that restores the reference's function.

    Args:
        words: what is changed. before, after: logic_error without and with it.
    """

    words: str
    before: float
    after: float

    def sentence(self) -> str:
        """Say it with the number it restores to."""
        return f"with {self.words} logic_error is {self.after:.0e} ({self.before:.0e} without)"

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for a record."""
        return {"words": self.words, "logic_error_before": self.before, "logic_error_after": self.after}


@dataclass(frozen=True)
class Faulty:
    """A draw whose taps are to be repaired: what a recording has of it is enough.

    Args:
        of: the draw. reference, native: its lockstep passes.
        before: logic_error by tap. noise: size of the reference's own rounding by tap.
    """

    of: DrawOf
    reference: Trace
    native: Trace
    before: Mapping[str, float]
    noise: Mapping[str, float]


@dataclass
class RepairShop:
    """Tries changes on the native in one draw.

    Args:
        draw: the draw. live: the native. native, reference: the two sides' ops. restart: makes the restart of a pass.
        limit: of logic_error. wrong: native parameters that are not the reference's, tried first.
        seconds: how long all taps together may take; `_LEAST` changes of a tap are tried in any case.
        spent: how long they took.
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

    def repairs(self, taps: Iterable[Tap]) -> dict[str, Repair]:
        """Return what restores taps, by name; those that nothing restores are left out."""
        tried = {tap.name: self.repair(tap) for tap in taps}
        return {name: found for name, found in tried.items() if found is not None}

    def repair(self, tap: Tap) -> Repair | None:
        """Return the first change that restores a tap, None where none does."""
        started = time.perf_counter()
        try:
            return self._repaired(tap, started - self.spent)
        finally:
            self.spent += time.perf_counter() - started

    def _repaired(self, tap: Tap, started: float) -> Repair | None:
        before, noise = self.draw.before[tap.name], self.draw.noise[tap.name]
        tried: list[tuple[float, int, Change]] = []
        drowned, helps = before < _DROWNED * noise, _HELPS * self._low_error(tap)
        for number, change in enumerate(self._changes(tap)):
            if number >= _LEAST and time.perf_counter() - started > self.seconds:
                break
            error = self._error(tap, change, exact=drowned)
            if not drowned and error < _DROWNED * noise:  # as near as rounding lets it come: ask for the exact value
                error = self._error(tap, change, exact=True)
            elif not drowned:
                if error < helps:
                    tried.append((error, number, change))
                continue
            if error <= self.limit:
                return Repair(change.said(), before, error)
        for _, _, change in sorted(tried, key=lambda t: t[:2])[:_CONFIRMED]:
            if (after := self._error(tap, change, exact=True)) <= self.limit:
                return Repair(change.said(), before, after)
        return None

    def _changes(self, tap: Tap) -> Iterable[Change]:
        ops = self.native.of(tap.name)
        region = list(unmatched(ops, values_of(self.reference.of(tap.name))).values())
        region.sort(key=lambda op: op.op.number)
        names = list(dict.fromkeys(w for op in ops for w in op.weights))
        wrong = [n for n in names if n in self.wrong]
        held = dict(self.live.side.model.named_parameters())
        yield from parameter_changes(wrong, held, tap.heads)
        for alike in _by_line(region):
            line = str(self.native.step(alike[0])).split(" at ", 1)[1]
            yield from line_changes(alike, line)
            for op in alike:
                yield from op_changes(op, line) if len(alike) > 1 else ()
                yield from bias_changes(op, held, line)
        last = max((op.op.number for op in ops), default=0)
        yield from split_changes(dict([(n, s) for n, s in self.native.splits.items() if n <= last][-4:]))
        yield from slice_changes([g for g in self.native.slices if len(g) > 1 and max(g) <= last][-4:])
        if (
            region
            and ops[-1] is region[-1]
            and region[-1].op.name == "add"
            and (whole := self._wanted(tap)) is not None
        ):
            yield found_factor(region[-1], whole, str(self.native.step(region[-1])).split(" at ", 1)[1])
        groups = [g for g in self.native.slices if len(g) > 1 and min(g) <= last][-3:]
        yield from factor_changes([op for op in region if op.op.name == "add"], groups)
        # Weights that are what the key map says: the key map may be wrong.
        yield from parameter_changes([n for n in names if n not in wrong], held, tap.heads)

    def _wanted(self, tap: Tap) -> Tensor | None:
        """Return the reference's exact value in the native's layout, None where it cannot be had."""
        high, value = self.draw.reference.values[tap.name].high, self.draw.native.values[tap.name]
        if high is None or tap.layout.backward is None or len(value.parts) > 1:
            return None
        return tap.layout.backward(high, value.low.shape)

    def _low_error(self, tap: Tap) -> float:
        return self._distance(tap, self.draw.native.values[tap.name].low, self.draw.reference.values[tap.name].low)

    def _error(self, tap: Tap, change: Change, exact: bool) -> float:
        """Return the relative distance from the reference with a change, exact or as computed; inf if it cannot run."""
        try:
            value = self._run(tap, change, exact)
        except (ModelFailed, TapError):
            return math.inf
        r = self.draw.reference.values[tap.name]
        theirs = r.high if exact else r.low
        mine = value.high if exact else value.low
        assert theirs is not None
        return math.inf if mine is None else self._distance(tap, mine, theirs)

    def _distance(self, tap: Tap, native: Tensor, reference: Tensor) -> float:
        wide = torch.complex128 if reference.is_complex() else torch.float64
        r = reference.to(wide)
        difference = aligned(tap, native, reference.shape).to(wide) - r
        if tap.valid is not None:
            keep = mask_of(tap, self.draw.of.inputs, reference)
            r, difference = torch.where(keep, r, 0), torch.where(keep, difference, 0)
        size = float(r.norm())
        found = float(difference.norm()) / size if size else math.inf
        return found if found == found else math.inf

    def _run(self, tap: Tap, change: Change, exact: bool) -> TapValue:
        runner, draw = self.live.runner(), self.draw.of
        shadow = None
        if exact:
            replay = Decisions(replayed=self.draw.reference.decisions)
            shadow = self.live.side.shadow(Shadow, draw.inputs, dtype=draw.options.shadow_dtype, decisions=replay)
            shadow.declare([new for _, new in change.parameters])
        inner = runner.call

        def call(model: nn.Module, inputs: Inputs) -> Any:
            with ChangedForward(change):
                return inner(model, inputs)

        until = _Until(tap.name, max(1, len(self.draw.native.values[tap.name].parts)))
        with suppress(Enough):
            replace(runner, call=call).run(draw.inputs, self.restart(), shadow, sink=until)
        return joined(until.lows, until.highs or None)


def _by_line(ops: Sequence[OpValue]) -> list[list[OpValue]]:
    """Group ops of one name on one line."""
    groups: dict[object, list[OpValue]] = {}
    for op in ops:
        groups.setdefault((op.op.source, op.op.name), []).append(op)
    return list(groups.values())


@dataclass
class _Until:
    """A sink that keeps one tap, and ends the forward there."""

    name: str
    calls: int
    lows: list[Tensor] = field(default_factory=list)
    highs: list[Tensor] = field(default_factory=list)

    def put(self, name: str, low: Tensor, high: Tensor | None) -> None:
        """Keep what one call showed at the tap."""
        if name != self.name:
            return
        self.lows.append(low)
        if high is not None:
            self.highs.append(high)
        if len(self.lows) >= self.calls:
            raise Enough

    def values(self) -> dict[str, TapValue]:
        """Return nothing: the forward never ends here."""
        return {}

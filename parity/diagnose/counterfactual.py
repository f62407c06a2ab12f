"""The native's forward under a change, as far as one tap: how near it comes to the reference there."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from parity.diagnose.faulty import Faulty
from parity.diagnose.forwards import Enough
from parity.draws import aligned
from parity.errors import ModelFailed, TapError
from parity.execution.changes import Change, ChangedForward
from parity.execution.decisions import Decisions
from parity.execution.passes import Restart, mask_of
from parity.execution.shadow import Shadow
from parity.execution.tap import Inputs, Tap
from parity.execution.trace import TapValue, joined
from parity.live import LiveNative


@dataclass
class Counterfactual:
    """Runs a native under changes, in one draw; nothing is written to it.

    Args:
        draw: the draw. live: the native. restart: makes the restart of a pass.
    """

    draw: Faulty
    live: LiveNative
    restart: Callable[[], Restart]

    def low_error(self, tap: Tap) -> float:
        """Return the relative distance of what was computed."""
        return self._distance(tap, self.draw.native.values[tap.name].low, self.draw.reference.values[tap.name].low)

    def error(self, tap: Tap, change: Change, exact: bool) -> float:
        """Return the relative distance from the reference with a change, exact or as computed; inf if it cannot run."""
        r = self.draw.reference.values[tap.name]
        theirs = r.high if exact else r.low
        assert theirs is not None
        try:
            value = self._run(tap, change, exact)
            mine = value.high if exact else value.low
            return math.inf if mine is None else self._distance(tap, mine, theirs)
        except (ModelFailed, TapError):
            return math.inf

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
            shadow.declare(
                [*(new for _, new in change.parameters), *change.roots, *(low for low, _ in change.finer)],
                {id(low): high for low, high in change.finer},
            )
        inner = runner.call

        def call(model: nn.Module, inputs: Inputs) -> Any:
            with ChangedForward(change):
                return inner(model, inputs)

        until = _Until(tap.name, max(1, len(self.draw.native.values[tap.name].parts)))
        with suppress(Enough):
            replace(runner, call=call).run(draw.inputs, self.restart(), shadow, sink=until)
        return joined(until.lows, until.highs or None)


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

"""Sides whose models are in memory: their passes, computed when asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from parity.execution.decisions import Decisions
from parity.execution.passes import OUTPUT, FromReference, Restart, Runner
from parity.execution.shadow import Shadow
from parity.execution.tap import Tap
from parity.execution.trace import Differing, Sink, Trace
from parity.execution.twins import LatticeTwin
from parity.impact import Impact
from parity.loaded import LoadedSide, compiled_parts
from parity.numerics.metrics import classic_metrics
from parity.pair import Side
from parity.stage import Compiled, DrawOf, Dtypes, LockstepPasses, NativePasses, Nudge, T

Sinks = Callable[[str], "Sink | None"]
"""From the name of a pass to where its values go; None: memory."""


def _memory(name: str) -> Sink | None:
    return None


class LiveSide:
    """What is the same for both sides.

    Args:
        side: the loaded model.
        taps: the pair's taps.
        sinks: where the values of a pass go.
    """

    def __init__(self, side: LoadedSide, taps: tuple[Tap, ...], sinks: Sinks = _memory) -> None:
        self.side, self.taps, self.sinks = side, taps, sinks
        self._learned = False

    @contextmanager
    def running(self, side: Side, taps: tuple[Tap, ...]) -> Iterator[None]:
        """Call the model another way, with other taps, while the context is open."""
        kept = self.side.side, self.taps
        self.side.side, self.taps = side, taps
        try:
            yield
        finally:
            self.side.side, self.taps = kept

    @property
    def has_tables(self) -> bool:
        """Whether exact values of tables are known."""
        return any(table.entries for table in self.side.memory)

    def learn_constants(self, draw: DrawOf) -> None:
        """Learn the exact values of tables cached in the first call; once."""
        if not self._learned:
            self._learned = True
            self.side.learn_constants(draw.inputs, self.taps)

    def runner(self, taps: tuple[Tap, ...] | None = None) -> Runner:
        """Return what calls the model, with all taps attached or some."""
        return self.side.runner(self.taps if taps is None else taps)

    def baseline(self, draw: DrawOf) -> Trace:
        """Return the free-running pass without the LoRA."""
        return self.runner().run(draw.inputs, sink=self.sinks("baseline"))

    def free(self, draw: DrawOf) -> Trace:
        """Return the free-running pass, without shadows."""
        return self.runner().run(draw.inputs, sink=self.sinks("free"))

    def compiled(self, draw: DrawOf) -> Compiled | None:
        """Compare the output of compiled parts with eager's; None where nothing is compiled."""
        runner = self.runner(tuple(t for t in self.taps if t.name == OUTPUT))
        with compiled_parts(self.side):
            if not runner.is_compiled:
                return None
            compiled = runner.run(draw.inputs, compiled=True).values[OUTPUT].low
        shadow = self.side.shadow(Shadow, draw.inputs, dtype=draw.options.shadow_dtype)
        eager = runner.run(draw.inputs, shadow=shadow).values[OUTPUT]
        assert eager.high is not None
        errors = [float((low.double() - eager.high.double()).norm()) for low in (compiled, eager.low)]
        excess = errors[0] / errors[1] if errors[1] else (1.0 if not errors[0] else math.inf)
        return Compiled(classic_metrics(eager.low, compiled), excess)

    def shadowed(self, draw: DrawOf, restart: Restart, sink: Sink | None, **how: Any) -> Trace:
        """Return a shadowed pass in lockstep."""
        shadow = self.side.shadow(Shadow, draw.inputs, dtype=draw.options.shadow_dtype, **how)
        return self.runner().run(draw.inputs, restart, shadow, sink=sink)

    def observed(self, draw: DrawOf, restart: Restart, shadowed: Trace) -> list[str]:
        """Say at which tap a shadow changed what the model computes: the two contracts' first."""
        plain = Differing(shadowed)
        self.runner().run(draw.inputs, restart, sink=plain)
        return [] if plain.first is None else [f"{self.side.label} at {plain.first}"]


class LiveReference(LiveSide):
    """The reference's part of every draw, computed by its model.

    Args:
        side, taps, sinks: as for `LiveSide`.
        shared: a dict that keeps passes for several sessions of one reference.
    """

    def __init__(
        self, side: LoadedSide, taps: tuple[Tap, ...], sinks: Sinks = _memory, shared: dict[Any, Any] | None = None
    ) -> None:
        super().__init__(side, taps, sinks)
        self.shared = shared

    def _once(self, draw: DrawOf, what: Any, compute: Callable[[], Any]) -> Any:
        if self.shared is None or draw.given:
            return compute()
        if (draw, what) not in self.shared:
            self.shared[draw, what] = compute()
        return self.shared[draw, what]

    def free(self, draw: DrawOf) -> Trace:
        """Return the free-running pass, without shadows."""
        found: Trace = self._once(draw, "free", lambda: super(LiveReference, self).free(draw))
        return found

    def lockstep(self, draw: DrawOf, native: Dtypes) -> LockstepPasses:
        """Return the shadowed passes in lockstep with a native of these dtypes."""
        key = tuple(sorted((name, str(dtype)) for name, dtype in native.items()))
        found: LockstepPasses = self._once(draw, key, lambda: self._lockstep(draw, native))
        return found

    def _lockstep(self, draw: DrawOf, native: Dtypes) -> LockstepPasses:
        trace = self.trace(draw, native)
        observer = self.observed(draw, FromReference(native, draw.inputs), trace)
        twins = [self.twin(draw, native, trace, k) for k in range(draw.options.twins)]
        return LockstepPasses(trace, twins, observer)

    def trace(self, draw: DrawOf, native: Dtypes) -> Trace:
        """Return the shadowed pass in lockstep with a native of these dtypes."""
        return self.shadowed(draw, FromReference(native, draw.inputs), self.sinks("lockstep"))

    def twin(self, draw: DrawOf, native: Dtypes, trace: Trace, k: int) -> Trace:
        """Return the lattice twin of this number, which takes the decisions of the trace."""
        generator = torch.Generator().manual_seed(0x7717 + 1000003 * draw.seed + k)
        scale = 2.0 ** (0.01 + 0.98 * float(torch.rand((), generator=generator, dtype=torch.float64)))
        replay = Decisions(replayed=trace.decisions)
        twin = self.side.shadow(LatticeTwin, draw.inputs, scale=scale, decisions=replay)
        return self.runner().run(draw.inputs, FromReference(native, draw.inputs), twin, sink=self.sinks(f"twin{k}"))

    def as_stored(self, draw: DrawOf, native: Dtypes) -> Trace:
        """Return the shadowed lockstep pass in which remembered tables have their stored values."""
        return self.shadowed(draw, FromReference(native, draw.inputs), self.sinks("as_stored"), as_stored=True)

    def impacts(self, draw: DrawOf, requests: Sequence[Sequence[Nudge]]) -> list[float]:
        """Return for each set of nudges what it does to the output, over the output's own noise."""
        impact: Impact = self._once(draw, "impact", lambda: Impact(self.side, self.taps, draw.inputs))
        return [impact.of(nudges) for nudges in requests]


    def at_work(self, draw: DrawOf, work: Callable[[Any], T]) -> T | None:
        """Do some work on the model, in the draw's state already."""
        return work(self)


class LiveNative(LiveSide):
    """The native's part of every draw, computed by its model."""

    def lockstep(self, draw: DrawOf, restart: Callable[[], Restart], decisions: Decisions) -> NativePasses:
        """Return the shadowed pass that goes on from the reference's values and decisions.

        Args:
            draw: the draw.
            restart: makes the restart of one pass.
            decisions: the reference's, replayed.
        """
        trace = self.trace(draw, restart, decisions)
        return NativePasses(trace, self.observe(draw, restart, trace))

    def trace(self, draw: DrawOf, restart: Callable[[], Restart], decisions: Decisions) -> Trace:
        """Return the shadowed pass alone."""
        replay = Decisions(replayed=decisions)
        return self.shadowed(draw, restart(), self.sinks("lockstep"), decisions=replay)

    def observe(self, draw: DrawOf, restart: Callable[[], Restart], trace: Trace) -> list[str]:
        """Say where a shadow changed what the native computes; replayed decisions do, as they should."""
        return [] if trace.decisions.flips else self.observed(draw, restart(), trace)

    def as_stored(self, draw: DrawOf, restart: Callable[[], Restart], decisions: Decisions) -> Trace:
        """Return the pass in which remembered tables have their stored values."""
        replay = Decisions(replayed=decisions)
        return self.shadowed(draw, restart(), self.sinks("as_stored"), as_stored=True, decisions=replay)

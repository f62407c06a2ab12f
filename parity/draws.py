"""One input through every pass of both sides, and the evidence at every tap."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from parity.errors import TapError
from parity.execution.passes import OUTPUT, FromTrace, mask_of
from parity.execution.storage import bits
from parity.execution.tap import Inputs, Tap
from parity.execution.trace import OnDemand, TapValue, Trace
from parity.numerics.evidence import Evidence, Measured, measure, rows_of
from parity.numerics.limits import limits_for
from parity.stage import DrawOf, JudgedSession


class Draw:
    """One input through every pass.

    Args:
        session: both sides, the LoRA state already on.
        draw: the input, and how it is run.
    """

    def __init__(self, session: JudgedSession, draw: DrawOf) -> None:
        self.session, self.of, self.options = session, draw, draw.options
        self.inputs: Inputs = draw.inputs
        self.seconds: dict[str, float] = {}
        self.observer: list[str] = []
        self._run()
        self.evidence = self._measure()
        self._as_stored()

    def _timed(self, what: str, started: float) -> None:
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - started

    def _run(self) -> None:
        reference, native, draw = self.session.reference_stage, self.session.native_stage, self.of
        started = time.perf_counter()
        reference.learn_constants(draw)
        native.learn_constants(draw)
        self.free_reference: Trace = reference.free(draw)
        self.free_native = native.free(draw)
        compiled = {"reference": reference.compiled(draw), "native": native.compiled(draw)}
        self.compiled = {side: found for side, found in compiled.items() if found is not None}
        self._timed("plain", started)
        self._dtypes = dtypes_of(self.free_native)
        started = time.perf_counter()
        passes = reference.lockstep(draw, self._dtypes)
        self.reference, self.twins = passes.trace, passes.twins
        self.observer += passes.observer
        self._timed("reference", started)
        started = time.perf_counter()
        found = native.lockstep(draw, self._restart, self.reference.decisions)
        self.native = found.trace
        self.observer += found.observer
        self._timed("native", started)

    def _restart(self) -> FromTrace:
        return restart_of(self.session.taps, self.reference, self.free_native, self.inputs)

    # --- evidence -----------------------------------------------------------------------------------------------------

    def _measure(self) -> dict[str, Evidence]:
        return {t.name: self.measure(t) for t in self.session.taps if t.reference and t.native}

    def measure(self, tap: Tap) -> Evidence:
        """Measure one tap of this draw."""
        return measure(self.measured(tap))

    def measured(self, tap: Tap, bare: bool = False) -> Measured:
        """Return the two sides' values at one tap, in the reference's layout; bare: without twins and upstream taps."""
        r, n = self.reference.values[tap.name], self.native.values[tap.name]
        assert r.high is not None
        assert n.high is not None
        twins = [t.values[tap.name].high for t in self.twins if not bare]
        return Measured(
            reference=r.low,
            native=aligned(tap, n.low, r.low.shape),
            reference_high=r.high,
            native_high=aligned(tap, n.high, r.low.shape),
            twins=[z for z in twins if z is not None],
            valid=None if tap.valid is None else mask_of(tap, self.inputs, r.low),
            channel_dim=tap.channel_dim,
            heads=tap.heads,
            upstream={} if bare else self._upstream(tap, r),
        )

    def _upstream(self, tap: Tap, value: TapValue) -> dict[str, Tensor]:
        """Return the branch outputs before a block's own output: a gate multiplies them into the residual."""
        names = tap.slopes
        if not names and tap.block and not tap.layer:
            names = tuple(t.name for t in self.session.taps if t.block == tap.block and t.layer and _is_branch(t))
        found = {}
        for name in names:
            other = self.reference.values.get(name)
            if other is not None and other.low.shape == value.low.shape:
                found[name.rsplit(".", 1)[-1]] = rows_of(other.low, tap.channel_dim)
        return found

    def _as_stored(self) -> None:
        """Where only one side's tables could be followed to their exact values, compare both as stored.

        A difference that is gone then is one of float32 constants against exact ones, not of the functions.
        """
        limit = limits_for(self.options.shadow_dtype).logic_error
        apart = [t for t in self.session.taps if t.name in self.evidence and self.evidence[t.name].logic_error > limit]
        stages = self.session.reference_stage, self.session.native_stage
        if not apart or not any(stage.has_tables for stage in stages):
            return
        kept = self.reference, self.native
        self.reference = stages[0].as_stored(self.of, self._dtypes)
        self.native = stages[1].as_stored(self.of, self._restart, self.reference.decisions)
        for tap in apart:
            stored = self.measure(tap)
            if stored.logic_error <= limit:
                exact = self.evidence[tap.name]
                self.evidence[tap.name] = replace(stored, excesses=exact.excesses, stored_constants=exact.logic_error)
        self.reference, self.native = kept

    def delta(self, tap: Tap) -> Tensor:
        """Return what the native makes of a tap minus what the reference makes of it, in the reference's layout."""
        r = self.reference.values[tap.name]
        n = aligned(tap, self.native.values[tap.name].low, r.low.shape)
        delta = n.to(torch.float32) - r.low.to(torch.float32)
        return delta if tap.valid is None else torch.where(mask_of(tap, self.inputs, r.low), delta, 0.0)

    def drift(self) -> dict[str, float]:
        """Return the relative L2 distance of the two free-running passes at each tap, padding left out."""
        out = {}
        for tap in (t for t in self.session.taps if t.reference and t.native):
            r = self.free_reference.values[tap.name].low
            n = aligned(tap, self.free_native.values[tap.name].low, r.shape)
            keep = torch.ones((), dtype=torch.bool) if tap.valid is None else mask_of(tap, self.inputs, r)
            base = float(torch.where(keep, r, 0).abs().double().norm())
            out[tap.name] = float(torch.where(keep, n - r, 0).abs().double().norm()) / base if base else 0.0
        return out


def _is_branch(tap: Tap) -> bool:
    return tap.native is not None and tap.native.at == "output" and tap.replace


def restart_of(taps: Sequence[Tap], reference: Trace, native: Trace, inputs: Inputs) -> FromTrace:
    """Return what a native in lockstep goes on with.

    Args:
        taps: the pair's taps.
        reference: the reference's lockstep pass.
        native: the native's free-running pass.
        inputs: of both.
    """

    def value_at(tap: Tap) -> Tensor:
        value, other = reference.values[tap.name].low, native.values[tap.name].dtype
        if value.is_floating_point() and other.is_floating_point and bits(other) < bits(value.dtype):
            return value.to(other).to(value.dtype)
        return value

    shared = [t for t in taps if t.reference and t.native and t.restarts]
    shapes = {name: (v.low.shape, v.parts) for name, v in native.values.items()}
    return FromTrace(OnDemand({t.name: partial(value_at, t) for t in shared}), shapes, inputs)


def dtypes_of(native: Trace) -> dict[str, torch.dtype]:
    """Return the float dtypes a native has at its taps."""
    return {n: v.dtype for n, v in native.values.items() if v.dtype.is_floating_point}


def aligned(tap: Tap, native: Tensor, shape: torch.Size) -> Tensor:
    """Bring a native value to the reference's layout.

    Raises:
        TapError: the layout does not give the reference's shape.
    """
    if tap.name == OUTPUT:  # the side's own `output` gives the reference's layout
        if native.shape != shape:
            raise TapError(f"final_output: the reference gives {tuple(shape)}, the native {tuple(native.shape)}")
        return native
    try:
        value = tap.layout.forward(native, shape)
    except RuntimeError as error:
        raise TapError(
            f"tap {tap.name}: layout {tap.layout.name!r} cannot take the native's {tuple(native.shape)} "
            f"to the reference's {tuple(shape)}: {str(error).splitlines()[0]}"
        ) from error
    if value.shape != shape:
        raise TapError(
            f"tap {tap.name}: shapes cannot be aligned: reference {tuple(shape)}, native {tuple(native.shape)}"
            f" gives {tuple(value.shape)} by layout {tap.layout.name!r}"
        )
    return value

"""One input through every pass of both sides, and the evidence at every tap."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from parity.errors import TapError
from parity.execution.decisions import Decisions
from parity.execution.passes import OUTPUT, FromReference, FromTrace, Runner, mask_of
from parity.execution.shadow import Shadow
from parity.execution.storage import bits
from parity.execution.tap import Inputs, Tap
from parity.execution.trace import TapValue, Trace
from parity.execution.twins import LatticeTwin
from parity.numerics.evidence import Evidence, Measured, measure, rows_of
from parity.numerics.limits import limits_for
from parity.numerics.metrics import ClassicMetrics, classic_metrics
from parity.session import PairSession


@dataclass(frozen=True)
class Options:
    """How a state is run.

    Args:
        seed: of the first draw. draws: inputs pooled; None: as the pair says.
        twins: lattice twins a draw.
        shadow_dtype: float64, or float32 for GPUs with slow float64.
        singles: taps whose impact is computed alone, besides jointly per kind.
        variant: the pair's kind of inputs; "" is its default.
    """

    seed: int = 0
    draws: int | None = None
    twins: int = 3
    shadow_dtype: torch.dtype = torch.float64
    singles: int = 8
    variant: str = ""


@dataclass
class ReferencePasses:
    """The reference in lockstep: its trace, its twins', and where a shadow changed its low values."""

    trace: Trace
    twins: list[Trace]
    observer: list[str]


class Draw:
    """One input through every pass.

    Args:
        session: both models, the LoRA state already on.
        lora: that state; only to tell shared traces apart.
        seed: of the inputs.
        options: how it is run.
        inputs: run these instead of what the pair draws from the seed.
    """

    def __init__(
        self, session: PairSession, lora: bool, seed: int, options: Options, inputs: Inputs | None = None
    ) -> None:
        self.session, self.options, self.seed = session, options, seed
        self._key = (lora, seed, options, None if inputs is None else id(inputs))
        self.inputs: Inputs = session.inputs(seed, options.variant) if inputs is None else session.placed(inputs)
        self.seconds: dict[str, float] = {}
        self.observer: list[str] = []
        self._run()
        self.evidence = self._measure()
        self._as_stored()

    def _timed(self, what: str, started: float) -> None:
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - started

    def _run(self) -> None:
        s = self.session
        started = time.perf_counter()
        s.learn_constants(self.inputs)
        self.free_reference: Trace = self.shared("free", lambda: self._runner("reference").run(self.inputs))
        self.free_native = self._runner("native").run(self.inputs)
        self.compiled = {s: found for s in ("reference", "native") if (found := self._compiled_lane(s)) is not None}
        self._timed("plain", started)
        self._coarser = {n: v.dtype for n, v in self.free_native.values.items() if v.dtype.is_floating_point}
        started = time.perf_counter()
        passes: ReferencePasses = self.shared(tuple(sorted(map(str, self._coarser.items()))), self._reference_passes)
        self.reference, self.twins = passes.trace, passes.twins
        self.observer += passes.observer
        self._timed("reference", started)
        started = time.perf_counter()
        self._run_native()
        self._timed("native", started)

    def shared(self, what: Any, compute: Any) -> Any:
        """Compute, or take from what an earlier session of the same reference computed."""
        traces = self.session.traces
        if traces is None:
            return compute()
        key = (self._key, what)
        if key not in traces:
            traces[key] = compute()
        return traces[key]

    def _runner(self, side: str) -> Runner:
        loaded = self.session.reference if side == "reference" else self.session.native
        return loaded.runner(self.session.taps)

    def _compiled_lane(self, side: str) -> ClassicMetrics | None:
        """Compare the output of a compiled side with its eager one; shadows judge the eager one."""
        taps = [t for t in self.session.taps if t.name == OUTPUT]
        loaded = self.session.reference if side == "reference" else self.session.native
        runner = loaded.runner(tuple(taps))
        if not runner.is_compiled:
            return None
        eager = self.free_reference if side == "reference" else self.free_native
        compiled = runner.run(self.inputs, compiled=True).values[OUTPUT].low
        return classic_metrics(eager.values[OUTPUT].low, compiled)

    # --- reference ----------------------------------------------------------------------------------------------------

    def _reference_passes(self) -> ReferencePasses:
        restart = FromReference(self._coarser, self.inputs)
        trace = self._reference_lockstep(restart)
        plain = self._runner("reference").run(self.inputs, restart)
        twins = [self._twin(restart, trace, k) for k in range(self.options.twins)]
        return ReferencePasses(trace, twins, _observed("reference", trace, plain))

    def _reference_lockstep(self, restart: FromReference, **how: Any) -> Trace:
        shadow = self.session.reference.shadow(Shadow, self.inputs, dtype=self.options.shadow_dtype, **how)
        return self._runner("reference").run(self.inputs, restart, shadow)

    def _twin(self, restart: FromReference, trace: Trace, k: int) -> Trace:
        generator = torch.Generator().manual_seed(0x7717 + 1000003 * self.seed + k)
        scale = 2.0 ** (0.01 + 0.98 * float(torch.rand((), generator=generator, dtype=torch.float64)))
        replay = Decisions(replayed=trace.decisions)
        twin = self.session.reference.shadow(LatticeTwin, self.inputs, scale=scale, decisions=replay)
        return self._runner("reference").run(self.inputs, restart, twin)

    # --- native -------------------------------------------------------------------------------------------------------

    def _run_native(self) -> None:
        replay = Decisions(replayed=self.reference.decisions)
        self.native = self._native_lockstep(replay)
        if not replay.flips:  # replayed decisions change the low values, as they should
            plain = self._runner("native").run(self.inputs, self._from_trace())
            self.observer += _observed("native", self.native, plain)

    def _native_lockstep(self, decisions: Decisions, **how: Any) -> Trace:
        dtype = self.options.shadow_dtype
        shadow = self.session.native.shadow(Shadow, self.inputs, dtype=dtype, decisions=decisions, **how)
        return self._runner("native").run(self.inputs, self._from_trace(), shadow)

    def _from_trace(self) -> FromTrace:
        shared = [t for t in self.session.taps if t.reference and t.native and t.restarts]
        values = {t.name: self._restart_value(t) for t in shared}
        shapes = {name: (v.low.shape, v.parts) for name, v in self.free_native.values.items()}
        return FromTrace(values, shapes, self.inputs)

    def _restart_value(self, tap: Tap) -> Tensor:
        value = self.reference.values[tap.name].low
        other = self.free_native.values[tap.name].dtype
        if other.is_floating_point and value.is_floating_point() and bits(other) < bits(value.dtype):
            return value.to(other).to(value.dtype)
        return value

    # --- evidence -----------------------------------------------------------------------------------------------------

    def _measure(self) -> dict[str, Evidence]:
        return {t.name: self.measure(t) for t in self.session.taps if t.reference and t.native}

    def measure(self, tap: Tap) -> Evidence:
        """Measure one tap of this draw."""
        r, n = self.reference.values[tap.name], self.native.values[tap.name]
        assert r.high is not None
        assert n.high is not None
        twins = [t.values[tap.name].high for t in self.twins]
        return measure(
            Measured(
                reference=r.low,
                native=aligned(tap, n.low, r.low.shape),
                reference_high=r.high,
                native_high=aligned(tap, n.high, r.low.shape),
                twins=[z for z in twins if z is not None],
                valid=None if tap.valid is None else mask_of(tap, self.inputs, r.low),
                channel_dim=tap.channel_dim,
                heads=tap.heads,
                upstream=self._upstream(tap, r),
            )
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
        if not apart or not any(table.entries for s in self._sides() for table in s.memory):
            return
        kept = self.reference, self.native
        self.reference = self._reference_lockstep(FromReference(self._coarser, self.inputs), as_stored=True)
        self.native = self._native_lockstep(Decisions(replayed=self.reference.decisions), as_stored=True)
        for tap in apart:
            stored = self.measure(tap)
            if stored.logic_error <= limit:
                exact = self.evidence[tap.name]
                self.evidence[tap.name] = replace(stored, excesses=exact.excesses, stored_constants=exact.logic_error)
        self.reference, self.native = kept

    def _sides(self) -> tuple[Any, Any]:
        return self.session.reference, self.session.native

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


def _observed(side: str, shadowed: Trace, plain: Trace) -> list[str]:
    where = shadowed.first_difference(plain)
    return [] if where is None else [f"{side} at {where}"]


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

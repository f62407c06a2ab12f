"""One pair, one LoRA state: from inputs to the verdict of every tap. No files, no pytest, no printing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from parity.errors import ShadowError, TapError
from parity.execution.decisions import Decisions
from parity.execution.passes import OUTPUT, FromReference, FromTrace, mask_of
from parity.execution.shadow import Shadow
from parity.execution.storage import bits
from parity.execution.tap import Inputs, Tap
from parity.execution.trace import TapValue, Trace
from parity.execution.twins import LatticeTwin
from parity.impact import Impact, Nudge
from parity.numerics.evidence import Evidence, Measured, measure, rows_of
from parity.numerics.limits import Limits, limits_for
from parity.numerics.verdict import Judged, TapFacts, judge, settle
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
class StateResult:
    """Everything found for one pair in one LoRA state."""

    lora: bool
    judged: dict[str, Judged]
    draws: list[dict[str, Evidence]]
    paths: dict[str, str]
    facts: dict[str, TapFacts]
    drift: dict[str, float]
    observer: list[str]
    events: Counter[str]
    kernels: dict[str, Counter[str]]
    flips: Counter[str]
    unmatched: Counter[str]
    decisions: int
    tokens: int
    seconds: dict[str, float]
    limits: Limits = field(default_factory=Limits)
    dtypes: dict[str, tuple[Mapping[str, int], Mapping[str, int]]] = field(default_factory=dict)
    """Per tap, in which dtypes each side ran the ops of the segment that ends there."""

    @property
    def first_different(self) -> str | None:
        """The first tap, in execution order, that differs in logic or precision."""
        return next((n for n, j in self.judged.items() if j.different), None)


def run_state(session: PairSession, lora: bool, options: Options | None = None) -> StateResult:
    """Run a pair in one LoRA state and judge every tap.

    Raises:
        TapError: no tap matched, or shapes cannot be aligned.
        ModelFailed: a side raised.
    """
    options = options or Options()
    if not [t for t in session.taps if t.reference and t.native]:
        raise TapError(f"{session.pair.name}: no tap exists on both sides; nothing would be compared")
    limits = limits_for(options.shadow_dtype)
    count = options.draws or session.pair.draws
    with session.lora(lora):
        draws = [_Draw(session, lora, options.seed + i, options) for i in range(count)]
        facts = [_facts(t, session) for t in session.taps if t.reference and t.native]
        judged = judge(facts, [d.evidence for d in draws], limits)
        _settle_impacts(session, judged, facts, draws[0], limits, options)
    return _result(session, lora, judged, facts, draws, limits)


def _facts(tap: Tap, session: PairSession) -> TapFacts:
    return TapFacts(tap.name, tap.kind, tap.block, tap.has_attention, session.pair.declared.get(tap.name))


class _Draw:
    """One input through every pass. The models' memory is not kept, the first draw's tap values are."""

    def __init__(self, session: PairSession, lora: bool, seed: int, options: Options) -> None:
        self.session, self.options = session, options
        self.inputs: Inputs = session.inputs(seed, options.variant)
        self.seconds: dict[str, float] = {}
        self.observer: list[str] = []
        self._run(seed)
        self.evidence = self._measure()

    def _timed(self, what: str, started: float) -> None:
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - started

    def _run(self, seed: int) -> None:
        s, taps = self.session, self.session.taps
        reference, native = s.reference.runner(taps), s.native.runner(taps)
        started = time.perf_counter()
        s.learn_constants(self.inputs)
        self.free_reference, self.free_native = reference.run(self.inputs), native.run(self.inputs)
        self._timed("plain", started)
        coarser = {name: v.dtype for name, v in self.free_native.values.items() if v.dtype.is_floating_point}
        self.restart = FromReference(coarser, self.inputs)
        started = time.perf_counter()
        shadow = s.reference.shadow(Shadow, self.inputs, dtype=self.options.shadow_dtype)
        self.reference = reference.run(self.inputs, self.restart, shadow)
        self._check("reference", self.reference, reference.run(self.inputs, self.restart))
        self._timed("reference", started)
        started = time.perf_counter()
        self.twins = [self._twin(seed, k) for k in range(self.options.twins)]
        self._timed("twins", started)
        started = time.perf_counter()
        self._run_native(native, coarser)
        self._timed("native", started)

    def _twin(self, seed: int, k: int) -> Trace:
        generator = torch.Generator().manual_seed(0x7717 + 1000003 * seed + k)
        scale = 2.0 ** (0.01 + 0.98 * float(torch.rand((), generator=generator, dtype=torch.float64)))
        replay = Decisions(replayed=self.reference.decisions)
        twin = self.session.reference.shadow(LatticeTwin, self.inputs, scale=scale, decisions=replay)
        return self.session.reference.runner(self.session.taps).run(self.inputs, self.restart, twin)

    def _run_native(self, native: object, coarser: Mapping[str, torch.dtype]) -> None:
        values = {t.name: self._restart_value(t) for t in self.session.taps if t.reference and t.native and t.replace}
        shapes = {name: (v.low.shape, v.parts) for name, v in self.free_native.values.items()}
        replay = Decisions(replayed=self.reference.decisions)
        shadow = self.session.native.shadow(
            Shadow, self.inputs, dtype=self.options.shadow_dtype, decisions=replay
        )
        runner = self.session.native.runner(self.session.taps)
        self.native = runner.run(self.inputs, FromTrace(values, shapes, self.inputs), shadow)
        if not replay.flips:  # replayed decisions change the low values, as they should
            self._check("native", self.native, runner.run(self.inputs, FromTrace(values, shapes, self.inputs)))

    def _restart_value(self, tap: Tap) -> Tensor:
        value = self.reference.values[tap.name].low
        other = self.free_native.values[tap.name].dtype
        if other.is_floating_point and value.is_floating_point() and bits(other) < bits(value.dtype):
            return value.to(other).to(value.dtype)
        return value

    def _check(self, side: str, shadowed: Trace, plain: Trace) -> None:
        where = shadowed.first_difference(plain)
        if where is not None:
            self.observer.append(f"{side} at {where}")

    def _measure(self) -> dict[str, Evidence]:
        shared = [t for t in self.session.taps if t.reference and t.native]
        return {t.name: self.measure(t) for t in shared}

    def measure(self, tap: Tap) -> Evidence:
        """Measure one tap of this draw."""
        r, n = self.reference.values[tap.name], self.native.values[tap.name]
        assert r.high is not None and n.high is not None
        layout = tap.layout if tap.name != OUTPUT else None
        return measure(
            Measured(
                reference=r.low,
                native=n.low if layout is None else _aligned(tap, n.low, r.low.shape),
                reference_high=r.high,
                native_high=n.high if layout is None else _aligned(tap, n.high, r.low.shape),
                twins=[t.values[tap.name].high for t in self.twins],  # type: ignore[misc]
                valid=None if tap.valid is None else mask_of(tap, self.inputs, r.low),
                channel_dim=tap.channel_dim,
                heads=tap.heads,
                upstream=self._upstream(tap, r),
            )
        )

    def _upstream(self, tap: Tap, value: TapValue) -> dict[str, Tensor]:
        """Return the values of taps before this one in its block, of its shape: a gate multiplies a branch's output."""
        names = tap.slopes or tuple(t.name for t in self.session.taps if t.block and t.block == tap.block and not tap.layer)
        found = {}
        for name in names:
            other = self.reference.values.get(name)
            if name != tap.name and other is not None and other.low.shape == value.low.shape and not name.endswith("_in"):
                found[name.rsplit(".", 1)[-1]] = rows_of(other.low, tap.channel_dim)
        return found

    def delta(self, tap: Tap) -> Tensor:
        """Return what the native makes of a tap minus what the reference makes of it, in the reference's layout."""
        r = self.reference.values[tap.name]
        n = self.native.values[tap.name].low
        aligned = n if tap.name == OUTPUT else _aligned(tap, n, r.low.shape)
        delta = aligned.to(torch.float32) - r.low.to(torch.float32)
        if tap.valid is not None:
            delta = torch.where(mask_of(tap, self.inputs, r.low), delta, 0.0)
        return delta


def _aligned(tap: Tap, native: Tensor, shape: torch.Size) -> Tensor:
    """Bring a native value to the reference's layout.

    Raises:
        TapError: the layout does not give the reference's shape.
    """
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


def _settle_impacts(
    session: PairSession, judged: dict[str, Judged], facts: Sequence[TapFacts], draw: _Draw, limits: Limits,
    options: Options,
) -> None:  # fmt: skip
    """Compute impacts jointly per kind of tap, and alone for the first few, and settle felt or drowned."""
    different = [f for f in facts if judged[f.name].different]
    if not different:
        return
    impact = Impact(session, draw.inputs)
    taps = {t.name: t for t in session.taps}
    for kind in dict.fromkeys(f.kind for f in different):
        members = [f.name for f in different if f.kind == kind]
        if not all(taps[n].replace or n == OUTPUT for n in members):
            for name in members:
                settle(judged[name], None, limits)
            continue
        joint = impact.of([Nudge(taps[n], draw.delta(taps[n])) for n in members])
        for number, name in enumerate(members):
            alone = joint
            if len(members) > 1 and number < options.singles:
                alone = impact.of([Nudge(taps[name], draw.delta(taps[name]))])
            how = f"; {joint:.2g} jointly over {len(members)} taps of its kind" if len(members) > 1 else ""
            settle(judged[name], max(alone, joint), limits, how)


def _result(
    session: PairSession, lora: bool, judged: dict[str, Judged], facts: Sequence[TapFacts], draws: list[_Draw],
    limits: Limits,
) -> StateResult:  # fmt: skip
    first = draws[0]
    totals: Counter[str] = Counter()
    flips: Counter[str] = Counter()
    unmatched: Counter[str] = Counter()
    for d in draws:
        for trace, side in ((d.reference, "reference"), (d.native, "native")):
            totals.update({f"{side}: {k}": v for k, v in trace.events.items()})
        flips.update(d.native.decisions.flips)
        unmatched.update(d.native.decisions.unmatched)
    seconds: Counter[str] = Counter()
    for d in draws:
        seconds.update(d.seconds)
    return StateResult(
        lora=lora,
        judged=judged,
        draws=[d.evidence for d in draws],
        paths={t.name: t.native.path for t in session.taps if t.native},
        facts={f.name: f for f in facts},
        drift=_drift(session, first),
        observer=[o for d in draws for o in d.observer],
        events=totals,
        kernels={"reference": first.reference.kernels, "native": first.native.kernels},
        flips=flips,
        unmatched=unmatched,
        decisions=sum(d.reference.decisions.count for d in draws),
        tokens=max((e.rows for e in first.evidence.values()), default=0),
        seconds=dict(seconds),
        limits=limits,
        dtypes={f.name: (first.reference.segment_before(f.name), first.native.segment_before(f.name)) for f in facts},
    )


def _drift(session: PairSession, draw: _Draw) -> dict[str, float]:
    """Return the relative L2 distance of the two free-running passes at each tap."""
    out = {}
    for tap in session.taps:
        if tap.reference and tap.native:
            r = draw.free_reference.values[tap.name].low
            n = draw.free_native.values[tap.name].low
            n = n if tap.name == OUTPUT else _aligned(tap, n, r.shape)
            base = float(r.double().norm()) if not r.is_complex() else float(r.abs().double().norm())
            out[tap.name] = float((n - r).abs().double().norm()) / base if base else 0.0
    return out


def check_contracts(result: StateResult) -> None:
    """Raise where the shadow changed what a model computes.

    Raises:
        ShadowError: low values differ with and without shadow.
    """
    if result.observer:
        raise ShadowError(
            f"observer effect: low values differ with and without shadow, first {result.observer[0]}\n"
            "the model is not deterministic here, or an op reads what the shadow changed; nothing below is certain"
        )

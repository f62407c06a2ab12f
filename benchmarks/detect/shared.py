"""Runs of many natives against one reference, whose passes are computed once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.detect.gates import Outputs
from parity.about import about
from parity.engine import Engine, Settings
from parity.execution.passes import OUTPUT
from parity.execution.shadow import Shadow
from parity.execution.tap import Inputs, Tap
from parity.execution.trace import Trace
from parity.live import LiveNative
from parity.loaded import LoadedSide
from parity.pair import Build, ModelPair
from parity.run import Options
from parity.session import PairSession


@dataclass
class Held:
    """One reference with its weights and inputs, and what is known of it."""

    build: Build
    options: Options
    reference: LoadedSide | None = None
    traces: dict[Any, Any] = field(default_factory=dict)
    output: dict[bool, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """By LoRA state: the reference's free-running output, as computed and in float64."""


class SharedEngine(Engine):
    """The engine of every run, with a reference that is loaded already.

    Args:
        pair: the pair. held: its reference.
    """

    def __init__(self, pair: ModelPair, held: Held) -> None:
        settings = Settings(size=held.build.size, dtype=held.build.dtype, options=held.options)
        super().__init__({pair.name: pair}, settings)
        self.pair, self.held = pair, held

    def _load(self, name: str) -> None:
        session = PairSession(self.pair, self.held.build, self.held.reference)
        self.held.reference, session.traces = session.reference, self.held.traces
        self._sessions[name], self._about[name] = session, about(session)

    @property
    def live(self) -> PairSession:
        """Both models."""
        session = self.session(self.pair.name)
        assert isinstance(session, PairSession)
        return session

    def free(self, lora: bool) -> Trace:
        """Run the native alone, with shadows."""
        session = self.live
        inputs = session.inputs(self.held.options.seed)
        with session.lora(lora):
            stage = session.native_stage
            assert isinstance(stage, LiveNative)
            shadow = session.native.shadow(Shadow, inputs)
            trace = stage.runner().run(inputs, shadow=shadow)
            session.native.memory.append(shadow.table)  # a table that this first call cached keeps its exact values
            return trace

    def outputs(self, native: Trace, lora: bool) -> Outputs:
        """Return what gates look at."""
        if lora not in self.held.output:
            session = self.live
            inputs = session.inputs(self.held.options.seed)
            with session.lora(lora):
                runner = session.reference.runner(session.taps)
                value = runner.run(inputs, shadow=session.reference.shadow(Shadow, inputs)).values[OUTPUT]
            assert value.high is not None
            self.held.output[lora] = value.low, value.high
        low, high = self.held.output[lora]
        return Outputs(low, native.values[OUTPUT].low, high)


def distances(one: Trace, other: Trace, taps: Iterable[Tap] = (), inputs: Inputs | None = None) -> Mapping[str, float]:
    """Return the relative distance of two passes' float64 values at every tap; inf where shapes differ or NaN is.

    With taps and inputs padding is left out: what nothing reads is no part of a function.
    """
    valid = {tap.name: tap.valid(inputs) for tap in taps if tap.valid is not None and inputs is not None}
    found = {}
    for name, value in one.values.items():
        a, b = value.high, other.values[name].high
        assert a is not None
        assert b is not None
        size = float(a.abs().to(torch.float64).norm()) or 1.0
        wide = (a - b).abs().to(torch.float64) if a.shape == b.shape else a.new_full((), float("inf"))
        apart = float(_judged(wide, valid.get(name)).norm()) / size
        found[name] = apart if apart == apart else float("inf")
    return found


def bits_alike(one: Trace, other: Trace, taps: Iterable[Tap] = (), inputs: Inputs | None = None) -> bool:
    """Say whether two passes have the same bits at every tap, padding left out where taps and inputs are given."""
    valid = {tap.name: tap.valid(inputs) for tap in taps if tap.valid is not None and inputs is not None}
    for name, value in one.values.items():
        a, b = value.low, other.values[name].low
        if a.shape != b.shape or not torch.equal(_judged(a, valid.get(name)), _judged(b, valid.get(name))):
            return False
    return True


def _judged(value: Tensor, valid: Tensor | None) -> Tensor:
    """Leave padding out, where the native lays its values out as the reference does."""
    if valid is None or valid.numel() != value[..., :1].numel():
        return value
    return value[valid.reshape(value.shape[:-1])]

"""Runs of many natives against one reference, whose passes are computed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.detect.gates import Outputs
from parity.about import about
from parity.engine import Engine, Settings
from parity.execution.passes import OUTPUT
from parity.execution.shadow import Shadow
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
            return stage.runner().run(inputs, shadow=session.native.shadow(Shadow, inputs))

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


def distances(one: Trace, other: Trace) -> Mapping[str, float]:
    """Return the relative distance of two passes' float64 values at every tap; inf where shapes differ or NaN is."""
    found = {}
    for name, value in one.values.items():
        a, b = value.high, other.values[name].high
        assert a is not None
        assert b is not None
        size = float(a.abs().to(torch.float64).norm()) or 1.0
        apart = float((a - b).abs().to(torch.float64).norm()) / size if a.shape == b.shape else float("inf")
        found[name] = apart if apart == apart else float("inf")
    return found


def bits_alike(one: Trace, other: Trace) -> bool:
    """Say whether two passes have the same bits at every tap."""
    return all(
        v.low.shape == other.values[n].low.shape and torch.equal(v.low, other.values[n].low)
        for n, v in one.values.items()
    )

"""What one side contributes to a draw: computed by its model, or read from a recording of it.

A verdict needs the two sides one after the other, never at once. So the reference is asked for its passes through
`ReferenceStage`, whoever answers: a model in memory, the recording of one on disk, made here or on another machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from parity.execution.decisions import Decisions
from parity.execution.passes import Restart
from parity.execution.tap import Inputs, Tap
from parity.execution.trace import Trace
from parity.lora.adapter import LoraAdapter
from parity.numerics.metrics import ClassicMetrics
from parity.pair import ModelPair
from parity.weights.load import WeightComparison


@dataclass(frozen=True)
class Options:
    """How a state is run.

    Args:
        seed: of the first draw. draws: inputs pooled; None: as the pair says.
        twins: lattice twins a draw.
        shadow_dtype: float64, or float32 for GPUs with slow float64.
        singles: taps whose impact is computed alone, besides jointly per kind.
        variant: the pair's kind of inputs; "" is its default.
        explain: whether what explains a difference is looked for; the nearest reference variant then decides what
            statistics leave open.
    """

    seed: int = 0
    draws: int | None = None
    twins: int = 3
    shadow_dtype: torch.dtype = torch.float64
    singles: int = 8
    variant: str = ""
    explain: bool = True


@dataclass(frozen=True)
class DrawOf:
    """One input of one LoRA state, and how it is run.

    Args:
        lora: whether the LoRA is on.
        seed: of the inputs.
        options: how it is run.
        inputs: what both sides are called with, on the build's device.
        given: the inputs came from the caller, and not from the pair and the seed.
    """

    lora: bool
    seed: int
    options: Options
    inputs: Inputs = field(compare=False, hash=False)
    given: bool = False

    @property
    def name(self) -> str:
        """The draw in words: `lora_off-seed0`, `lora_on-image-seed3`."""
        state = f"lora_{'on' if self.lora else 'off'}"
        return "-".join(filter(None, (state, self.options.variant, f"seed{self.seed}")))


def placed(inputs: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return inputs on a device."""
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}


Dtypes = Mapping[str, torch.dtype]
"""Tap name to the float dtype that the native has there."""


@dataclass
class LockstepPasses:
    """The reference in lockstep: its trace, its twins', and where a shadow changed its low values."""

    trace: Trace
    twins: list[Trace]
    observer: list[str]


@dataclass
class NativePasses:
    """The native in lockstep with a reference: its trace, and where a shadow changed its low values."""

    trace: Trace
    observer: list[str]


@dataclass(frozen=True)
class Compiled:
    """The output of a compiled side against the same side run eagerly.

    Args:
        metrics: compiled against eager.
        excess: distance of the compiled output from the float64 shadow over eager's; compilers reorder and keep
            float32 between fused ops, so either may be a little nearer.
    """

    metrics: ClassicMetrics
    excess: float


@dataclass(frozen=True)
class Nudge:
    """An error to add to the reference's value at a tap, in the reference's layout."""

    tap: Tap
    delta: Tensor


@dataclass(frozen=True)
class Question:
    """What another interpreter, in which one side's model can be loaded, is asked.

    Args:
        what: the command that answers: impact, nearest, values, repair.
        draw: the draw it is about. note: plain data. tensors: named values.
    """

    what: str
    draw: DrawOf
    note: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


Ask = Callable[[Question], Mapping[str, Any]]
"""Puts a question to another interpreter and returns its answer, plain data."""

T = TypeVar("T")


class ReferenceStage(Protocol):
    """The reference's part of every draw."""

    @property
    def has_tables(self) -> bool:
        """Whether exact values of tables made in `__init__` or a first call are known."""

    def learn_constants(self, draw: DrawOf) -> None:
        """Learn the exact values of tables cached in the first call; once."""

    def without_lora(self, draw: DrawOf) -> Trace:
        """Return the free-running pass without the LoRA, which is off now."""

    def free(self, draw: DrawOf) -> Trace:
        """Return the free-running pass, without shadows."""

    def compiled(self, draw: DrawOf) -> Compiled | None:
        """Compare the output of compiled parts with eager's; None where nothing is compiled."""

    def lockstep(self, draw: DrawOf, native: Dtypes) -> LockstepPasses:
        """Return the shadowed passes in lockstep with a native of these dtypes."""

    def as_stored(self, draw: DrawOf, native: Dtypes) -> Trace:
        """Return the shadowed lockstep pass in which remembered tables have their stored values."""

    def impacts(self, draw: DrawOf, requests: Sequence[Sequence[Nudge]]) -> list[float] | None:
        """Return what each set of nudges does to the output, over the output's own noise; None: not to be had."""

    def at_work(self, draw: DrawOf, work: Callable[[Any], T]) -> T | None:
        """Return what some work on the model, a `LiveReference` in the draw's state, gives; None: not to be had."""

    def asked(self, question: Question) -> Mapping[str, Any] | None:
        """Return what the interpreter answers in which the model can be loaded; None: there is none."""

    def recorded_ops(self, draw: DrawOf) -> Mapping[str, Any] | None:
        """Return the ops of the lockstep pass as a recording keeps them; None: it has none."""


class JudgedSession(Protocol):
    """What judging a state needs of a pair, whether its models are resident or recorded."""

    @property
    def pair(self) -> ModelPair:
        """The pair."""

    @property
    def taps(self) -> tuple[Tap, ...]:
        """Its taps."""

    @property
    def recorded(self) -> RecordedReference | None:
        """The recorded reference; None where its model is resident."""

    @property
    def reference_stage(self) -> ReferenceStage:
        """What answers for the reference."""

    @property
    def native_stage(self) -> NativeStage:
        """What answers for the native; loaded again where it had to make room."""

    @property
    def weights(self) -> Mapping[str, WeightComparison]:
        """What native tensors hold, against what the key map says they should; of a recording those that differ."""

    def variant(self, name: str) -> AbstractContextManager[None]:
        """Run the pair as one of its variants or lanes while the context is open."""

    def lora(self, on: bool) -> AbstractContextManager[None]:
        """Put the LoRA on every resident side while the context is open."""

    def inputs(self, seed: int, variant: str = "") -> Mapping[str, Any]:
        """Return the inputs of a draw, on the build's device."""

    def placed(self, inputs: Inputs) -> Mapping[str, Any]:
        """Return inputs on the build's device."""

    def finer_weights(self, lora: bool) -> list[str]:
        """List the native's weights that are rounded copies of finer values."""

    def lora_found(self) -> Mapping[str, Any]:
        """Return what each side that was looked at made of the LoRA, once it was on."""


class NativeStage(Protocol):
    """The native's part of every draw."""

    @property
    def has_tables(self) -> bool:
        """Whether exact values of tables made in `__init__` or a first call are known."""

    def learn_constants(self, draw: DrawOf) -> None:
        """Learn the exact values of tables cached in the first call; once."""

    def without_lora(self, draw: DrawOf) -> Trace:
        """Return the free-running pass without the LoRA, which is off now."""

    def free(self, draw: DrawOf) -> Trace:
        """Return the free-running pass, without shadows."""

    def compiled(self, draw: DrawOf) -> Compiled | None:
        """Compare the output of compiled parts with eager's; None where nothing is compiled."""

    def lockstep(self, draw: DrawOf, restart: Callable[[], Restart], decisions: Decisions) -> NativePasses:
        """Return the shadowed pass that goes on from the reference's values and decisions."""

    def as_stored(self, draw: DrawOf, restart: Callable[[], Restart], decisions: Decisions) -> Trace:
        """Return the pass in which remembered tables have their stored values."""

    def asked(self, question: Question) -> Mapping[str, Any] | None:
        """Return what the interpreter answers in which the model can be loaded; None: there is none."""

    def recorded_ops(self, draw: DrawOf) -> Mapping[str, Any] | None:
        """Return the ops of the lockstep pass as a recording keeps them; None: it has none."""


class RecordedReference(ReferenceStage, Protocol):
    """A reference whose model is not resident: its passes, weights and LoRA are read from where they were recorded."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The parameters and persistent buffers by key, read when asked for."""

    @property
    def adapter(self) -> LoraAdapter | None:
        """The pair's LoRA in the reference's module names."""

    @property
    def lora_found(self) -> Mapping[str, Any]:
        """What the reference made of the LoRA's layers, where it was recorded with it."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What a record keeps of the reference: its side, substitutes and blind spots."""

    @property
    def came_from(self) -> dict[str, Any]:
        """Where the passes are from (`kept`: cache or recording), their `bytes`, and versions they were made with."""

    @property
    def is_loaded_again(self) -> bool:
        """Whether the model can be loaded here, for what a recording does not answer."""

    def given(self, draw: DrawOf) -> DrawOf:
        """Return the draw with the inputs that were recorded."""

    def let_go(self) -> None:
        """Let go of the reference's model where it was loaded again, to make room for the native."""

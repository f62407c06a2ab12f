"""Lockstep forwards of one side with its ops traced or edited: every segment starts from the values of a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from parity.execution.edits import Edit, EditedForward, EditTracer, given
from parity.execution.ops import OpNumbers
from parity.execution.passes import OUTPUT, Restart, Runner
from parity.execution.tap import SAME, Inputs, Tap
from parity.execution.trace import TapValue, Trace, joined, same_bits


class Enough(BaseException):
    """The last wanted tap was reached: the rest of the forward is not needed."""


@dataclass
class Forwards:
    """Runs one side in lockstep, plain, as far as the last tap that is wanted.

    Args:
        runner: calls the side.
        inputs: of the draw.
        base: the side's own lockstep pass.
        restart: what each tap goes on with.
        wanted: taps whose values are wanted.
    """

    runner: Runner
    inputs: Inputs
    base: Trace
    restart: Restart
    wanted: Sequence[str]
    count: int = 0
    """Forwards that ran."""

    def traced(self, low: torch.dtype) -> EditTracer:
        """Run once and trace every op, with the edits that would change it."""
        mode = EditTracer(low, given(self.inputs))
        self._run(mode, self.wanted)
        return mode

    def edited(self, edits: Mapping[int, Edit], wanted: Sequence[str]) -> dict[str, Tensor]:
        """Run with ops edited and return the values of taps, in the side's own layout."""
        return self._run(EditedForward(edits), wanted)

    def _run(self, mode: OpNumbers, wanted: Sequence[str]) -> dict[str, Tensor]:
        seen = _Restarts(self, mode, set(wanted))
        around = self.runner.around

        def within(model: nn.Module, inputs: Inputs) -> AbstractContextManager[Any]:
            stack = ExitStack()
            stack.enter_context(around(model, inputs))
            stack.enter_context(mode)
            return stack

        taps = [replace(t, replace=True, layout=SAME) for t in self.runner.taps]
        output = self.runner.output
        watched = replace(self.runner, taps=taps, around=within, output=lambda out: seen.output(output(out)))
        self.count += 1
        with suppress(Enough):
            watched.run(self.inputs, seen, sink=Nowhere())
        return {name: joined(parts, None).low for name, parts in seen.values.items()}


@dataclass
class _Restarts:
    """Brings every tap back to the value it had in the base pass, and keeps what is wanted."""

    of: Forwards
    mode: OpNumbers
    wanted: set[str]
    values: dict[str, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._real = {t.name: t for t in self.of.runner.taps}
        self._left = dict.fromkeys(self.wanted, 0)

    def __call__(self, tap: Tap, value: Tensor, number: int) -> Tensor | None:
        self.mode.reached(tap.name, value)
        self._keep(tap.name, value)
        self._stop_after(tap.name, number)
        real = self._real[tap.name]
        restart = self.of.restart
        if not real.restarts or not getattr(restart, "wants", lambda tap: True)(real):
            return None
        own = _part(self.of.base.values[tap.name], number)
        new = restart(real, value if same_bits(value, own) else own, number)
        if new is None and not same_bits(value, own):
            new = own
        new = None if new is None else _as_laid_out(new, value)
        self.mode.replaced(value if new is None else new)
        return new

    def output(self, out: Tensor) -> Tensor:
        """Take the final output."""
        self.mode.reached(OUTPUT, out)
        self._keep(OUTPUT, out)
        raise Enough

    def _keep(self, name: str, value: Tensor) -> None:
        if name in self.wanted:
            self.values.setdefault(name, []).append(value.detach().clone(memory_format=torch.contiguous_format))

    def _stop_after(self, name: str, number: int) -> None:
        if name not in self.wanted:
            return
        self._left[name] = number + 1
        if all(seen >= max(1, len(self.of.base.values[n].parts)) for n, seen in self._left.items()):
            raise Enough


def _part(value: TapValue, number: int) -> Tensor:
    if len(value.parts) <= 1:
        return value.low
    return torch.split(value.low, list(value.parts))[number]


def _as_laid_out(new: Tensor, like: Tensor) -> Tensor:
    """Give a value the strides of another: kernels round by them."""
    if new is like or new.stride() == like.stride():
        return new.clone() if new is not like else new
    out = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)
    try:
        return out.copy_(new)
    except RuntimeError:  # memory that overlaps (an expanded value)
        return new.clone()


class Nowhere:
    """A sink that keeps nothing."""

    def put(self, name: str, low: Tensor, high: Tensor | None) -> None:
        """Forget what one call showed."""

    def values(self) -> dict[str, TapValue]:
        """Return nothing."""
        return {}

"""The ops of one side in a lockstep pass, with their exact values: what differences are placed and repaired by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from parity.diagnose.forwards import Enough, Nowhere
from parity.diagnose.steps import Step, text_of
from parity.execution.decisions import Decisions
from parity.execution.hooks import TapHooks
from parity.execution.kept_values import KeptValues
from parity.execution.op_values import OpShadow, OpValue
from parity.execution.ops import SourceLine, numbers
from parity.execution.passes import OUTPUT, Restart
from parity.execution.tap import Inputs, Tap
from parity.live import LiveSide
from parity.stage import DrawOf


@dataclass(frozen=True)
class SideOps:
    """The ops of one lockstep pass of a side, with fingerprints of their exact values.

    Args:
        given: by op number, what it gave.
        cones: by tap, the bits of the ops its value is made of.
        modules: path of a module by the id that ops have for it.
        matmul: torch's float32 matmul precision in the pass.
        splits: by number, views that take a tensor apart, and into how many.
        slices: groups of parts of one shape of one tensor: by number what is taken.
        lines: where those views are, by number.
        code: what lines say, by `str` of a line; of a recording, whose files may not be here.
        values: by number, exact values of ops that the taps asked for are made of; none of a recording.
        operands: by number and place among the inputs, exact values that no single op gave.
    """

    given: Mapping[int, OpValue]
    cones: Mapping[str, int]
    modules: Mapping[int, str]
    matmul: str = ""
    splits: Mapping[int, tuple[str, int]] = field(default_factory=dict)
    slices: Sequence[Mapping[int, tuple[Any, ...]]] = ()
    lines: Mapping[int, SourceLine] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[int, Tensor] = field(default_factory=dict)
    operands: Mapping[tuple[int, int], Tensor] = field(default_factory=dict)

    def of(self, tap: str) -> list[OpValue]:
        """Return the ops a tap's value is made of, in order."""
        return [self.given[n] for n in numbers(self.cones.get(tap, 0)) if n in self.given]

    def step(self, op: OpValue | None) -> Step | None:
        """Word an op."""
        if op is None:
            return None
        dtype = str(op.op.dtype).removeprefix("torch.")
        line = str(op.op.source)
        code = self.code[line] if line in self.code else text_of(op.op.source)
        return Step(op.op.name, dtype, line, self.modules.get(op.op.module, ""), code)


@dataclass
class _Watching:
    """A restart that tells an op log what each tap is made of."""

    inner: Restart
    shadow: OpShadow
    last: str
    wants: Callable[[Tap], bool]
    kept: Callable[[Tap, Tensor], Tensor | None] | None = field(default=None)

    def __call__(self, tap: Tap, value: Tensor, number: int) -> Tensor | None:
        self._reached(tap.name, value)
        new = self.inner(tap, value, number)
        self.shadow.log.replaced(value if new is None else new)
        return new

    def passed(self, tap: Tap, value: Tensor, number: int) -> None:
        """Note a tap that is recorded and not replaced."""
        self._reached(tap.name, value)

    def output(self, out: Tensor) -> Tensor:
        """Note the final output, behind which nothing is wanted."""
        self._reached(OUTPUT, out)
        raise Enough

    def _reached(self, name: str, value: Tensor) -> None:
        log, kept = self.shadow.log, self.shadow.kept
        log.reached(name, value)
        if kept is not None:
            kept.reached(name, log.trace.cones[name])


def side_ops(
    live: LiveSide, draw: DrawOf, restart: Restart, decisions: Decisions | None = None, values_at: Iterable[str] = ()
) -> SideOps:
    """Run one side in lockstep once more and keep what every op gives.

    Args:
        live: the side.
        draw: the draw.
        restart: what each tap goes on with.
        decisions: to replay; None: its own.
        values_at: names of the taps whose ops' values are kept.
    """
    model, runner = live.side.model, live.runner()
    own = None if decisions is None else Decisions(replayed=decisions)
    shadow = live.side.shadow(OpShadow, draw.inputs, dtype=draw.options.shadow_dtype, decisions=own)
    assert isinstance(shadow, OpShadow)
    shadow.name_parameters(model.named_parameters())
    shadow.kept = KeptValues(wanted) if (wanted := frozenset(values_at)) else None
    wants = getattr(restart, "wants", lambda tap: True)
    watching = _Watching(restart, shadow, "", wants, getattr(restart, "kept", None))
    others = [t for t in runner.taps if not (t.restarts and wants(t))]
    around, output = runner.around, runner.output

    def within(model: nn.Module, inputs: Inputs) -> AbstractContextManager[Any]:
        stack = ExitStack()
        stack.enter_context(TapHooks(model, others, runner.side, watching.passed).attached())
        stack.enter_context(around(model, inputs))
        return stack

    watched = replace(runner, around=within, output=lambda out: watching.output(output(out)))
    with suppress(Enough):
        watched.run(draw.inputs, watching, shadow, sink=Nowhere())
    modules = {id(module): name for name, module in model.named_modules()}
    slices = [dict(group) for group in shadow.slices.values()]
    return SideOps(
        shadow.given, shadow.log.trace.cones, modules, shadow.matmul, shadow.splits, slices, shadow.lines,
        values={} if shadow.kept is None else shadow.kept.values,
        operands={} if shadow.kept is None else shadow.kept.operands,
    )  # fmt: skip

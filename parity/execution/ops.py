"""The ops of a forward, one by one: where they come from, in which dtype they run, and what each tap is made of."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from parity.execution.memory import leaves
from parity.execution.rules import Rule, rule_of
from parity.execution.storage import is_float

_NOT_MODELS = ("/torch/", "parity/execution/", "<frozen")


@dataclass(frozen=True)
class SourceLine:
    """A line of a model's code.

    Args:
        file: path; only its last two parts are shown. line: number. function: name of the function.
    """

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{'/'.join(PurePath(self.file).parts[-2:])}:{self.line}"


def source_line() -> SourceLine:
    """Return the line of the model that runs now: the innermost frame outside torch and this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and any(part in frame.f_code.co_filename for part in _NOT_MODELS):
        frame = frame.f_back
    return SourceLine(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname)


@dataclass(frozen=True)
class Op:
    """One op of a forward.

    Args:
        number: its place among all ops. name: `addmm`. dtype: of its first output.
        source: the line of the model. after: the tap reached last before it.
        inputs: bits of the ops it depends on, back to the last values that lockstep replaced.
        rule: what the schema says.
        into: for a cast, the dtype it starts from.
    """

    number: int
    name: str
    dtype: torch.dtype
    source: SourceLine
    after: str
    inputs: int
    rule: Rule
    into: torch.dtype | None = None

    @property
    def bit(self) -> int:
        """The op as a set of one."""
        return 1 << self.number


@dataclass
class OpTrace:
    """The ops of one forward with float outputs, and which of them made each tap.

    Args:
        ops: by number, views left out.
        cones: tap name to the bits of the ops its value was made by since the last replaced values.
    """

    ops: dict[int, Op] = field(default_factory=dict)
    cones: dict[str, int] = field(default_factory=dict)

    def of(self, tap: str) -> list[Op]:
        """Return the ops a tap's value was made by, in order."""
        return [self.ops[n] for n in numbers(self.cones.get(tap, 0)) if n in self.ops]


def numbers(bits: int) -> Iterator[int]:
    """List the members of a set held as bits.

    >>> list(numbers(0b1010))
    [1, 3]
    """
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low


class OpNumbers(TorchDispatchMode):
    """Number the ops of a forward; every pass of a deterministic model numbers them the same."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __enter__(self) -> Any:
        torch.clear_autocast_cache()  # a weight rounded before the pass is no op of it
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if any(t is not Tensor and t is not torch.nn.Parameter for t in types):
            return NotImplemented
        number, self.count = self.count, self.count + 1
        return self.op(number, func, args, kwargs or {})

    def op(self, number: int, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one op."""
        return func(*args, **kwargs)

    def reached(self, tap: str, value: Tensor) -> None:
        """Note that a tap was reached with this value."""

    def replaced(self, value: Tensor) -> None:
        """Note that the forward goes on from this value, which lockstep sets."""


class OpTracer(OpNumbers):
    """Trace the ops of a forward.

    Attributes:
        trace: what was seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trace = OpTrace()
        self._made: dict[int, int] = {}
        self._after = ""

    def op(self, number: int, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one op and note what it is made of."""
        rule = rule_of(func)
        tensors = [a for a in leaves((args, kwargs)) if isinstance(a, Tensor)]
        inputs = 0
        for t in tensors:
            inputs |= self._made.get(_memory(t), 0)
        out = func(*args, **kwargs)
        outs = [o for o in ([out] if isinstance(out, Tensor) else leaves(out)) if isinstance(o, Tensor)]
        outs += [args[i] for i in rule.writes if isinstance(i, int) and i < len(args) and isinstance(args[i], Tensor)]
        if rule.view or not outs:
            return out
        floats = [o for o in outs if is_float(o)]
        if floats and not rule.short.startswith(("empty", "new_empty")):
            start = tensors[0].dtype if rule.cast and tensors else None
            self.trace.ops[number] = Op(
                number, rule.short, floats[0].dtype, source_line(), self._after, inputs, rule, start
            )
            self.look(number, rule, func, args, kwargs, floats[0])
        for o in outs:
            self._made[_memory(o)] = inputs | (1 << number) if floats else inputs
        return out

    def look(self, number: int, rule: Rule, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        """Look at an op that has run."""

    def reached(self, tap: str, value: Tensor) -> None:
        """Note what a tap's value is made of."""
        self._after = tap
        self.trace.cones[tap] = self.trace.cones.get(tap, 0) | self._made.get(_memory(value), 0)

    def replaced(self, value: Tensor) -> None:
        """Cut what follows off from what came before."""
        self._made[_memory(value)] = 0


def _memory(tensor: Tensor) -> int:
    """Name the memory a tensor lies in; memory that is used again is named anew by the op that fills it."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return -1

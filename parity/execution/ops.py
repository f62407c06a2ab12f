"""The ops of a forward, one by one: where they come from, in which dtype they run, and what each tap is made of."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import PurePath
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from parity.execution.memory import leaves
from parity.execution.modes import Mode
from parity.execution.rules import Rule, rule_of
from parity.execution.storage import is_float

_OURS = ("parity/execution/", "parity/diagnose/", "<frozen")


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


def source_line() -> tuple[SourceLine, int]:
    """Return the line of the model that runs now, and the `id` of the innermost module whose method runs (0: none).

    The line is that of the innermost frame outside torch and this package, a torch function mode that was passed
    through left out: it is not where the model calls.
    """
    frame: Any = sys._getframe(1)
    found, module = None, 0
    while frame is not None and not (found and module):
        code = frame.f_code
        whose = _whose(code.co_filename)
        may_be = not module and whose != "ours" and code.co_varnames[:1] == ("self",)  # its locals are not read in vain
        if may_be and isinstance(held := frame.f_locals["self"], nn.Module):
            module = id(held)
        if found is None and whose == "model" and code.co_name != "__torch_function__":
            found = SourceLine(code.co_filename, frame.f_lineno, _named(code))
        frame = frame.f_back
    return found or SourceLine("unknown", 0, ""), module


@cache  # the same few files for every op
def _whose(file: str) -> str:
    """Say whose code a file holds: a "model"'s, "torch"'s or "ours"."""
    return "ours" if any(part in file for part in _OURS) else "torch" if "/torch/" in file else "model"


def _named(code: CodeType) -> str:
    """Return a function's name with its class before it; before Python 3.11 without."""
    return str(getattr(code, "co_qualname", code.co_name))


@dataclass(frozen=True)
class Op:
    """One op of a forward.

    Args:
        number: its place among all ops. name: `addmm`. dtype: of its first output.
        source: the line of the model. after: the tap reached last before it.
        inputs: bits of the ops it depends on, back to the last values that lockstep replaced.
        rule: what the schema says.
        module: `id` of the innermost module that ran it.
    """

    number: int
    name: str
    dtype: torch.dtype
    source: SourceLine
    after: str
    inputs: int
    rule: Rule
    module: int = 0

    @property
    def base(self) -> str:
        """What is computed, in place or not: `add` for `add_`."""
        return self.name.removesuffix("_")

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


class OpNumbers(Mode):
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


class OpLog:
    """Keeps the ops of a forward, and from which of them each tensor comes.

    Attributes:
        trace: what was seen. after: the tap reached last.
    """

    def __init__(self) -> None:
        self.trace = OpTrace()
        self._made: dict[int, int] = {}
        self.after = ""

    def before(self, args: Any, kwargs: Any) -> int:
        """Return the bits of the ops an op's inputs come from."""
        return self.made_of(t for t in leaves((args, kwargs)) if isinstance(t, Tensor))

    def made_of(self, tensors: Iterable[Tensor]) -> int:
        """Return the bits of the ops some tensors come from."""
        inputs = 0
        for t in tensors:
            inputs |= self.made_by(t)
        return inputs

    def made_by(self, tensor: Tensor) -> int:
        """Return the bits of the ops a tensor comes from, back to the last values that lockstep replaced."""
        return self._made.get(memory_of(tensor), 0)

    def is_data(self, tensor: Tensor) -> bool:
        """Say whether a tensor was made in the forward or set by lockstep: no weight, constant or input."""
        return memory_of(tensor) in self._made

    def note(
        self, number: int, rule: Rule, inputs: int, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> Tensor | None:
        """Note an op that has run; return its first float output, None for views and where there is none."""
        outs = [o for o in ([out] if isinstance(out, Tensor) else leaves(out)) if isinstance(o, Tensor)]
        outs += [args[i] for i in rule.writes if isinstance(i, int) and i < len(args) and isinstance(args[i], Tensor)]
        if rule.view or not outs:
            return None
        floats = [o for o in outs if is_float(o)]
        for o in outs:
            self._made[memory_of(o)] = inputs | (1 << number) if floats else inputs
        if not floats or rule.short.startswith(("empty", "new_empty")):
            return None
        source, module = source_line()
        self.trace.ops[number] = Op(number, rule.short, floats[0].dtype, source, self.after, inputs, rule, module)
        return floats[0]

    def reached(self, tap: str, value: Tensor) -> None:
        """Note what a tap's value is made of."""
        self.after = tap
        self.trace.cones[tap] = self.trace.cones.get(tap, 0) | self.made_by(value)

    def replaced(self, value: Tensor) -> None:
        """Cut what follows off from what came before."""
        self._made[memory_of(value)] = 0


class OpTracer(OpNumbers):
    """Trace the ops of a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.log = OpLog()

    @property
    def trace(self) -> OpTrace:
        """What was seen."""
        return self.log.trace

    def op(self, number: int, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one op and note what it is made of."""
        rule, inputs = rule_of(func), self.log.before(args, kwargs)
        out = func(*args, **kwargs)
        made = self.log.note(number, rule, inputs, args, kwargs, out)
        if made is not None:
            self.look(number, rule, func, args, kwargs, made)
        return out

    def look(self, number: int, rule: Rule, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        """Look at an op that has run."""

    def reached(self, tap: str, value: Tensor) -> None:
        """Note what a tap's value is made of."""
        self.log.reached(tap, value)

    def replaced(self, value: Tensor) -> None:
        """Cut what follows off from what came before."""
        self.log.replaced(value)


def memory_of(tensor: Tensor) -> int:
    """Name the memory a tensor lies in; memory that is used again is named anew by the op that fills it."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return -1

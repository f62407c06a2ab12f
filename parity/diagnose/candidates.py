"""What could be edited in a segment: every rounding it has and every wide op it could round, in groups of code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from parity.execution.edits import KINDS, Edit, EditTracer, Given, Kind
from parity.execution.ops import Op
from parity.execution.storage import bits

_FINE = 2.0**-14
"""A relative difference below this is not made by a rounding to 16 bits."""


@dataclass(frozen=True)
class Target:
    """A tap whose difference is to be explained.

    Args:
        name: of the tap. attention: whether its segment holds an attention kernel.
        native: what the native has there, in the reference's layout. valid: mask of what counts, or None.
        wide: whether the native computes in float64 somewhere in the segment.
        kind: of the tap, shared by blocks; "" where it stands alone.
    """

    name: str
    native: Tensor
    valid: Tensor | None = None
    attention: bool = False
    wide: bool = False
    kind: str = ""


@dataclass(frozen=True)
class Candidate:
    """Edits that belong together.

    Args:
        kind: what is done to each op. ops: in order. where: what the ops have in common, in words.
        kernel: the edits are inside an attention kernel, where another choice is no fault.
        given: what the model is given, where that is rounded.
    """

    kind: Kind
    ops: tuple[Op, ...]
    dtype: torch.dtype
    kernel: bool = False
    given: Given | None = None

    @property
    def edits(self) -> dict[int, Edit]:
        """The edits by op number."""
        memory = -1 if self.given is None else self.given.memory
        return {o.number: Edit(o.number, self.kind, self.dtype, memory) for o in self.ops}

    @property
    def place(self) -> object:
        """What is edited, in terms of the code: the same for every block that runs it."""
        return self.kind, self.dtype, frozenset((o.source, o.name) for o in self.ops)

    @property
    def direction(self) -> int:
        """+1: the native rounds more; -1: it rounds less."""
        return -1 if self.kind == "keep" else 1

    def words(self) -> str:
        """Say what is edited, and where."""
        names = _listed([f"`{name}`" for name in dict.fromkeys(o.name for o in self.ops if not o.rule.cast)])
        where = _places(self.ops)
        low = str(self.dtype).removeprefix("torch.")
        if self.kind == "keep":
            into = str(self.ops[0].dtype).removeprefix("torch.")
            what = f"the rounding of {names}" if names else "the cast"
            return f"{what} to {into} skipped ({where})"
        if self.kind == "split":
            return f"the bias of {names} added in a second op ({where})"
        if self.given is not None:
            return f"the input `{self.given.name}` rounded to {low} before {names or 'it is cast'} ({where})"
        if self.kind == "tf32":
            return f"the float32 operands of {names} rounded to TF32 ({where})"
        return f"{names} {'rounded to' if self.kind == 'round' else 'run in'} {low} ({where})"


def candidates(target: Target, trace: EditTracer, relative: float) -> Iterator[Candidate]:
    """List what could be edited in a target's segment, narrow groups first."""
    ops = trace.trace.of(target.name)
    inside = attention_interior(ops) if target.attention else 0
    seen: set[tuple[Kind, int]] = set()
    for kind in KINDS:
        able = [o for o in ops if kind in trace.possible.get(o.number, ()) and _sensible(o, kind, target, relative)]
        for kernel in (False, True):
            for group in _groups([o for o in able if bool(o.bit & inside) is kernel], kind):
                key = (kind, sum(o.bit for o in group))
                if key not in seen:
                    seen.add(key)
                    yield Candidate(kind, tuple(group), _dtype_of(group[0], kind, trace.low), kernel)
    for held in dict.fromkeys(held for o in ops for held in trace.reads.get(o.number, ())):
        readers = tuple(o for o in ops if held in trace.reads.get(o.number, ()))
        yield Candidate("given", readers, trace.low, given=held)


def _dtype_of(op: Op, kind: Kind, low: torch.dtype) -> torch.dtype:
    return torch.float32 if kind in ("round", "low") and op.dtype == torch.float64 else low


def _sensible(op: Op, kind: Kind, target: Target, relative: float) -> bool:
    """Say whether an edit could be of the size of the difference, and of a dtype somebody computes in."""
    if kind == "keep":
        return (bits(op.dtype) <= 11 and relative > _FINE) or (op.dtype == torch.float32 and target.wide)
    if kind == "tf32":
        return op.dtype == torch.float32 and relative > _FINE / 8
    return relative > _FINE or op.dtype == torch.float64


def _groups(ops: Sequence[Op], kind: Kind) -> Iterator[list[Op]]:
    """Group ops: of one name on one line, on one line, in one function, all of them."""
    for level in range(4 if kind in ("low", "keep", "tf32") else 1):
        groups: dict[object, list[Op]] = {}
        for op in ops:
            groups.setdefault((_common(op, level), op.dtype), []).append(op)
        yield from groups.values()


def _common(op: Op, level: int) -> object:
    """Return what ops of a group have in common."""
    line = (op.source.file, op.source.line)
    return ((*line, op.name), line, (op.source.file, op.source.function), None)[level]


def attention_interior(ops: Sequence[Op]) -> int:
    """Return the ops between two batched matmuls that feed each other, and fused kernels: an attention kernel's own."""
    products = [o for o in ops if o.name in ("bmm", "baddbmm")]
    fused = sum(o.bit for o in ops if o.name.startswith("_scaled_dot_product"))
    inside = fused
    for last in products:
        for first in products:
            if last.inputs & first.bit:
                inside |= sum(o.bit for o in ops if o.bit & (last.inputs | last.bit) and o.inputs & first.bit)
                inside |= first.bit
                inside &= ~last.bit
    return inside


def about(ops: Sequence[Op], edited: Sequence[Op]) -> tuple[bool, bool]:
    """Say whether edited ops make a table of sines and cosines, and whether they turn values by one.

    Args:
        ops: of the segment.
        edited: some of them.
    """
    waves = [o for o in ops if o.name in ("cos", "sin", "polar")]
    made, taken = 0, 0
    for wave in waves:
        made, taken = made | wave.inputs | wave.bit, taken | wave.bit
    kernels = [o for o in ops if o.name.startswith(("_scaled_dot_product", "_softmax", "_safe_softmax"))]
    before = 0
    for kernel in kernels:
        before |= kernel.inputs
    angles = bool(waves) and all(o.bit & made for o in edited)
    return angles, bool(edited) and all(o.inputs & taken and o.bit & before for o in edited)


def by_line(candidate: Candidate) -> list[Candidate]:
    """Split a candidate by line of code."""
    lines: dict[object, list[Op]] = {}
    for op in candidate.ops:
        lines.setdefault(op.source, []).append(op)
    return [replace(candidate, ops=tuple(ops)) for ops in lines.values()]


def _places(ops: Sequence[Op]) -> str:
    return _listed(list(dict.fromkeys(str(o.source) for o in ops)))


def _listed(parts: Sequence[str], most: int = 3) -> str:
    more = f" and {len(parts) - most} more" if len(parts) > most else ""
    return ", ".join(parts[:most]) + more

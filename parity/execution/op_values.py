"""Exact values of the ops of a forward, told apart by size alone: what is the same value in another layout or dtype."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from parity.execution.kept_values import KeptValues
from parity.execution.memory import leaves
from parity.execution.ops import Op, OpLog, SourceLine, memory_of, source_line
from parity.execution.rules import Rule, rule_of
from parity.execution.shadow import Shadow
from parity.execution.storage import bits, is_float

SPLITS = frozenset({"split", "split_with_sizes", "unbind", "chunk"})
_CLOSE = 1e-9
_MASKED = 1e30


PARTS = (2, 3, 4)
"""Into how many calls a side may split what the other runs in one: guidance runs two, samples may run one by one."""


@dataclass(frozen=True)
class Fingerprint:
    """A value without its order: number of elements, norm and sum, in float64.

    Args:
        rows: the same of equal pieces along dim 0, squared norms and sums, so that a call on a part of the batch is
            known again in one on all of it; () where there are no such pieces.
    """

    elements: int
    norm: float
    total: float
    rows: tuple[tuple[float, float], ...] = field(default=(), compare=False, repr=False)

    def in_parts(self, count: int) -> tuple[Fingerprint, ...]:
        """Return the fingerprints of that many equal parts along dim 0, () where it cannot be cut so."""
        each, rest = divmod(len(self.rows), count)
        if rest or not each:
            return ()
        pieces = [self.rows[i : i + each] for i in range(0, len(self.rows), each)]
        size = self.elements // count
        return tuple(Fingerprint(size, math.sqrt(sum(n for n, _ in p)), sum(t for _, t in p)) for p in pieces)

    def key(self) -> tuple[int, int]:
        """Return what equal values share, up to a step of one in the second."""
        return self.elements, round(math.log(self.norm) / (4 * _CLOSE)) if self.norm > 0 else 0

    def same(self, other: Fingerprint) -> bool:
        """Say whether two values can be one."""
        slack = _CLOSE * max(self.norm, other.norm)
        return (
            self.elements == other.elements
            and abs(self.norm - other.norm) <= slack
            and abs(self.total - other.total) <= slack * math.sqrt(max(1, self.elements))
        )


Read = tuple[Fingerprint | None, int]
"""What an op read: its exact value, and the op that made it last (-1: lockstep set it)."""


@dataclass(frozen=True)
class OpValue:
    """What an op gave.

    Args:
        op: the op. value: its exact output; None where it is not trusted.
        inputs: for each float input that is no weight or constant: its exact value, and the op that made it last (-1:
            lockstep set it).
        holds_low: the output is wider than 16 bits and holds 16-bit values only.
        autocast: it ran under autocast. weights: parameters it read. scalars: numbers it was called with.
        places: of the inputs among all that it was called with.
    """

    op: Op
    value: Fingerprint | None
    inputs: tuple[tuple[Fingerprint | None, int], ...]
    holds_low: bool
    autocast: bool
    weights: tuple[str, ...] = ()
    scalars: tuple[float, ...] = ()
    places: tuple[int, ...] = ()


@dataclass
class Values:
    """Exact values, to look others up in."""

    _held: dict[tuple[int, int], list[tuple[Fingerprint, OpValue | None]]] = field(default_factory=dict)

    def add(self, value: Fingerprint | None, by: OpValue | None = None) -> None:
        """Add a value."""
        if value is not None:
            for one in (value, *(part for count in PARTS for part in value.in_parts(count))):
                self._held.setdefault(one.key(), []).append((one, by))

    def has(self, value: Fingerprint | None) -> bool:
        """Say whether a value is held, whole or in parts: another number of calls gave it."""
        if value is None:
            return False
        cuts = (value.in_parts(count) for count in PARTS)
        return bool(self.find(value)) or any(parts and all(map(self.find, parts)) for parts in cuts)

    def find(self, value: Fingerprint | None) -> list[OpValue | None]:
        """Return the ops that gave a value; None in the list stands for one that an op only read."""
        if value is None:
            return []
        elements, place = value.key()
        near = (held for step in (0, -1, 1) for held in self._held.get((elements, place + step), ()))
        return [by for other, by in near if value.same(other)]


def values_of(ops: Iterable[OpValue]) -> Values:
    """Gather what ops gave and read."""
    found = Values()
    for op in ops:
        found.add(op.value, op)
        for value, _ in op.inputs:
            found.add(value)
    return found


class OpShadow(Shadow):
    """A shadow pass that keeps a fingerprint of every op's exact output.

    Attributes:
        log: the ops. given: by op number, what it gave. splits: by number, views that take a tensor apart, and into
            how many. slices: parts of one shape of one tensor, by number what is taken. lines: where those views
            are, by number. matmul: torch's float32 matmul precision in the pass. kept: takes the values, where wanted.
    """

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        self.log = OpLog()
        self.given: dict[int, OpValue] = {}
        self.matmul = ""
        self._count = 0
        self._names: dict[int, str] = {}
        self._copies: dict[int, weakref.ref[Any]] = {}
        self.splits: dict[int, tuple[str, int]] = {}
        self.slices: dict[tuple[Any, ...], dict[int, tuple[Any, ...]]] = {}
        self.lines: dict[int, SourceLine] = {}
        self.kept: KeptValues | None = None

    def name_parameters(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Name parameters, for ops that read them."""
        self._names = {memory_of(p): name for name, p in named}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        rule = rule_of(func)
        if any(t is not Tensor and t is not torch.nn.Parameter for t in types):
            return NotImplemented
        if rule.composite:
            return super().__torch_dispatch__(func, types, args, kwargs)
        number, kwargs = self._count, kwargs or {}
        self._count += 1
        given = [(place, t) for place, t in enumerate(leaves((args, kwargs))) if isinstance(t, Tensor)]
        bits_in = self.log.made_of(t for _, t in given)
        found = [] if rule.view else [(place, t) for place, t in given if is_float(t) and self.log.is_data(t)]
        places, tensors = tuple(place for place, _ in found), [t for _, t in found]
        read = tuple((self._fingerprint(t), self.log.made_by(t).bit_length() - 1) for t in tensors)
        in_pieces = [] if self.kept is None else list(self._in_pieces(read, tensors))
        weights = self._weights(t for _, t in given)
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self._name_copy(rule, weights, out)
        if rule.short in SPLITS and isinstance(out, (list, tuple)):
            self.splits[number] = rule.short, len(out)
            self.lines[number] = source_line()[0]
        if rule.short == "slice" and len(args) > 2:
            key = (self.log.after, memory_of(args[0]), args[0].storage_offset(), args[0].shape, args[1], out.shape)
            self.slices.setdefault(key, {})[number] = tuple(args[1:])
            self.lines[number] = source_line()[0]
        made = self.log.note(number, rule, bits_in, args, kwargs, out)
        if made is not None:
            scalars = tuple(float(a) for a in args if isinstance(a, (int, float)) and not isinstance(a, bool))
            self.given[number] = self._described(number, read, weights, scalars, made, places)
            if self.kept is not None:
                self.kept.add(number, self.high(made))
                for place, value in in_pieces:
                    self.kept.add(number, value, place)
        return out

    def _name_copy(self, rule: Rule, weights: tuple[str, ...], out: Any) -> None:
        """Name a parameter's cast copy as the parameter, as long as the copy lives: its memory may be used again."""
        if rule.view or not rule.cast or len(weights) != 1 or not isinstance(out, Tensor):
            return
        place, names, copies = memory_of(out), self._names, self._copies

        def forget(_: Any) -> None:
            names.pop(place, None)
            copies.pop(place, None)

        names[place] = weights[0]
        copies[place] = weakref.ref(out.untyped_storage(), forget)

    def _in_pieces(self, read: Sequence[Read], tensors: Sequence[Tensor]) -> Iterable[tuple[int, Tensor]]:
        """Yield the inputs that no single op gave: memory written piece by piece, a part of a value."""
        for place, (tensor, (value, made)) in enumerate(zip(tensors, read, strict=True)):
            whole = self.given.get(made)
            if value is not None and whole is not None and (whole.value is None or not whole.value.same(value)):
                yield place, self.high(tensor)

    def _weights(self, tensors: Iterable[Tensor]) -> tuple[str, ...]:
        names = (self._names.get(memory_of(t)) for t in tensors)
        return tuple(name for name in names if name)

    def _described(
        self, number: int, read: tuple[tuple[Fingerprint | None, int], ...], weights: tuple[str, ...],
        scalars: tuple[float, ...], out: Tensor, places: tuple[int, ...],
    ) -> OpValue:  # fmt: skip
        self.matmul = torch.get_float32_matmul_precision()
        wide = bits(out.dtype) > 11 and not out.is_complex()
        return OpValue(
            op=self.log.trace.ops[number],
            value=self._fingerprint(out),
            inputs=read,
            holds_low=wide and any(torch.equal(out, out.to(d).to(out.dtype)) for d in (torch.bfloat16, torch.float16)),
            autocast=self.autocast,
            weights=weights,
            scalars=scalars,
            places=places,
        )

    def _fingerprint(self, tensor: Tensor) -> Fingerprint | None:
        high = self.high(tensor)
        high = torch.view_as_real(high.resolve_conj()) if high.is_complex() else high
        return fingerprint(high)


def fingerprint(value: Tensor) -> Fingerprint | None:
    """Return a float64 value's fingerprint, None where it is not finite.

    What a mask puts in the place of scores (-inf, the least number of a dtype) counts as -1: beside it nothing else
    would show.
    """
    found = _measured(value)
    if math.isnan(found.norm) or found.norm <= _MASKED:
        return found if math.isfinite(found.norm) else None
    marks = torch.where(value.abs() > _MASKED, value.sign(), value)
    return found if math.isfinite((found := _measured(marks)).norm) else None


def _measured(value: Tensor) -> Fingerprint:
    elements, pieces = value.numel(), _pieces(value)
    if pieces == 1:
        return Fingerprint(elements, float(torch.linalg.vector_norm(value)), float(value.sum()))
    cut = value.reshape(pieces, -1)
    norms, totals = torch.linalg.vector_norm(cut, dim=1).tolist(), cut.sum(1).tolist()
    rows = tuple((n * n, t) for n, t in zip(norms, totals, strict=True))
    return Fingerprint(elements, math.sqrt(sum(n for n, _ in rows)), sum(totals), rows)


def _pieces(value: Tensor) -> int:
    """Return into how many pieces dim 0 is cut: as many as any number of calls asks for."""
    length = value.shape[0] if value.dim() > 1 and value.numel() else 1
    return next((n for n in (12, 6, 4, 3, 2) if length % n == 0), 1)

"""One faulty segment of the native, as repairs look at it: its ops, which of them differ, what they are about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from parity.diagnose.places import ends_of, innocent, unmatched
from parity.diagnose.side_ops import SideOps
from parity.execution.changes import Change
from parity.execution.op_values import OpValue, values_of
from parity.execution.tap import Inputs, Tap

_KERNELS = ("_scaled_dot_product", "_softmax", "_safe_softmax")
_NORMS = ("native_layer_norm", "native_group_norm", "_fused_rms_norm")
_ANGLES = frozenset({"cos", "sin", "polar"})


@dataclass
class Segment:
    """The native's segment before a tap, beside the reference's.

    Args:
        tap: the tap. native, reference: both sides' ops. model: the native. inputs: of the draw.
    """

    tap: Tap
    native: SideOps
    reference: SideOps
    model: nn.Module
    inputs: Inputs

    @cached_property
    def ops(self) -> list[OpValue]:
        """The native's ops."""
        return self.native.of(self.tap.name)

    @cached_property
    def theirs(self) -> list[OpValue]:
        """The reference's ops."""
        return self.reference.of(self.tap.name)

    @cached_property
    def region(self) -> list[OpValue]:
        """The native's ops whose values the reference does not have, in order."""
        found = list(unmatched(self.ops, values_of(self.theirs)).values())
        return sorted(found, key=lambda op: op.op.number)

    @cached_property
    def suspects(self) -> list[OpValue]:
        """The region, those ops first that read a value both sides have: what is behind them differs by them.

        Last come those that make a value both sides have.
        """
        values = values_of(self.theirs)
        free = innocent(self.ops, values)
        entries = [op for op in self.region if any(made < 0 or values.has(value) for value, made in op.inputs)]
        ordered = [*entries, *(op for op in self.region if op not in entries)]
        return sorted(ordered, key=lambda op: bool(op.op.bit & free))

    @cached_property
    def their_region(self) -> list[OpValue]:
        """The reference's ops whose values the native does not have."""
        found = list(unmatched(self.theirs, values_of(self.ops)).values())
        return sorted(found, key=lambda op: op.op.number)

    @cached_property
    def boundary(self) -> list[OpValue]:
        """The last ops both sides share: what the region reads."""
        made = {number for op in self.region for _, number in op.inputs if number >= 0}
        inside = {op.op.number for op in self.region}
        by_number = {op.op.number: op for op in self.ops}
        return [by_number[n] for n in sorted(made - inside) if n in by_number]

    @cached_property
    def held(self) -> dict[str, Tensor]:
        """The native's parameters by name."""
        return dict(self.model.named_parameters())

    @cached_property
    def read(self) -> list[str]:
        """Names of the parameters the segment reads."""
        return list(dict.fromkeys(w for op in self.ops for w in op.weights))

    @cached_property
    def unread(self) -> list[str]:
        """Names of the parameters that no op of the whole pass reads."""
        read = {w for op in self.native.given.values() for w in op.weights}
        return [name for name in self.held if name not in read]

    @cached_property
    def _ends(self) -> list[int]:
        """Numbers of the last op of every call of the segment."""
        return sorted(ends_of(self.ops))

    def behind(self, ops: Sequence[OpValue]) -> frozenset[int]:
        """Return the numbers of ops, of what they are made of among those that differ, and of what these read."""
        region = {op.op.number: op for op in self.region}
        found: set[int] = set()
        left = [op.op.number for op in ops]
        while left:
            number = left.pop()
            if number in found:
                continue
            found.add(number)
            one = region.get(number)
            left += [made for _, made in one.inputs] if one is not None else []
        return frozenset(found)

    @property
    def calls(self) -> int:
        """How often the segment runs in a forward."""
        return max(1, len(self._ends))

    def call_of(self, op: OpValue) -> int:
        """Return in which of the calls an op runs."""
        return min(self.calls - 1, sum(end < op.op.number for end in self._ends))

    def in_all_calls(self, change: Change) -> Change:
        """Make a change of one call a change of all: what is wrong in the code is wrong in each call of it."""
        ends = self._ends
        if len(ends) < 2 or not change.ops:
            return change
        ops = {}
        for number, one in change.ops.items():
            call = sum(end < number for end in ends)
            first = number - (ends[min(call, len(ends) - 1)] - ends[0])
            ops.update({first + end - ends[0]: one for end in ends})
        return replace(change, ops=ops)

    def line(self, op: OpValue) -> str:
        """Say where an op is."""
        return str(self.native.step(op)).split(" at ", 1)[1]

    def numbers(self, name: str) -> list[float]:
        """Return the numbers the reference calls such ops with, those first that it alone has."""
        found = [s for ops in (self.their_region, self.theirs) for op in ops if op.op.base == name for s in op.scalars]
        return list(dict.fromkeys(found))

    @cached_property
    def small_numbers(self) -> list[float]:
        """Return what the reference adds before it divides: its eps."""
        ops = [op for op in self.theirs if op.op.base in ("add", *_NORMS)]
        return list(dict.fromkeys(s for op in ops for s in op.scalars if 0 < s < 1e-2))

    @cached_property
    def _angle_bits(self) -> tuple[int, int]:
        """Return the ops that make angles, and those that take their sine or cosine."""
        turning = [op.op for op in self.ops if op.op.base in _ANGLES]
        return sum_bits(op.inputs for op in turning), sum_bits(op.bit for op in turning)

    @cached_property
    def _kernel_bits(self) -> int:
        return sum_bits(op.op.inputs for op in self.ops if op.op.name.startswith(_KERNELS))

    @property
    def attends(self) -> bool:
        """Whether the segment holds an attention kernel."""
        return bool(self._kernel_bits)

    def makes_angles(self, op: OpValue) -> bool:
        """Say whether a sine or cosine is taken of what an op gives."""
        return bool(op.op.bit & self._angle_bits[0])

    def turns(self, op: OpValue) -> bool:
        """Say whether an op takes sines and cosines, or what comes of them, towards an attention kernel."""
        taken = bool(op.op.inputs & self._angle_bits[1]) or bool(op.op.bit & self._angle_bits[1])
        return taken and bool(op.op.bit & self._kernel_bits)

    def softened(self, op: OpValue) -> bool:
        """Say whether a softmax is taken of what an op gives."""
        return bool(op.op.bit & self._kernel_bits)

    def scores(self, op: OpValue) -> bool:
        """Say whether an op stands between a product of queries and keys and its softmax."""
        return bool(op.op.bit & self._kernel_bits) and any(
            o.op.name in ("bmm", "baddbmm") and o.op.bit & op.op.inputs for o in self.ops
        )


def sum_bits(sets: Iterator[int] | Sequence[int] | Any) -> int:
    """Return the union of sets held as bits."""
    union = 0
    for one in sets:
        union |= one
    return union


def by_line(ops: Sequence[OpValue]) -> list[list[OpValue]]:
    """Group ops of one name on one line."""
    groups: dict[object, list[OpValue]] = {}
    for op in ops:
        groups.setdefault((op.op.source, op.op.name), []).append(op)
    return list(groups.values())


Held = Mapping[str, Tensor]

"""Exact values of the ops that some taps are made of, kept as long as there is room."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor

_ROOM, _SMALL, _WINDOWS = 1 << 30, 1 << 20, 4
"""Bytes kept in all, bytes that are kept whatever comes (tables made before the blocks), and how many taps back."""

Key = tuple[int, int]
"""Number of an op, and the place of an input of it, -1 for what it gave."""


class KeptValues:
    """Keeps what ops gave between the last few taps, and for good what the taps asked for are made of.

    Args:
        taps: names of those taps. room: bytes.

    Attributes:
        values: by op number, what it gave, float64; complex ones as real numbers [..., 2].
        operands: by op number and place among the inputs, what it read that no single op gave.
    """

    def __init__(self, taps: Iterable[str], room: int = _ROOM) -> None:
        self.values: dict[int, Tensor] = {}
        self.operands: dict[tuple[int, int], Tensor] = {}
        self._taps, self._room = frozenset(taps), room
        self._windows: deque[dict[Key, Tensor]] = deque([{}], maxlen=_WINDOWS)
        self._small: dict[Key, Tensor] = {}

    def add(self, number: int, value: Tensor, place: int = -1) -> None:
        """Keep an op's exact value for now, or with a place that of one of its inputs."""
        size = value.numel() * value.element_size()
        small = size <= _SMALL and len(self._small) * _SMALL < self._room
        if not small and size > self._left:
            return
        real = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
        (self._small if small else self._windows[-1])[number, place] = real.clone()

    def reached(self, tap: str, cone: int) -> None:
        """Keep for good what a tap is made of, where it was asked for."""
        if tap in self._taps:
            held = (one for window in (self._small, *self._windows) for one in window.items())
            for (number, place), value in held:
                if cone >> number & 1 and place < 0:
                    self.values[number] = value
                elif cone >> number & 1:
                    self.operands[number, place] = value
        self._windows.append({})

    @property
    def _left(self) -> int:
        passing = (v for window in self._windows for v in window.values())
        held = (*self.values.values(), *self.operands.values(), *passing)
        return self._room - sum(v.numel() * v.element_size() for v in {id(v): v for v in held}.values())

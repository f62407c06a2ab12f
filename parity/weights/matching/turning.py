"""Convolutions whose dims were exchanged: channels in and out, the axes of the kernel, or flattened in another order.

Letters in shapes: n elements looked at.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from parity.weights.matching.lines import Assignment, Part, Turn
from parity.weights.matching.places import Places
from parity.weights.matching.rows import Ints, Rows
from parity.weights.matching.sketch import Sketch
from parity.weights.matching.vectors import needed

_LOOKED_AT = 4096
_MOST, _MOST_TRIED = 1 << 24, 64
"""Elements of a tensor that is read whole to be looked at, and references tried of one native tensor."""
_SAME = 1e-3


class Turner:
    """Looks for references of which a native tensor is the dims in another order.

    Args:
        references: sketches by key.
        places: where tensors stand, which decides between equals.
        reference, native: rows of both sides.
    """

    def __init__(self, references: Mapping[str, Sketch], places: Places, reference: Rows, native: Rows) -> None:
        self._references, self._places, self._rows = references, places, (reference, native)
        self._by_size: dict[int, list[Sketch]] = defaultdict(list)
        for held in references.values():
            if held.telling:
                self._by_size[math.prod(held.shape)].append(held)

    def find(self, native: Sketch) -> Assignment | None:
        """Return the reference whose dims, in another order, are the native tensor's."""
        count = math.prod(native.shape)
        if not count or count > _MOST:
            return None
        held_turns = ((held, list(turns_of(held.shape, native.shape))) for held in self._by_size.get(count, ()))
        tried = [(held, turns) for held, turns in held_turns if turns]
        found: list[tuple[float, str, Turn]] = []
        if tried:
            at = np.unique(np.linspace(0, count - 1, _LOOKED_AT).astype(np.int64))
            values = self._values(1, native.key)[torch.from_numpy(at)]
            for held, turns in tried[:_MOST_TRIED]:
                whole = self._values(0, held.key)
                found += [(_cosine(values, whole[torch.from_numpy(_sources(turn, at))]), held.key, turn)
                          for turn in turns]  # fmt: skip
        return self._best(native, found)

    def _best(self, native: Sketch, found: Sequence[tuple[float, str, Turn]]) -> Assignment | None:
        best = max((cosine for cosine, _, _ in found), default=0.0)
        if best < needed(min(math.prod(native.shape), _LOOKED_AT)):
            return None
        equal = [(key, turn) for cosine, key, turn in found if cosine > best - _SAME]
        key = self._places.preferred(native.key, list(dict.fromkeys(key for key, _ in equal)))
        turn = next(turn for other, turn in equal if other == key)
        return _assignment(native, self._references[key], turn, best)

    def _values(self, side: int, key: str) -> Tensor:
        rows, columns, _ = self._rows[side].info(key)
        values = self._rows[side].elements(key, 0, rows * columns)
        return (values.abs() if values.is_complex() else values).float().nan_to_num(0.0, 0.0, 0.0)


def _assignment(native: Sketch, reference: Sketch, turn: Turn, cosine: float) -> Assignment:
    view, dims = turn
    every: Ints = np.arange(native.rows)
    if dims[0] == 0 and view[0] == reference.rows == native.rows:
        columns = np.arange(math.prod(view[1:])).reshape(view[1:]).transpose([dim - 1 for dim in dims[1:]]).reshape(-1)
        return Assignment(1, (Part(reference.key, 1, np.arange(len(columns)), columns),), cosine, 1.0)
    return Assignment(0, (Part(reference.key, 0, every, every, turn),), cosine, 1.0, reshape=True)


def turns_of(reference: Sequence[int], native: Sequence[int]) -> Iterator[Turn]:
    """Yield each exchange of dims that makes a tensor of one shape one of another, where one of them has a kernel.

    >>> list(turns_of((8, 3, 2), (3, 8, 2)))
    [((8, 3, 2), (1, 0, 2))]
    >>> list(turns_of((8, 3, 2), (8, 6)))
    [((8, 3, 2), (0, 2, 1))]
    """
    ours, theirs = ([size for size in shape if size > 1] for shape in (reference, native))
    if max(len(ours), len(theirs)) < 3 or max(len(ours), len(theirs)) > 5:
        return
    longer, shorter = (ours, theirs) if len(ours) >= len(theirs) else (theirs, ours)
    for dims in permutations(range(len(longer))):
        turned = [longer[dim] for dim in dims]
        if dims != tuple(range(len(dims))) and joins(turned, shorter):
            if longer is ours:
                yield tuple(ours), dims
            else:
                yield tuple(turned), tuple(sorted(range(len(dims)), key=dims.__getitem__))


def joins(sizes: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether sizes, some joined with those behind them, are a shape.

    >>> joins((2, 3, 4), (6, 4)), joins((2, 3, 4), (4, 6))
    (True, False)
    """
    left = list(sizes)
    for size in shape:
        product = 1
        while product < size and left:
            product *= left.pop(0)
        if product != size:
            return False
    return not left


def _sources(turn: Turn, at: Ints) -> Ints:
    """Return which elements of the reference the elements `at` of the native are. Shapes: [n]."""
    view, dims = turn
    strides = [math.prod(view[dim + 1 :]) for dim in range(len(view))]
    out = np.zeros_like(at)
    left = at
    for dim in reversed(dims):
        left, place = np.divmod(left, view[dim])
        out += place * strides[dim]
    return out


def _cosine(one: Tensor, other: Tensor) -> float:
    a, b = (t.double() - t.double().mean() for t in (one, other))
    size = float(a.norm() * b.norm())
    return float(a.dot(b)) / size if size else 0.0

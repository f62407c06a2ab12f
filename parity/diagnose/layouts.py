"""One value in other layouts: dims split, merged and exchanged, as two code bases hold the same numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from parity.weights.matching.turning import joins

_MOST, _PLAIN = 12, 0.3
"""Layouts that are tried, and the cosine that the plain one of one shape has ahead."""


def layouts(value: Tensor, shape: Sequence[int]) -> Iterator[Tensor]:
    """Yield a value in the layouts that have a shape, the plain reshape first.

    Shapes: value any; what is yielded has `shape`.
    """
    if value.numel() != math.prod(shape):
        return
    yield value.reshape(tuple(shape))
    yield from itertools.islice(_turned(value, shape), _MOST)


def _turned(value: Tensor, shape: Sequence[int]) -> Iterator[Tensor]:
    ours, theirs = [d for d in value.shape if d != 1], [d for d in shape if d != 1]
    finer = theirs if len(theirs) >= len(ours) else ours
    for order in itertools.permutations(range(len(finer))):
        turned = [finer[i] for i in order]
        if list(order) == sorted(order) or not joins(turned, ours if finer is theirs else theirs):
            continue
        if finer is theirs:  # their dims lie in ours in this order: take them apart, then bring them into theirs
            back = [order.index(i) for i in range(len(order))]
            yield value.reshape(turned).permute(back).reshape(tuple(shape))
        else:
            yield value.reshape(ours).permute(order).reshape(tuple(shape))


def nearest_layout(value: Tensor, other: Tensor) -> tuple[float, Tensor | None]:
    """Return how alike two values are (cosine, without sign) in the layout of the second that shows it best.

    Shapes: value, other any, of one number of elements; the tensor returned is `value` in `other`'s shape.
    """
    size = float(torch.linalg.vector_norm(value)) * float(torch.linalg.vector_norm(other))
    best, found, known = -1.0, None, 0.0
    # Two values of one shape lie alike unless another layout says much more: dims may be of one size by chance.
    same = [d for d in value.shape if d != 1] == [d for d in other.shape if d != 1]
    for number, laid in enumerate(layouts(value, other.shape)):
        alike = likeness(laid, other) / size if size > 0 else 0.0
        counted = alike + (_PLAIN if same and not number else 0.0)
        if counted > best + 1e-12:
            best, found, known = counted, laid, alike
    return (known, found) if found is not None else (-1.0, None)


def likeness(one: Tensor, other: Tensor) -> float:
    """Return the product of two values of one shape, without sign."""
    return abs(float(torch.dot(one.reshape(-1), other.reshape(-1))))

"""What is moved where a convolution's columns are: its channels, the axes of its kernel, or both."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from parity.weights.matching.rows import Ints
from parity.weights.orders import described


def later_dims(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the dims behind dim 0 of a convolution, without those of size 1; nothing of a matrix.

    >>> later_dims((64, 16, 1, 2, 2)), later_dims((64, 64))
    ((16, 2, 2), ())
    """
    return tuple(size for size in shape[1:] if size > 1) if len(shape) > 2 else ()


def moved_columns(order: Ints, shape: Sequence[int]) -> str:
    """Return what an order of columns moves in a tensor of a shape.

    >>> moved_columns(np.arange(8).reshape(2, 2, 2).transpose(0, 2, 1).reshape(-1), (4, 2, 2, 2))
    'permute kernel axes'
    >>> moved_columns(np.array([4, 5, 6, 7, 0, 1, 2, 3]), (4, 2, 2, 2))
    'permute in-channels'
    """
    if len(shape) <= 2 or len(order) != math.prod(shape[1:]) or set(order.tolist()) != set(range(len(order))):
        return "permute columns"
    kernel = math.prod(shape[2:])
    channels = order.reshape(-1, kernel)
    if np.array_equal(channels // kernel, np.broadcast_to(channels[:, :1] // kernel, channels.shape)):
        inner = channels % kernel
        if np.array_equal(inner, np.broadcast_to(np.arange(kernel), inner.shape)):
            return "permute in-channels"
        same = np.array_equal(channels[:, 0] // kernel, np.arange(len(channels)))
        return "permute kernel axes" if same else "permute in-channels + permute kernel"
    words = described(order, later_dims(shape)) or {}
    return "channels last" if list(words.get("dims", ())) == _last(words) else "permute channels and kernel"


def _last(words: dict[str, object]) -> list[int]:
    view = words.get("view")
    return [*range(1, len(view)), 0] if isinstance(view, list) else []

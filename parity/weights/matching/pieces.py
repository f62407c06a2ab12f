"""The pieces of a key map that move what a part of a native tensor says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from parity.errors import KeyMapError
from parity.weights.matching.lines import Part
from parity.weights.matching.rows import Ints, matrix_shape
from parity.weights.orders import is_order
from parity.weights.piece import Piece, assembled_shape

Shape = tuple[int, ...]


def pieces_of(
    native: str, axis: int, part: Part, shapes: tuple[Sequence[int], Sequence[int]], reshape: bool
) -> Iterator[Piece]:
    """Yield the pieces of a key map that move what a part says.

    Raises:
        KeyMapError: later dims of the tensors are cut between channels, which pieces cannot say.
    """
    ours, theirs = tuple(shapes[0]), tuple(shapes[1])
    if (whole := _whole(native, axis, part, ours, theirs, reshape)) is not None:
        yield whole
        return
    first, start = int(part.reference.min()), int(part.native.min())
    order = part.reference - first
    if len(part.native) == int(part.native.max()) + 1 - start and is_order(order) and _rows_whole(axis, part, theirs):
        dims = _dim(ours, part.axis)[0], _dim(theirs, axis)[0]
        permute = None if (np.diff(order) == 1).all() else tuple(order.tolist())
        last, stop = int(part.reference.max()) + 1, start + len(part.native)
        if dims[1] == 0 and dims[0] == int(part.axis != axis) and _plain(ours, part.axis):
            one = Piece(part.key, native, dims[0], first, last, part.axis != axis, permute, 0, start, stop)
            yield _in_shape(one, ours, theirs)
            return
    yield from _in_runs(native, axis, part, ours, theirs)


def _whole(native: str, axis: int, part: Part, ours: Shape, theirs: Shape, reshape: bool) -> Piece | None:
    """Return the one piece that moves a whole tensor: reshaped, viewed with dims exchanged, or its columns moved."""
    rows, columns = matrix_shape(ours)
    lines = columns if part.axis else rows
    size = ours[0] if ours else 1
    if part.turn is not None:
        view, dims = part.turn
        return Piece(part.key, native, 0, 0, size, native_stop=view[dims[0]], reshape=True, view=view, dims=dims)
    if axis != part.axis and not reshape:
        return _turned(native, part, ours, theirs)
    everything = len(part.reference) == lines and np.prod(theirs) == np.prod(ours) \
        and np.array_equal(part.native, np.arange(lines))  # fmt: skip
    identity = everything and np.array_equal(part.reference, np.arange(lines))
    if reshape or identity:
        return Piece(part.key, native, 0, 0, size, native_stop=size, reshape=ours != theirs)
    if everything and axis == 1 and rows == size > 1 and is_order(part.reference):
        order = tuple(part.reference.tolist())
        return Piece(part.key, native, 0, 0, size, native_stop=size, reshape=ours != theirs, columns=order)
    return None


def _turned(native: str, part: Part, ours: Shape, theirs: Shape) -> Piece | None:
    """Return the piece of a convolution that is turned as a matrix; None of others, which need no view."""
    view, lines = matrix_shape(ours), math.prod(matrix_shape(theirs)[:1])
    straight = all(np.array_equal(at, np.arange(lines)) for at in (part.native, part.reference))
    if (_plain(ours, 1) and _plain(theirs, 1)) or not straight or view[::-1] != matrix_shape(theirs):
        return None
    return Piece(part.key, native, 0, 0, ours[0], native_stop=view[1], reshape=True, view=view, dims=(1, 0))


def _rows_whole(axis: int, part: Part, theirs: Shape) -> bool:
    return axis == 0 or len(theirs) < 2


def _plain(shape: Shape, axis: int) -> bool:
    """Whether lines along an axis are what one dim has: rows always, columns where nothing lies behind dim 1."""
    return axis == 0 or math.prod(shape[2:]) == 1


def _in_shape(piece: Piece, ours: Shape, theirs: Shape) -> Piece:
    """Return the piece, with its result given the native's shape where it is all of the native."""
    made = assembled_shape((piece,), {piece.reference: torch.Size(ours)})
    return replace(piece, reshape=tuple(made) != theirs and made.numel() == math.prod(theirs))


def _in_runs(native: str, axis: int, part: Part, ours: Shape, theirs: Shape) -> Iterator[Piece]:
    (dim, step), (native_dim, native_step) = _dim(ours, part.axis), _dim(theirs, axis)
    breaks = np.flatnonzero((np.diff(part.native) != 1) | (np.diff(part.reference) != 1)) + 1
    for at, there in zip(np.split(part.native, breaks), np.split(part.reference, breaks), strict=True):
        span, target = _span(part.key, ours, there, step), _span(native, theirs, at, native_step)
        yield Piece(part.key, native, dim, *span, axis != part.axis, None, native_dim, *target)


def _span(key: str, shape: Shape, lines: Ints, step: int) -> tuple[int, int]:
    start, stop = int(lines[0]), int(lines[-1]) + 1
    if start % step or stop % step:
        raise KeyMapError(f"{key!r} of shape {list(shape)} has its later dims cut: write a converter function")
    return start // step, stop // step


def _dim(shape: Shape, axis: int) -> tuple[int, int]:
    """Return the dim of a tensor that an axis of its matrix is, and how many lines one place of it has."""
    if len(shape) < 2:
        return 0, 1
    leading = 0
    while len(shape) - leading > 2 and shape[leading] == 1:
        leading += 1
    return leading + axis, math.prod(shape[leading + 2 :]) if axis else 1

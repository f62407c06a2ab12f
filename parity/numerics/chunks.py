"""Two tensors of any float dtype, streamed through reused float64 buffers.

float32 sums over millions of elements are off in the fourth digit and fresh memory is the main cost of a comparison, so
values are widened chunk by chunk into the same buffers and summed in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from parity.errors import ParityError

CHUNK = 1 << 18
"""Most elements widened at once: four buffers of 2 MB."""


@dataclass(frozen=True)
class Chunk:
    """One chunk of both tensors and their difference as float64 vectors; valid until the next chunk is asked for.

    Shapes: expected, actual, difference and the free buffer scratch [n], n <= CHUNK, in row-major order from
    element number `start`.
    """

    start: int
    expected: Tensor
    actual: Tensor
    difference: Tensor
    scratch: Tensor


def check_comparable(expected: Tensor, actual: Tensor) -> None:
    """Raise unless both are non-empty float tensors of one shape.

    Raises:
        ParityError: shapes differ, nothing to compare, or no float dtype.
    """
    if expected.shape != actual.shape:
        raise ParityError(f"shapes differ: expected {tuple(expected.shape)}, actual {tuple(actual.shape)}")
    if not expected.numel():
        raise ParityError(f"nothing to compare: both are empty {tuple(expected.shape)}")
    for side, value in (("expected", expected), ("actual", actual)):
        if not value.is_floating_point():
            raise ParityError(f"{side} holds {value.dtype}; metrics need a float dtype")
        if value.is_meta:
            raise ParityError(f"{side} is on the meta device and holds no values")


def chunks_of(expected: Tensor, actual: Tensor, size: int = CHUNK, only: int | None = None) -> Iterator[Chunk]:
    """Stream both tensors in row-major order; neither is ever copied whole, whatever its strides.

    `only`: the number of one chunk to widen, passing over the others.
    """
    count = min(size, expected.numel())
    buffers = torch.empty(4, count, dtype=torch.float64, device=expected.device)
    start = 0
    for number, (left, right) in enumerate(_cut(expected.detach(), actual.detach(), count)):
        n = left.numel()
        if only is None or number == only:
            e, a, d, scratch = (buffer[:n] for buffer in buffers)
            e.view(left.shape).copy_(left)
            a.view(right.shape).copy_(right)
            yield Chunk(start, e, a, torch.sub(a, e, out=d), scratch)
        start += n


def _cut(left: Tensor, right: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    if left.is_contiguous() and right.is_contiguous():
        left, right = left.view(-1), right.view(-1)
    if left.numel() <= size:
        yield left, right
    elif (inner := left.numel() // left.shape[0]) <= size:
        rows = size // inner
        yield from zip(torch.split(left, rows), torch.split(right, rows), strict=True)
    else:
        for row in range(left.shape[0]):
            yield from _cut(left[row], right[row], size)


def norm(value: Tensor) -> float:
    """Return the Euclidean norm, summed in float64 chunks.

    Shapes: any.
    """
    if not value.numel():
        return 0.0
    zero = value.new_zeros(()).expand(value.shape)
    squares = [torch.dot(c.expected, c.expected) for c in chunks_of(value, zero)]
    return float(torch.stack(squares).sum().sqrt())

"""Layouts that bring a native value to the reference's, found by trying them.

Letters in shapes: B batch, F frames, H W height and width, S tokens, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from parity.execution.tap import SAME, Layout, per_frame, permuted, reshaped

AGREES = 1e-3
"""Relative distance up to which two values are one: float32 rounding and float32 tables, never another function."""

ROUNDING = 5e-5
"""Relative distance above which more than float32 rounding and float32 tables is seen at a tap."""


@dataclass(frozen=True)
class Laid:
    """A layout with its source text ("" for the default) and the distance it leaves."""

    layout: Layout
    text: str
    distance: float
    rank: int


def distance(actual: Tensor, expected: Tensor) -> float:
    """Return the relative L2 distance; inf where the shapes differ or a value is not finite. Shapes: any, the same."""
    if actual.shape != expected.shape:
        return math.inf
    apart, size = float((actual - expected).norm()), float(expected.norm())
    found = apart / size if size else apart
    return found if math.isfinite(found) else math.inf


def tells(value: Tensor) -> bool:
    """Say whether a value is evidence: finite, and not all zeros or ones."""
    return bool(torch.isfinite(value).all()) and not bool(((value == 0) | (value == 1)).all())


def agreeing(reference: Tensor, native: Tensor) -> Laid | None:
    """Return the simplest layout under which two values agree, None where there is none."""
    for rank, (layout, text) in enumerate(layouts_between(reference, native)):
        apart = distance_by(layout, reference, native)
        if apart < AGREES:
            return Laid(layout, text, apart, rank)
    return None


def distance_by(layout: Layout, reference: Tensor, native: Tensor) -> float:
    """Return the larger distance of two values there and back; inf where the layout does not fit."""
    assert layout.backward is not None
    try:
        there, back = layout.forward(native, reference.shape), layout.backward(reference, native.shape)
    except (RuntimeError, IndexError):
        return math.inf
    return max(distance(there, reference), distance(back, native))


def could_agree(reference: tuple[int, float, float], native: tuple[int, float, float]) -> bool:
    """Compare number of elements, mean and mean square of two values, which no layout changes."""
    counts, means, squares = zip(reference, native, strict=True)
    if max(counts) % min(counts):
        return False
    size = math.sqrt(max(squares)) or 1.0
    return abs(squares[0] - squares[1]) <= 0.01 * max(squares) and abs(means[0] - means[1]) <= 0.01 * size


def layouts_between(reference: Tensor, native: Tensor) -> Iterator[tuple[Layout, str]]:
    """Yield the layouts two shapes allow, the simplest first, with their source text."""
    r, n = reference.shape, native.shape
    if r == n:
        yield SAME, ""
    elif r.numel() == n.numel():
        yield reshaped(), "reshaped()"
    if r.numel() == n.numel():
        if len(r) == 3 and len(n) in (4, 5) and r[-1] == n[1]:
            yield _TOKENS_LAST
        if len(n) == 3 and len(r) in (4, 5) and n[-1] == r[1]:
            yield _TOKENS_FIRST
        if _folds(r, n) or _folds(n, r):
            yield per_frame(), "per_frame()"
        if 2 <= len(r) == len(n) <= 5 and sorted(r) == sorted(n):
            for dims in permutations(range(len(n))):
                if list(dims) != sorted(dims) and torch.Size(n[d] for d in dims) == r:
                    yield permuted(*dims), f"permuted{dims}"
    elif len(r) == len(n) + 1 and r[:1] == n[:1] and r[2:] == n[1:]:
        yield _ONE_PER_TOKEN
    elif len(n) == len(r) + 1 and r[:1] == n[:1] and n[2:] == r[1:]:
        yield _ONE_PER_SAMPLE


def _folds(frames: torch.Size, other: torch.Size) -> bool:
    """Say whether the first could be the other with its frames counted as samples. Shapes: [B F, C, H, W], any."""
    if len(frames) != 4 or frames[0] == other[0] or frames[0] % max(1, other[0]):
        return False
    channels = {3: -1, 5: 1}.get(len(other))
    return channels is not None and frames[1] == other[channels]


_TEXTS = {
    "channels last": (
        'Layout("channels last", lambda v, s: v.flatten(2).mT.reshape(s), lambda v, s: v.mT.reshape(s))'
    ),
    "channels first": (
        'Layout("channels first", lambda v, s: v.mT.reshape(s), lambda v, s: v.flatten(2).mT.reshape(s))'
    ),
    "one per token": 'Layout("one per token", lambda v, s: v[:, None].expand(s), lambda v, s: v[:, 0].reshape(s))',
    "one per sample": 'Layout("one per sample", lambda v, s: v[:, 0].reshape(s), lambda v, s: v[:, None].expand(s))',
}
_LAYOUTS = {
    "channels last": Layout("channels last", lambda v, s: v.flatten(2).mT.reshape(s), lambda v, s: v.mT.reshape(s)),
    "channels first": Layout("channels first", lambda v, s: v.mT.reshape(s), lambda v, s: v.flatten(2).mT.reshape(s)),
    "one per token": Layout("one per token", lambda v, s: v[:, None].expand(s), lambda v, s: v[:, 0].reshape(s)),
    "one per sample": Layout("one per sample", lambda v, s: v[:, 0].reshape(s), lambda v, s: v[:, None].expand(s)),
}
_TOKENS_LAST = _LAYOUTS["channels last"], _TEXTS["channels last"]
_TOKENS_FIRST = _LAYOUTS["channels first"], _TEXTS["channels first"]
_ONE_PER_TOKEN = _LAYOUTS["one per token"], _TEXTS["one per token"]
_ONE_PER_SAMPLE = _LAYOUTS["one per sample"], _TEXTS["one per sample"]

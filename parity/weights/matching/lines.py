"""Lines of tensors (rows or columns) and what is known of lines that were found in others.

Letters in shapes: n lines of a tensor, K size of a sketch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from parity.weights.matching.rows import Ints
from parity.weights.matching.sketch import Sketch

Norms = npt.NDArray[np.float32]
SURE = 0.7
"""Cosine of two sketches above which a line is taken to be another."""


@dataclass(frozen=True)
class Lines:
    """Rows (axis 0) or columns (axis 1) of one tensor."""

    sketch: Sketch
    axis: int

    @property
    def units(self) -> Tensor:
        """Unit sketches. Shapes: [n, K] float16."""
        return self.sketch.lines[self.axis]

    @property
    def norms(self) -> Tensor:
        """Norms of the centred lines. Shapes: [n]."""
        return self.sketch.norms[self.axis]

    @property
    def length(self) -> int:
        """Elements of a line."""
        return self.sketch.length(self.axis)

    @property
    def count(self) -> int:
        """Number of lines."""
        return len(self.units)


Turn = tuple[tuple[int, ...], tuple[int, ...]]
"""A view of a whole tensor, and the order of its dims."""


@dataclass(frozen=True)
class Part:
    """Lines of a reference tensor in a native one: native line `native[i]` is reference line `reference[i]`.

    With `turn` it is the whole tensor, viewed and its dims exchanged; the lines are then just all.
    """

    key: str
    axis: int
    native: Ints
    reference: Ints
    turn: Turn | None = None


@dataclass(frozen=True)
class Assignment:
    """All lines of a native tensor along one axis, with the estimated cosine of the whole."""

    axis: int
    parts: tuple[Part, ...]
    cosine: float
    covered: float
    reshape: bool = False


def is_quantised(dtype: torch.dtype) -> bool:
    """Whether values of a dtype are stored with a scale of their own, often one a row: bytes of any kind."""
    return dtype.itemsize == 1 and dtype != torch.bool


def agreement(native: Lines, at: Ints, reference: Lines, there: Ints) -> tuple[float, float, float]:
    """Return the inner product and both squared norms of paired lines, estimated from sketches."""
    one, other = torch.from_numpy(at), torch.from_numpy(there)
    cosines = (native.units[one].float() * reference.units[other].float()).sum(1)
    r = reference.norms[other].double()
    n = r if is_quantised(native.sketch.dtype) and native.axis == 0 else native.norms[one].double()
    return float((cosines * n * r).sum()), float(n.dot(n)), float(r.dot(r))


def judged(native: Lines, parts: Sequence[Part], references: dict[str, Sketch]) -> Assignment:
    """Return the assignment of given parts with its estimated cosine and the share of the native's energy it covers."""
    dot = ours = theirs = 0.0
    for part in parts:
        values = agreement(native, part.native, Lines(references[part.key], part.axis), part.reference)
        dot, ours, theirs = dot + values[0], ours + values[1], theirs + values[2]
    total = float(native.norms.double().square().sum())
    if is_quantised(native.sketch.dtype):  # rows have scales of their own
        total, ours = float(native.count), float(sum(len(part.native) for part in parts))
        return Assignment(native.axis, tuple(parts), dot / theirs if theirs else 0.0, ours / total)
    cosine = dot / (ours * theirs) ** 0.5 if ours * theirs > 0 else 0.0
    return Assignment(native.axis, tuple(parts), cosine, ours / total if total else 0.0)


def consistent(native: Lines, part: Part, reference: Lines) -> bool:
    """Whether no strong line of the pairing is plainly another line."""
    one, other = torch.from_numpy(part.native), torch.from_numpy(part.reference)
    cosines = (native.units[one].float() * reference.units[other].float()).sum(1)
    weight = native.norms[one] * reference.norms[other]
    strong = weight >= weight.median()
    return float((cosines[strong] < 0.45).float().mean()) <= 0.02

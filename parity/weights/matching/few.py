"""Tensors of few lines whose lines were put in another order: compared line by line, exactly.

Letters in shapes: n lines of a tensor, L length of a line.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from parity.weights.matching.lines import Assignment, Part
from parity.weights.matching.rows import Ints
from parity.weights.matching.sketch import Sketch

_LEAST, _SHORT, _EXACT = 0.7, 32, 0.999
"""Cosine of a line and the one it was, and what short lines need, of which many are alike by chance."""


def reordered(native: Sketch, reference: Sketch) -> Assignment | None:
    """Return in which order a native tensor has a reference's lines, rows or columns of either; None for none."""
    best: Assignment | None = None
    for axis in (0, 1):
        for other in (0, 1):
            found = _along(native, axis, reference, other)
            if found is not None and (best is None or found.cosine > best.cosine):
                best = found
    return best


def _along(native: Sketch, axis: int, reference: Sketch, other: int) -> Assignment | None:
    assert native.values is not None
    assert reference.values is not None
    ours = native.values.t() if axis else native.values
    theirs = reference.values.t() if other else reference.values
    if ours.shape != theirs.shape or min(ours.shape) < 2:
        return None
    order = _order(ours, theirs)
    if order is None:
        return None
    cosine = _cosine(ours, theirs[torch.from_numpy(order)])
    if cosine < (_EXACT if ours.shape[1] < _SHORT else _LEAST):
        return None
    return Assignment(axis, (Part(reference.key, other, np.arange(len(ours)), order),), cosine, 1.0)


def _order(ours: Tensor, theirs: Tensor) -> Ints | None:
    """Return which line each line is nearest to; None where two are nearest to one. Shapes: both [n, L]."""
    order = (_units(ours) @ _units(theirs).t()).argmax(dim=1).numpy().astype(np.int64)
    return order if len(np.unique(order)) == len(order) else None


def _units(lines: Tensor) -> Tensor:
    centred = lines - lines.mean(1, keepdim=True) if lines.shape[1] >= _SHORT else lines
    units: Tensor = centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return units


def _cosine(one: Tensor, other: Tensor) -> float:
    a, b = (t.double().reshape(-1) - t.double().mean() for t in (one, other))
    size = float(a.norm() * b.norm())
    return float(a.dot(b)) / size if size else 0.0

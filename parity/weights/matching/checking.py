"""Check an assignment on a small tile of each part: some of its lines, at some places along them.

Letters in shapes: n lines, p places along them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from parity.weights.matching.lines import SURE, Assignment, Part, is_quantised
from parity.weights.matching.rows import Ints, Rows
from parity.weights.matching.sketch import Sketch

_ROWS, _TILE = 8, 48
_LEAST = 0.45
_ENOUGH = 4


class Checker:
    """Checks assignments against values.

    Args:
        references: sketches of the reference by key.
        reference, native: rows of both sides.
    """

    def __init__(self, references: Mapping[str, Sketch], reference: Rows, native: Rows) -> None:
        self._references, self._rows = references, (reference, native)

    def checked(self, native: Sketch, axis: int, parts: Sequence[Part]) -> Assignment | None:
        """Return the assignment with the cosine of what was looked at; None where it does not hold."""
        if not parts or not all(self._fits(native, axis, part) for part in parts):
            return None
        cosines: list[float] = []
        for part in parts:
            cosine = self._seen_cosine(native, axis, part)
            cosine = self._cosine(native, axis, part) if cosine is None else cosine
            if cosine < SURE:
                return None
            cosines.append(cosine * len(part.native))
        lines = sum(len(part.native) for part in parts)
        return Assignment(axis, tuple(parts), sum(cosines) / lines, lines / (native.columns if axis else native.rows))

    def _fits(self, native: Sketch, axis: int, part: Part) -> bool:
        reference = self._references[part.key]
        lines = reference.columns if part.axis else reference.rows
        count = native.columns if axis else native.rows
        return bool(reference.length(part.axis) == native.length(axis) and part.reference.max() < lines
                    and part.native.max() < count and reference.telling)  # fmt: skip

    def _seen_cosine(self, native: Sketch, axis: int, part: Part) -> float | None:
        """Return the cosine of the rows both sides saw before, without reading; None where they are too few."""
        reference = self._references[part.key]
        if axis or part.axis or is_quantised(native.dtype) != is_quantised(reference.dtype):
            return None
        order = np.argsort(part.native, kind="stable")
        place = np.minimum(np.searchsorted(part.native[order], native.seen), len(order) - 1)
        there = np.where(part.native[order][place] == native.seen, part.reference[order][place], -1)
        at = np.minimum(np.searchsorted(reference.seen, there), len(reference.seen) - 1)
        both = np.flatnonzero((there >= 0) & (reference.seen[at] == there))
        if len(both) < _ENOUGH:
            return None
        one, other = torch.from_numpy(both), torch.from_numpy(at[both])
        cosines = (native.seen_lines[0][one] * reference.seen_lines[0][other]).sum(1)
        norms = native.seen_lines[1][one], reference.seen_lines[1][other]
        return _together(cosines * norms[0] * norms[1], norms)

    def _cosine(self, native: Sketch, axis: int, part: Part) -> float:
        """Return the cosine of a tile, or 0 where a strong line of it is plainly another."""
        length = native.length(axis)
        some, places = _tile(len(part.native), length, (axis, part.axis))
        ours = _taken(self._rows[1], native.key, axis, part.native[some], places)
        theirs = _taken(self._rows[0], part.key, part.axis, part.reference[some], places)
        if is_quantised(native.dtype) != is_quantised(self._references[part.key].dtype):
            ours, theirs = (tile / tile.norm(dim=1, keepdim=True).clamp_min(1e-30) for tile in (ours, theirs))
        dots, norms = (ours * theirs).sum(1), (ours.norm(dim=1), theirs.norm(dim=1))
        return _together(dots, norms)


def _together(dots: Tensor, norms: tuple[Tensor, Tensor]) -> float:
    """Return the cosine of all lines together, or 0 where a strong one is plainly another. Shapes: [n]."""
    weight = norms[0] * norms[1]
    strong = weight >= weight.median()
    apart = float((dots[strong] < _LEAST * weight[strong]).float().mean())
    size = float(norms[0].norm() * norms[1].norm())
    return float(dots.sum()) / size if size and apart <= 0.05 else 0.0


def _tile(lines: int, length: int, axes: tuple[int, int]) -> tuple[Ints, Ints]:
    """Choose lines and places so that few rows are read: whole rows, rows across all columns, or a square of both."""
    if axes == (0, 0):
        return _spread(lines, _ROWS), np.arange(length)
    if axes == (1, 1):
        return np.arange(lines), _spread(length, _ROWS)
    return _spread(lines, _TILE), _spread(length, _TILE)


def _spread(count: int, wanted: int) -> Ints:
    """Return numbers spread over a range, other ones than a first look takes."""
    return np.unique(((np.arange(wanted) + 0.37) * count / wanted).astype(np.int64))


def _taken(rows: Rows, key: str, axis: int, lines: Ints, places: Ints) -> Tensor:
    """Return a tile, each line centred. Shapes: [n, p]."""
    if axis == 0:
        read = rows.take(key, lines)
        tile = read if len(places) == read.shape[1] else read[:, torch.from_numpy(places)]
    else:
        tile = rows.take(key, places)[:, torch.from_numpy(lines)].t()
    centred: Tensor = tile - tile.mean(1, keepdim=True)
    return centred.nan_to_num(0.0, 0.0, 0.0)

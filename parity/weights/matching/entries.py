"""One entry a reference tensor and native piece, as JSON has it, and back to the pieces of a key map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from parity.errors import KeyMapError
from parity.weights.matching.lines import Assignment, Part, is_quantised
from parity.weights.matching.rows import Ints, matrix_shape
from parity.weights.matching.sketch import Sketch
from parity.weights.orders import described, order_from
from parity.weights.piece import Piece

AMBIGUOUS, UNRELATED, DUPLICATE = "ambiguous", "unrelated", "duplicate"
HIGH, MEDIUM = 0.95, 0.8
"""Cosine from which values are essentially the same, and from which they are related."""


def relation_of(native: Sketch, found: Assignment, part: Part, reference: Sketch) -> str:
    """Return what was done to the reference tensor, in words joined by " + "."""
    words = ["reshape"] if found.reshape else _moves(native, found, part, reference)
    if not words and native.shape != reference.shape:
        words.append("reshape")
    if is_quantised(native.dtype) != is_quantised(reference.dtype):
        words.append("quantise")
    elif native.dtype != reference.dtype:
        words.append("cast")
    moved = [word for word in words if word not in ("cast", "quantise")]
    if not moved:
        words.insert(0, "same" if native.key == reference.key else "rename")
    return " + ".join(words)


def _moves(native: Sketch, found: Assignment, part: Part, reference: Sketch) -> list[str]:
    words = ["fuse"] if len(found.parts) > 1 else []
    lines = reference.rows if part.axis == 0 else reference.columns
    if len(part.reference) < lines:
        words.append("split")
    if sum(len(other.native) for other in found.parts) < (native.columns if found.axis else native.rows):
        words.append("pad")
    if part.axis != found.axis:
        words.append("transpose")
    if (np.diff(part.reference) != 1).any():
        words.append("permute rows" if found.axis == 0 or native.rows == 1 else "permute columns")
    return words


def placed(found: Assignment, part: Part) -> dict[str, Any]:
    """Return slice and permutation of a part, in few words."""
    order = np.argsort(part.native, kind="stable")
    native, reference = part.native[order], part.reference[order]
    first = int(reference.min())
    whole = int(reference.max()) - first + 1 == len(reference)
    permutation = described(reference - first) if whole else {"rows": (reference - first).tolist()}
    return {
        "slice": {
            "axis": found.axis, "native": _spans(native), "reference_axis": part.axis,
            "reference": [first, int(reference.max()) + 1],
        },
        "permutation": permutation, "reshape": found.reshape,
    }  # fmt: skip


def _spans(lines: Ints) -> list[int] | dict[str, int] | list[list[int]]:
    """Return `[start, stop)`, or runs of one size at one step, or each run."""
    breaks = np.flatnonzero(np.diff(lines) != 1) + 1
    runs = [[int(run[0]), int(run[-1]) + 1] for run in np.split(lines, breaks)]
    if len(runs) == 1:
        return runs[0]
    sizes, steps = {stop - start for start, stop in runs}, {b[0] - a[0] for a, b in zip(runs, runs[1:])}  # noqa: B905, RUF007
    if len(sizes) == len(steps) == 1:
        return {"start": runs[0][0], "size": sizes.pop(), "step": steps.pop(), "count": len(runs)}
    return runs


def part_from(entry: Mapping[str, Any]) -> tuple[int, Part, bool]:
    """Return native axis, part and whether it is reshaped, from an entry of a report.

    Raises:
        KeyMapError: the entry is not one this project writes.
    """
    try:
        held, permutation = entry["slice"], entry["permutation"]
        native = _unspanned(held["native"])
        start, stop = (int(n) for n in held["reference"])
        if permutation is None:
            reference = np.arange(start, stop)
        elif "rows" in permutation:
            reference = start + np.asarray(permutation["rows"], dtype=np.int64)
        else:
            reference = start + np.asarray(order_from(permutation, stop - start), dtype=np.int64)
        if len(native) != len(reference):
            raise ValueError(f"{len(native)} native lines, {len(reference)} of the reference")
        part = Part(str(entry["reference"]), int(held["reference_axis"]), native, reference)
        return int(held["axis"]), part, bool(entry.get("reshape"))
    except (KeyError, TypeError, ValueError) as error:
        name = str(entry.get("native"))[:80] if isinstance(entry, Mapping) else str(entry)[:80]
        raise KeyMapError(f"the entry of {name!r} is none this project writes: {error}") from error


def _unspanned(held: Any) -> Ints:
    if isinstance(held, Mapping):
        starts = int(held["start"]) + int(held["step"]) * np.arange(int(held["count"]))
        return np.asarray((starts[:, None] + np.arange(int(held["size"]))).reshape(-1), dtype=np.int64)
    runs = held if held and isinstance(held[0], list) else [held]
    return np.concatenate([np.arange(int(start), int(stop)) for start, stop in runs])


def pieces_of(native: str, axis: int, part: Part, shapes: tuple[Sequence[int], Sequence[int]], reshape: bool) \
        -> Iterator[Piece]:  # fmt: skip
    """Yield the pieces of a key map that move what a part says.

    Raises:
        KeyMapError: later dims of the tensors are rearranged, which pieces cannot say.
    """
    ours, theirs = tuple(shapes[0]), tuple(shapes[1])
    rows, columns = matrix_shape(ours)
    lines = columns if part.axis else rows
    identity = axis == part.axis and len(part.reference) == lines and bool((part.reference == np.arange(lines)).all())
    whole = identity and np.prod(theirs) == np.prod(ours) and bool((part.native == np.arange(lines)).all())
    if whole or reshape:
        size = ours[0] if ours else 1
        stop = size
        yield Piece(part.key, native, 0, 0, size, native_stop=stop, reshape=ours != theirs)
        return
    dims = _dim(ours, part.axis, part.key), _dim(theirs, axis, native)
    turned = part.axis != axis
    first, last = int(part.reference.min()), int(part.reference.max()) + 1
    start, stop = int(part.native.min()), int(part.native.max()) + 1
    if not turned and dims == (0, 0) and stop - start == last - first == len(part.native):
        order = None if (np.diff(part.reference) == 1).all() else tuple(int(n) for n in part.reference - first)
        if order is None or (first, last) == (0, ours[0]) or last - first == stop - start:
            yield Piece(part.key, native, 0, first, last, False, order, 0, start, stop)
            return
    breaks = np.flatnonzero((np.diff(part.native) != 1) | (np.diff(part.reference) != 1)) + 1
    for at, there in zip(np.split(part.native, breaks), np.split(part.reference, breaks), strict=True):
        span, target = (int(there[0]), int(there[-1]) + 1), (int(at[0]), int(at[-1]) + 1)
        yield Piece(part.key, native, dims[0], *span, turned, None, dims[1], *target)


def _dim(shape: tuple[int, ...], axis: int, key: str) -> int:
    """Return the dim of a tensor that an axis of its matrix is."""
    if len(shape) < 2:
        return 0
    leading = 0
    while len(shape) - leading > 2 and shape[leading] == 1:
        leading += 1
    if axis == 1 and len(shape) - leading != 2:
        raise KeyMapError(f"{key!r} of shape {list(shape)} has its later dims rearranged: write a converter function")
    return leading + axis

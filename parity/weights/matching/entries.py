"""One entry a reference tensor and native piece, as JSON has it, and back to the part it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from parity.errors import KeyMapError
from parity.weights.matching.convolutions import later_dims, moved_columns
from parity.weights.matching.lines import Assignment, Part, Turn, is_quantised
from parity.weights.matching.rows import Ints
from parity.weights.matching.sketch import Sketch
from parity.weights.orders import described, order_from

AMBIGUOUS, UNRELATED, DUPLICATE = "ambiguous", "unrelated", "duplicate"
HIGH, MEDIUM = 0.95, 0.8
"""Cosine from which values are essentially the same, and from which they are related."""


def relation_of(native: Sketch, found: Assignment, part: Part, reference: Sketch) -> str:
    """Return what was done to the reference tensor, in words joined by " + "."""
    words = ["reshape"] if found.reshape else _moves(native, found, part, reference)
    words = ["exchange channels"] if part.turn is not None else words
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
    in_order = bool((np.diff(part.reference) == 1).all())
    used = len(part.reference) if in_order else len(np.unique(part.reference))
    if used < lines:
        words.append("split")
    if used < len(part.reference):
        words.append("repeat")
    if sum(len(other.native) for other in found.parts) < (native.columns if found.axis else native.rows):
        words.append("pad")
    if part.axis != found.axis:
        words.append("transpose")
    if not in_order and _out_of_order(part.reference):
        words.append(_permuted(native, found, part, reference))
    return words


def _permuted(native: Sketch, found: Assignment, part: Part, reference: Sketch) -> str:
    if found.axis == 0 or native.rows == 1:
        kernel = len(native.shape) > 2 and native.rows == native.shape[0]
        return "permute out-channels" if kernel and found.axis == 0 else "permute rows"
    shape = native.shape if len(native.shape) > len(reference.shape) else reference.shape
    return "permute columns" if part.axis == 0 else moved_columns(part.reference, shape)


def _out_of_order(reference: Ints) -> bool:
    """Whether lines are in another order, and not only repeated in blocks."""
    words = described(reference - reference.min()) if len(reference) else None
    return words is not None and "repeat" not in words


def placed(found: Assignment, part: Part, shape: Sequence[int] = ()) -> dict[str, Any]:
    """Return slice and permutation of a part, in few words; `shape` is the reference's."""
    order = np.argsort(part.native, kind="stable")
    native, reference = part.native[order], part.reference[order]
    first = int(reference.min())
    if part.turn is not None:
        permutation: dict[str, Any] | None = {"view": list(part.turn[0]), "dims": list(part.turn[1])}
    else:
        permutation = described(reference - first, later_dims(shape) if part.axis else ())
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
        held, permutation, reshape = entry["slice"], entry["permutation"], bool(entry.get("reshape"))
        native = _unspanned(held["native"])
        start, stop = (int(n) for n in held["reference"])
        turn = _turn(permutation) if reshape and permutation is not None else None
        if permutation is None or turn is not None:
            reference = np.arange(start, stop)
        elif "rows" in permutation:
            reference = start + np.asarray(permutation["rows"], dtype=np.int64)
        else:
            reference = start + np.asarray(order_from(permutation, len(native)), dtype=np.int64)
        if len(native) != len(reference):
            raise ValueError(f"{len(native)} native lines, {len(reference)} of the reference")
        part = Part(str(entry["reference"]), int(held["reference_axis"]), native, reference, turn)
        return int(held["axis"]), part, reshape
    except (KeyError, TypeError, ValueError) as error:
        name = str(entry.get("native"))[:80] if isinstance(entry, Mapping) else str(entry)[:80]
        raise KeyMapError(f"the entry of {name!r} is none this project writes: {error}") from error


def _turn(words: Mapping[str, Any]) -> Turn:
    view, dims = (tuple(int(n) for n in words[name]) for name in ("view", "dims"))
    if sorted(dims) != list(range(len(view))):
        raise ValueError(f"dims {list(dims)} are no order of the dims of view {list(view)}")
    return view, dims


def _unspanned(held: Any) -> Ints:
    if isinstance(held, Mapping):
        starts = int(held["start"]) + int(held["step"]) * np.arange(int(held["count"]))
        return np.asarray((starts[:, None] + np.arange(int(held["size"]))).reshape(-1), dtype=np.int64)
    runs = held if held and isinstance(held[0], list) else [held]
    return np.concatenate([np.arange(int(start), int(stop)) for start, stop in runs])

"""Pieces given one by one, as matching by value and map files give them, checked against shapes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from parity.errors import KeyMapError
from parity.weights.coverage import Shapes
from parity.weights.piece import Piece, assembled_shape


def placed(pieces: Iterable[Piece], shapes: Shapes, broken: dict[str, str]) -> dict[str, tuple[Piece, ...]]:
    """Return the pieces by native key, in the order of their place; those that do not fit go to `broken`, with why."""
    out: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces:
        out[piece.native].append(piece)
    good: dict[str, tuple[Piece, ...]] = {}
    for native, parts in out.items():
        ordered = tuple(sorted(parts, key=lambda piece: piece.native_start))
        if why := _wrong(native, ordered, shapes):
            broken[native] = why
        else:
            good[native] = ordered
    for key, why in _dropped(good, shapes):
        broken[key] = why
    return good


def _wrong(native: str, parts: tuple[Piece, ...], shapes: Shapes) -> str | None:
    at = 0
    for piece in parts:
        if piece.reference not in shapes:
            return f"{native!r} comes from {piece.reference!r}, which the reference lacks"
        if piece.native_start != at:
            return f"{native!r} has a hole or an overlap at {at}, the next piece is {piece.reference!r}"
        at = piece.native_stop
    try:
        assembled_shape(parts, shapes)
    except (KeyMapError, RuntimeError, IndexError) as error:
        return f"{native!r} from {parts[0].reference!r}: {str(error).splitlines()[0]}"
    return None


def _dropped(pieces: dict[str, tuple[Piece, ...]], shapes: Shapes) -> Iterable[tuple[str, str]]:
    """Name reference tensors of which some rows or columns go nowhere."""
    used: dict[tuple[str, int], set[tuple[int, int]]] = defaultdict(set)
    for parts in pieces.values():
        for piece in parts:
            used[piece.reference, piece.dim].add((piece.start, piece.stop))
    whole: dict[str, str] = {}
    for (key, dim), spans in used.items():
        at = 0
        for start, stop in sorted(spans):
            at = stop if start <= at < stop else at
        size = shapes[key][dim] if shapes[key] else 1
        arrived = at >= size or whole.get(key) == ""
        whole[key] = "" if arrived else f"{key!r}: only {at} of {size} along dim {dim} arrive"
    yield from ((key, why) for key, why in whole.items() if why)

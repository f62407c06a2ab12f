"""Read the cuts, joins and orders of a converter function off what it does to tensors of element numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from parity.errors import KeyMapError
from parity.weights.orders import is_order
from parity.weights.piece import Piece, assemble, assembled_shape

Converter = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
_BITS = 32
_MASK = (1 << _BITS) - 1


def probed(fn: Converter, shapes: Mapping[str, torch.Size]) -> dict[str, tuple[Piece, ...]]:
    """Return the pieces of each native key, proven on the number of every element's row, column and rest.

    Raises:
        KeyMapError: the function computes with values, or moves them in a way pieces cannot say.
    """
    codes = _codes(list(shapes))
    rows, columns, rest = (_run(fn, _numbered(shapes, codes, dim)) for dim in range(3))
    names = {code: key for key, code in codes.items()}
    plain = {key: _pieces(key, rows[key], columns[key], names, shapes) for key in rows}
    out = {key: _with_columns(plain[key], columns[key], rest[key], shapes) for key in rows}
    for dim, got in enumerate((rows, columns, rest)):
        _prove(out, _numbered(shapes, codes, dim), got)
    _check_whole(out, shapes)
    return out


def _prove(pieces: Mapping[str, tuple[Piece, ...]], numbers: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
    for key, parts in pieces.items():
        try:
            same = torch.equal(assemble(parts, numbers, got[key].shape), got[key])
        except (RuntimeError, IndexError):
            same = False
        if not same:
            raise _unreadable(key, "cuts, joins, transposes and row orders cannot say how it moves values")


def _codes(keys: list[str]) -> dict[str, int]:
    """Give each key a random number, so that arithmetic on values shows as a number no key has."""
    numbers = torch.randperm(1 << 20, generator=torch.Generator().manual_seed(0))[: len(keys)] + 1
    return dict(zip(keys, numbers.tolist(), strict=True))


def _numbered(shapes: Mapping[str, torch.Size], codes: Mapping[str, int], dim: int) -> dict[str, Tensor]:
    return {key: (_positions(shape, dim) + (codes[key] << _BITS)).expand(shape) for key, shape in shapes.items()}


def _positions(shape: torch.Size, dim: int) -> Tensor:
    """Number the elements along dim 0, along dim 1, or (2) over all later dims; a tensor that broadcasts to shape."""
    if dim < 2:
        kept = [size if i == dim else 1 for i, size in enumerate(shape)]
    else:
        kept = [1 if i < 2 else size for i, size in enumerate(shape)]
    count = torch.Size(kept).numel()
    return torch.arange(count).reshape(kept)


def _run(fn: Converter, numbers: dict[str, Tensor]) -> dict[str, Tensor]:
    try:
        return dict(fn(numbers))
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        raise KeyMapError(f"the converter function failed on integer tensors: {text}") from error


def _pieces(
    key: str, rows: Tensor, columns: Tensor, names: Mapping[int, str], shapes: Mapping[str, torch.Size]
) -> tuple[Piece, ...]:
    if rows.dtype != torch.int64:
        raise _unreadable(key, f"it casts values to {rows.dtype}")
    if not rows.numel():
        raise _unreadable(key, f"its result is empty {tuple(rows.shape)}")
    lines = rows.reshape(rows.shape[0], -1) if rows.ndim else rows.reshape(1, 1)
    across = columns.reshape(lines.shape)
    if torch.equal(lines, lines[:, :1].expand_as(lines)):
        parts = _runs(key, lines[:, 0], names, dim=0, native_dim=0)
        return tuple(_shaped(_narrowed(part, across, shapes), rows.shape, shapes, len(parts)) for part in parts)
    if rows.ndim == 2 and torch.equal(rows, rows[:1].expand_as(rows)):
        return _runs(key, rows[0], names, dim=0, native_dim=1, transpose=True)
    return _runs(key, columns.reshape(*columns.shape[:2], -1)[0, :, 0], names, dim=1, native_dim=1)


def _with_columns(
    parts: tuple[Piece, ...], columns: Tensor, rest: Tensor, shapes: Mapping[str, torch.Size]
) -> tuple[Piece, ...]:
    """Read off in which order a piece that keeps rows whole has the elements of each."""
    shape = shapes[parts[0].reference]
    if len(parts) > 1 or parts[0].transpose or parts[0].dim or len(shape) < 2 or columns.ndim < 2:
        return parts
    first = (columns[:1].flatten() & _MASK) * shape[2:].numel() + (rest[:1].flatten() & _MASK)
    count = shape[1:].numel()
    if len(first) != count or torch.equal(first, torch.arange(count)) or not is_order(first.numpy()):
        return parts
    return (replace(parts[0], columns=tuple(first.tolist())),)


def _runs(
    key: str, line: Tensor, names: Mapping[int, str], *, dim: int, native_dim: int, transpose: bool = False
) -> tuple[Piece, ...]:
    """Cut one line of numbers into pieces wherever the key changes or the numbers jump."""
    out: list[Piece] = []
    at = 0
    for code, group in groupby(line.tolist(), key=lambda number: number >> _BITS):
        numbers = [number & _MASK for number in group]
        for first, last, order in _spans(numbers, allow_order=not transpose and dim == 0):
            end = at + (last - first if order is None else len(order))
            out.append(Piece(_name(key, code, names), key, dim, first, last, transpose, order, native_dim, at, end))
            at = end
    return tuple(out)


def _narrowed(piece: Piece, across: Tensor, shapes: Mapping[str, torch.Size]) -> Piece:
    """Turn a piece of all rows that keeps some columns only into a cut along dim 1."""
    shape = shapes[piece.reference]
    kept = across[piece.native_start] & _MASK
    first, last = int(kept.min()), int(kept.max()) + 1
    if len(shape) < 2 or (first, last) == (0, shape[1]) or piece.stop - piece.start < shape[0]:
        return piece
    return replace(piece, dim=1, start=first, stop=last)


def _shaped(piece: Piece, shape: torch.Size, shapes: Mapping[str, torch.Size], parts: int) -> Piece:
    return replace(piece, reshape=parts == 1 and assembled_shape((piece,), shapes) != shape)


def _spans(numbers: list[int], allow_order: bool) -> list[tuple[int, int, tuple[int, ...] | None]]:
    """Cover the numbers by one span, in order, permuted or repeated, or else by runs of consecutive numbers."""
    first, last = min(numbers), max(numbers) + 1
    if numbers == list(range(first, last)):
        return [(first, last, None)]
    if allow_order and is_order(np.asarray(numbers) - first):
        return [(first, last, tuple(n - first for n in numbers))]
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([number, number + 1])
    return [(start, stop, None) for start, stop in runs]


def _name(key: str, code: int, names: Mapping[int, str]) -> str:
    if code not in names:
        raise _unreadable(key, "it computes with values instead of moving them")
    return names[code]


def _check_whole(pieces: Mapping[str, tuple[Piece, ...]], shapes: Mapping[str, torch.Size]) -> None:
    """Raise when the function drops some rows or columns of a tensor it uses."""
    kept: dict[str, set[tuple[int, int]]] = {}
    for parts in pieces.values():
        for piece in parts:
            kept.setdefault(piece.reference, set()).update((piece.dim, i) for i in range(piece.start, piece.stop))
    for key, places in kept.items():
        sizes = [shapes[key][dim] if shapes[key] else 1 for dim in {dim for dim, _ in places}]
        if len(places) < min(sizes):
            raise KeyMapError(f"the converter drops part of {key!r}: {len(places)} of {min(sizes)} rows arrive")


def _unreadable(key: str, why: str) -> KeyMapError:
    return KeyMapError(f"cannot read off how the converter function makes {key!r}: {why}\nwrite this key as a rule")

"""What an adapter holds for each row of a weight, carried through a key map: magnitudes (DoRA) and biases.

W' = m * (W + s B A) / |W + s B A| by rows: rows that are cut, permuted or stacked keep their length, so their m goes
with them. Cutting columns, or joining them, makes other rows of other lengths, which the weight alone could tell.
Letters in shapes: I inputs and O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from parity.errors import LoraError
from parity.lora.adapter import LoraTarget
from parity.lora.dora import by_input
from parity.weights.piece import Piece

Placed = Sequence[tuple[Piece, LoraTarget]]


Held = tuple[Tensor | None, Tensor | None]
"""Magnitudes and bias."""


def taken(piece: Piece, target: LoraTarget) -> Held:
    """Return magnitudes and bias of what a piece takes of a target.

    Raises:
        LoraError: the piece does not keep rows whole.
    """
    whole = piece.stop - piece.start == (target.A.shape[1] if piece.dim else target.B.shape[0])
    columns = target.magnitude is not None and by_input(target)
    held = {"magnitude": target.magnitude, "bias": target.bias}
    for name, value in held.items():
        if value is None:
            continue
        if piece.transpose or not (whole or (piece.dim == 0 and not (name == "magnitude" and columns))):
            raise LoraError(_refusal(piece, name, columns))
        if not (name == "magnitude" and columns):
            held[name] = _permuted(piece, value.flatten()[_rows(piece, value)])
    return held["magnitude"], held["bias"]


def _rows(piece: Piece, value: Tensor) -> slice:
    return slice(piece.start, piece.stop) if piece.dim == 0 else slice(0, value.numel())


def _permuted(piece: Piece, value: Tensor) -> Tensor:
    return value if piece.permute is None else value[torch.tensor(piece.permute, device=value.device)]


def _refusal(piece: Piece, name: str, columns: bool) -> str:
    what = {"magnitude": "magnitudes (DoRA)", "bias": "a bias"}[name]
    if piece.transpose:
        how = f"{piece.native!r} is its transpose: they would belong to its inputs"
    elif columns and name == "magnitude":
        how = f"they are lengths of whole columns, of which {piece.native!r} takes rows {piece.start} to {piece.stop}"
    else:
        how = f"{piece.native!r} takes columns {piece.start} to {piece.stop} only"
    text = f"{piece.reference!r} has {what} that cannot be carried over"
    return f"{text}\n{how}\nmerge the adapter into its own model first"


def joined(native: str, placed: Placed, pieces: Sequence[Piece]) -> Held:
    """Return magnitudes and bias of a weight that is joined from parts; a part without a bias gains none.

    Raises:
        LoraError: a part has no magnitudes where another has, or the parts are not stacked by rows.
    """
    magnitudes = [target.magnitude for _, target in placed if target.magnitude is not None]
    if magnitudes:
        _check_stacked(native, placed, pieces, len(magnitudes))
    biases = [(piece, target.bias) for piece, target in placed if target.bias is not None]
    return torch.cat(magnitudes) if magnitudes else None, _stacked(biases, pieces)


def _check_stacked(native: str, placed: Placed, pieces: Sequence[Piece], held: int) -> None:
    text = f"{native!r} is joined from {len(pieces)} layers"
    if pieces[0].native_dim or any(by_input(target) for _, target in placed if target.magnitude is not None):
        raise LoraError(f"{text}: magnitudes (DoRA) are lengths of whole rows or columns, which become longer")
    if held < len(pieces):
        raise LoraError(f"{text}, of which {held} have magnitudes (DoRA): those of the others are in their weights")


def _stacked(biases: Sequence[tuple[Piece, Tensor]], pieces: Sequence[Piece]) -> Tensor | None:
    """Put biases at their rows, or add them where the parts are joined by columns.

    Shapes: parts [n] to [O].
    """
    if not biases:
        return None
    if pieces[0].native_dim:
        return torch.stack([value for _, value in biases]).sum(0)
    out = biases[0][1].new_zeros(pieces[-1].native_stop)
    for piece, value in biases:
        out[piece.native_start : piece.native_stop] = value
    return out

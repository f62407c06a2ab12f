"""A key map from native to reference, by the shapes of both models: every piece turned round."""

from __future__ import annotations

import re
from dataclasses import replace

import torch

from parity.errors import KeyMapError
from parity.weights.keymap import KeyMap
from parity.weights.piece import Piece
from parity.weights.plan import KeyPlan
from parity.weights.rule import native_only, reference_only


def turned(plan: KeyPlan) -> KeyMap:
    """Return the map that goes the other way, for models of these shapes.

    Raises:
        KeyMapError: a tensor is transposed and its rows permuted, or reshaped.
    """
    pieces: dict[tuple[str, int, int], Piece] = {}
    for parts in plan.pieces.values():
        for piece in parts:
            back = _turned(piece, plan)
            pieces.setdefault((back.native, back.native_start, back.native_dim), back)  # of copies one will do
    unknown = [reference_only(re.escape(key), reason) for key, reason in plan.native_only.items()]
    unmade = [native_only(re.escape(key), reason) for key, reason in plan.reference_only.items()]
    order = sorted(pieces.values(), key=lambda piece: (piece.native, piece.native_start))
    return KeyMap.from_pieces(order, *unknown, *unmade)


def _turned(piece: Piece, plan: KeyPlan) -> Piece:
    if piece.reshape or (piece.transpose and piece.permute is not None):
        how = "reshaped" if piece.reshape else "transposed and its rows permuted"
        raise KeyMapError(f"{piece.native!r} is {how}: the map cannot be turned round, write the one back")
    permute = None if piece.permute is None else tuple(torch.argsort(torch.tensor(piece.permute)).tolist())
    stop = piece.native_stop or plan.native_shapes[piece.native][piece.native_dim]
    return replace(
        piece, reference=piece.native, native=piece.reference, permute=permute,
        dim=piece.native_dim, start=piece.native_start, stop=stop,
        native_dim=piece.dim, native_start=piece.start, native_stop=piece.stop,
    )  # fmt: skip

"""`KeyPlan`: a key map worked out for the shapes of two models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from parity.errors import KeyMapError
from parity.numerics.metrics import bit_equal
from parity.weights.piece import Piece, Source, assemble, disassemble
from parity.weights.rule import Rule

Shapes = Mapping[str, torch.Size]


@dataclass(frozen=True)
class KeyPlan:
    """A key map worked out for the shapes of two models, known to account for every tensor of both.

    Args:
        pieces: by native key, in the order of their place in the native tensor.
        native_shapes: shape of each native tensor that is produced.
        reference_shapes: shape of each reference tensor.
        reference_only, native_only: declared keys of one side, with the reason.
        unused: rules that matched nothing.
    """

    pieces: Mapping[str, tuple[Piece, ...]]
    native_shapes: Shapes
    reference_shapes: Shapes
    reference_only: Mapping[str, str]
    native_only: Mapping[str, str]
    unused: tuple[Rule, ...] = ()

    def pieces_of(self, reference_key: str) -> list[Piece]:
        """Return what the reference tensor gives, and to which native tensors."""
        return [piece for pieces in self.pieces.values() for piece in pieces if piece.reference == reference_key]

    def pieces_into(self, native_key: str) -> tuple[Piece, ...]:
        """Return the pieces the native tensor is joined from; empty when it is `native_only`."""
        return self.pieces.get(native_key, ())

    def sources_of(self, native_key: str) -> list[Source]:
        """Return (reference_key, dim, start, stop, transpose, permute) of each part of the native tensor."""
        return [piece.source for piece in self.pieces_into(native_key)]

    def native_tensor(self, native_key: str, reference: Mapping[str, Tensor]) -> Tensor:
        """Build one native tensor in the native's shape; a view of the reference where possible."""
        return assemble(self.pieces[native_key], reference, self.native_shapes[native_key])

    def native_tensors(self, reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Build every native tensor, reshaped where a rule says so."""
        return {key: self.native_tensor(key, reference) for key in self.pieces}

    def reference_tensors(self, native: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Go back: build the reference tensors from the native ones, without the declared `reference_only`.

        Raises:
            KeyMapError: the native holds a part of the reference twice, and the copies differ.
        """
        out: dict[str, Tensor] = {}
        filled: dict[tuple[str, int, int, int], str] = {}
        for key, pieces in self.pieces.items():
            for piece, part in zip(pieces, disassemble(pieces, native[key], self.reference_shapes), strict=True):
                target = out.setdefault(piece.reference, part.new_empty(self.reference_shapes[piece.reference]))
                cut = piece.cut_of(target)
                value = piece.give_back(part).reshape(cut.shape)
                place = piece.reference, piece.dim, piece.start, piece.stop
                if place in filled and not bit_equal(cut, value.to(cut.dtype)):
                    text = f"{filled[place]!r} and {key!r} hold {piece.reference!r} twice, and differ"
                    raise KeyMapError(f"{text}\nthe copies were changed: no reference tensor has both")
                filled[place] = key
                cut.copy_(value)
        return out

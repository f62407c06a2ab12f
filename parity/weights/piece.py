"""`Piece`: the rows or columns one reference tensor gives to one native tensor.

Letters in shapes: I, J sizes of dim 0 and 1 of a weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from parity.errors import KeyMapError


class Source(NamedTuple):
    """Where a part of a native tensor comes from: `reference_key` cut to `[start, stop)` along `dim`."""

    reference_key: str
    dim: int
    start: int
    stop: int
    transpose: bool
    permute: tuple[int, ...] | None


@dataclass(frozen=True)
class Piece:
    """One cut of a reference tensor and its place in a native tensor.

    The native's `[native_start, native_stop)` along `native_dim` is the reference's `[start, stop)` along `dim`, then
    (where given) viewed as `view` with its dims in the order `dims`, then transposed (dims 0 and 1), then with row `i`
    taken from row `permute[i]`, which may repeat every row, and element `j` of each row, flattened, from its element
    `columns[j]`, then (with `reshape`) given the native's shape.
    """

    reference: str
    native: str
    dim: int
    start: int
    stop: int
    transpose: bool = False
    permute: tuple[int, ...] | None = None
    native_dim: int = 0
    native_start: int = 0
    native_stop: int = 0
    reshape: bool = False
    columns: tuple[int, ...] | None = None
    view: tuple[int, ...] | None = None
    dims: tuple[int, ...] = ()

    @property
    def source(self) -> Source:
        """The six fields that say where the values come from."""
        return Source(self.reference, self.dim, self.start, self.stop, self.transpose, self.permute)

    def take(self, tensor: Tensor) -> Tensor:
        """Cut, transpose and permute the reference tensor; a view unless rows or columns are permuted.

        Shapes: tensor [I, J, ...] to [stop - start, J, ...], or [J, stop - start, ...] transposed.
        """
        value = self.cut_of(tensor)
        value = value if self.view is None else value.reshape(self.view).permute(self.dims)
        value = value.transpose(0, 1) if self.transpose else value
        value = value if self.permute is None else value.index_select(0, _index(self.permute, value))
        return value if self.columns is None else _in_columns(value, _index(self.columns, value))

    def give_back(self, part: Tensor) -> Tensor:
        """Undo `take`: from the native's part to the reference's cut.

        Shapes: part as `take` returns it, or flattened where the piece has a view.

        Raises:
            KeyMapError: rows that repeat one of the reference differ from each other.
        """
        if self.columns is not None:
            part = _in_columns(part, torch.argsort(_index(self.columns, part)))
        if self.permute is not None:
            part = self._unrepeated(part, _index(self.permute, part))
        part = part.transpose(0, 1) if self.transpose else part
        if self.view is not None:
            back = sorted(range(len(self.dims)), key=self.dims.__getitem__)
            part = part.reshape([self.view[dim] for dim in self.dims]).permute(back)
        return part

    def _unrepeated(self, part: Tensor, order: Tensor) -> Tensor:
        """Return every row of the reference once, in its order."""
        times = len(order) // (int(order.max()) + 1)
        one = part.index_select(0, torch.argsort(order, stable=True)[::times])
        if times > 1 and not torch.equal(_bits(one.index_select(0, order)), _bits(part)):
            rows = (_bits(one.index_select(0, order)) != _bits(part)).flatten(1).any(1).nonzero()
            text = f"rows of {self.native!r} that repeat one of {self.reference!r} differ: row {int(rows[0])} first"
            raise KeyMapError(f"{text}\nthe copies were changed: no reference tensor has both")
        return one

    def part_of(self, native: Tensor) -> Tensor:
        """Return the view of the native tensor (in its shape before any reshape) this piece fills."""
        if not native.ndim:
            return native
        return native.narrow(self.native_dim, self.native_start, self.native_stop - self.native_start)

    def cut_of(self, reference: Tensor) -> Tensor:
        """Return the view of the reference tensor this piece reads."""
        return reference.narrow(self.dim, self.start, self.stop - self.start) if reference.ndim else reference


def _in_columns(value: Tensor, order: Tensor) -> Tensor:
    """Shapes: value [I, ...], order [elements of a row]."""
    return value.flatten(1).index_select(1, order).view(value.shape)


def _bits(value: Tensor) -> Tensor:
    """Return the bytes of each row. Shapes: [I, ...] to [I, bytes]."""
    return value.contiguous().view(value.shape[0], -1).view(torch.uint8)


def _index(permute: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(permute, device=like.device)


def assemble(pieces: Sequence[Piece], reference: Mapping[str, Tensor], shape: torch.Size | None = None) -> Tensor:
    """Build one native tensor from its pieces; a view of the reference where one piece is enough.

    Shapes: `shape`, or what the pieces give when None.
    """
    parts = [piece.take(reference[piece.reference]) for piece in pieces]
    value = parts[0] if len(parts) == 1 else torch.cat(parts, dim=pieces[0].native_dim)
    return value.reshape(shape) if shape is not None and pieces[0].reshape else value


def disassemble(pieces: Sequence[Piece], native: Tensor, shapes: Mapping[str, torch.Size]) -> list[Tensor]:
    """Return the parts of a native tensor that its pieces fill, as views where a reshape allows.

    Shapes: native in the native's own shape; `shapes` are the reference's.
    """
    plain = native.reshape(assembled_shape(pieces, shapes)) if pieces[0].reshape else native
    return [piece.part_of(plain) for piece in pieces]


def assembled_shape(pieces: Sequence[Piece], shapes: Mapping[str, torch.Size]) -> torch.Size:
    """Return the shape `assemble` gives before any reshape, without touching data."""
    meta = {p.reference: torch.empty(shapes[p.reference], device="meta") for p in pieces}
    return assemble(pieces, meta).shape

"""Carry an adapter through a key map, from the reference's modules to the native's, with the same change of weights.

W_native is cut, transposed, permuted and joined from W_reference; B @ A is linear in W, so the same is done to B and A:
cutting rows slices B, cutting columns slices A, transposing exchanges their roles, permuting rows permutes B, joining
layers with A of their own stacks A and sets B in diagonal blocks. What belongs to rows is carried by `rows`.
Letters: R rank, I inputs, O outputs.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from parity.errors import LoraError
from parity.lora import rows
from parity.lora.adapter import LoraAdapter, LoraTarget
from parity.lora.full_mapping import map_changes
from parity.weights.keymap import KeyMap
from parity.weights.piece import Piece
from parity.weights.plan import KeyPlan, Shapes

Placed = Sequence[tuple[Piece, LoraTarget]]


def map_adapter(
    adapter: LoraAdapter, key_map: KeyMap, reference_shapes: Shapes, native_shapes: Shapes
) -> LoraAdapter:
    """Return the adapter in the native's module names, each native weight changed by the mapped change.

    Raises:
        LoraError: a target is no weight of the reference, has other sizes, or goes nowhere in the native.
        KeyMapError: the map is not total.
    """
    plan = key_map.plan(reference_shapes, native_shapes)
    targets = {_weight_key(path, plan): _checked(path, target, plan) for path, target in adapter.targets.items()}
    if len(targets) < len(adapter.targets):
        raise LoraError(f"two targets of adapter {adapter.name!r} name one weight: {sorted(adapter.targets)[:6]}")
    out: dict[str, LoraTarget] = {}
    for native, pieces in plan.pieces.items():
        placed = [(piece, _taken(piece, targets[piece.reference])) for piece in pieces if piece.reference in targets]
        if placed:
            out[native.removesuffix(".weight")] = _joined(native, placed, pieces, native_shapes[native])
    return LoraAdapter(adapter.name, out, map_changes(adapter.changes, plan))


def _weight_key(path: str, plan: KeyPlan) -> str:
    key = f"{path}.weight" if f"{path}.weight" in plan.reference_shapes else path
    if key not in plan.reference_shapes:
        names = [name.removesuffix(".weight") for name in plan.reference_shapes if name.endswith(".weight")]
        near = difflib.get_close_matches(path, names, n=1, cutoff=0.4)
        hint = f"; nearest {near[0]!r}" if near else ""
        raise LoraError(f"the adapter targets {path!r}, the reference has no weight of that name{hint}")
    if key in plan.reference_only:
        raise LoraError(f"the adapter targets {path!r}, which the native lacks: {plan.reference_only[key]}")
    return key


def _checked(path: str, target: LoraTarget, plan: KeyPlan) -> LoraTarget:
    shape = plan.reference_shapes[_weight_key(path, plan)]
    wanted = (shape[0], shape.numel() // shape[0]) if len(shape) > 1 else tuple(shape)
    given = (target.B.shape[0], target.A.shape[1])
    if given != wanted:
        raise LoraError(f"{path!r}: B @ A is {given}, the weight is {tuple(shape)}; the adapter is of another model")
    return target


def _taken(piece: Piece, target: LoraTarget) -> LoraTarget:
    """Do to B and A what the piece does to the weight.

    Shapes: A [R, I], B [O, R] to those of the cut.
    """
    A, B = target.A, target.B
    if piece.view is not None:
        raise LoraError(f"{piece.native!r} exchanges rows and columns of {piece.reference!r}: no A and B say that")
    if piece.dim == 0:
        B = B[piece.start : piece.stop]
    else:
        A = A[:, piece.start : piece.stop]
    if piece.transpose:
        A, B = B.t(), A.t()
    if piece.permute is not None:
        B = B[torch.tensor(piece.permute, device=B.device)]
    if piece.columns is not None:
        A = A[:, torch.tensor(piece.columns, device=A.device)]
    magnitude, bias = rows.taken(piece, target)
    return replace(target, A=A, B=B, magnitude=magnitude, bias=bias)


def _joined(native: str, placed: Placed, pieces: Sequence[Piece], shape: torch.Size) -> LoraTarget:
    """Join the parts of a native weight; parts without an adapter stay unchanged."""
    target = placed[0][1] if len(pieces) == 1 else _fused(native, placed, pieces)
    wanted = (shape[0], shape.numel() // shape[0]) if len(shape) > 1 else tuple(shape)
    if (target.B.shape[0], target.A.shape[1]) != wanted:
        given = (target.B.shape[0], target.A.shape[1])
        raise LoraError(f"{native!r}: the mapped change is {given}, the weight {tuple(shape)}: its rows are reshaped")
    return target


def _fused(native: str, placed: Placed, pieces: Sequence[Piece]) -> LoraTarget:
    scaling = next((target.scaling for _, target in placed if target.scaling), 0.0)
    parts = [(piece, _rescaled(target, scaling)) for piece, target in placed]
    origin = " + ".join(dict.fromkeys(target.scaling_from for _, target in placed))
    magnitude, bias = rows.joined(native, placed, pieces)
    by_rows, size = pieces[0].native_dim == 0, pieces[-1].native_stop
    kept = [target.A if by_rows else target.B for _, target in parts]
    placed_in = [(piece, target.B if by_rows else target.A.t()) for piece, target in parts]
    if all(torch.equal(kept[0], other) for other in kept[1:]):
        shared, blocks = kept[0], _stacked(placed_in, size)
    else:
        shared, blocks = torch.cat(kept, dim=0 if by_rows else 1), _diagonal(placed_in, size)
    A, B = (shared, blocks) if by_rows else (blocks.t(), shared)
    embedding = all(target.embedding for _, target in placed)
    return LoraTarget(A, B, scaling, origin, magnitude, bias, embedding)


def _rescaled(target: LoraTarget, scaling: float) -> LoraTarget:
    """Give the target another scaling by folding the ratio into B, in float64 unless the ratio is exact anyway."""
    if target.scaling == scaling:
        return target
    ratio = target.scaling / scaling
    exact, folded = target.B.double() * ratio, target.B * ratio
    return replace(target, B=folded if torch.equal(folded.double(), exact) else exact, scaling=scaling)


def _stacked(parts: Sequence[tuple[Piece, Tensor]], size: int) -> Tensor:
    """Put parts of one rank at their places.

    Shapes: parts [n, R] to [size, R], zero where there is no part.
    """
    out = torch.zeros(size, parts[0][1].shape[1], dtype=_widest(parts), device=parts[0][1].device)
    for piece, part in parts:
        out[piece.native_start : piece.native_stop] = part
    return out


def _diagonal(parts: Sequence[tuple[Piece, Tensor]], size: int) -> Tensor:
    """Put parts at their places, each with columns of its own.

    Shapes: parts [n, R_i] to [size, sum of R_i], zero elsewhere.
    """
    ranks = [part.shape[1] for _, part in parts]
    out = torch.zeros(size, sum(ranks), dtype=_widest(parts), device=parts[0][1].device)
    column = 0
    for (piece, part), rank in zip(parts, ranks, strict=True):
        out[piece.native_start : piece.native_stop, column : column + rank] = part
        column += rank
    return out


def _widest(parts: Sequence[tuple[Piece, Tensor]]) -> torch.dtype:
    return torch.float64 if any(part.dtype == torch.float64 for _, part in parts) else parts[0][1].dtype

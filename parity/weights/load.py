"""Copy mapped weights from reference to native, and compare what each side really holds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parity.errors import KeyMapError
from parity.numerics.metrics import bit_equal, rel_l2
from parity.numerics.streamed import Streamed
from parity.weights.keymap import KeyMap
from parity.weights.piece import Piece, disassemble
from parity.weights.plan import KeyPlan


@dataclass(frozen=True)
class LoadReport:
    """What `load_native` did.

    Args:
        copied: native keys that got values.
        cast: native keys whose dtype differs, with the reference's and the native's dtype.
        reference_only, native_only: declared keys of one side, with the reason; the native kept its own values.
        unused_rules: rules that matched nothing, in words.
    """

    copied: tuple[str, ...]
    cast: Mapping[str, tuple[torch.dtype, torch.dtype]]
    reference_only: Mapping[str, str]
    native_only: Mapping[str, str]
    unused_rules: tuple[str, ...]


@dataclass(frozen=True)
class WeightComparison:
    """What a native tensor holds, against what the key map says it should.

    Args:
        native_key: its key.
        equal: it equals the mapped reference tensor cast to its dtype, bit for bit.
        finer: the mapped reference tensor where `equal` and its dtype is the finer one: stored-weight rounding.
        rel_l2: relative distance of the stored values.
        swapped_with: another tensor of the block whose values it holds exactly: "to_q holds what should be to_k".
        native_finer: the mapped reference equals the native cast to the reference's dtype: the native is the finer one.
    """

    native_key: str
    equal: bool
    finer: Tensor | None
    rel_l2: float
    swapped_with: str | None
    native_finer: bool = False

    @property
    def differs(self) -> bool:
        """Whether this is a weight difference rather than equality or rounding of what is stored."""
        return not (self.equal or self.native_finer)


Weights = nn.Module | Mapping[str, Tensor]
"""A model, or its parameters and persistent buffers by key."""


def load_native(native: nn.Module, reference: Weights, key_map: KeyMap) -> LoadReport:
    """Copy the mapped parameters and persistent buffers of reference into native, in the native's dtype.

    Raises:
        KeyMapError: the map is not total, a side has no values (meta), or tied native tensors would get two values.
    """
    source, target = _held(reference), tensors_of(native)
    plan = _plan(key_map, source, target)
    _check_values(source, target)
    values = plan.native_tensors(source)
    _check_tied(target, values)
    with torch.no_grad():
        for key, value in values.items():
            target[key].copy_(value)
    cast = {key: (v.dtype, target[key].dtype) for key, v in values.items() if v.dtype != target[key].dtype}
    unused = tuple(map(str, plan.unused))
    return LoadReport(tuple(values), cast, plan.reference_only, plan.native_only, unused)


def compared_weights(
    native: nn.Module, reference: Weights, key_map: KeyMap
) -> tuple[KeyPlan, dict[str, WeightComparison]]:
    """Compare every mapped native tensor with its reference, and return the plan that says which is which.

    Raises:
        KeyMapError: the map is not total, or a side has no values (meta).
    """
    source, target = _held(reference), tensors_of(native)
    plan = _plan(key_map, source, target)
    _check_values(source, target)
    return plan, {key: _compared(key, target[key], plan, source) for key in plan.pieces}


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and persistent buffers of a model by key, detached and sharing memory."""
    return {key: value.detach() for key, value in model.state_dict().items() if isinstance(value, Tensor)}


def _held(weights: Weights) -> Mapping[str, Tensor]:
    return tensors_of(weights) if isinstance(weights, nn.Module) else weights


def _plan(key_map: KeyMap, source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> KeyPlan:
    return key_map.plan({k: v.shape for k, v in source.items()}, {k: v.shape for k, v in target.items()})


def _check_values(*sides: Mapping[str, Tensor]) -> None:
    for name, side in zip(("reference", "native"), sides, strict=True):
        meta = [key for key, value in side.items() if value.is_meta]
        if meta:
            raise KeyMapError(f"{len(meta)} tensors of the {name} are on the meta device, first {meta[0]!r}")


def _check_tied(target: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Raise when native tensors that share memory would get different values, of which the last would win."""
    owners: dict[tuple[int, torch.Size], str] = {}
    for key, value in values.items():
        if not value.numel():
            continue
        first = owners.setdefault((target[key].data_ptr(), target[key].shape), key)
        if first != key and not bit_equal(value, values[first]):
            raise KeyMapError(f"the native ties {first!r} and {key!r}, the reference has different values for them")


def _compared(key: str, held: Tensor, plan: KeyPlan, source: Mapping[str, Tensor]) -> WeightComparison:
    value = plan.native_tensor(key, source).to(held.device)
    if bit_equal(value.to(held.dtype), held):
        finer = value if _finer(value.dtype, held.dtype) else None
        return WeightComparison(key, True, finer, _distance(value, held), None)
    native_finer = _finer(held.dtype, value.dtype) and bit_equal(held.to(value.dtype), value)
    swapped = None if native_finer else _swapped_with(key, held, plan, source)
    return WeightComparison(key, False, None, _distance(value, held), swapped, native_finer)


def _finer(one: torch.dtype, other: torch.dtype) -> bool:
    return one.is_floating_point and other.is_floating_point and torch.finfo(one).eps < torch.finfo(other).eps


def _distance(value: Tensor, held: Tensor) -> float:
    if not held.numel():
        return 0.0
    value, held = (t if t.is_floating_point() else t.double() for t in (value, held))
    return rel_l2(Streamed(value, held))


def _swapped_with(key: str, held: Tensor, plan: KeyPlan, source: Mapping[str, Tensor]) -> str | None:
    """Name the tensor of the block whose values a part of this one holds where it should hold others."""
    pieces = plan.pieces_into(key)
    for piece, part in zip(pieces, disassemble(pieces, held, plan.reference_shapes), strict=True):
        if _holds(part, piece, source) or bool((part == part.flatten()[0]).all()):
            continue
        for other in _block_mates(piece, plan):
            if _holds(part, other, source):
                return other.native if other.native != key else other.reference
    return None


def _block_mates(piece: Piece, plan: KeyPlan) -> Iterator[Piece]:
    block = _block(piece.native)
    for key, pieces in plan.pieces.items():
        if _block(key) == block:
            yield from (other for other in pieces if other != piece)


def _holds(part: Tensor, piece: Piece, source: Mapping[str, Tensor]) -> bool:
    value = piece.take(source[piece.reference])
    return value.shape == part.shape and bit_equal(value.to(part.device, part.dtype), part)


def _block(key: str) -> str:
    """Return the key up to its first number: `blocks.7` for `blocks.7.attn.to_q.weight`, "" outside blocks."""
    found = re.match(r"(?:.*?\.)?\d+(?=\.)", key)
    return found[0] if found else ""


def weight_differences(weights: Mapping[str, WeightComparison]) -> list[str]:
    """Word every weight that differs, swaps first."""
    found = sorted((c for c in weights.values() if c.differs), key=lambda c: (c.swapped_with is None, c.native_key))
    return [
        f"{c.native_key} holds what should be {c.swapped_with}" if c.swapped_with
        else f"{c.native_key} differs from the mapped reference by {c.rel_l2:.1e}"
        for c in found
    ]  # fmt: skip

"""Changes in full through a key map: cut, joined, permuted and reshaped as the tensors themselves are."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import torch
from torch import Tensor

from parity.errors import LoraError
from parity.lora.adapter import FullChange
from parity.weights.plan import KeyPlan


def map_changes(changes: Mapping[str, FullChange], plan: KeyPlan) -> dict[str, FullChange]:
    """Return changes in full by the native's names.

    Raises:
        LoraError: a tensor is none of the reference's or has another shape, goes nowhere, or replaces a part only.
    """
    held = {_key(name, change, plan): change for name, change in changes.items()}
    out: dict[str, FullChange] = {}
    for native, pieces in plan.pieces.items():
        names = list(dict.fromkeys(piece.reference for piece in pieces))
        if found := [name for name in names if name in held]:
            replaces = _replaces(native, names, found, held)
            values = {name: _value(name, held, plan, held[found[0]].value) for name in names}
            out[native] = FullChange(plan.native_tensor(native, values).contiguous(), replaces)
    return out


def _replaces(native: str, names: list[str], found: list[str], held: Mapping[str, FullChange]) -> bool:
    kinds = {held[name].replaces for name in found}
    if True in kinds and (len(kinds) > 1 or len(found) < len(names)):
        text = f"{native!r} is joined from {len(names)} tensors, of which only some are replaced"
        raise LoraError(f"{text}\nmerge the adapter into its own model first")
    return True in kinds


def _value(name: str, held: Mapping[str, FullChange], plan: KeyPlan, like: Tensor) -> Tensor:
    return held[name].value if name in held else torch.zeros(plan.reference_shapes[name], dtype=like.dtype)


def _key(name: str, change: FullChange, plan: KeyPlan) -> str:
    shapes = plan.reference_shapes
    key = next((key for key in (name, name.removesuffix(".weight")) if key in shapes), None)
    if key is None:
        near = difflib.get_close_matches(name, list(shapes), n=1, cutoff=0.4)
        hint = f"\nnearest: {near[0]!r}" if near else ""
        raise LoraError(f"the adapter changes {name!r} in full, the reference has no tensor of that name{hint}")
    if key in plan.reference_only:
        raise LoraError(f"the adapter changes {name!r} in full, which the native lacks: {plan.reference_only[key]}")
    if change.value.shape != shapes[key]:
        given, wanted = list(change.value.shape), list(shapes[key])
        text = f"{name!r}: the change in full is {given}, the tensor {wanted}"
        raise LoraError(f"{text}; the adapter is of another model")
    return key

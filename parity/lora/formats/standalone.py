"""The table of a stand-alone converter: which cuts of which weights, and how the result is spelled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from parity.errors import KeyMapError, UsageError
from parity.weights.orders import described
from parity.weights.piece import Piece

SPELLINGS: Mapping[str, Mapping[str, Any]] = {
    "comfyui": {"before": "diffusion_model.", "after": (".lora_A.weight", ".lora_B.weight", ".alpha")},
    "diffusers": {"before": "transformer.", "after": (".lora_A.weight", ".lora_B.weight"), "folded": True},
    "fastvideo": {"before": "", "after": (".lora_A", ".lora_B", ".lora_alpha"), "folded": True},
    "kohya": {"before": "lora_unet_", "after": (".lora_down.weight", ".lora_up.weight", ".alpha"), "flat": True},
}
"""What a stand-alone converter can write; `folded`: the scaling goes into B, as the dialect's loaders need it."""


def table(pieces: Sequence[Piece], to: str, sizes: Mapping[str, Sequence[int]] | None = None) -> dict[str, Any]:
    """Return what the converter has to know.

    Args:
        pieces: of the key map, worked out for two models.
        to: how the result is spelled.
        sizes: shapes of the reference's tensors; None: from what the pieces take.

    Raises:
        UsageError: it cannot be spelled so.
        KeyMapError: no weight is mapped.
    """
    if to not in SPELLINGS:
        raise UsageError.unknown("format a stand-alone converter writes", to, SPELLINGS)
    kept = [piece for piece in pieces if not piece.reference.endswith(".bias") and _is_matrix(piece, sizes)
            and piece.view is None]  # fmt: skip
    if not kept:
        raise KeyMapError("the map has no weights: a converter made of it would convert nothing")
    spelling = SPELLINGS[to]
    return {
        "names": [f"{spelling['before']}{{}}{after}" for after in spelling["after"]],
        "flat": bool(spelling.get("flat")), "folded": bool(spelling.get("folded")),
        "sizes": {_module(piece.reference): _size(piece.reference, kept, sizes) for piece in kept},
        "pieces": [_entry(piece) for piece in kept],
    }  # fmt: skip


def _module(key: str) -> str:
    return key.removesuffix(".weight")


def _is_matrix(piece: Piece, sizes: Mapping[str, Sequence[int]] | None) -> bool:
    return sizes is None or len(sizes[piece.reference]) > 1


def _size(key: str, pieces: Sequence[Piece], sizes: Mapping[str, Sequence[int]] | None) -> list[int]:
    """Return outputs and inputs of a weight, 0 for what the pieces do not tell."""
    if sizes is not None:
        return [sizes[key][0], math.prod(sizes[key][1:])]
    own = [piece for piece in pieces if piece.reference == key]
    return [max((piece.stop for piece in own if piece.dim == dim), default=0) for dim in (0, 1)]


def _entry(piece: Piece) -> dict[str, Any]:
    return {
        "reference": _module(piece.reference), "native": _module(piece.native), "dim": piece.dim,
        "start": piece.start, "stop": piece.stop, "transpose": piece.transpose,
        "permute": None if piece.permute is None else described(piece.permute),
        "columns": None if piece.columns is None else described(piece.columns),
        "native_dim": piece.native_dim, "native_start": piece.native_start, "native_stop": piece.native_stop,
    }  # fmt: skip


def source(template: str, held: Mapping[str, Any]) -> str:
    """Return the converter's source: the template with its table filled in, one piece a line."""
    lines = ["TABLE: dict[str, Any] = {"]
    for name, value in held.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            lines += [f"    {name!r}: [", *(f"        {entry!r}," for entry in value), "    ],"]
        elif isinstance(value, dict):
            lines += [f"    {name!r}: {{", *(f"        {key!r}: {size!r}," for key, size in value.items()), "    },"]
        else:
            lines.append(f"    {name!r}: {value!r},")
    return template.replace("TABLE: dict[str, Any] = {}", "\n".join([*lines, "}"]), 1)

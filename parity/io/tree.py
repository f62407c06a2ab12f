"""What a model is called with, as JSON and tensors: numbers, words, and lists and mappings of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from parity.errors import RecordError
from parity.io.hashing import hash_weights
from parity.io.shards import dtype_of


def digests_of(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Return a digest of each input, to tell which one differs.

    Raises:
        RecordError: an input is neither tensor, number, word, nor a list or mapping of them.
    """
    found = {}
    for name, value in inputs.items():
        tensors: dict[str, Tensor] = {}
        tree = planted(value, tensors, name)
        found[name] = hashlib.blake2b(f"{tree}{hash_weights(tensors)}".encode(), digest_size=16).hexdigest()
    return found


def planted(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """Return a value as JSON holds it, its tensors taken out into `tensors`.

    Raises:
        RecordError: it is neither tensor, number, word, nor a list or mapping of them.
    """
    if isinstance(value, Tensor):
        key = f"{where}#{len(tensors)}"
        tensors[key] = value
        return {"tensor": key}
    if isinstance(value, Mapping):
        strange = next((k for k in value if not isinstance(k, (str, int, float, bool))), None)
        if strange is not None:
            raise RecordError(f"input {where!r} has a key of type {type(strange).__name__}, a recording cannot keep it")
        return {"mapping": [[k, planted(v, tensors, where)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [planted(v, tensors, where) for v in value]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"plain": value}
    raise RecordError(f"input {where!r} holds a {type(value).__name__}, which a recording cannot keep")


def grown(value: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """Return a value from what JSON held of it and its tensors."""
    ((kind, held),) = value.items()
    if kind == "tensor":
        return tensors[held]
    if kind == "mapping":
        return {k: grown(v, tensors) for k, v in held}
    if kind in ("list", "tuple"):
        parts = [grown(v, tensors) for v in held]
        return parts if kind == "list" else tuple(parts)
    return dtype_of(held) if kind == "dtype" else held


def printable(value: Any) -> Any:
    """Return JSON with the control characters in its words made visible: they would drive a terminal."""
    if isinstance(value, str):
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in value)
    if isinstance(value, Mapping):
        return {printable(k): printable(v) for k, v in value.items()}
    return [printable(v) for v in value] if isinstance(value, list) else value

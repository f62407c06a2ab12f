"""Formats that pack several values into an element or scale them in blocks: recognised by their side tensors' names."""

from __future__ import annotations

import re
from collections.abc import Iterable

_MARKS: tuple[tuple[str, str, str], ...] = (
    (r"(.+)\.quant_state\.bitsandbytes__(nf4|fp4)", r"\1", "bitsandbytes 4 bit"),
    (r"(.+)\.absmax", r"\1", "bitsandbytes 4 bit"),
    (r"(.+)\.SCB", r"\1.weight", "bitsandbytes int8"),
    (r"(.+)\.qzeros", r"\1.qweight", "GPTQ or AWQ int4"),
    (r"(.+)\.weight_packed", r"\1.weight_packed", "compressed-tensors int4"),
    (r"(.+)\.weight_scale_2", r"\1.weight", "NVFP4"),
    (r"(.+)\.weight_scale_inv", r"\1.weight", "float8 scaled in blocks"),
    (r"(.+)\.wscales", r"\1.qweight", "SVDQuant int4"),
)
"""Name of a side tensor, of the tensor it belongs to, and what that says."""
UNPACK = "values are not compared as they are stored: dequantise first, then match"


def packed_in(keys: Iterable[str]) -> dict[str, str]:
    """Return the format of each tensor whose values are packed or scaled in blocks, by key.

    >>> packed_in(["a.weight", "a.weight.absmax", "b.qweight", "b.qzeros", "c.weight"])
    {'a.weight': 'bitsandbytes 4 bit', 'b.qweight': 'GPTQ or AWQ int4'}
    """
    held = dict.fromkeys(keys)
    out: dict[str, str] = {}
    for key in held:
        for mark, owner, name in _MARKS:
            found = re.fullmatch(mark, key)
            if found and (packed := found.expand(owner)) in held:
                out.setdefault(packed, name)
    return out


def packed_words(keys: Iterable[str]) -> list[str]:
    """Return a line for each packed format there is."""
    formats: dict[str, list[str]] = {}
    for key, name in packed_in(keys).items():
        formats.setdefault(name, []).append(key)
    return [f"{len(held)} tensors are packed as {name} ({held[0]}, ...): {UNPACK}" for name, held in formats.items()]

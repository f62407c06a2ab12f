"""The header of a safetensors file, parsed strictly: nothing is accepted that the safetensors library refuses.

Format: 8 bytes little-endian length, that many bytes of JSON, then the tensors' bytes without holes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from parity.errors import CheckpointError

MOST_HEADER_BYTES = 100_000_000
"""The library's own limit."""
_MOST = (1 << 64) - 1
BITS: Mapping[str, int] = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
"""Bits of an element by the name the header gives its dtype."""
_FIELDS = {"dtype", "shape", "data_offsets"}
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Entry:
    """One tensor of a header: dtype by the header's name, shape, and its bytes `[start, stop)` in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """The tensors of a file in the order of their bytes, and the file's own metadata."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]


def header_length(first: bytes, file_bytes: int) -> int:
    """Return the length of the JSON from the first 8 bytes of the file.

    Raises:
        CheckpointError: the file is too short, or the length is a lie.
    """
    if len(first) < 8:
        raise CheckpointError(f"holds {file_bytes} bytes, a safetensors file has at least 10")
    length = int.from_bytes(first, "little")
    if length > MOST_HEADER_BYTES:
        raise CheckpointError(f"says its header has {length} bytes, at most {MOST_HEADER_BYTES} are allowed")
    if length < 2 or 8 + length > file_bytes:
        raise CheckpointError(f"says its header has {length} bytes, the file has {file_bytes}: truncated or corrupted")
    return length


def parse_header(text: bytes, file_bytes: int) -> Header:
    """Parse the JSON of a header and check it against the size of the whole file.

    Raises:
        CheckpointError: names the key and what is wrong with it.
    """
    parsed = _json(text)
    metadata = _metadata(parsed.pop("__metadata__", {}))
    first = 8 + len(text)
    entries = {key: _entry(key, held, first) for key, held in parsed.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    at = first
    for key, entry in ordered.items():
        if entry.start != at:
            raise CheckpointError(f"{key!r} starts at byte {entry.start}, not at {at}: tensors overlap or leave a hole")
        at = entry.stop
    if at != file_bytes:
        what = "truncated" if at > file_bytes else "longer than its header says"
        raise CheckpointError(f"is {what}: its tensors end at byte {at}, the file at {file_bytes}")
    return Header(ordered, metadata)


def _json(text: bytes) -> dict[str, Any]:
    if not text.startswith(b"{"):
        raise CheckpointError("its header does not begin with '{': no safetensors file")
    try:
        parsed = json.loads(
            text.decode("utf-8"), object_pairs_hook=_unique, parse_int=_whole, parse_constant=_no_constant
        )
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"its header is no JSON: {str(error)[:120]}") from error
    assert isinstance(parsed, dict)
    return parsed


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise CheckpointError(f"its header has the key {key!r} twice")
        if _SURROGATE.search(key):
            raise CheckpointError(f"its header has the key {key!r}, which is no Unicode text")
        out[key] = value
    return out


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _whole(digits: str) -> int:
    return -1 if digits.startswith("-") else int(digits)  # the library refuses -0 too


def _metadata(held: Any) -> dict[str, str]:
    held = {} if held is None else held
    texts = held.items() if isinstance(held, dict) else [("", None)]
    if not all(isinstance(value, str) and not _SURROGATE.search(value) for _, value in texts):
        raise CheckpointError("its __metadata__ is no object of strings")
    return dict(held)


def _entry(key: str, held: Any, first: int) -> Entry:
    if not isinstance(held, dict) or set(held) != _FIELDS:
        raise CheckpointError(f"{key!r} needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = held["dtype"], held["shape"], held["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise CheckpointError(f"{key!r} has the dtype {dtype!r}; valid: {', '.join(BITS)}")
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{key!r} has shape {str(shape)[:60]} and data_offsets {str(offsets)[:60]}")
    needed = _bytes(key, dtype, shape)
    if offsets[1] - offsets[0] != needed:
        given = offsets[1] - offsets[0]
        raise CheckpointError(f"{key!r} is {dtype} {str(shape)[:60]}, {needed} bytes, its data_offsets give {given}")
    return Entry(dtype, tuple(shape), first + offsets[0], first + offsets[1])


def _whole_numbers(held: Any) -> bool:
    return isinstance(held, list) and all(type(n) is int and 0 <= n <= _MOST for n in held)


def _bytes(key: str, dtype: str, shape: list[int]) -> int:
    bits = 1
    for size in (*shape, BITS[dtype]):
        bits *= size
        if bits > _MOST:
            raise CheckpointError(f"{key!r} has more elements than memory could hold: shape {str(shape)[:80]}")
    if bits % 8:
        raise CheckpointError(f"{key!r} is {dtype} {str(shape)[:60]}, which is no whole number of bytes")
    return bits // 8

"""Tensors in safetensors files of a folder, each written whole and known by its checksum.

Names of files and tensors are numbers given here; nothing read from a foreign file becomes a path or is run.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from parity.errors import CheckpointError, RecordError
from parity.io.atomic import write_atomic
from parity.io.checkpoints.header import Entry, header_length, parse_header
from parity.io.checkpoints.stored import StoredBytes

SHARD_BYTES = 256 << 20
"""A shard is closed when it holds this much."""
_FILE = re.compile(r"[0-9]{5}\.safetensors")
_CHUNK = 1 << 22
_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""What stands for a dtype that the file format, or an older reader of it, does not know."""

Shards = list[dict[str, Any]]
"""Of each shard: file, bytes, sha256."""


class ShardWriter:
    """Writes tensors to numbered shards of a folder; holds at most one shard in memory.

    What it is given must not change until the shard is closed: values are not copied once more.

    Attributes:
        shards: what was written so far.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: Shards = []
        self._held: dict[str, Tensor] = {}
        self._bytes = 0
        self._count = 0

    @property
    def held_bytes(self) -> int:
        """How much is in memory, not on disk yet."""
        return self._bytes

    def add(self, value: Tensor) -> dict[str, Any]:
        """Take a tensor; returns where it is found again.

        Raises:
            RecordError: it is of a kind a file cannot hold (sparse, quantised).
        """
        name = f"t{self._count}"
        self._count += 1
        plain, stands_for = _plain(value)
        self._held[name] = plain
        self._bytes += plain.numel() * plain.element_size()
        place = {"shard": len(self.shards), "name": name, **stands_for}
        if self._bytes >= SHARD_BYTES:
            self.flush()
        return place

    def flush(self) -> None:
        """Close the shard at hand."""
        if not self._held:
            return
        digest = hashlib.sha256()
        parts = [_header(self._held), *map(_bytes, self._held.values())]

        def write(file: BinaryIO) -> None:
            with ThreadPoolExecutor(1) as beside:  # both leave the interpreter to others: the longer one counts
                hashing = beside.submit(_add_all, digest, parts)
                for part in parts:
                    file.write(part)
            hashing.result()

        try:
            path = write_atomic(self.folder / f"{len(self.shards):05d}.safetensors", write, durable=False)
        except OSError as error:  # raised while a model runs, it would be taken for the model's
            text = f"cannot write below {self.folder}: {error.strerror or error}"
            raise RecordError(f"{text}\nwhat was recorded before is kept; mend that and go on with --resume") from error
        size = len(parts[0]) + self._bytes
        self.shards.append({"file": path.name, "bytes": size, "sha256": digest.hexdigest()})
        self._held, self._bytes = {}, 0


def _add_all(digest: hashlib._Hash, parts: list[Any]) -> None:
    for part in parts:
        digest.update(part)


def _plain(value: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Return a value as the file holds it, and what it stands for where that is another dtype."""
    if value.layout != torch.strided or value.is_quantized:
        raise RecordError(f"a recording cannot keep a value of layout {value.layout} and dtype {value.dtype}")
    plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
    if plain.is_complex():
        return torch.view_as_real(plain), {"complex": True}
    if plain.dtype in _TYPES:
        return plain, {}
    return plain.view(_SAME_SIZE[plain.element_size()]), {"dtype": str(plain.dtype).removeprefix("torch.")}


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the head of a safetensors file: length, then JSON padded to eight bytes."""
    found, start = {}, 0
    for name, value in tensors.items():
        end = start + value.numel() * value.element_size()
        found[name] = {"dtype": _TYPES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(found, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(value: Tensor) -> Any:
    return value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b""


class ShardReader:
    """Reads tensors of a folder's shards; each shard is checked against its checksum when it is first read.

    Args:
        folder: where the shards are.
        shards: the list of them.
        checked: they were written, or checked, by this process just now.

    Raises:
        RecordError: the list of shards is not one that was written here.
    """

    def __init__(self, folder: Path, shards: Shards, *, checked: bool = False) -> None:
        self.folder, self.shards = folder, shards
        self._checked: set[int] = set(range(len(shards))) if checked else set()
        self._entries: dict[int, Mapping[str, Entry]] = {}
        for shard in shards:
            if not _is_shard(shard):
                raise RecordError(f"{folder} names a shard {str(shard)[:60]!r}, which is none of this project's files")

    def get(self, place: Mapping[str, Any]) -> Tensor:
        """Return a tensor by its place, in memory of its own.

        A kernel may add in another order where values are not aligned as torch aligns them, so the values are never
        used where they lie in the file.

        Raises:
            RecordError: its file is missing, truncated or edited.
        """
        number, name, dtype = _place(place, self.folder)
        path = self._path(number)
        try:
            with path.open("rb", buffering=0) as file:
                entry = self._entries_of(number, file)[name]
                stored = StoredBytes(entry, (file.fileno(), file.fileno()), name)
                value = stored.elements(0, math.prod(stored.shape)).view(stored.shape)
            value = value if dtype is None else value.view(dtype)
            return torch.view_as_complex(value) if place.get("complex") else value
        except (OSError, CheckpointError, RuntimeError, ValueError, TypeError, KeyError) as error:
            text = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            raise RecordError(f"{path} cannot be read: {text!r}\nrecord again") from error

    def _entries_of(self, number: int, file: FileIO) -> Mapping[str, Entry]:
        """Return where a shard's tensors lie, read off its header once."""
        if number not in self._entries:
            size = int(self.shards[number]["bytes"])
            self._entries[number] = parse_header(file.read(header_length(file.read(8), size)), size).entries
        return self._entries[number]

    def has_all(self) -> bool:
        """Say whether every shard is there in its size, without reading any."""
        files = [(self.folder / str(shard["file"]), shard["bytes"]) for shard in self.shards]
        return all(path.is_file() and path.stat().st_size == size for path, size in files)

    def check(self) -> None:
        """Check every shard.

        Raises:
            RecordError: a file is missing, truncated or edited.
        """
        for number in range(len(self.shards)):
            self._path(number)

    def _path(self, number: int) -> Path:
        if not 0 <= number < len(self.shards):
            raise RecordError(f"{self.folder} has no shard {number}, only {len(self.shards)}")
        path = self.folder / str(self.shards[number]["file"])
        if number not in self._checked:
            _check(path, self.shards[number])
            self._checked.add(number)
        return path


def _is_shard(shard: object) -> bool:
    return (
        isinstance(shard, dict) and isinstance(shard.get("file"), str) and bool(_FILE.fullmatch(shard["file"]))
        and isinstance(shard.get("bytes"), int) and isinstance(shard.get("sha256"), str)
    )  # fmt: skip


def _place(place: object, folder: Path) -> tuple[int, str, torch.dtype | None]:
    """Return shard number, name and dtype of a place.

    Raises:
        RecordError: it is none that was written here.
    """
    held = place if isinstance(place, Mapping) else {}
    number, name, dtype = held.get("shard"), held.get("name"), held.get("dtype")
    if not isinstance(number, int) or not isinstance(name, str):
        raise RecordError(f"{folder} names a place {str(place)[:60]!r}, which is none of this project's")
    return number, name, None if dtype is None else dtype_of(dtype)


def dtype_of(name: object) -> torch.dtype:
    """Return a dtype by the name a recording has for it.

    Raises:
        RecordError: torch has no such dtype here.
    """
    found = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(found, torch.dtype):
        raise RecordError(f"a recording names the dtype {str(name)[:40]!r}, which torch {torch.__version__} lacks")
    return found


def _check(path: Path, shard: Mapping[str, Any]) -> None:
    try:
        size = path.stat().st_size
        if path.is_symlink() or not path.is_file():
            raise RecordError(f"{path} is a link or no file, a recording holds files only\nrecord again")
    except OSError as error:
        raise RecordError(f"{path} is missing: {error.strerror}\nrecord again, or with --resume") from error
    if size != shard["bytes"]:
        raise RecordError(f"{path} is truncated: {size} bytes of {shard['bytes']}\nrecord again, or with --resume")
    if _sha256(path) != shard["sha256"]:
        raise RecordError(f"{path} was edited or damaged: its checksum does not fit\nrecord again")


def _sha256(path: Path) -> str:
    digest, buffer = hashlib.sha256(), bytearray(_CHUNK)
    with path.open("rb") as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()

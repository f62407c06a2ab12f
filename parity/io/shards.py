"""Tensors in safetensors files of a folder, each written whole and known by its checksum.

Names of files and tensors are numbers given here; nothing read from a foreign file becomes a path or is run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from parity.errors import RecordError
from parity.io.atomic import write_atomic

SHARD_BYTES = 256 << 20
"""A shard is closed when it holds this much."""
_FILE = re.compile(r"[0-9]{5}\.safetensors")
_CHUNK = 1 << 22

Shards = list[dict[str, Any]]
"""Of each shard: file, bytes, sha256."""


class ShardWriter:
    """Writes tensors to numbered shards of a folder; holds at most one shard in memory.

    Attributes:
        shards: what was written so far.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: Shards = []
        self._held: dict[str, Tensor] = {}
        self._bytes = 0
        self._count = 0

    def add(self, value: Tensor) -> dict[str, Any]:
        """Take a tensor; returns where it is found again."""
        name = f"t{self._count}"
        self._count += 1
        plain = torch.view_as_real(value) if value.is_complex() else value
        self._held[name] = plain.detach().resolve_conj().resolve_neg().cpu().contiguous().clone()
        self._bytes += plain.numel() * plain.element_size()
        place = {"shard": len(self.shards), "name": name, "complex": value.is_complex()}
        if self._bytes >= SHARD_BYTES:
            self.flush()
        return place

    def flush(self) -> None:
        """Close the shard at hand."""
        if not self._held:
            return
        data = safetensors.torch.save(self._held)
        path = write_atomic(self.folder / f"{len(self.shards):05d}.safetensors", data)
        self.shards.append({"file": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
        self._held, self._bytes = {}, 0


class ShardReader:
    """Reads tensors of a folder's shards; each shard is checked against its checksum when it is first read.

    Raises:
        RecordError: the list of shards is not one that was written here.
    """

    def __init__(self, folder: Path, shards: Shards) -> None:
        self.folder, self.shards = folder, shards
        self._checked: set[int] = set()
        for shard in shards:
            if not isinstance(shard, dict) or not _FILE.fullmatch(str(shard.get("file"))):
                raise RecordError(f"{folder} names a shard {str(shard)[:60]!r}, which is none of this project's files")

    def get(self, place: Mapping[str, Any]) -> Tensor:
        """Return a tensor by its place.

        Raises:
            RecordError: its file is missing, truncated or edited.
        """
        path = self._path(int(place["shard"]))
        try:
            with safe_open(path, framework="pt") as file:
                value: Tensor = file.get_tensor(str(place["name"]))
        except (OSError, SafetensorError) as error:
            raise RecordError(f"{path} cannot be read: {str(error).splitlines()[0][:120]}\nrecord again") from error
        return torch.view_as_complex(value) if place.get("complex") else value

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


def _check(path: Path, shard: Mapping[str, Any]) -> None:
    try:
        size = path.stat().st_size
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

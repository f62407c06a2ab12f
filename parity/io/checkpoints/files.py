"""One file of a checkpoint: what it stores, by key."""

from __future__ import annotations

import os
import pickle
import weakref
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parity.errors import CheckpointError
from parity.io.checkpoints.header import Header, header_length, parse_header
from parity.io.checkpoints.stored import Stored, StoredBytes, StoredTensor

SAFETENSORS = (".safetensors",)
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
_NESTED = ("state_dict", "model_state_dict", "model", "module", "net", "params")
_MOST_PICKLE = 256 << 20


class CheckpointFile:
    """An open file with its tensors.

    Attributes:
        stored: by key as the file has it.
        nested: names of the dictionaries the state dict lay in, outermost first.
        left_out: entries that are no dense tensors.
        metadata: what a safetensors file says of itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stored: dict[str, Stored] = {}
        self.nested: tuple[str, ...] = ()
        self.left_out: tuple[str, ...] = ()
        self.metadata: Mapping[str, str] = {}
        if path.suffix in SAFETENSORS:
            self._open_safetensors()
        else:
            self._open_pickle()

    def _open_safetensors(self) -> None:
        number, scattered = self._opened(), self._opened()
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(scattered, 0, 0, os.POSIX_FADV_RANDOM)
        header = _read_header(self.path, number)
        self.metadata = header.metadata
        name = self.path.name
        self.stored = {key: StoredBytes(held, (scattered, number), f"{key!r} of {name}")
                       for key, held in header.entries.items()}  # fmt: skip

    def _opened(self) -> int:
        try:
            number = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be opened: {error.strerror}") from error
        weakref.finalize(self, os.close, number)
        return number

    def _open_pickle(self) -> None:
        state, self.nested = _state_dict(_unpickled(self.path), self.path)
        tensors = {key: value for key, value in state.items() if isinstance(key, str) and _is_dense(value)}
        self.left_out = tuple(str(key) for key in state if key not in tensors)
        for key, value in tensors.items():
            _check_honest(key, value, self.path)
            self.stored[key] = StoredTensor(lambda value=value: value)  # type: ignore[misc]


def _read_header(path: Path, number: int) -> Header:
    size = os.fstat(number).st_size
    try:
        length = header_length(os.pread(number, 8, 0), size)
        return parse_header(os.pread(number, length, 8), size)
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _unpickled(path: Path) -> Any:
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        text = "it holds more than tensors and plain containers, or is no pickle; nothing in it was run"
        raise CheckpointError(f"{path}: {text}\n{_first_line(error)}") from error
    except CheckpointError:
        raise
    except Exception as error:  # torch raises what its C++ readers raise; each is a file that cannot be read
        why = _first_line(error) if zipfile.is_zipfile(path) else "neither a zip archive nor a pickle"
        raise CheckpointError(f"{path} is damaged or no checkpoint: {why}") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _check_archive(path: Path) -> None:
    """Refuse archives that unpack to more than they are: torch stores, it never compresses."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is a broken archive: {error}") from error
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise CheckpointError(f"{path} holds compressed members, which torch.save never writes: refused")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise CheckpointError(f"{path} would unpack to more than its own size: refused")
    if any(member.file_size > _MOST_PICKLE for member in members if member.filename.endswith("data.pkl")):
        raise CheckpointError(f"{path} holds a pickle of more than {_MOST_PICKLE >> 20} MB beside its tensors: refused")


def _state_dict(held: Any, path: Path) -> tuple[Mapping[Any, Any], tuple[str, ...]]:
    names: list[str] = []
    while isinstance(held, Mapping):
        inside = [key for key in held if isinstance(key, str) and _tensors_in(held[key]) > _tensors_in(held, 1)]
        known = [name for name in _NESTED if name in inside] or inside
        if not inside:
            break
        if len(known) > 1 and known[0] not in _NESTED:
            raise CheckpointError(f"{path} holds several sets of tensors: {', '.join(known[:8])}; save one by itself")
        names.append(known[0])
        held = held[known[0]]
    if not isinstance(held, Mapping):
        raise CheckpointError(f"{path} holds a {type(held).__name__}, not a state dict")
    return held, tuple(names)


def _tensors_in(held: Any, depth: int = 5) -> int:
    """Count tensors: a step or a loss beside a state dict is one, the state dict many."""
    if not isinstance(held, Mapping) or not depth:
        return 0
    return sum(isinstance(value, Tensor) or _tensors_in(value, depth - 1) for value in held.values())


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized


def _check_honest(key: str, value: Tensor, path: Path) -> None:
    """Refuse a view that claims more elements than its storage has: a few bytes that read as terabytes."""
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CheckpointError(f"{path}: {key!r} claims {tuple(value.shape)}, more than its stored bytes: refused")


def keys_of(files: list[CheckpointFile]) -> Iterator[tuple[str, CheckpointFile]]:
    """Yield every key with its file."""
    for file in files:
        yield from ((key, file) for key in file.stored)

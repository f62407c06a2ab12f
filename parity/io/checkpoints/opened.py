"""`Checkpoint`: all files of a checkpoint as one `TensorSource`; values are read where they are asked for."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from parity.errors import CheckpointError, UsageError
from parity.io.checkpoints.files import CheckpointFile, keys_of
from parity.io.checkpoints.locate import Located, locate
from parity.io.checkpoints.stored import Stored
from parity.weights.source import TensorInfo

WRAPPERS = ("module.", "net.", "_orig_mod.")
"""Prefixes that wrappers of modules put before every key."""
_COMPILED = "_orig_mod."


def open_checkpoint(model: str, revision: str | None = None, subfolder: str | None = None) -> Checkpoint:
    """Open a checkpoint: a file, an index, a folder, or the repo_id of a repository in the local Hugging Face cache.

    Raises:
        UsageError: there is nothing of that name.
        CheckpointError: a file is damaged, its header lies, or there is no tensor in it.
    """
    checkpoint = Checkpoint(model, locate(str(model), revision, subfolder))
    if not checkpoint.stored:
        raise CheckpointError(f"{model} holds no tensor")
    return checkpoint


class Checkpoint:
    """Tensors of one checkpoint by key, without the prefixes of wrappers.

    Attributes:
        name: as it was asked for.
        stored: what each key is in its file.
        file_of: the name of the file a key lies in.
        unwrapped: dictionaries and prefixes taken off the keys.
        left_out: entries of pickles that are no dense tensors.
        problems: what a loader would stumble on: keys in another shard than the index says, or in two.
    """

    def __init__(self, name: str, located: Located) -> None:
        self.name = name
        self.files = [CheckpointFile(path) for path in located.files]
        self.problems = list(_index_problems(self.files, located))
        raw = {key: (file.stored[key], file.path.name) for key, file in keys_of(self.files)}
        renamed, prefixes = _without_wrappers(list(raw))
        self.stored: dict[str, Stored] = {renamed[key]: stored for key, (stored, _) in raw.items()}
        self.file_of = {renamed[key]: file for key, (_, file) in raw.items()}
        nested = [name for file in self.files[:1] for name in file.nested]
        self.unwrapped = (*nested, *prefixes)
        self.left_out = tuple(key for file in self.files for key in file.left_out)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: Any) -> None:
        self.files, self.stored = [], {}

    def identity(self) -> str:
        """Return a digest of keys, dtypes, shapes, and sizes and times of the files: whether it is the same as before.

        Values are not read.
        """
        digest = hashlib.blake2b(digest_size=16)
        for file in self.files:
            held = file.path.stat()
            digest.update(f"{file.path.name} {held.st_size} {held.st_mtime_ns}\n".encode())
        for key in sorted(self.stored):
            digest.update(f"{key!r} {self.stored[key].dtype_name} {self.stored[key].shape}\n".encode())
        return digest.hexdigest()

    def keys(self) -> Iterable[str]:
        """Return the keys in the order of the files."""
        return self.stored.keys()

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """The shape of each tensor, as the headers give it."""
        return {key: torch.Size(held.shape) for key, held in self.stored.items()}

    def info(self, key: str) -> TensorInfo:
        """Return shape and dtype from the header.

        Raises:
            UsageError: there is no such key.
            CheckpointError: this torch has no such dtype.
        """
        held = self._held(key)
        return TensorInfo(torch.Size(held.shape), held.torch_dtype())

    def get_tensor(self, key: str) -> Tensor:
        """Read the whole tensor.

        Raises:
            UsageError: there is no such key.
        """
        shape = self._held(key).shape
        return self.get_elements(key, 0, math.prod(shape)).view(shape)

    def get_slice(self, key: str, start: int, stop: int) -> Tensor:
        """Read rows `[start, stop)` of dim 0.

        Shapes: [I, ...] to [stop - start, ...].

        Raises:
            UsageError: there is no such key, or the tensor has no such rows.
        """
        shape = self._held(key).shape
        if not shape or not 0 <= start <= stop <= shape[0]:
            raise UsageError(f"rows {start} to {stop} of {key!r}, which has shape {tuple(shape)}")
        row = math.prod(shape[1:])
        return self.get_elements(key, start * row, stop * row).view(stop - start, *shape[1:])

    def get_elements(self, key: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Read elements `[start, stop)` in row-major order, into the bytes of `out` where given.

        Shapes: [stop - start]; out [n] uint8.
        """
        return self._held(key).elements(start, stop, out)

    def expect(self, key: str, start: int, stop: int) -> None:
        """Have the system read elements `[start, stop)` in advance, where it can."""
        self._held(key).expect(start, stop)

    def _held(self, key: str) -> Stored:
        if key not in self.stored:
            raise UsageError.unknown("tensor", key, self.stored)
        return self.stored[key]


def _index_problems(files: list[CheckpointFile], located: Located) -> Iterable[str]:
    places: dict[str, list[str]] = {}
    for key, file in keys_of(files):
        places.setdefault(key, []).append(file.path.name)
    for key, names in places.items():
        if len(names) > 1:
            yield f"{key!r} lies in {len(names)} files: {', '.join(names)}"
        elif located.weight_map and key not in located.weight_map:
            yield f"{key!r} of {names[0]} is not in the index"
    for key, name in located.weight_map.items():
        if name not in places.get(key, ()):
            where = f"it lies in {places[key][0]}" if key in places else "it lies in no shard"
            yield f"the index puts {key!r} in {name}: {where}"


def _without_wrappers(keys: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return each key without the prefixes all keys share and without `_orig_mod.`, and what was taken off."""
    names = {key: key for key in keys}
    taken: list[str] = []
    while keys and (found := next((w for w in WRAPPERS if all(n.startswith(w) for n in names.values())), None)):
        if any(name == found for name in names.values()):
            break
        names = {key: name.removeprefix(found) for key, name in names.items()}
        taken.append(found)
    compiled = {key: name.replace(_COMPILED, "") for key, name in names.items()}
    if compiled != names and max(Counter(compiled.values()).values()) == 1:
        return compiled, [*taken, _COMPILED]
    return names, taken

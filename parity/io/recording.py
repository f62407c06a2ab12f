"""A recording: one side's weights, LoRA, inputs and passes in a folder, with a manifest that is written last.

    DIR/begun.json                       what is recorded; while the recording is not complete
    DIR/manifest.json                    the same, with every draw; only when it is complete
    DIR/weights/                         parameters and persistent buffers
    DIR/lora/                            the LoRA, as A, B and scaling per target
    DIR/lora_off-seed0/inputs/           what the model was called with
    DIR/lora_off-seed0/free/             a pass: shards and pass.json

Safetensors and JSON only; reading runs nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parity.errors import RecordError
from parity.execution.trace import OnDemand
from parity.io.atomic import locked
from parity.io.hashing import hash_weights
from parity.io.passes import PassWriter, StoredPass, is_complete
from parity.io.records import Kind, read_record, write_record
from parity.io.shards import ShardReader, ShardWriter

RECORDING = Kind("dit-parity-recording", 1, "parity recording")
TENSORS = Kind("dit-parity-tensors", 1, "set of recorded tensors")
_NAME = re.compile(r"[a-z0-9_]+(-[a-z0-9_]+)*")


class RecordingFolder:
    """Where a recording lies.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def below(self, *names: str) -> Path:
        """Return a folder of the recording.

        Raises:
            RecordError: a name is not one this project gives.
        """
        for name in names:
            if not _NAME.fullmatch(name):
                raise RecordError(f"{self.path} names {name[:60]!r}, which is none of this project's folders")
        return self.path.joinpath(*names)

    # --- what is recorded ---------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the right to write the recording.

        Raises:
            RecordError: another run holds it, or the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with locked(self.path / "manifest.json"):
                yield
        except OSError as error:
            raise RecordError(f"cannot write below {self.path}: {error.strerror or error}") from error

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Note what is recorded here, before anything else; a manifest of an earlier recording goes."""
        write_record(self.path / "begun.json", {"identity": identity}, RECORDING)
        with suppress(FileNotFoundError):
            (self.path / "manifest.json").unlink()

    def finish(self, manifest: Mapping[str, Any]) -> Path:
        """Write the manifest: the recording is complete."""
        path = write_record(self.path / "manifest.json", manifest, RECORDING)
        with suppress(FileNotFoundError):
            (self.path / "begun.json").unlink()
        return path

    def begun(self) -> dict[str, Any] | None:
        """Return the identity of what is, or was to be, recorded here; None in a folder without a recording.

        Raises:
            RecordError: what is here cannot be read.
        """
        for name in ("manifest.json", "begun.json"):
            if (self.path / name).exists():
                found: dict[str, Any] = read_record(self.path / name, RECORDING)["identity"]
                return found
        return None

    def manifest(self) -> dict[str, Any]:
        """Return the manifest of a complete recording.

        Raises:
            RecordError: there is none, or it is incomplete, edited or of another schema.
        """
        if not (self.path / "manifest.json").exists() and (self.path / "begun.json").exists():
            raise RecordError(f"{self.path} was not recorded to its end\ngo on with: parity record ... --resume")
        return read_record(self.path / "manifest.json", RECORDING)

    # --- passes -------------------------------------------------------------------------------------------------------

    def writer(self, draw: str, name: str, *, low: bool = True, high: bool = True) -> PassWriter:
        """Return what a pass is streamed to."""
        return PassWriter(self.below(draw, name), low=low, high=high)

    def has(self, draw: str, name: str) -> bool:
        """Say whether a pass is here, whole."""
        return is_complete(self.below(draw, name))

    def stored(self, draw: str, name: str, device: torch.device | None = None) -> StoredPass:
        """Return a recorded pass.

        Raises:
            RecordError: it is not here, or damaged.
        """
        return StoredPass(self.below(draw, name), device)

    # --- weights, LoRA, inputs ----------------------------------------------------------------------------------------

    def write_tensors(self, name: str | tuple[str, str], tensors: Mapping[str, Tensor], note: Any = None) -> None:
        """Write named tensors, one shard in memory at a time, with a note beside them."""
        folder = self.below(*(name if isinstance(name, tuple) else (name,)))
        writer = ShardWriter(folder)
        places = {key: writer.add(value) for key, value in tensors.items()}
        writer.flush()
        held = {"places": places, "note": note, "shards": writer.shards}
        write_record(folder / "tensors.json", held, TENSORS)

    def tensors(self, name: str | tuple[str, str]) -> tuple[Mapping[str, Tensor], Any]:
        """Return named tensors, read when they are asked for, and the note beside them.

        Raises:
            RecordError: they are not here, or damaged.
        """
        folder = self.below(*(name if isinstance(name, tuple) else (name,)))
        held = read_record(folder / "tensors.json", TENSORS)
        reader = ShardReader(folder, held["shards"])
        return OnDemand({key: partial(reader.get, place) for key, place in held["places"].items()}), held["note"]

    def has_tensors(self, name: str | tuple[str, str]) -> bool:
        """Say whether named tensors are here, whole."""
        folder = self.below(*(name if isinstance(name, tuple) else (name,)))
        try:
            held = read_record(folder / "tensors.json", TENSORS)
            ShardReader(folder, held["shards"]).check()
        except RecordError:
            return False
        return True

    def write_inputs(self, draw: str, inputs: Mapping[str, Any]) -> None:
        """Write what a model is called with: tensors, numbers, words, and lists and mappings of them.

        Raises:
            RecordError: an input is something else.
        """
        tensors: dict[str, Tensor] = {}
        tree = {name: _planted(value, tensors, name) for name, value in inputs.items()}
        self.write_tensors((draw, "inputs"), tensors, tree)

    def inputs(self, draw: str) -> dict[str, Any]:
        """Return what the model was called with.

        Raises:
            RecordError: it is not here, or damaged.
        """
        tensors, tree = self.tensors((draw, "inputs"))
        return {name: _grown(value, tensors) for name, value in tree.items()}


def digests_of(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Return a digest of each input, to tell which one differs.

    Raises:
        RecordError: an input is neither tensor, number, word, nor a list or mapping of them.
    """
    found = {}
    for name, value in inputs.items():
        tensors: dict[str, Tensor] = {}
        tree = _planted(value, tensors, name)
        found[name] = hashlib.blake2b(f"{tree}{hash_weights(tensors)}".encode(), digest_size=16).hexdigest()
    return found


def _planted(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """Return a value with its tensors taken out into `tensors`."""
    if isinstance(value, Tensor):
        key = f"{where}#{len(tensors)}"
        tensors[key] = value
        return {"tensor": key}
    if isinstance(value, Mapping):
        return {"mapping": [[k, _planted(v, tensors, where)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_planted(v, tensors, where) for v in value]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"plain": value}
    raise RecordError(f"input {where!r} holds a {type(value).__name__}, which a recording cannot keep")


def _grown(value: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    kind, held = next(iter(value.items()))
    if kind == "tensor":
        return tensors[held]
    if kind == "mapping":
        return {k: _grown(v, tensors) for k, v in held}
    if kind in ("list", "tuple"):
        parts = [_grown(v, tensors) for v in held]
        return parts if kind == "list" else tuple(parts)
    if kind == "dtype":
        found = getattr(torch, str(held), None)
        if not isinstance(found, torch.dtype):
            raise RecordError(f"an input names the dtype {str(held)[:40]!r}, which torch does not have")
        return found
    return held

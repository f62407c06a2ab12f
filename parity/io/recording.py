"""A recording: one side's weights, LoRA, inputs and passes in a folder, with a manifest that is written last.

    DIR/begun.json                       what is recorded; while the recording is not complete
    DIR/manifest.json                    the same, with every draw; only when it is complete
    DIR/weights/                         parameters and persistent buffers
    DIR/lora/                            the LoRA, as A, B and scaling per target
    DIR/lora_off-seed0/inputs/           what the model was called with
    DIR/lora_off-seed0/free/             a pass: shards and pass.json
    DIR/lora_off-seed0/ops.json          the ops of the lockstep pass: size, norm and sum of what each gave, no values

Safetensors and JSON only; reading runs nothing.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parity.errors import RecordError
from parity.execution.trace import OnDemand
from parity.io.atomic import locked
from parity.io.passes import PassWriter, StoredPass, is_complete
from parity.io.records import Kind, as_written, read_record, write_record
from parity.io.shards import ShardReader, ShardWriter
from parity.io.tree import grown, planted, printable

RECORDING = Kind("dit-parity-recording", 1, "parity recording")
TENSORS = Kind("dit-parity-tensors", 1, "set of recorded tensors")
OPS = Kind("dit-parity-ops", 1, "list of recorded ops")
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
        folder = self.path.joinpath(*names)
        if not folder.resolve().is_relative_to(self.path.resolve()):
            raise RecordError(f"{folder} is a link that leads out of the recording\ncopy what it leads to in its place")
        return folder

    # --- what is recorded ---------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self, waiting: Callable[[str], object] | None = None) -> Iterator[None]:
        """Hold the right to write the recording; what a killed run left half written goes.

        Args:
            waiting: told who holds it, then it is waited for; None: that is an error.

        Raises:
            RecordError: another run holds it, or the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with locked(self.path / "manifest.json", waiting):
                for half in self.path.rglob(".*.tmp"):
                    half.unlink(missing_ok=True)
                yield
        except OSError as error:
            raise RecordError(f"cannot write below {self.path}: {error.strerror or error}") from error

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Note what is recorded here, before anything else.

        Where draws are added, the manifest stays: others may be reading what it lists.
        """
        write_record(self.path / "begun.json", {"identity": identity}, RECORDING)

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
                with as_written(self.path / name, RECORDING):
                    return dict(read_record(self.path / name, RECORDING)["identity"])
        return None

    def manifest(self) -> dict[str, Any]:
        """Return the manifest of a complete recording.

        Raises:
            RecordError: there is none, or it is incomplete, edited or of another schema.
        """
        if not (self.path / "manifest.json").exists() and (self.path / "begun.json").exists():
            raise RecordError(f"{self.path} was not recorded to its end\ngo on with: parity record ... --resume")
        found = read_record(self.path / "manifest.json", RECORDING)
        with as_written(self.path / "manifest.json", RECORDING):
            found["identity"]["pair"], found["about"].keys(), found["made_with"].keys(), found["has_tables"]
            for name, draw in found["draws"].items():
                self.below(name), draw.keys()
        return found

    def remove(self) -> None:
        """Remove a recording, whole or begun; a folder that holds none is left alone.

        Raises:
            RecordError: another run is writing it.
        """
        if not any((self.path / name).exists() for name in ("manifest.json", "begun.json")):
            return
        with self.writing():
            shutil.rmtree(self.path, ignore_errors=True)

    # --- passes -------------------------------------------------------------------------------------------------------

    def writer(self, draw: str, name: str, *, low: bool = True, high: bool = True) -> PassWriter:
        """Return what a pass is streamed to."""
        return PassWriter(self.below(draw, name), low=low, high=high)

    def has(self, draw: str, name: str) -> bool:
        """Say whether a pass is here, whole."""
        return is_complete(self.below(draw, name))

    def has_all(self, draw: str, names: Iterable[str]) -> bool:
        """Say whether passes are here with every file in its size; content is checked when it is read."""
        with suppress(RecordError):
            return all(self.stored(draw, name).reader.has_all() for name in names)
        return False

    def stored(
        self, draw: str, name: str, device: torch.device | None = None, *, checked: bool = False
    ) -> StoredPass:
        """Return a recorded pass.

        Args:
            draw: the draw's name.
            name: the pass's.
            device: where its values are wanted.
            checked: it was written, or checked, by this process just now.

        Raises:
            RecordError: it is not here, or damaged.
        """
        return StoredPass(self.below(draw, name), device, checked=checked)

    def bytes_of(self, draws: Iterable[str] = ()) -> int:
        """Return how much of some draws is on disk already; of the whole recording where none is named."""
        folders = [self.below(name) for name in draws] or [self.path]
        return sum(file.stat().st_size for folder in folders for file in folder.rglob("*.safetensors"))

    def write_ops(self, draw: str, ops: Mapping[str, Any]) -> None:
        """Write the ops of a draw's lockstep pass."""
        write_record(self.below(draw) / "ops.json", ops, OPS)

    def ops(self, draw: str) -> dict[str, Any] | None:
        """Return the ops of a draw's lockstep pass; None: they were not recorded.

        Raises:
            RecordError: they are damaged.
        """
        path = self.below(draw) / "ops.json"
        if not path.exists():
            return None
        found: dict[str, Any] = printable(read_record(path, OPS))
        return found

    def has_ops(self, draw: str) -> bool:
        """Say whether the ops of a draw are here, whole."""
        with suppress(RecordError):
            return self.ops(draw) is not None
        return False

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
        with as_written(folder / "tensors.json", TENSORS):
            reader = ShardReader(folder, held["shards"])
            return OnDemand({key: partial(reader.get, place) for key, place in held["places"].items()}), held["note"]

    def has_tensors(self, name: str | tuple[str, str]) -> bool:
        """Say whether named tensors are here, whole."""
        folder = self.below(*(name if isinstance(name, tuple) else (name,)))
        try:
            held = read_record(folder / "tensors.json", TENSORS)
            with as_written(folder / "tensors.json", TENSORS):
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
        tree = {name: planted(value, tensors, name) for name, value in inputs.items()}
        self.write_tensors((draw, "inputs"), tensors, tree)

    def inputs(self, draw: str) -> dict[str, Any]:
        """Return what the model was called with.

        Raises:
            RecordError: it is not here, or damaged.
        """
        tensors, tree = self.tensors((draw, "inputs"))
        with as_written(self.below(draw, "inputs"), TENSORS):
            return {name: grown(value, tensors) for name, value in tree.items()}

"""LoRA files on disk: opened without running anything in them, written under their name only once they are proved.

The kind of a file is read from its first bytes, not from its name.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from parity.errors import LoraFileError, UsageError
from parity.io.safetensors_source import SafetensorsSource
from parity.weights.source import StateDictSource, TensorSource

SIDECAR = "adapter_config.json"
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt")
_INNER = ("state_dict", "model", "module", "lora", "weights")


@dataclass(frozen=True)
class Opened:
    """An open file: tensors on demand, its header's words, the settings beside it."""

    path: Path
    source: TensorSource
    header: Mapping[str, str] = field(default_factory=dict)
    sidecar: Mapping[str, Any] | None = None


def open_lora(path: str | Path) -> Opened:
    """Open a LoRA file, or the one in a folder; nothing in it is run.

    Raises:
        UsageError: there is no such path.
        LoraFileError: it is empty, truncated, of no known kind, or a pickle with code in it.
    """
    path = _file_at(Path(path))
    source = _source(path)
    header = source.header if isinstance(source, SafetensorsSource) else {}
    return Opened(path, source, header, _sidecar(path))


def open_base(path: str | Path) -> dict[str, torch.Size]:
    """Return the shapes of a model's tensors, from headers alone where the files have them.

    Raises:
        UsageError: there is no such path, or no weights in it.
        LoraFileError: a file cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"no such model: {path}")
    files = [path] if path.is_file() else _shards(path)
    if not files:
        raise UsageError(f"{path} has no .safetensors files\nname the folder or file of the transformer's weights")
    shapes: dict[str, torch.Size] = {}
    for file in files:
        source = _source(file)
        shapes |= {key: source.info(key).shape for key in source.keys()}  # noqa: SIM118
    return shapes


def _shards(folder: Path) -> list[Path]:
    """Return the files of a model's folder, or of the transformer's in the folder of a pipeline."""
    places = (folder, folder / "transformer")
    return next((found for place in places if (found := sorted(place.glob("*.safetensors")))), [])


def write_lora(
    path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, str], sidecar: Mapping[str, Any] | None,
    proved: Callable[[Path], None],
) -> list[Path]:  # fmt: skip
    """Write a file, and its settings beside it; `proved` reads it back under another name before it gets its own.

    A path without a suffix is a folder, which gets `adapter_model.safetensors`.

    Raises:
        LoraFileError: settings of another adapter lie there.
        OSError: the folder cannot be written.
    """
    path = Path(path)
    path = path if path.suffix else path / "adapter_model.safetensors"
    beside = path.parent / SIDECAR
    if sidecar is not None and beside.exists() and not path.exists():
        raise LoraFileError("exists", f"{beside} is there already, of another adapter\nwrite into a folder of its own")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        written = [Path(folder) / "adapter_model.safetensors"]
        safetensors.torch.save_file(_apart(tensors), written[0], dict(header))
        if sidecar is not None:
            written.append(Path(folder) / SIDECAR)
            written[1].write_text(json.dumps(sidecar, indent=2) + "\n", encoding="utf-8")
        proved(written[0])
        for file in written:
            with file.open("rb") as open_file:
                os.fsync(open_file.fileno())
        places = [path, beside][: len(written)]
        for file, place in reversed(list(zip(written, places, strict=True))):
            file.replace(place)
    return places


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory, as layers cut from one share its A: the format has no word for it."""
    seen: set[int] = set()
    out: dict[str, Tensor] = {}
    for key, value in tensors.items():
        place = value.untyped_storage().data_ptr()
        out[key] = value.clone() if place in seen else value.contiguous()
        seen.add(place)
    return out


def _file_at(path: Path) -> Path:
    if not path.exists():
        raise UsageError(f"no such file: {path}")
    if not path.is_dir():
        return path
    found = sorted({file for pattern in _WEIGHTS for file in path.glob(pattern)})
    own = [file for file in found if file.stem == "adapter_model"]
    if len(own) == 1 or len(found) == 1:
        return (own or found)[0]
    names = ", ".join(file.name for file in found[:4]) or "no weights"
    below = [] if found else sorted(file for pattern in _WEIGHTS for file in path.glob(f"*/{pattern}"))
    where = f", for example {below[0]}" if below else ""
    raise LoraFileError("directory", f"{path} is a folder with {names}\nname one LoRA file{where}")


def _source(path: Path) -> SafetensorsSource | StateDictSource:
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise LoraFileError("unreadable", f"cannot read {path}: {error.strerror}") from error
    if not start:
        raise LoraFileError("empty_file", f"{path} is empty: 0 bytes\nfetch or save it again")
    if start.startswith(b"GGUF"):
        raise LoraFileError("gguf", f"{path} is a GGUF file, which is not read\nuse the .safetensors it was made from")
    # A header of 128, 384, ... bytes makes a safetensors file begin like a pickle; its ninth byte never does.
    if start.startswith((b"PK", b"\x80")) and start[8:9] != b"{":
        return StateDictSource(_unpickled(path, start.startswith(b"PK")))
    return _safetensors(path, start)


def _safetensors(path: Path, start: bytes) -> SafetensorsSource:
    try:
        return SafetensorsSource(path)
    except (SafetensorError, OSError) as error:
        said = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        if start[8:9] == b"{" or len(start) < 9:
            text = f"{path} is truncated or damaged: {said}\nfetch or save it again"
            raise LoraFileError("truncated", text) from error
        raise LoraFileError("not_a_lora_file", f"{path} is neither safetensors nor a torch file: {said}") from error


def _unpickled(path: Path, zipped: bool) -> Mapping[str, object]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about protocols it may not know; what it does not know it refuses
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise _refused(path, str(error)) from error
    except Exception as error:  # whatever a parser says of damaged bytes
        said = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise LoraFileError("truncated", f"{path} is truncated or damaged: {said}\nfetch or save it again") from error
    return _state_in(path, held)


def _refused(path: Path, said: str) -> LoraFileError:
    found = re.search(r"GLOBAL ([\w.]+)", said) or re.search(r"`?([\w]+\.[\w.]+)`? was not an allowed global", said)
    if found is None and re.search("truncated|Ran out|EOF", said):
        return LoraFileError("truncated", f"{path} is truncated or damaged\nfetch or save it again")
    what = f"it calls {found[1]}" if found else "it holds more than tensors"
    text = f"{path} is a pickle that runs code when loaded ({what}): refused, nothing was run"
    return LoraFileError("pickle_with_code", f"{text}\nask for a .safetensors file")


def _state_in(path: Path, held: object) -> Mapping[str, object]:
    """Return the state dict of a torch file, from one level below where a trainer has put it there."""
    if isinstance(held, Mapping) and not any(isinstance(value, Tensor) for value in held.values()):
        held = next((held[name] for name in _INNER if isinstance(held.get(name), Mapping)), held)
    if not isinstance(held, Mapping):
        raise LoraFileError("no_tensors", f"{path} holds a {type(held).__name__}, a state dict is needed")
    return {str(key): value for key, value in held.items()}


def _sidecar(path: Path) -> Mapping[str, Any] | None:
    """Read the settings beside a file, where they can only be its own."""
    beside = path.parent / SIDECAR
    others = {file for pattern in _WEIGHTS for file in path.parent.glob(pattern)} - {path}
    if not beside.is_file() or (path.stem != "adapter_model" and others):
        return None
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LoraFileError("bad_config", f"{beside} is no JSON: {str(error)[:120]}") from error
    if not isinstance(found, dict):
        raise LoraFileError("bad_config", f"{beside} is a {type(found).__name__}, an object of settings is needed")
    return found

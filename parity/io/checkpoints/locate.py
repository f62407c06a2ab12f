"""Which files make up a checkpoint: a file, an index, a folder, or a repository in the local Hugging Face cache."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parity.errors import CheckpointError, UsageError
from parity.io.checkpoints.files import PICKLES, SAFETENSORS

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_MOST_INDEX = 100_000_000


@dataclass(frozen=True)
class Located:
    """The files of a checkpoint and, where there is an index, the file it names for each key."""

    files: tuple[Path, ...]
    weight_map: Mapping[str, str] = field(default_factory=dict)


def locate(model: str, revision: str | None = None, subfolder: str | None = None) -> Located:
    """Find the files of a checkpoint; never downloads.

    Raises:
        UsageError: there is nothing of that name, or several checkpoints lie there.
        CheckpointError: an index is broken or names missing files.
    """
    path = Path(model).expanduser()
    if not path.exists():
        path = _cached(model, revision)
    if subfolder is not None:
        path = _below(path, subfolder)
    if path.is_dir():
        return _in_folder(path)
    if path.name.endswith(".index.json"):
        return _indexed(path)
    if path.suffix not in (*SAFETENSORS, *PICKLES):
        endings = ", ".join((*SAFETENSORS, *PICKLES))
        raise UsageError(f"{path} is no checkpoint\nvalid: {endings}, .index.json or a folder")
    return Located((path,))


def _below(path: Path, subfolder: str) -> Path:
    parts = Path(subfolder).parts
    if Path(subfolder).is_absolute() or ".." in parts or not (path / subfolder).is_dir():
        held = sorted(entry.name for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []
        raise UsageError.unknown(f"subfolder of {path.name}", subfolder, held)
    return path / subfolder


def _cached(repo_id: str, revision: str | None) -> Path:
    """Return the snapshot of a repository in the local cache."""
    if not _REPO.fullmatch(repo_id):
        raise UsageError(f"there is no {repo_id}\nvalid: a file, a folder, or the repo_id of a cached repository")
    repository = _cache_root() / f"models--{repo_id.replace('/', '--')}"
    if not repository.is_dir():
        raise UsageError(
            f"there is no {repo_id}, and no such repository in {_cache_root()}\nget it with: hf download {repo_id}"
        )
    snapshots = {entry.name: entry for entry in (repository / "snapshots").glob("*") if entry.is_dir()}
    commit = _commit(repository, revision or "main")
    if commit not in snapshots:
        raise UsageError.unknown(f"revision of {repo_id} in the cache", revision or "main", _revisions(repository))
    return snapshots[commit]


def _commit(repository: Path, revision: str) -> str:
    if revision in _revisions(repository) and (repository / "refs" / revision).is_file():
        return (repository / "refs" / revision).read_text(encoding="utf-8").strip()
    return revision


def _revisions(repository: Path) -> list[str]:
    refs = repository / "refs"
    named = [str(path.relative_to(refs)) for path in refs.rglob("*") if path.is_file()]
    return named + [path.name for path in (repository / "snapshots").glob("*")]


def _cache_root() -> Path:
    for name, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if held := os.environ.get(name):
            return Path(held).expanduser() / below
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "huggingface" / "hub"


def _in_folder(folder: Path) -> Located:
    indices = sorted(folder.glob("*.index.json"))
    for suffixes in (SAFETENSORS, PICKLES):
        files = [path for path in sorted(folder.iterdir()) if path.suffix in suffixes]
        fitting = [path for path in indices if f"{suffixes[0]}." in path.name or suffixes is PICKLES]
        if len(fitting) == 1:
            return _indexed(fitting[0])
        if len(fitting) > 1:
            raise _several(folder, fitting)
        if files:
            return Located(_one_set(folder, files))
    below = sorted({path.parent.name for path in folder.glob("*/*") if path.suffix in (*SAFETENSORS, *PICKLES)})
    hint = f"\nbelow it there are some: use --subfolder {' or '.join(below[:4])}" if below else ""
    raise UsageError(f"{folder} holds no checkpoint file{hint}")


def _one_set(folder: Path, files: list[Path]) -> tuple[Path, ...]:
    if len(files) == 1 and not _PART.search(files[0].stem):
        return tuple(files)
    parts = [part for path in files if (part := _PART.search(path.stem))]
    if len(parts) < len(files) or len({(part.string[: part.start()], part[2]) for part in parts}) > 1:
        raise _several(folder, files)
    wanted, present = int(parts[0][2]), {int(part[1]) for part in parts}
    if missing := sorted(set(range(1, wanted + 1)) - present):
        raise CheckpointError(f"{folder} lacks {len(missing)} of {wanted} shards, the first is number {missing[0]}")
    return tuple(files)


def _several(folder: Path, files: list[Path]) -> UsageError:
    names = ", ".join(path.name for path in files[:6])
    return UsageError(f"{folder} holds several checkpoints: {names}\nname one of these files")


def _indexed(index: Path) -> Located:
    weight_map = _weight_map(index)
    names = list(dict.fromkeys(weight_map.values()))
    for name in names:
        if Path(name).name != name or name in ("", ".", "..") or "\\" in name or "\0" in name:
            raise CheckpointError(f"{index} names the shard {name!r}, which is no plain file name: refused")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        key = next(key for key, name in weight_map.items() if name == missing[0])
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{index} names a shard that is missing: {missing[0]!r}{more}, for {key!r}\nget it again")
    return Located(tuple(index.parent / name for name in names), weight_map)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        if index.stat().st_size > _MOST_INDEX:
            raise CheckpointError(f"{index} is no index: it is larger than {_MOST_INDEX // 1000000} MB")
        held: Any = json.loads(index.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{index} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{index} is truncated or no JSON: {str(error)[:120]}") from error
    found = held.get("weight_map") if isinstance(held, dict) else None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise CheckpointError(f"{index} has no weight_map from keys to file names")
    return found

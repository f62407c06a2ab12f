"""Pairs in folders: one file a pair, each ending in `PAIR = ModelPair(...)`."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from parity.errors import UsageError
from parity.pair import ModelPair

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def discover(paths: Sequence[Path]) -> dict[str, ModelPair]:
    """Import every pair file below the given folders (or files) and return the pairs by name. Builds nothing.

    Raises:
        UsageError: a path does not exist, a file fails to import or holds no pair, or two files name the same pair.
    """
    pairs: dict[str, ModelPair] = {}
    origin: dict[str, Path] = {}
    for file in _files(paths):
        module = _imported(file)
        pair = getattr(module, "PAIR", None)
        if not isinstance(pair, ModelPair):
            raise UsageError(
                f"the pair file {file.name} has no `PAIR = ModelPair(...)`\n"
                "a file that is not a pair's is left out where its name starts with an underscore"
            )
        if not _NAME.fullmatch(pair.name):
            raise UsageError(f"{file.name}: the pair name {pair.name!r} is not lower case with underscores: my_pair")
        if pair.name in pairs and origin[pair.name].resolve() != file.resolve():
            raise UsageError(f"two files name the pair {pair.name!r}: {origin[pair.name].name} and {file.name}")
        pairs[pair.name], origin[pair.name] = pair, file
    return pairs


def choose(pairs: dict[str, ModelPair], name: str) -> ModelPair:
    """Return a pair by name.

    Raises:
        UsageError: there is none; the message names the nearest.
    """
    if name not in pairs:
        raise UsageError.unknown("pair", name, pairs)
    return pairs[name]


def _files(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(f for f in path.glob("*.py") if not f.name.startswith("_"))
        elif path.is_file():
            files.append(path)
        else:
            way = "set `parity_pairs` in the pytest configuration, or name folders on the command line"
            raise UsageError(f"there is no pair folder {str(path)!r}\n{way}")
    return files


def _imported(file: Path) -> ModuleType:
    dotted = _importable_as(file)
    if dotted is not None:
        return _guarded(file, lambda: importlib.import_module(dotted))
    name = f"parity_pair_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader = spec.loader

    def load() -> ModuleType:
        loader.exec_module(module)
        return module

    return _guarded(file, load)


def _guarded(file: Path, load: Callable[[], ModuleType]) -> ModuleType:
    try:
        return load()
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        words = " ".join(str(error).split())[:300]
        raise UsageError(f"the pair file {file.name} does not import: {type(error).__name__}: {words}") from error


def _importable_as(file: Path) -> str | None:
    """Return the dotted name under which the file is importable already, so that it is never loaded twice."""
    target = file.resolve()
    for entry in sys.path:
        root = Path(entry or ".").resolve()
        if root in target.parents:
            dotted = ".".join(target.relative_to(root).with_suffix("").parts)
            try:
                spec = importlib.util.find_spec(dotted)
            except (ImportError, ValueError):
                continue
            if spec is not None and spec.origin is not None and Path(spec.origin).resolve() == target:
                return dotted
    return None

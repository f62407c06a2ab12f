"""Pairs in folders: one file a pair, each ending in `PAIR = ModelPair(...)`."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from parity.errors import UsageError
from parity.pair import ModelPair

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def discover(
    paths: Sequence[Path], wanted: Sequence[str] = (), tell: Callable[[str], object] = lambda text: None
) -> dict[str, ModelPair]:
    """Import every pair file below the given folders (or files) and return the pairs by name. Builds nothing.

    Args:
        paths: folders, or files.
        wanted: names of the pairs that are asked for, none for all: where they are found, a broken file of another pair
            is only told, and that pair is left out.
        tell: told, in a few lines, of each broken file that hurts no pair which is asked for.

    Raises:
        UsageError: a path does not exist; or a file fails to import, holds no pair or names the pair of another file,
            and may hold what is asked for.
    """
    held: dict[str, list[tuple[Path, ModelPair]]] = {}
    broken: dict[str, UsageError] = {}
    for file in _files(paths):
        try:
            pair = _pair_of(file)
        except UsageError as error:
            broken[file.stem] = error
        else:
            others = held.setdefault(pair.name, [])
            others[:] = [(f, p) for f, p in others if f.resolve() != file.resolve()] + [(file, pair)]
    for name, found in held.items():
        if len(found) > 1:
            broken[name] = UsageError(f"two files name the pair {name!r}: {found[0][0].name} and {found[1][0].name}")
    pairs = {name: found[0][1] for name, found in held.items() if len(found) == 1}
    _settle(broken, pairs, wanted, tell)
    return pairs


def _settle(
    broken: Mapping[str, UsageError], pairs: Mapping[str, ModelPair], wanted: Sequence[str],
    tell: Callable[[str], object],
) -> None:  # fmt: skip
    """Raise where a broken file may hold what is asked for; tell of it where it does not."""
    missing = [name for name in wanted if name not in pairs]
    for name in missing if broken else ():
        other = f"{UsageError.unknown('pair', name, pairs)}\n{str(next(iter(broken.values()))).splitlines()[0]}"
        raise broken.get(name, UsageError(other))
    for error in broken.values():
        if not wanted:
            raise error
        tell(f"{str(error).splitlines()[0]}\nits pair is left out: mend the file, or begin its name with an underscore")


def _pair_of(file: Path) -> ModelPair:
    pair = getattr(_imported(file), "PAIR", None)
    if not isinstance(pair, ModelPair):
        raise UsageError(
            f"the pair file {file.name} has no `PAIR = ModelPair(...)`\n"
            "a file that is not a pair's is left out where its name starts with an underscore"
        )
    if not _NAME.fullmatch(pair.name):
        raise UsageError(f"{file.name}: the pair name {pair.name!r} is not lower case with underscores: my_pair")
    return pair


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


class _Fresh(SourceFileLoader):
    """Reads a pair file itself: compiled code is taken for current when a file is edited twice in one second."""

    def get_code(self, fullname: str) -> CodeType:
        """Compile what the file holds now."""
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


def _imported(file: Path) -> ModuleType:
    dotted = _importable_as(file)
    if dotted is not None and dotted in sys.modules:
        return sys.modules[dotted]
    return _guarded(file, lambda: _loaded(file, dotted or f"parity_pair_{file.stem}"))


def _loaded(file: Path, name: str) -> ModuleType:
    """Import a file under a name, as an import of that name would."""
    package, _, own = name.rpartition(".")
    parent = importlib.import_module(package) if package else None
    spec = importlib.util.spec_from_file_location(name, file, loader=_Fresh(name, str(file)))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    if parent is not None:
        setattr(parent, own, module)
    return module


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

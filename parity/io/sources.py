"""Where imported code really comes from: version, commit, file."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

from parity.errors import SourceMissing, WrongSource

Described = dict[str, str | bool | None]


def describe_source(module_name: str, distribution: str | None = None, checkout_env: str | None = None) -> Described:
    """Return what a record keeps of a source: module, version, commit, dirty, file and digest.

    `file` is relative to the checkout or to the folder of the top package, never absolute; `digest` is the module
    file's blake2b. `commit` and `dirty` are None without a checkout. Packages above the module are imported.

    Raises:
        SourceMissing: the module cannot be found, or the variable is set and names no folder.
    """
    file = module_file(module_name)
    root = _checkout(checkout_env)
    commit, dirty = _commit(root) if root else (None, None)
    return {
        "module": module_name,
        "distribution": distribution,
        "version": _version(distribution, file.parents[module_name.count(".")]),
        "commit": commit,
        "dirty": dirty,
        "file": _relative(file, root, module_name),
        "digest": hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest(),
    }


def module_file(module_name: str) -> Path:
    """Return the file a module is, or would be, imported from.

    Raises:
        SourceMissing: there is no such module, or it has no file (a namespace package).
    """
    module = sys.modules.get(module_name)
    origin = getattr(module, "__file__", None) if module is not None else _found(module_name)
    if origin is None or not Path(origin).is_file():
        raise SourceMissing(f"module {module_name!r} is not on this machine, or has no file")
    return Path(origin).resolve()


def check_imported_from(module: ModuleType | str, expected_root: str | Path) -> Path:
    """Return the module's file, which must lie below `expected_root`.

    Raises:
        WrongSource: it was imported from elsewhere.
        SourceMissing: there is no such module.
    """
    name = module if isinstance(module, str) else module.__name__
    own = None if isinstance(module, str) else module.__file__
    file, root = Path(own).resolve() if own else module_file(name), Path(expected_root).resolve()
    if not file.is_relative_to(root):
        raise WrongSource(f"{name} was imported from {file}\nexpected below {root}\ncheck sys.path and PYTHONPATH")
    return file


def _found(module_name: str) -> str | None:
    try:
        spec = importlib.util.find_spec(module_name)
    except (ImportError, ValueError):
        return None
    return spec.origin if spec else None


def _version(distribution: str | None, beside: Path) -> str | None:
    """Return the version of the distribution the module came with: unpacked beside it, or installed."""
    if distribution is None:
        return None
    for found in metadata.distributions(name=distribution, path=[str(beside)]):
        return found.version
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _checkout(checkout_env: str | None) -> Path | None:
    given = os.environ.get(checkout_env) if checkout_env else None
    if not given:
        return None
    if not Path(given).is_dir():
        raise SourceMissing(f"{checkout_env} is set to {given!r}, which is no folder")
    return Path(given).resolve()


def _commit(root: Path) -> tuple[str | None, bool | None]:
    """Return commit and whether tracked files differ from it; None outside git."""
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None, None
    status = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return commit, None if status is None else bool(status)


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _relative(file: Path, root: Path | None, module_name: str) -> str:
    if root is not None and file.is_relative_to(root):
        return file.relative_to(root).as_posix()
    depth = module_name.count(".") + 1 + (file.name == "__init__.py")
    return "/".join(file.parts[-depth:])


def digest_of_code(*names: str) -> str:
    """Return a digest of the code of modules and packages: what was computed by other code is stale."""
    digest = hashlib.blake2b(digest_size=16)
    for name in names:
        file = module_file(name)
        for part in sorted(file.parent.glob("*.py")) if file.name == "__init__.py" else [file]:
            digest.update(part.read_bytes())
    return digest.hexdigest()

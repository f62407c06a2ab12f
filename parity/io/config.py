"""The pytest configuration of a project, read without pytest: where its pairs are."""

from __future__ import annotations

import configparser
import importlib
import re
from pathlib import Path
from typing import Any

from parity.errors import UsageError

_FILES = {"pytest.ini": "pytest", ".pytest.ini": "pytest", "tox.ini": "pytest", "setup.cfg": "tool:pytest"}
_ROOT_MARKS = ("pyproject.toml", *_FILES, ".git")


def project_root(start: Path) -> Path:
    """Return the nearest folder at or above `start` with a project's configuration in it; `start` itself without one."""
    start = start.resolve()
    return next((f for f in (start, *start.parents) if any((f / m).exists() for m in _ROOT_MARKS)), start)


def configured_pairs(root: Path) -> list[Path]:
    """Return the folders the option `parity_pairs` names, relative ones below `root`; empty where it is not set.

    Raises:
        UsageError: the configuration is not readable.
    """
    return [root / name for name in _from_toml(root / "pyproject.toml") or _from_ini(root)]


def _from_toml(file: Path) -> list[str]:
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8")
    options: Any = _toml(file, text)
    for part in ("tool", "pytest", "ini_options"):
        options = options.get(part, {})
    return _names(options.get("parity_pairs", []))


def _toml(file: Path, text: str) -> dict[str, Any]:
    for name in ("tomllib", "tomli"):
        try:
            parser = importlib.import_module(name)
        except ImportError:
            continue
        try:
            return dict(parser.loads(text))
        except ValueError as error:
            raise UsageError(f"{file.name} is no TOML: {error}") from error
    return _sketched(text)


def _sketched(text: str) -> dict[str, Any]:
    """Find the one option in TOML on a Python that cannot parse it (3.10 without tomli)."""
    found = re.search(r"^parity_pairs\s*=\s*\[([^\]]*)\]", text, re.MULTILINE)
    names = re.findall(r"""["']([^"']+)["']""", found[1]) if found else []
    return {"tool": {"pytest": {"ini_options": {"parity_pairs": names}}}}


def _from_ini(root: Path) -> list[str]:
    for name, section in _FILES.items():
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(root / name, encoding="utf-8")
        except configparser.Error as error:
            raise UsageError(f"{name} is not readable: {str(error).splitlines()[0]}") from error
        if names := _names(parser.get(section, "parity_pairs", fallback="")):
            return names
    return []


def _names(value: Any) -> list[str]:
    return value.split() if isinstance(value, str) else [str(name) for name in value]

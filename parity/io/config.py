"""The pytest configuration of a project, read without pytest: where its pairs are, what is on its path."""

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
    """Return the nearest folder at or above `start` that is a project's root; `start` itself without one."""
    start = start.resolve()
    return next((f for f in (start, *start.parents) if any((f / m).exists() for m in _ROOT_MARKS)), start)


def configured(root: Path, option: str) -> list[Path]:
    """Return the paths an option of the pytest configuration names, relative ones below `root`; empty where not set.

    Raises:
        UsageError: the configuration is not readable.
    """
    return [root / name for name in _from_toml(root / "pyproject.toml", option) or _from_ini(root, option)]


def _from_toml(file: Path, option: str) -> list[str]:
    if not file.is_file():
        return []
    options: Any = _toml(file, option)
    for part in ("tool", "pytest", "ini_options"):
        options = options.get(part, {})
    return _names(options.get(option, []))


def _toml(file: Path, option: str) -> dict[str, Any]:
    text = file.read_text(encoding="utf-8")
    for name in ("tomllib", "tomli"):
        try:
            parser = importlib.import_module(name)
        except ImportError:
            continue
        try:
            return dict(parser.loads(text))
        except ValueError as error:
            raise UsageError(f"{file.name} is no TOML: {error}") from error
    return _sketched(text, option)


def _sketched(text: str, option: str) -> dict[str, Any]:
    """Find the one option in TOML on a Python that cannot parse it (3.10 without tomli)."""
    found = re.search(rf"^{option}\s*=\s*\[([^\]]*)\]", text, re.MULTILINE)
    names = re.findall(r"""["']([^"']+)["']""", found[1]) if found else []
    return {"tool": {"pytest": {"ini_options": {option: names}}}}


def _from_ini(root: Path, option: str) -> list[str]:
    for name, section in _FILES.items():
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(root / name, encoding="utf-8")
        except configparser.Error as error:
            raise UsageError(f"{name} is not readable: {str(error).splitlines()[0]}") from error
        if names := _names(parser.get(section, option, fallback="")):
            return names
    return []


def _names(value: Any) -> list[str]:
    return value.split() if isinstance(value, str) else [str(name) for name in value]

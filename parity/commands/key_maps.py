"""`--map`: a key map from a JSON file, a Python name or a pair."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parity.commands.frame import warned
from parity.errors import KeyMapError, UsageError
from parity.inventory import find_project
from parity.io.keymaps import read_key_map
from parity.lora.turned import turned
from parity.pair import Build
from parity.weights.keymap import KeyMap
from parity.weights.plan import Shapes

FORMS = "a .json file, package.module:NAME, or a pair's name"


def key_map_named(
    words: str | None, reverse: bool = False, shapes: tuple[Shapes, Shapes] | None = None
) -> KeyMap | None:
    """Return the key map a caller means, from native to reference where it is to be reversed.

    With shapes of reference and native any map of cuts and joins can be reversed, else one of plain patterns.

    Raises:
        UsageError: there is none of that name.
        KeyMapError: it cannot be reversed.
    """
    if words is None:
        if reverse:
            raise UsageError("--reverse turns a key map around: name it with --map")
        return None
    found = _found(words)
    if not reverse:
        return found
    if shapes is not None:
        return turned(found.plan(*shapes))
    try:
        return found.invert()
    except KeyMapError as error:
        text = f"{str(error).partition(';')[0]}\nparity lora convert goes back by shapes"
        raise KeyMapError(f"{text}: name both models, --base and --to-base") from error


def _found(words: str) -> KeyMap:
    if words.endswith(".json"):
        return read_key_map(words)
    if ":" in words:
        return _as_key_map(words, _imported(words))
    pair = find_project(Path.cwd()).pair(words, warned)
    return pair.key_map(Build(size=pair.sizes[0], dtype=pair.dtypes[0]))


def _imported(words: str) -> Any:
    module, _, name = words.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"--map {words!r} names nothing: {error}\nvalid: {FORMS}") from error


def _as_key_map(words: str, found: Any) -> KeyMap:
    if isinstance(found, KeyMap):
        return found
    if isinstance(found, Mapping):
        return KeyMap.from_mapping(found)
    if callable(found):
        return KeyMap.from_function(found)
    kind = type(found).__name__
    raise UsageError(f"--map {words!r} is a {kind}; valid: a KeyMap, a mapping of patterns, or a converter function")

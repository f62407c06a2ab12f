"""Key maps in JSON: an object from pattern to name, `[name, index, count]` for one of several fused parts."""

from __future__ import annotations

import json
from pathlib import Path

from parity.errors import UsageError
from parity.weights.keymap import KeyMap
from parity.weights.mapping import Replacement


def read_key_map(path: str | Path) -> KeyMap:
    """Read a key map.

    Raises:
        UsageError: the file is missing or no such object.
        KeyMapError: a replacement is none of the valid forms.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the key map {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the key map {path} is no JSON: {str(error)[:120]}") from error
    if not isinstance(found, dict):
        raise UsageError(f"the key map {path} is a {type(found).__name__}, an object from pattern to name is needed")
    return KeyMap.from_mapping({pattern: _replacement(value) for pattern, value in found.items()})


def _replacement(value: object) -> Replacement:
    """Return the tuple JSON has no word for; a list of names stays one."""
    if isinstance(value, list) and len(value) == 3 and [type(item) for item in value] == [str, int, int]:
        return (value[0], value[1], value[2])
    return value  # type: ignore[return-value]  # what is none of the forms is refused where the map is made

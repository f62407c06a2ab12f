"""Key maps in JSON files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parity.errors import KeyMapError, UsageError
from parity.io.outputs import write_out
from parity.weights.keymap import KeyMap
from parity.weights.mapfile import key_map_from

_MOST_BYTES = 1 << 28


def read_key_map(path: str | Path) -> KeyMap:
    """Read a key map: one `parity weights map` wrote, one written by hand, or a `param_names_mapping` as JSON.

    Raises:
        UsageError: the file cannot be read, or is no key map.
    """
    try:
        return key_map_from(_parsed(Path(path)))
    except KeyMapError as error:
        raise UsageError(f"{path} is no key map: {error}") from error


def write_key_map(path: str | Path, held: Mapping[str, Any]) -> Path:
    """Write the JSON of a key map.

    Raises:
        UsageError: it cannot be written.
    """
    return write_out(path, json.dumps(held, indent=1) + "\n")


def _parsed(path: Path) -> Any:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UsageError(f"{path} is no key map: it is larger than {_MOST_BYTES >> 20} MB")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the key map {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is truncated or no JSON: {str(error)[:120]}") from error

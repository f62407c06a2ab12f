"""Reports of `parity weights match`: JSON that is written whole, and read back to go on or to make a key map of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parity.errors import RecordError
from parity.io.outputs import write_out
from parity.io.records import as_json

SCHEMA, VERSION = "dit-parity-weight-match", 1
_MOST_BYTES = 1 << 30


def write_match_report(path: str | Path, held: Mapping[str, Any]) -> Path:
    """Write a report; NaN and inf become strings, as in every record.

    Raises:
        UsageError: it cannot be written.
    """
    return write_out(path, as_json({"schema": SCHEMA, "schema_version": VERSION, **held}) + "\n")


def read_match_report(path: str | Path) -> dict[str, Any]:
    """Read a report back.

    Raises:
        RecordError: the file is missing, truncated, or no such report.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise RecordError(f"{path} is no match report: it is larger than {_MOST_BYTES >> 20} MB")
        held = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is truncated or no JSON: {str(error)[:120]}\nrun again to write it whole") from error
    if not isinstance(held, dict) or held.get("schema") != SCHEMA or held.get("schema_version") != VERSION:
        raise RecordError(f"{path} is no report of `parity weights match`, version {VERSION}")
    shapes = held.get("shapes")
    if not isinstance(held.get("matches"), list) or not isinstance(shapes, dict) or len(shapes) != 2:
        raise RecordError(f"{path} lacks matches or shapes: it was edited\nrun again")
    return {**held, "matches": [_numbers(entry, path) for entry in held["matches"]]}


def _numbers(entry: Any, path: Path) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise RecordError(f"{path} has the match {str(entry)[:60]!r}: it was edited\nrun again")
    words = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": -float("inf")}
    return {name: words.get(value, value) if isinstance(value, str) else value for name, value in entry.items()}

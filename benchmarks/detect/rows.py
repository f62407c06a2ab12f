"""Rows on disk: one line of JSON each, so that an interrupted benchmark goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file; a line that was cut short is left out, the later of two with one key counts."""
    found: dict[str, Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        found[row["key"]] = row
    return list(found.values())


def append_row(path: Path, row: Row) -> None:
    """Add a row to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, separators=(",", ":")) + "\n")


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as one JSON document, ordered by key."""
    ordered = sorted(rows, key=lambda row: row["key"])
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in ordered)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")

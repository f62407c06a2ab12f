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


_KEPT = {
    "benign": ("name", "dtype", "shape", "seed", "different", "amber", "not_judged", "live_tests", "exceeding",
               "beyond", "nearest", "gates", "seconds"),
    "published": ("name", "seed", "status", "fails", "placed", "named", "likely", "gates", "after", "after_gates",
                  "seconds"),
    "exposed": ("name", "default", "status", "input", "examples", "first", "seconds"),
}  # fmt: skip
_TRIAL = (
    "name", "pair", "dtype", "where", "inputs", "seed", "site", "category", "status", "fails", "placed", "named",
    "proved", "first", "likely", "gates", "alarm", "why", "explained", "seconds",
)  # fmt: skip


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write what the tables are made of as one JSON document: for each source its columns, and a line a run."""
    parts: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["key"]):
        parts.setdefault(row["source"], []).append(row)
    texts = [f"{json.dumps(source)}: {_part(_KEPT.get(source, _TRIAL), mine)}" for source, mine in parts.items()]
    path.write_text("{\n" + ",\n".join(texts) + "\n}\n", encoding="utf-8")


def _part(columns: tuple[str, ...], rows: list[Row]) -> str:
    lines = ",\n".join(json.dumps([_short(row.get(c)) for c in columns], separators=(",", ":")) for row in rows)
    return f'{{"columns": {json.dumps(columns)}, "rows": [\n{lines}\n]}}'


def _short(value: Any) -> Any:
    """Keep of a list its first entry's first words, of numbers the largest three."""
    if isinstance(value, list) and value and isinstance(value[0], float):
        return value[:3]
    return [str(value[0])[:120]] if isinstance(value, list) and value and len(str(value[0])) > 40 else value

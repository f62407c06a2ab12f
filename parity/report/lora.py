"""The four comparisons of a LoRA as one table: base against base, LoRA against LoRA, what it does to either side.

The first two are the engine's verdicts (logic error and rounding excess, tap by tap). The last three columns are of
free-running passes, relative: what the LoRA does to each side, and how far the two effects are apart, over the effect.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_LEGEND = "without LoRA and with: logic error, rounding excess; its effect; how far apart"
_HEAD = ("tap", "base", "LoRA", "on ref.", "on nat.", "apart")
_WIDTHS = (21, 15, 15, 8, 8, 7)
_BLOCK = re.compile(r"^block\d+\.?")
_BAD = {"failed": "!", "warned": "~", "known": "~", "not judged": "?"}
"""Marks behind a cell, by outcome."""
MOST = 12

Cases = Mapping[str, Mapping[str, Any]]
Rows = Sequence[Mapping[str, Any]]


def lora_rows(rows: Rows, off: Cases, on: Cases) -> list[dict[str, Any]]:
    """Join the four comparisons of each tap with its verdicts without and with the LoRA.

    Args:
        rows: `lora_comparison` of a state's record.
        off: case records without the LoRA, by tap.
        on: those with it.

    Returns:
        One entry per tap: `logic_of_effect` is the logic error over the LoRA's effect there, so that a LoRA far below
        the output's own size counts as much as any other.
    """
    return [_joined(row, off.get(row["tap"]), on.get(row["tap"])) for row in rows]


def _joined(row: Mapping[str, Any], off: Mapping[str, Any] | None, on: Mapping[str, Any] | None) -> dict[str, Any]:
    error, effect = (on or {}).get("logic_error"), row["on_reference"]
    known = isinstance(error, float) and isinstance(effect, float) and effect
    return {**row, "off": _judged(off), "on": _judged(on), "logic_of_effect": error / effect if known else None}


def _judged(case: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if case is None:
        return None
    excess = case["rounding_excess"].get("identity", {}).get("ratio")
    kept = {name: case[name] for name in ("verdict", "outcome", "logic_error")}
    return {**kept, "rounding_excess": excess}


def lora_table(rows: Iterable[Mapping[str, Any]], full: bool = False) -> list[str]:
    """Return the table, 79 columns wide: every tap, or of each kind of tap the worst one and the output."""
    rows = list(rows)
    shown = rows if full else _worst(rows)
    lines = [_LEGEND, _line(_HEAD), *(_line(_cells(row)) for row in shown)]
    if left := len(rows) - len(shown):
        lines.append(f"worst of each kind; {left} more taps in the record")
    return lines


def _line(cells: Sequence[str]) -> str:
    return " ".join(f"{cell:<{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    effects = (row["on_reference"], row["on_native"], row["of_effect"])
    return (str(row["tap"])[: _WIDTHS[0]], _cell(row["off"]), _cell(row["on"]), *(_short(value) for value in effects))


def _cell(judged: Mapping[str, Any] | None) -> str:
    if judged is None:
        return "not run"
    if judged["verdict"] == "bit-exact":
        return "bit-exact"
    numbers = f"{_short(judged['logic_error'])}, {_short(judged['rounding_excess'])}"
    return numbers + (f" {mark}" if (mark := _BAD.get(judged["outcome"])) else "")


def _worst(rows: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the worst tap of each kind, of those that were judged where any was, and the output last."""
    judged = [row for row in rows if row["on"] is not None]
    rows = judged or rows
    kinds: dict[str, Mapping[str, Any]] = {}
    for row in rows[:-1]:
        kind = _BLOCK.sub("", str(row["tap"])) or "block"
        if kind not in kinds or _badness(row) > _badness(kinds[kind]):
            kinds[kind] = row
    kept = sorted(kinds.values(), key=_badness, reverse=True)[: MOST - 1]
    order = {id(row): place for place, row in enumerate(rows)}
    return [*sorted(kept, key=lambda row: order[id(row)]), *rows[-1:]]


def _badness(row: Mapping[str, Any]) -> tuple[int, float]:
    failed = sum((row[state] or {}).get("outcome") == "failed" for state in ("off", "on"))
    apart = row["of_effect"]
    return failed, float(apart) if isinstance(apart, float) and apart == apart else 0.0


def _short(value: Any) -> str:
    if not isinstance(value, (int, float)) or value != value:
        return "-" if value is None or value != value else str(value)
    return f"{value:.3g}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.0e}"

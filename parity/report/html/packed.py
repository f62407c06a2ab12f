"""What the report's scripts read: an index of all cases, their details compressed, a state at a time."""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from parity.report.html.meanings import LORA, METRICS, MODES, NUMBERS, PROJECTIONS
from parity.report.shape import OUTCOMES, VERDICTS

_BLOCK = re.compile(r"^([a-z_]*?\d+)(?:\.(.+))?$")
_UNBOUNDED = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
Record = Mapping[str, Any]


def packed(text: str) -> str:
    """Compress a text; what comes out holds letters, digits, `+`, `/` and `=` only."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def as_script(value: Any) -> str:
    """Return JSON that can stand between script tags: no `<`, `>`, `&` nor line separators."""
    text = json.dumps(_plain(value), separators=(",", ":"), allow_nan=False)
    for one in "<>&":
        text = text.replace(one, f"\\u{ord(one):04x}")
    return text


def states_of(record: Record) -> list[dict[str, Any]]:
    """List pairs and states, those of which nothing ran included."""
    keys = {(s["pair"], s["state"]): s for s in record["pairs"]}
    for case in record["cases"]:
        keys.setdefault((case["pair"], case["state"]), None)
    return [
        {"pair": pair, "state": state, "lora": state.startswith("lora_on"), "ran": found is not None,
         "inputs": state.partition("-")[2]}
        for (pair, state), found in keys.items()
    ]  # fmt: skip


def index_of(record: Record) -> dict[str, Any]:
    """Return what is needed to draw every heat map: a few numbers a case, column by column."""
    states, cases = states_of(record), record["cases"]
    place = {(s["pair"], s["state"]): n for n, s in enumerate(states)}
    taps = {tap: n for n, tap in enumerate(dict.fromkeys(c["tap"] for c in cases))}
    of = [place[c["pair"], c["state"]] for c in cases]
    at = {(c["pair"], c["state"], c["tap"]): n for n, c in enumerate(cases)}
    firsts = {(s["pair"], s["state"]): at.get((s["pair"], s["state"], s["first_different"])) for s in record["pairs"]}
    for state in states:
        state["first"] = firsts.get((state["pair"], state["state"]))
    return {
        "states": states,
        "taps": [_tap(name) for name in taps],
        "verdicts": list(VERDICTS),
        "outcomes": list(OUTCOMES),
        "limits": _limits(record),
        "words": {"modes": MODES, "numbers": NUMBERS, "projections": PROJECTIONS, "metrics": METRICS, "lora": LORA},
        "cases": {
            "state": of,
            "tap": [taps[c["tap"]] for c in cases],
            "verdict": [VERDICTS.index(c["verdict"]) for c in cases],
            "outcome": [OUTCOMES.index(c["outcome"]) for c in cases],
            "logic_error": [c["logic_error"] for c in cases],
            "rounding_excess": [_excess(c) for c in cases],
            "impact": [c["impact"] for c in cases],
            "rel_l2": [_number((c["metrics"] or {}).get("rel_l2")) for c in cases],
            "lora_effect": [(c["lora_effect"] or {}).get("ratio") for c in cases],
            "drift": [c["drift"] for c in cases],
        },
    }


def details_of(record: Record) -> list[str]:
    """Return everything known of the cases of each state, compressed, in the order of `states_of`."""
    found = []
    for state in states_of(record):
        mine = [c for c in record["cases"] if (c["pair"], c["state"]) == (state["pair"], state["state"])]
        found.append(packed(json.dumps(_plain(mine), separators=(",", ":"), allow_nan=False)))
    return found


def _tap(name: str) -> dict[str, str]:
    """Split a tap's name into block and layer; outside blocks the block is ""."""
    found = _BLOCK.match(name)
    return {"name": name, "block": found[1] if found else "", "layer": (found[2] or "") if found else name}


def _excess(case: Record) -> float | None:
    """Return the ratio of the projection that shows a difference, else of all of the rounding."""
    held = case["rounding_excess"]
    ratio: float | None = held.get(case["shown_by"], held.get("identity", {})).get("ratio")
    return ratio


def _limits(record: Record) -> dict[str, Any]:
    """Return the limits that heat maps mark; they are the same for all states of a run but the shadow's."""
    first: Sequence[Any] = [c for c in record["cases"] if c["logic_limit"] is not None][:1]
    limits = record["pairs"][0]["limits"] if record["pairs"] else {}
    return {
        "logic_error": first[0]["logic_limit"] if first else None,
        "impact": first[0]["impact_limit"] if first else None,
        "margin": _number(limits.get("margin")),
        "strong": _number(limits.get("strong")),
        "coherence": _number(limits.get("coherence")),
    }


def _number(value: Any) -> Any:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _plain(value: Any) -> Any:
    """Round numbers to four digits; name what JSON has no number for."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else _UNBOUNDED[str(value)]
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value

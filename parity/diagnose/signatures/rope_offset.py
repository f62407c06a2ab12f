"""Positions are moved for q or for k only: a frame off by one, an offset that one side drops."""

from __future__ import annotations

from typing import Any

from parity.diagnose.plants import UNTOUCHED, AsIs, OpCall, OpPlant
from parity.diagnose.signature import repaired, signature

detect = repaired("rope_offset")


def wrong(call: OpCall) -> Any:
    """Turn what is turned first by angles of positions one further."""
    if call.name in ("cos", "sin"):
        angle = call.args[0]
        out = call.run()
        moved = call.run(angle + (angle.select(0, 1) - angle.select(0, 0))) if len(angle) > 1 else out
        call.kept.setdefault("tables", []).append((out, moved))
        return AsIs(out)
    tables = call.kept.get("tables", [])
    used = [moved for table, moved in tables if call.name == "mul" and any(a is table for a in call.args)]
    if not used or call.kept.setdefault("muls", 0) >= 2 * len(tables):
        return UNTOUCHED
    call.kept["muls"] += 1
    return call.run(*(next((m for t, m in tables if t is a), a) for a in call.args))


SIGNATURE = signature("rope_offset", "rope", 7, detect, OpPlant(wrong))

"""The frequencies of a table differ: another theta, a shift of the exponent, positions that are scaled."""

from __future__ import annotations

from typing import Any

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant
from parity.diagnose.signature import repaired, signature

detect = repaired("frequencies")


def wrong(call: OpCall) -> Any:
    """Raise another theta."""
    base = call.args[0] if call.args else None
    known = call.name == "pow" and isinstance(base, (int, float)) and base > 2
    return call.run(25.6 * base, *call.args[1:]) if known else UNTOUCHED


SIGNATURE = signature("frequencies", "rope", 7, detect, OpPlant(wrong))

"""The frequencies of a table differ: another theta, a shift of the exponent, positions that are scaled."""

from __future__ import annotations

from typing import Any

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant
from parity.diagnose.signature import repaired, signature

detect = repaired("frequencies")


def wrong(call: OpCall) -> Any:
    """Raise another theta."""
    base = call.args[0] if call.name == "pow" else None
    if not isinstance(base, (int, float)) or base <= 2:
        return UNTOUCHED
    return call.run(25.6 * base, *call.args[1:])


SIGNATURE = signature("frequencies", "rope", 7, detect, OpPlant(wrong))

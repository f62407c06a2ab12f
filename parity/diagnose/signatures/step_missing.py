"""A step of the reference that the native does not have: it hands on what the reference goes on from."""

from __future__ import annotations

from typing import Any

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant
from parity.diagnose.signature import repaired, signature

detect = repaired("step_missing")


def wrong(call: OpCall) -> Any:
    """Attend with keys that were not normalised and turned as the queries were: with the queries' own."""
    return UNTOUCHED if call.name != "rsqrt" or call.nth else call.run(call.args[0] * 0 + 1)


SIGNATURE = signature("step_missing", "value", 25, detect, OpPlant(wrong))

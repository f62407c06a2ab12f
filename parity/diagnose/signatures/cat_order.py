"""Parts are joined in another order than the original joins them."""

from __future__ import annotations

from typing import Any

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant
from parity.diagnose.signature import repaired, signature

detect = repaired("cat_order")


def wrong(call: OpCall) -> Any:
    """Join the parts from the last to the first."""
    several = call.name == "cat" and len(call.args[0]) > 1 and call.args[0][0].dim() == 3
    tokens = several and call.args[1:] in ((1,), (-2,))
    return call.run(list(call.args[0])[::-1], *call.args[1:]) if tokens else UNTOUCHED


SIGNATURE = signature("cat_order", "layout", 9, detect, OpPlant(wrong))

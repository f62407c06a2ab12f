"""A branch is added without its gate."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from parity.diagnose.plants import UNTOUCHED, AsIs, OpCall, OpPlant
from parity.diagnose.signature import repaired, signature

detect = repaired("gate_missing")


def wrong(call: OpCall) -> Any:
    """Add what was multiplied by the gate, not the product."""
    products: list[tuple[Tensor, Tensor]] = call.kept.setdefault("products", [])
    pair = [a for a in call.args if isinstance(a, Tensor)]
    if call.name == "mul" and len(pair) == 2 and pair[0].shape == pair[1].shape:
        out: Tensor = call.run()
        products.append((out, pair[1]))
        return AsIs(out)
    if call.name != "add" or len(pair) != 2 or any(pair[0] is p for p, _ in products):
        return UNTOUCHED
    branch = [b for p, b in products if p is pair[1]]
    return call.run(pair[0], branch[0]) if branch else UNTOUCHED


SIGNATURE = signature("gate_missing", "modulation", 7, detect, OpPlant(wrong))

"""Float32 products round their operands to 10 bits: TF32 on one side only."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant, is_wide
from parity.diagnose.signature import Seen, Words, rounded, signature
from parity.execution.edits import to_tf32


def detect(seen: Seen) -> Words:
    """Take a variant whose products round so, or settings that differ where roundings do."""
    notes = seen.found.place.notes if seen.found.place is not None else ()
    noted = next((note for note in notes if note.startswith("float32 matmul precision")), None)
    return rounded("tf32", lambda nearest: True)(seen) or noted


def wrong(call: OpCall) -> Any:
    """Round the operands of a product to TF32."""
    if call.name not in ("addmm", "mm", "bmm", "convolution") or not is_wide(call):
        return UNTOUCHED
    args = [to_tf32(a) if isinstance(a, Tensor) and a.dim() > 1 else a for a in call.args]
    return call.run(*args)


SIGNATURE = signature("matmul_tf32", "precision", 11, detect, OpPlant(wrong), on="rounding")

"""The padding of the text is not set to 0 where the original does so."""

from __future__ import annotations

from typing import Any

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant
from parity.diagnose.signature import repaired, signature

detect = repaired("padding_kept")


def wrong(call: OpCall) -> Any:
    """Leave the padding as it is."""
    return call.args[0].clone() if call.name == "masked_fill" and call.args[0].dim() > 2 else UNTOUCHED


SIGNATURE = signature("padding_kept", "text", 7, detect, OpPlant(wrong))

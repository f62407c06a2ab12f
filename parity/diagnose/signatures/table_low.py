"""A table of sines and cosines is computed in 16 bits: angles, frequencies or the table itself."""

from __future__ import annotations

from parity.diagnose.nearest import Nearest
from parity.diagnose.plants import low_ops
from parity.diagnose.signature import rounded, signature


def _about(nearest: Nearest) -> bool:
    """Say whether what is rounded makes angles, or is a sine or cosine of them."""
    return nearest.angles


detect = rounded("round", _about)

SIGNATURE = signature("table_low", "rope", 11, detect, low_ops("cos", "sin", "polar"), on="rounding")

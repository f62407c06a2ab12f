"""One side runs under autocast: islands lose their float32, or 16-bit norms gain it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from parity.diagnose.plants import ModulePlant
from parity.diagnose.signature import Seen, Words, signature


def detect(seen: Seen) -> Words:
    """Take what was noted while both sides ran."""
    notes = seen.found.place.notes if seen.found.place is not None else ()
    return next((note for note in notes if note.startswith("autocast is on")), None)


def wrong(module: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the module under autocast."""
    device = next(module.parameters()).device.type
    with torch.autocast(device, torch.bfloat16):
        return forward(*args, **kwargs)


plant = ModulePlant(lambda module: [module], wrong)

SIGNATURE = signature("autocast_one_side", "precision", 9, detect, plant, on="rounding")

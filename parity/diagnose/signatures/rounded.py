"""The value is the reference's, rounded to 16 bits once more: a timestep or a table cast on the way."""

from __future__ import annotations

import torch
from torch import Tensor

from parity.diagnose.signature import Seen, Words, signature


def detect(seen: Seen) -> Words:
    """Find the 16-bit dtype that the computed values are the reference's rounded to."""
    if seen.computed is None:
        return None
    native, reference = (side.double() for side in seen.computed)
    for dtype in (torch.bfloat16, torch.float16):
        low = reference.to(dtype).double()
        if bool((low != reference).any()) and torch.equal(native, low):
            return f"the value is the reference's, rounded to {str(dtype).removeprefix('torch.')}"
    return None


def plant(value: Tensor, upstream: Tensor) -> Tensor:
    """Round to bfloat16 and go on in the dtype it had."""
    return value.to(torch.bfloat16).to(value.dtype)


SIGNATURE = signature("rounded", "precision", 8, detect, plant, on="rounding")

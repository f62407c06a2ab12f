"""The channels are in another order."""

from __future__ import annotations

import torch
from torch import Tensor

from parity.diagnose.matching import matched
from parity.diagnose.signature import Seen, signature


def detect(seen: Seen) -> str | None:
    """Match every channel to one of the reference's."""
    order = matched(*(side.T for side in seen.rows))
    return None if order is None else f"the channels are in another order, the first ones {order[:6]}"


def plant(value: Tensor, upstream: Tensor) -> Tensor:
    """Shuffle the channels."""
    order = torch.randperm(value.shape[-1], generator=torch.Generator().manual_seed(5))
    return value[..., order.to(value.device)]


SIGNATURE = signature("permuted_channels", "value", 20, detect, plant)

"""The tokens are in another order: another axis first, windows that are not taken back."""

from __future__ import annotations

import torch
from torch import Tensor

from parity.diagnose.matching import matched
from parity.diagnose.signature import Seen, signature


def detect(seen: Seen) -> str | None:
    """Match every token to one of the reference's."""
    order = matched(*seen.rows)
    return None if order is None else f"the tokens are in another order, the first ones {order[:6]}"


def plant(value: Tensor, upstream: Tensor) -> Tensor:
    """Shuffle the tokens."""
    order = torch.randperm(value.shape[-2], generator=torch.Generator().manual_seed(5))
    return value[..., order.to(value.device), :]


SIGNATURE = signature("permuted_tokens", "value", 20, detect, plant)

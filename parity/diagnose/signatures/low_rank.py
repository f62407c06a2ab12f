"""The difference has a low rank: an adapter that is missing, doubled or scaled otherwise."""

from __future__ import annotations

import torch
from torch import Tensor

from parity.diagnose.signature import Seen, signature


def detect(seen: Seen) -> str | None:
    """Find the rank of the difference."""
    n, r = (side[:512, :512] for side in seen.rows)
    if (most := min(n.shape)) < 12:
        return None
    values = torch.linalg.svdvals(n - r)
    rank = int((values > 1e-10 * values[0]).sum())
    return f"the difference has rank {rank} of {most}: an adapter or a vector" if 0 < rank <= most // 3 else None


def plant(value: Tensor, upstream: Tensor) -> Tensor:
    """Add an outer product to the tokens' channels."""
    width = value.shape[-1]
    first = torch.linspace(-1, 1, width, dtype=value.dtype, device=value.device)
    return value + 0.3 * (value @ first).unsqueeze(-1) * first.cos()


SIGNATURE = signature("low_rank", "value", 32, detect, plant)

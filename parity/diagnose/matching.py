"""Rows of two values matched to each other, and places in words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_MOST = 4096


def matched(native: Tensor, reference: Tensor) -> list[int] | None:
    """Return for each native row the reference row that it is, each taken once; None where that cannot be.

    Shapes: native, reference [T, C], float64.
    """
    if native.shape != reference.shape or not 2 < len(native) <= _MOST:
        return None
    weights = torch.linspace(1.0, 2.0, native.shape[1], dtype=torch.float64, device=native.device).sin()
    keys = [(side @ weights) + side.square().sum(1) for side in (native, reference)]
    places = [key.argsort() for key in keys]
    ours, theirs = native[places[0]], reference[places[1]]
    if float((ours - theirs).norm()) > 1e-9 * float(reference.norm()):
        return None
    order = torch.empty_like(places[0])
    order[places[0]] = places[1]
    found: list[int] = order.tolist()
    return None if found == list(range(len(found))) else found


def stretch(places: Sequence[int]) -> str:
    """Say which places: from where to where if they are in a row.

    >>> stretch([3, 4, 5]), stretch([0, 4, 8, 12])
    ('3 to 5', '0, 4, 8 and 1 more')
    """
    if len(places) > 1 and places[-1] - places[0] == len(places) - 1:
        return f"{places[0]} to {places[-1]}"
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    return ", ".join(map(str, places[:3])) + more

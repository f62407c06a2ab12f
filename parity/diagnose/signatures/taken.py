"""The value is another tap's: what was to be normalised or projected is handed on."""

from __future__ import annotations

from torch import Tensor

from parity.diagnose.signature import Seen, signature


def detect(seen: Seen) -> str | None:
    """Find the earlier tap whose value it is."""
    found = (name for name, value in seen.upstream.items() if seen.holds(value))
    name = next(found, None)
    return None if name is None else f"it is the value of {name}"


def plant(value: Tensor, upstream: Tensor) -> Tensor:
    """Hand on what came in."""
    return upstream.clone()


SIGNATURE = signature("taken", "value", 1, detect, plant)

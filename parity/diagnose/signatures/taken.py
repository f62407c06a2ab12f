"""The value is another tap's: what was to be normalised or projected is handed on."""

from __future__ import annotations

from torch import Tensor

from parity.diagnose.signature import Seen, signature


def detect(seen: Seen) -> str | None:
    """Find the earlier tap whose value it is."""
    found = (name for name, value in seen.upstream.items() if seen.holds(value))
    name = next(found, None)
    if name is not None:
        return f"it is the value of {name}"
    place = seen.found.place
    nothing = place is not None and place.native is None and place.reference is not None and not place.notes
    return f"what came in is handed on: the native has nothing for {place.reference}" if nothing and place else None


def plant(value: Tensor, upstream: Tensor) -> Tensor:
    """Hand on what came in."""
    return upstream.clone()


SIGNATURE = signature("taken", "value", 1, detect, plant)

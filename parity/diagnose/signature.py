"""Signatures: shapes a difference can have, recognised exactly on the two sides' float64 values.

Without rounding noise a transformation is found to fifteen digits or not at all, so a signature that fits is not luck.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from parity.registry import Registry, discover

EXACT = 1e-9
"""Relative residual up to which a transformation counts as found; the shadows agree to about 1e-15."""


@dataclass(frozen=True)
class Seen:
    """The exact values of a faulty tap.

    Shapes: native, reference [..., C], float64, channels last, padding and undefined rows left out (then [T, C]);
    upstream: the reference's values of earlier taps that have this shape.
    """

    native: Tensor
    reference: Tensor
    upstream: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        """Native and reference as rows [T, C]."""
        width = self.reference.shape[-1]
        return self.native.reshape(-1, width), self.reference.reshape(-1, width)

    def holds(self, made: Tensor) -> bool:
        """Say whether the native is what was made of the reference, and the reference itself is not."""
        return made.shape == self.native.shape and close(self.native, made)


def close(a: Tensor, b: Tensor) -> bool:
    """Say whether two values are one, to fifteen digits or so."""
    size = max(float(a.norm()), float(b.norm()))
    return float((a - b).norm()) <= EXACT * size if size else True


@dataclass(frozen=True)
class Signature:
    """One shape of a difference.

    Args:
        name: of the file. freedom: how much it leaves open; what says more is preferred.
        detect: from the values to what it is in words, None where it is not.
        plant: makes a right value wrong this way; its second argument is an earlier value of that shape.
    """

    name: str
    freedom: int
    detect: Callable[[Seen], str | None]
    plant: Callable[[Tensor, Tensor], Tensor]


SIGNATURES: Registry[Signature] = Registry("signature")


def signature(
    name: str, freedom: int, detect: Callable[[Seen], str | None], plant: Callable[[Tensor, Tensor], Tensor]
) -> Signature:
    """Add a signature to the registry."""
    return SIGNATURES.add(name, Signature(name, freedom, detect, plant))


def recognised(seen: Seen) -> list[tuple[str, str]]:
    """Return the names and words of the signatures a difference has, what says most first."""
    discover("parity.diagnose.signatures")
    if close(seen.native, seen.reference) or not bool((seen.native - seen.reference).isfinite().all()):
        return []
    ordered = sorted((s for _, s in SIGNATURES.items()), key=lambda s: s.freedom)
    return [(s.name, words) for s in ordered if (words := s.detect(seen)) is not None]

"""The variant of the reference that is nearest to the native, and what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

EXPLAINED = 0.75
"""Ratio of distances below which a variant counts: no benign kernel came below 0.80."""
_SMALLEST = 32


@dataclass(frozen=True)
class Nearest:
    """The variant of the reference that is nearest to the native.

    Args:
        edits: in words, with the reference's lines. ratio: distance to it over distance to the reference as written.
        bit_exact: it has every bit of the native. direction: +1 the native rounds more, -1 less.
        elements: how many differ between native and reference.
        kernel: every edit is inside an attention kernel.
        kind: what the edit that helps most does. ops: names of the ops that edits of that kind are of.
        angles, turns: those make a table of sines and cosines; turn q or k by one. to_single: what is skipped is a
            rounding to float32.
    """

    edits: tuple[str, ...]
    ratio: float
    bit_exact: bool
    direction: int
    elements: int
    kernel: bool = False
    kind: str = ""
    ops: frozenset[str] = frozenset()
    angles: bool = False
    turns: bool = False
    to_single: bool = False

    @property
    def explains(self) -> bool:
        """Whether the variant is near enough to be what the native does."""
        return bool(self.edits) and self.ratio < EXPLAINED

    @property
    def proves(self) -> bool:
        """Whether it shows a difference by itself: not a kernel's own, and not of a handful of elements."""
        return self.explains and not self.kernel and self.elements >= _SMALLEST

    def words(self) -> str:
        """Say it in a line."""
        edits = " and ".join(self.edits)
        with_it = "bit-exact with the native" if self.bit_exact else f"at {self.ratio:.2g} of its distance"
        return f"the reference with {edits} is {with_it}"

    def as_data(self) -> dict[str, Any]:
        """Return all of it as JSON holds it; `from_data` reads it."""
        return {**asdict(self), "edits": list(self.edits), "ops": sorted(self.ops)}

    @staticmethod
    def from_data(held: Mapping[str, Any]) -> Nearest:
        """Read what `as_data` gave."""
        return Nearest(**{**held, "edits": tuple(held["edits"]), "ops": frozenset(held["ops"])})

    def as_dict(self) -> dict[str, object]:
        """Return plain data for a record."""
        return {
            "edits": list(self.edits), "ratio": self.ratio, "bit_exact": self.bit_exact, "words": self.words(),
            "explains": self.explains, "elements": self.elements,
        }  # fmt: skip

"""What restores a faulty tap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Repair:
    """A change of the native that restores the reference's function.

    Args:
        words: what is changed. before, after: logic_error without and with it. bug: the kind of bug it undoes, "" where
            it has no name.
    """

    words: str
    before: float
    after: float
    bug: str = ""

    def sentence(self) -> str:
        """Say it with the number it restores to."""
        return f"with {self.words} logic_error is {self.after:.0e} ({self.before:.0e} without)"

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for a record."""
        return {"words": self.words, "logic_error_before": self.before, "logic_error_after": self.after}

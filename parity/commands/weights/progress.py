"""Progress of a long command on stderr: what is done, at what rate, how long it will take."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping

import typer

BYTES = "bytes"
Total = tuple[int, str]
"""How much there is to do, and of what: bytes, or things by their name."""


class Progress:
    """Tells of what is done, at most once a second; from any thread.

    Args:
        totals: by stage.
        quiet: tell nothing.
    """

    def __init__(self, totals: Mapping[str, Total], quiet: bool) -> None:
        self._totals, self._quiet = totals, quiet
        self._done = dict.fromkeys(totals, 0)
        self._started: dict[str, float] = {}
        self._told = time.monotonic()
        self._lock = threading.Lock()

    def tell(self, stage: str, count: int) -> None:
        """Take note of what was done in a stage."""
        now = time.monotonic()
        with self._lock:
            self._started.setdefault(stage, now)
            self._done[stage] += count
            due = not self._quiet and now - self._told >= 1.0
            self._told = now if due else self._told
        if due:
            end = "\r" if sys.stderr.isatty() else "\n"
            typer.echo(f"  {self._words(stage, now)}   {end}", nl=False, err=True)

    def _words(self, stage: str, now: float) -> str:
        done, (total, unit) = self._done[stage], self._totals[stage]
        rate = done / max(now - self._started[stage], 1e-9)
        left = max(total - done, 0) / max(rate, 1e-9)
        if unit != BYTES:
            return f"{stage} {done} of {total} {unit}, {rate:.0f} a second, {left:.0f} s left"
        return f"{stage} {done / 1e9:.1f} of {total / 1e9:.1f} GB, {rate / 1e9:.2f} GB/s, {left:.0f} s left"

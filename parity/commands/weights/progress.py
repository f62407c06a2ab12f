"""Progress of a long command on stderr: what is done, at what rate, how long it will take."""

from __future__ import annotations

import sys
import time

import typer


class Progress:
    """Tells of bytes done, at most once a second.

    Args:
        total: bytes by stage.
        quiet: tell nothing.
    """

    def __init__(self, total: dict[str, int], quiet: bool) -> None:
        self._total, self._quiet = total, quiet
        self._done = dict.fromkeys(total, 0)
        self._started: dict[str, float] = {}
        self._told = time.monotonic()

    def tell(self, stage: str, count: int) -> None:
        """Take note of bytes done in a stage."""
        now = time.monotonic()
        self._started.setdefault(stage, now)
        self._done[stage] += count
        if self._quiet or now - self._told < 1.0:
            return
        self._told = now
        done, total = self._done[stage], max(self._total[stage], 1)
        rate = done / max(now - self._started[stage], 1e-9)
        left = max(total - done, 0) / max(rate, 1.0)
        end = "\r" if sys.stderr.isatty() else "\n"
        text = f"  {stage} {done / 1e9:.1f} of {total / 1e9:.1f} GB, {rate / 1e9:.2f} GB/s, {left:.0f} s left   "
        typer.echo(text + end, nl=False, err=True)

"""Gather what matching finds into a report that outlives Ctrl-C and a killed process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parity.commands.weights.progress import Progress
from parity.errors import UsageError
from parity.io.checkpoints import Checkpoint
from parity.io.matchreports import read_match_report, write_match_report
from parity.weights.matching.matcher import Entry, Matcher, Options, identity
from parity.weights.matching.summary import blocks_of, summary_of

SAVE_EVERY = 20.0
"""Seconds between partial reports: what a killed process loses at most."""


class Gathering:
    """One run of matching.

    Args:
        checkpoints: reference and native.
        head: what a report begins with.
        options: how to match.
        progress: told of what is done.
        out: where the report goes; None for nowhere.
    """

    def __init__(
        self, checkpoints: tuple[Checkpoint, Checkpoint], head: Mapping[str, Any], options: Options,
        progress: Progress, out: Path | None,
    ) -> None:  # fmt: skip
        self._head, self._progress, self._out = head, progress, out
        self._matcher = Matcher(*checkpoints, options, self._tell)
        self._entries: list[Entry] = []
        self._saved = time.monotonic()

    def run(self, known: Mapping[str, Entry]) -> dict[str, Any]:
        """Return the report, whole or, after Ctrl-C, partial; it is written also while it grows."""
        complete = False
        try:
            for entry in self._matcher.entries(known):
                self._entries.append(entry)
                self._save_when_due()
            complete = True
        except KeyboardInterrupt:
            pass
        held = self._report(complete, known)
        self._save(held)
        return held

    def _tell(self, stage: str, count: int) -> None:
        self._progress.tell(stage, count)
        if stage == "finding":  # told by the main thread; others must not write
            self._save_when_due()

    def _save_when_due(self) -> None:
        if time.monotonic() - self._saved >= SAVE_EVERY:
            self._save(self._report(complete=False, known={}))
            self._saved = time.monotonic()

    def _save(self, held: Mapping[str, Any]) -> None:
        if self._out is not None:
            write_match_report(self._out, held)

    def _report(self, complete: bool, known: Mapping[str, Entry]) -> dict[str, Any]:
        """Return what is known; `known` is what an earlier run knew, kept where this one was cut short before."""
        held, later = list(self._entries), [] if complete else self._matcher.pending()
        if not complete:
            here = {identity(entry) for entry in [*held, *later]}
            older = [entry for key, entry in known.items() if key not in here]
            held += [entry for entry in older if entry["cosine"] is not None]
            later += [entry for entry in older if entry["cosine"] is None]
        notes = [*self._head["notes"], *self._matcher.notes]
        return {
            **self._head, "notes": notes, "complete": complete, "summary": summary_of(held), "blocks": blocks_of(held),
            "matches": held, "pending": later,
            "unmatched_native": self._matcher.unmatched_native if complete else [],
        }  # fmt: skip


def known_of(out: Path | None, one: Checkpoint, other: Checkpoint) -> dict[str, Entry]:
    """Return the entries of an interrupted run by `identity`; none where there was none.

    Raises:
        UsageError: no report is named, or it is of other checkpoints.
    """
    if out is None:
        raise UsageError("--resume goes on with a report: name it by -o REPORT.json")
    if not out.exists():
        return {}
    held = read_match_report(out)
    if held.get("identities") != {"reference": one.identity(), "native": other.identity()}:
        raise UsageError(f"{out} is of other checkpoints, or they changed since\nrun without --resume")
    entries = [*held["matches"], *held.get("pending", [])]
    return {identity(entry): entry for entry in entries if entry.get("native") is not None}

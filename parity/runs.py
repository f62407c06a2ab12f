"""The book of a run: cases and states as they come in, written as one record."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from parity.environment import describe_environment
from parity.io.atomic import locked
from parity.io.records import write_record
from parity.report.record import run_record

_JUDGED = frozenset({"failed", "warned", "known", "passed"})


class RunBook:
    """Collects case and state records and writes the run's record, whole or not at all.

    Args:
        folder: where the record goes: `folder/parity.json`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cases: dict[str, dict[str, Any]] = {}
        self.states: dict[tuple[str, str], dict[str, Any]] = {}
        self.path: Path | None = None
        self._complete = True

    def add_case(self, record: dict[str, Any]) -> None:
        """Add or replace a case, by id."""
        self.cases[record["id"]] = record

    def add_state(self, record: dict[str, Any]) -> None:
        """Add what the cases of one pair and state have in common."""
        self.states[record["pair"], record["state"]] = record

    @property
    def judged(self) -> int:
        """How many cases got a verdict."""
        return sum(c["outcome"] in _JUDGED for c in self.cases.values())

    @property
    def shown_path(self) -> str:
        """The record's path as shown to people: relative where it can be."""
        assert self.path is not None
        try:
            return str(self.path.relative_to(Path.cwd()))
        except ValueError:
            return str(self.path)

    def record(self) -> dict[str, Any]:
        """Return the run's record."""
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        states, cases = list(self.states.values()), list(self.cases.values())
        return run_record(describe_environment(), states, cases, now, self._complete)

    def write(self, complete: bool = True) -> Path:
        """Write the record: temporary file, fsync, rename; a second run writing the same one is an error.

        Raises:
            RecordError: another run writes it now.
        """
        self._complete = complete
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "parity.json"
        with locked(path):
            self.path = write_record(path, self.record())
        return self.path

    def as_json(self) -> str:
        """Return everything as text, to travel from a worker."""
        return json.dumps([list(self.cases.values()), list(self.states.values())])

    def merge(self, text: str) -> None:
        """Take in what another process found."""
        cases, states = json.loads(text)
        for case in cases:
            self.add_case(case)
        for state in states:
            self.add_state(state)

"""The book of a run: cases and states as they come in, written as one record."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from parity.environment import describe_environment
from parity.errors import RecordError
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
        self._hold: ExitStack | None = None

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

    def judged_of(self, pair: str) -> int:
        """Return how many cases of a pair got a verdict."""
        return sum(c["outcome"] in _JUDGED and c["pair"] == pair for c in self.cases.values())

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

    def hold(self) -> None:
        """Take the right to write the record until `write` or `release`, so that two runs never take turns at it.

        Raises:
            RecordError: another run has it, or the folder cannot be written.
        """
        if self._hold is None:
            with ExitStack() as stack, _worded(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(self.folder / "parity.json"))
                self._hold = stack.pop_all()

    def release(self) -> None:
        """Give the right to write the record back."""
        if self._hold is not None:
            self._hold.close()
            self._hold = None

    def write(self, complete: bool = True) -> Path:
        """Write the record: temporary file, fsync, rename; a second run writing the same one is an error.

        Raises:
            RecordError: another run writes it now, or it cannot be written; what was there before is untouched.
        """
        self._complete = complete
        self.hold()
        try:
            with _worded(self.folder):
                self.path = write_record(self.folder / "parity.json", self.record())
        finally:
            self.release()
        return self.path


@contextmanager
def _worded(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecordError(f"no record can be written below {folder}: {error.strerror or error}") from error

"""The book of a run: cases and states as they come in, written as one record."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from parity.environment import describe_environment
from parity.errors import RecordError
from parity.io.atomic import locked, uninterrupted
from parity.io.outputs import write_alone
from parity.io.records import copy_record, read_record, write_record
from parity.report.record import run_record

_JUDGED = frozenset({"failed", "warned", "known", "passed"})


class RunBook:
    """Collects case and state records and writes the run's record: the file is replaced at once, or not at all.

    A record of a run that was cut short or left cases out does not put an end to one of a run that was not: that is
    kept as `whole.json` until there is another.

    Args:
        folder: where the record goes: `folder/parity.json`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cases: dict[str, dict[str, Any]] = {}
        self.states: dict[tuple[str, str], dict[str, Any]] = {}
        self.inputs: dict[str, dict[str, Any]] = {}
        self.path: Path | None = None
        self.gate: dict[str, Any] | None = None
        self._complete, self._selected = True, False
        self._begun: set[tuple[str, str]] = set()
        self._kept: str | None = None
        self._hold: ExitStack | None = None

    def add_case(self, record: dict[str, Any]) -> None:
        """Add or replace a case, by id."""
        self.cases[record["id"]] = record

    def add_input(self, record: dict[str, Any]) -> None:
        """Add or replace a case of drawn inputs, or of an input's change, by id."""
        self.inputs[record["id"]] = record

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
        return _shown(self.path)

    def written(self) -> dict[str, Any]:
        """Return the record as it was written.

        Raises:
            RecordError: it was not, or cannot be read back.
        """
        return read_record(self.folder / "parity.json")

    @staticmethod
    def shown(path: Path) -> str:
        """Return a path as shown to people: relative where it can be."""
        return _shown(path)

    def told(self) -> list[str]:
        """Say where the record is, what it is of, and where one of a whole run is."""
        if self.path is None:
            return []
        marks = [word for word, on in (("cut short", not self._complete), ("a selection", self._selected)) if on]
        lines = [f"{self.shown_path}{' (' + ', '.join(marks) + ')' if marks else ''}"]
        if self._kept is not None:
            lines.append(f"{_shown(self._whole)} keeps the whole run of {self._kept}")
        return lines

    @property
    def _whole(self) -> Path:
        return self.folder / "whole.json"

    def record(self) -> dict[str, Any]:
        """Return the run's record."""
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        states, cases, inputs = (list(held.values()) for held in (self.states, self.cases, self.inputs))
        return run_record(describe_environment(), states, cases, now, self._complete, self._selected, inputs, self.gate)

    def write_page(self) -> Path:
        """Write the run as one HTML file, `parity.html` beside the record.

        Raises:
            ParityError: no record was written, or the page cannot be.
        """
        from parity.report.html import render_html  # most runs write none

        return write_alone(self.folder / "parity.html", render_html(self.written()))

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

    def write(self, complete: bool = True, selected: bool = False) -> Path:
        """Write the record: temporary file, fsync, rename; a second run writing the same one is an error.

        An interrupt meanwhile is put off until it is written. A right to write that was taken before is kept.

        Args:
            complete: False: the run is not over, or was cut short.
            selected: cases were left out because others were asked for.

        Raises:
            RecordError: another run writes it now, or it cannot be written; what was there before is untouched.
        """
        self._complete, self._selected = complete, selected
        with ExitStack() as stack, _worded(self.folder), uninterrupted():
            if self._hold is None:
                stack.callback(self.release)
                self.hold()
            if selected or not complete:
                self._keep_whole()
            path = self.path = write_record(self.folder / "parity.json", self.record())
            if complete and not selected:
                self._whole.unlink(missing_ok=True)
                self._kept = None
        return path

    def _keep_whole(self) -> None:
        """Put the record of a whole run aside before this one takes its place."""
        if self.path is not None:
            return  # what is there is this run's own
        before = _read(self.folder / "parity.json")
        if before is not None and before.get("complete") and not before.get("selected"):
            copy_record(self.folder / "parity.json", self._whole)
        kept = _read(self._whole)
        self._kept = None if kept is None else str(kept.get("created"))

    def begin(self, pair: str, state: str, selected: bool = False) -> None:
        """Before another state is computed, write what there is: whatever ends the run, it is not lost.

        Raises:
            RecordError: another run writes the record now, or it cannot be written.
        """
        if (pair, state) not in self._begun:
            self._begun.add((pair, state))
            if self.cases:
                self.write(complete=False, selected=selected)

    @contextmanager
    def kept(self, selected: bool = False) -> Iterator[None]:
        """Write the record when the block is left; as cut short where an error or an interrupt leaves it.

        Raises:
            RecordError: another run writes it now, or it cannot be written.
        """
        complete = False
        try:
            self.hold()
            yield
            complete = True
        finally:
            try:
                if self.cases:
                    self.write(complete, selected)
            finally:
                self.release()


def _read(path: Path) -> dict[str, Any] | None:
    """Return a record, None where there is none that can be read: then there is nothing to keep."""
    try:
        return read_record(path)
    except RecordError:
        return None


def _shown(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


@contextmanager
def _worded(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecordError(f"no record can be written below {folder}: {error.strerror or error}") from error

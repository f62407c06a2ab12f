"""The book of the run: what tests tell, those of xdist's workers included, written and shown at the end."""

from __future__ import annotations

import json
from typing import Any

import pytest

from parity.errors import RecordError
from parity.report.terminal import render_run
from parity.runs import RunBook


class Bookkeeper:
    """Keeps the book; registered as a plugin of its own where the record is written."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._book = RunBook(config.rootpath / str(config.getoption("--parity-report")))
        self._problems: list[str] = []
        self._holds = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in a case, and its state when it comes with it."""
        if report.when == "call":
            for name, text in report.user_properties:
                if name == "parity_case":
                    self._hold()
                    self._book.add_case(json.loads(str(text)))
                elif name == "parity_state":
                    self._book.add_state(json.loads(str(text)))

    def _hold(self) -> None:
        """From the first case on, keep other runs from writing the same record."""
        if not self._holds:
            self._holds = True
            try:
                self._book.hold()
            except RecordError as error:
                self._problems.append(_unwritten(error))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the record; a run in which nothing was judged is an error."""
        if not self._book.cases:
            return
        if not self._problems:
            self._write(complete=exitstatus in (0, 1) and not session.shouldstop and not session.shouldfail)
        if not self._book.judged:
            self._problems.append("no case was judged: this run proves nothing")
        required = self._config.getoption("--parity-require")
        missed = [name for name in required if not self._book.judged_of(name)]
        self._problems += [f"{name} is required and no case of it was judged" for name in missed]
        if self._problems and exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _write(self, complete: bool) -> None:
        try:
            self._book.write(complete)
        except RecordError as error:
            self._problems.append(_unwritten(error))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Show the parity summary of the run."""
        if not self._book.cases:
            return
        writer = terminalreporter._tw
        width = min(writer.fullwidth, 120)
        terminalreporter.section("parity")
        terminalreporter.write_line(render_run(self._book.record(), width=width, color=writer.hasmarkup))
        if self._book.path is not None:
            terminalreporter.write_line(f" record     {self._book.shown_path}")
        for problem in self._problems:
            terminalreporter.write_line(f" ERROR      {problem}", red=True)


def _unwritten(error: RecordError) -> str:
    return f"the record was not written: {error}; or pass --parity-report DIR"

"""The book of the run: what tests tell, those of xdist's workers included, written and shown at the end."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from parity.errors import ParityError, RecordError
from parity.plugin.cases import are_listed, case_of, state_of
from parity.plugin.check import in_lines, rerun_of, unjudged
from parity.plugin.gate import gate_of
from parity.plugin.partial import Selection
from parity.report.terminal import render_run
from parity.report.wording import error_text

if TYPE_CHECKING:  # torch comes with it; see the package
    from parity.runs import RunBook

_CRASHED = "???"
"""The phase of a report that stands for a worker that died; xdist's word."""


class Bookkeeper:
    """Keeps the book; registered as a plugin of its own where the record is written."""

    def __init__(self, config: pytest.Config, selection: Selection) -> None:
        self._config, self._selection = config, selection
        self._kept: RunBook | None = None
        self._problems: list[str] = []
        self._begun: set[str] = set()
        self._crashed = False
        self._html: Path | None = None

    @property
    def _book(self) -> RunBook:
        """The book, opened before the first state is computed: from then on no other run can write the same record."""
        if self._kept is None:
            from parity.runs import RunBook

            self._kept = RunBook(self._config.rootpath / str(self._config.getoption("--parity-report")))
            try:
                self._kept.hold()
            except RecordError as error:
                self._problems.append(_unwritten(error))
                self._tell(f"parity: {self._problems[-1]}")
        return self._kept

    def _tell(self, text: str) -> None:
        """Say something at once: what is computed now may take hours."""
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.ensure_newline()
            reporter.write_line(text, red=True)

    @property
    def _is_empty(self) -> bool:
        return self._kept is None or not (self._kept.cases or self._kept.inputs)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Before another state is computed, write what there is: whatever ends this run, it is not lost."""
        state = state_of(nodeid)
        if state is not None and state not in self._begun and are_listed(self._config):
            self._begun.add(state)
            if self._book.cases and not self._problems:
                self._write(complete=False)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in a case, and its state when it comes with it."""
        if report.when in ("call", _CRASHED):
            for name, text in report.user_properties:
                if name == "parity_case":
                    self._book.add_case(json.loads(str(text)))
                elif name == "parity_input":
                    self._book.add_input(json.loads(str(text)))
                elif name == "parity_state":
                    self._book.add_state(json.loads(str(text)))

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, report: pytest.TestReport, sched: Any) -> None:
        """Report every case of a state whose worker died as one that could not be run."""
        self._crashed = True
        who = str(report.longrepr).partition(" while ")[0]
        self._as_crashed(report, who)
        for nodeid in getattr(sched, "given_up", ()):
            other = copy.copy(report)
            other.nodeid, other.user_properties = nodeid, []
            self._as_crashed(other, who)
            self._config.hook.pytest_runtest_logreport(report=other)

    def _as_crashed(self, report: pytest.TestReport, who: str) -> None:
        """Give a test whose worker died its words, and its case a record."""
        case = case_of(self._config, report.nodeid)
        if case is not None:
            text = f"{who} while running {case.pair} {case.state}: killed, or out of memory\n{_DIED}"
            record = unjudged(self._config, case, "error", text)
            record["rerun"] = rerun_of(self._config, report.nodeid)
            report.location = (*report.location[:2], report.nodeid.partition("::")[2])
            report.longrepr = in_lines(error_text(record, record["rerun"]))
            report.user_properties.append(("parity_case", json.dumps(record)))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the record; a run in which nothing was judged is an error."""
        if self._kept is None or self._is_empty:
            self._release()
            self._miss_everything(session, exitstatus)
            return
        stopped = bool(session.shouldstop or session.shouldfail or self._crashed)
        complete = exitstatus in (0, 1) and not stopped
        try:
            self._hold_against_baseline(complete)
            if not self._problems:
                self._write(complete)
            if not self._problems and self._config.getoption("--parity-html"):
                self._write_html()
        except KeyboardInterrupt:  # put off until the record was written
            exitstatus = session.exitstatus = pytest.ExitCode.INTERRUPTED
        finally:
            self._release()
        if self._book.cases and not self._book.judged:
            self._problems.append("no case was judged: this run proves nothing")
        required = self._config.getoption("--parity-require")
        missed = [name for name in required if not self._book.judged_of(name)]
        self._problems += [f"{name} is required and no case of it was judged" for name in missed]
        gate = self._book.gate
        if gate is not None and not gate["passed"]:
            count = sum(f["fails"] for f in gate["findings"])
            self._problems.append(f"the gate failed: {count} findings against {gate['baseline']}")
        if self._problems and exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _miss_everything(self, session: pytest.Session, exitstatus: int) -> None:
        """Fail a run that was to gate and in which no case was: its tests may be gone. Other tests may run alone."""
        config = self._config
        meant = "parity" in config.option.markexpr or config.args_source is not pytest.Config.ArgsSource.ARGS
        if exitstatus not in (0, 5) or config.option.collectonly or not meant:
            return
        gate = gate_of(config)
        missed = [] if gate is None else gate.run({"pairs": [], "cases": []}, self._selection).findings
        if any(found.fails for found in missed):
            self._problems.append(f"the gate failed: no case was run, {len(missed)} are in the baseline")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _hold_against_baseline(self, complete: bool) -> None:
        """Note what the gate says of the whole run; one that was cut short lacks cases for a reason of its own."""
        gate = gate_of(self._config)
        if gate is not None and complete:
            gated = gate.run(self._book.record(), self._selection)
            self._book.gate = gate.said(gated)

    def _release(self) -> None:
        if self._kept is not None:
            self._kept.release()

    def _write(self, complete: bool) -> None:
        try:
            self._book.write(complete, self._selection.partial)
        except RecordError as error:
            self._problems.append(_unwritten(error))

    def _write_html(self) -> None:
        try:
            self._html = self._book.write_page()
        except ParityError as error:
            self._problems.append(f"the report was not written: {error}")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Show the parity summary of the run."""
        if self._is_empty:
            for problem in self._problems:
                terminalreporter.write_line(f"parity: ERROR {problem}", red=True)
            return
        writer = terminalreporter._tw
        width = min(writer.fullwidth, 120)
        terminalreporter.section("parity")
        terminalreporter.write_line(render_run(self._book.record(), width=width, color=writer.hasmarkup))
        for line in self._book.told():
            terminalreporter.write_line(f" record     {line}")
        if self._html is not None:
            terminalreporter.write_line(f" report     {self._book.shown(self._html)}")
        for problem in self._problems:
            terminalreporter.write_line(f" ERROR      {problem}", red=True)


_DIED = "run it in one process (-n 0), with a smaller --parity-size, or with fewer workers"


def _unwritten(error: RecordError) -> str:
    return f"the record was not written: {error}; or pass --parity-report DIR"

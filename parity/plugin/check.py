"""Fixtures: the check of one case, and of what its evidence rests on."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from parity.errors import ParityError, SourceMissing
from parity.plugin.cases import engine_of, place_of
from parity.plugin.gate import gate_of
from parity.plugin.options import given
from parity.report.wording import (
    error_text,
    evidence_text,
    failure_text,
    fitted,
    gated_text,
    not_judged_text,
    properties_of,
)

if TYPE_CHECKING:  # torch comes with these; see the package
    from parity.case import ParityCase
    from parity.engine import Engine

TOLD = frozenset({"parity_case", "parity_state"})
"""Properties of a test for who writes the record; too long for people."""
_TOLD = pytest.StashKey[set[tuple[str, str]]]()
_WIDTH = 80
"""Columns of a failure, whatever the terminal: a worker has none, and logs and JUnit files are to be alike."""


class ParityWarning(UserWarning):
    """A difference that is drowned in the reference's own rounding noise."""


def warn(text: str) -> None:
    """Warn with the words of a case, from a line of their own: pytest puts file and line before them, and indents."""
    warnings.warn(ParityWarning(f"\n{fitted(text, _WIDTH - 2)}"), stacklevel=3)


def in_lines(text: str) -> str:
    """Return the words of a case in lines that a log can show."""
    return fitted(text, _WIDTH)


def fail(text: str) -> NoReturn:
    """Fail the test with the words of a case."""
    pytest.fail(in_lines(text), pytrace=False)


def shorten(item: pytest.Item, report: pytest.TestReport) -> None:
    """Leave of a failure, where it has one line beside the test's id, what the id does not say already."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None and any(name == "parity_outcome" for name, _ in item.user_properties):
        case = _cases_of(item)
        first = str(crash.message).removeprefix("Failed: ").partition("\n")[0]
        crash.message = first.removeprefix(f"{case[0].id}: " if case else "")


@pytest.fixture(scope="session")
def parity_engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Return the engine: both models of a pair loaded once a session, each forward computed once."""
    try:
        engine = engine_of(request.config)
    except ParityError as error:
        fail(str(error))
    if not hasattr(request.config, "workerinput"):  # a worker gets its states one by one
        engine.expect(case for item in request.session.items for case in _cases_of(item))
    yield engine
    engine.close()


def _cases_of(item: pytest.Item) -> list[ParityCase]:
    from parity.case import ParityCase

    params = getattr(getattr(item, "callspec", None), "params", {})
    return [value for value in params.values() if isinstance(value, ParityCase)]


@pytest.fixture
def parity_check(request: pytest.FixtureRequest, parity_engine: Engine) -> Any:
    """Return the check of one case: looks its verdict up, passes, warns, fails, or says that it was not judged."""
    return _Check(request, parity_engine)


class _Check:
    """Turns a verdict into a test's outcome."""

    def __init__(self, request: pytest.FixtureRequest, engine: Engine) -> None:
        self._config, self._engine, self._node = request.config, engine, request.node

    def __call__(self, case: ParityCase) -> None:
        """Look a case up and end the test accordingly."""
        found, state = self._looked_up(case)
        record, said = self._gated({**found, "rerun": self.rerun()}, state)
        outcome = record["outcome"]
        self._tell("parity_outcome", outcome)
        self._tell("parity_case", json.dumps(record))
        if outcome == "error":
            fail(error_text(record, self.rerun()))
        for name, text in properties_of(record, said):
            self._tell(name, text)
        if said and outcome != "error":
            fail(gated_text(record, said, self.rerun()))
        if outcome == "failed":
            fail(failure_text(record, self.rerun()))
        if outcome == "known":
            pytest.xfail(f"known difference: {record['known']}")
        if outcome == "skipped":
            pytest.skip("\n".join(record["reasons"]))
        if outcome == "not judged":
            pytest.skip(not_judged_text(record))
        if outcome == "warned":
            warn(failure_text(record, self.rerun()))

    def _gated(self, record: dict[str, Any], state: dict[str, Any] | None) -> tuple[dict[str, Any], str]:
        """Hold a case against the accepted state, where one was named."""
        try:
            gate = gate_of(self._config)
        except ParityError as error:
            fail(str(error))
        return (record, "") if gate is None else gate.case(record, state)

    def _looked_up(self, case: ParityCase) -> tuple[dict[str, Any], dict[str, Any] | None]:
        try:
            record, state = self._engine.case_record(case), self._engine.state_record(case)
        except SourceMissing as error:
            required = case.pair in self._config.getoption("--parity-require")
            outcome, text = ("error", f"{_required(case)}{error}") if required else ("skipped", str(error))
            return unjudged(self._config, case, outcome, text), None
        except ParityError as error:
            return unjudged(self._config, case, "error", str(error)), None
        told = self._config.stash.setdefault(_TOLD, set())
        if (case.pair, case.state) not in told:
            told.add((case.pair, case.state))
            self._tell("parity_state", json.dumps(state))
        return record, state

    def _tell(self, name: str, text: str) -> None:
        """Send something to who writes the record, in this process or, under xdist, in another."""
        self._node.user_properties.append((name, text))

    def rerun(self) -> str:
        """Return the command that runs this test alone."""
        return rerun_of(self._config, self._node.nodeid)


def rerun_of(config: pytest.Config, nodeid: str) -> str:
    """Word the command that runs a test alone, from where pytest was called."""
    file, _, rest = nodeid.partition("::")
    path = os.path.relpath(config.rootpath / file, config.invocation_params.dir)
    return f'pytest "{Path(path).as_posix()}::{rest}"{given(config)}'


def unjudged(config: pytest.Config, case: ParityCase, outcome: str, text: str) -> dict[str, Any]:
    """Return the record of a case without a verdict."""
    from parity.report.record import unjudged_record

    return unjudged_record(
        case_id=case.id, pair=case.pair, state=case.state, tap=case.tap, outcome=outcome, text=text,
        order=place_of(config, case),
    )  # fmt: skip


def _required(case: ParityCase) -> str:
    return f"{case.pair} is required and not here: "


@pytest.fixture
def parity_state(parity_engine: Engine, request: pytest.FixtureRequest) -> Any:
    """Return a function from a case to what all cases of its pair and state have in common."""

    def look_up(case: ParityCase) -> dict[str, Any]:
        try:
            return parity_engine.state_record(case)
        except SourceMissing as error:
            if case.pair not in request.config.getoption("--parity-require"):
                pytest.skip(str(error))
            fail(f"{_required(case)}{error}")
        except ParityError as error:
            fail(str(error))

    return look_up


@pytest.fixture
def parity_evidence(request: pytest.FixtureRequest, parity_state: Any) -> Any:
    """Return the check that a list of what spoils a state's evidence, a field of its record, is empty."""

    def check(case: ParityCase, field: str) -> None:
        state = parity_state(case)
        if state[field]:
            fail(evidence_text(state, field, rerun_of(request.config, request.node.nodeid)))

    return check

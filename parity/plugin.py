"""The pytest plugin: options, cases, the check, the record. Hooks of a few lines over one engine."""

from __future__ import annotations

import json
import os
import shlex
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from parity.case import ParityCase, all_cases
from parity.choices import DTYPES, device_named, dtype_named
from parity.discover import choose, discover
from parity.engine import Engine, Settings
from parity.errors import ParityError, RecordError, SourceMissing, UsageError
from parity.pair import ModelPair
from parity.report.record import unjudged_record
from parity.report.terminal import render_run
from parity.report.wording import error_text, failure_text, not_judged_text
from parity.run import Options
from parity.runs import RunBook

_BOOK = pytest.StashKey[RunBook]()
_ENGINE = pytest.StashKey[Engine]()
_CASES = pytest.StashKey[list[ParityCase]]()
_PROBLEMS = pytest.StashKey[list[str]]()
_TOLD = pytest.StashKey[set[tuple[str, str]]]()
_SHADOWS = {"float64": torch.float64, "float32": torch.float32}
_FIXTURES: dict[str, Callable[[ParityCase], bool]] = {
    "case": lambda case: True,
    "block_case": lambda case: bool(case.block) and "." not in case.tap,
    "layer_case": lambda case: bool(case.block) and "." in case.tap,
    "outer_case": lambda case: not case.block,
}
_OURS = frozenset({"parity_check", "parity_state", "parity_engine"})
"""A test that asks for one of these asks for our cases; any other may use the word `case` as it likes."""


class ParityWarning(UserWarning):
    """A difference that is drowned in the reference's own rounding noise."""


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise ValueError
        return int(text)

    number.__name__ = f"number of at least {least}"
    return number


_OPTIONS: dict[str, dict[str, Any]] = {
    "--parity-pairs": {"action": "append", "default": [], "metavar": "DIR", "help": "folders of pair files"},
    "--parity-pair": {"action": "append", "default": [], "metavar": "NAME", "help": "only these pairs"},
    "--parity-require": {
        "action": "append", "default": [], "metavar": "NAME", "help": "a skip of this pair is a failure",
    },
    "--parity-dtype": {"choices": sorted(DTYPES), "default": None, "help": "storage dtype (default: the pair's)"},
    "--parity-size": {"default": None, "metavar": "NAME", "help": "size of the models (default: the pair's first)"},
    "--parity-device": {"default": "auto", "metavar": "DEVICE", "help": "auto, cpu, cuda, cuda:1"},
    "--parity-seed": {"type": _at_least(0), "default": 0, "help": "seed of the first draw"},
    "--parity-draws": {
        "type": _at_least(1), "default": None, "help": "inputs pooled per case (default: the pair's)",
    },
    "--parity-twins": {"type": _at_least(1), "default": 3, "help": "lattice twins a draw (default 3)"},
    "--parity-shadow-dtype": {"choices": sorted(_SHADOWS), "default": "float64", "help": "dtype of the shadow"},
    "--parity-report": {"default": "reports", "metavar": "DIR", "help": "where the record is written"},
}  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add every `--parity-*` option."""
    group = parser.getgroup("parity", "numerical parity of ported models")
    for flag, how in _OPTIONS.items():
        group.addoption(flag, **how)
    parser.addini("parity_pairs", "folders of pair files", type="paths", default=[])


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, the book of the run and who writes it."""
    config.addinivalue_line("markers", "parity: a numerical parity check of a model pair")
    config.addinivalue_line("markers", "parity_gpu: needs a GPU")
    config.stash[_BOOK] = RunBook(config.rootpath / str(config.getoption("--parity-report")))
    config.stash[_PROBLEMS], config.stash[_TOLD] = [], set()
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Listener(config), "parity-listener")


def _engine(config: pytest.Config) -> Engine:
    if _ENGINE not in config.stash:
        config.stash[_ENGINE] = Engine(_pairs(config), _settings(config))
    return config.stash[_ENGINE]


def _pairs(config: pytest.Config) -> dict[str, ModelPair]:
    pairs = discover([Path(p) for p in config.getoption("--parity-pairs")] or list(config.getini("parity_pairs")))
    if not pairs:
        raise UsageError("no pair was found: set `parity_pairs` in the pytest configuration to folders of pair files")
    wanted, required = config.getoption("--parity-pair"), config.getoption("--parity-require")
    for name in (*wanted, *required):
        choose(pairs, name)
    left_out = [name for name in required if wanted and name not in wanted]
    if left_out:
        raise UsageError(f"--parity-require {left_out[0]}, but --parity-pair {' '.join(wanted)} leaves it out")
    chosen = {name: pair for name, pair in pairs.items() if not wanted or name in wanted}
    size, sizes = config.getoption("--parity-size"), sorted({s for p in chosen.values() for s in p.sizes})
    if size is not None and size not in sizes:
        raise UsageError.unknown("size", size, sizes)
    return chosen


def _settings(config: pytest.Config) -> Settings:
    option = config.getoption
    return Settings(
        dtype=dtype_named(option("--parity-dtype")),
        size=option("--parity-size"),
        device=_device(config),
        options=Options(
            seed=option("--parity-seed"),
            draws=option("--parity-draws"),
            twins=option("--parity-twins"),
            shadow_dtype=_SHADOWS[option("--parity-shadow-dtype")],
        ),
    )


def _device(config: pytest.Config) -> torch.device:
    """Return the device; worker N of several takes GPU N."""
    device = device_named(config.getoption("--parity-device"))
    worker = getattr(config, "workerinput", {}).get("workerid", "")
    if config.getoption("--parity-device") == "auto" and device.type == "cuda" and worker:
        return torch.device("cuda", int(worker.removeprefix("gw")) % torch.cuda.device_count())
    return device


# --- collection --------------------------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise tests that ask for a case. Builds no model."""
    if not _OURS.intersection(metafunc.fixturenames):
        return
    for name, wanted in _FIXTURES.items():
        if name in metafunc.fixturenames:
            _parametrize(metafunc, name, {c.id: c for c in _cases(metafunc.config) if wanted(c)})
    if "pair_state" in metafunc.fixturenames:
        states: dict[str, ParityCase] = {}
        for case in _cases(metafunc.config):
            states.setdefault(f"{case.pair}-{case.state}", case)
        _parametrize(metafunc, "pair_state", states)


def _parametrize(metafunc: pytest.Metafunc, name: str, cases: dict[str, ParityCase]) -> None:
    metafunc.parametrize(name, [pytest.param(c, id=id, marks=pytest.mark.parity) for id, c in cases.items()])


def _cases(config: pytest.Config) -> list[ParityCase]:
    if _CASES not in config.stash:
        try:
            engine = _engine(config)
            config.stash[_CASES] = all_cases((p, engine.settings.build(p)) for p in engine.pairs.values())
        except ParityError as error:
            pytest.exit(f"parity: {error}", returncode=pytest.ExitCode.USAGE_ERROR)
    return config.stash[_CASES]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a pair and LoRA state on one worker; xdist's own `loadgroup` does not group any more (its issue 1386)."""
    if config.getoption("dist") != "load":
        return None
    from parity.parallel import ByState

    return ByState(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("parity_gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


# --- fixtures ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def parity_engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Return the engine: both models of a pair loaded once a session, each forward computed once."""
    _cases(request.config)
    engine = _engine(request.config)
    yield engine
    engine.close()


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
        record = self._looked_up(case)
        outcome = record["outcome"]
        self._tell("parity_outcome", outcome)
        self._tell("parity_case", json.dumps(record))
        if outcome == "error":
            pytest.fail(error_text(record, self.rerun()), pytrace=False)
        if outcome == "failed":
            pytest.fail(failure_text(record, self.rerun()), pytrace=False)
        if outcome == "known":
            pytest.xfail(f"known difference: {record['known']}")
        if outcome == "skipped":
            pytest.skip("\n".join(record["reasons"]))
        if outcome == "not judged":
            pytest.skip(not_judged_text(record))
        if outcome == "warned":
            warnings.warn(ParityWarning(failure_text(record, self.rerun())), stacklevel=2)

    def _looked_up(self, case: ParityCase) -> dict[str, Any]:
        try:
            record, state = self._engine.case_record(case), self._engine.state_record(case)
        except SourceMissing as error:
            required = case.pair in self._config.getoption("--parity-require")
            return _unjudged(case, "error" if required else "skipped", f"{_required(case) if required else ''}{error}")
        except ParityError as error:
            return _unjudged(case, "error", str(error))
        told = self._config.stash[_TOLD]
        if (case.pair, case.state) not in told:
            told.add((case.pair, case.state))
            self._tell("parity_state", json.dumps(state))
        return record

    def _tell(self, name: str, text: str) -> None:
        """Send something to who writes the record, in this process or, under xdist, in another."""
        self._node.user_properties.append((name, text))

    def rerun(self) -> str:
        """Return the command that runs this test alone, from where pytest was called."""
        config, nodeid = self._config, self._node.nodeid
        file, _, rest = nodeid.partition("::")
        path = os.path.relpath(config.rootpath / file, config.invocation_params.dir)
        return f'pytest "{Path(path).as_posix()}::{rest}"{_given(config)}'


def _unjudged(case: ParityCase, outcome: str, text: str) -> dict[str, Any]:
    return unjudged_record(
        case_id=case.id, pair=case.pair, state=case.state, tap=case.tap, outcome=outcome, text=text
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
            _fail(f"{_required(case)}{error}")
        except ParityError as error:
            _fail(str(error))

    return look_up


def _fail(text: str) -> NoReturn:
    pytest.fail(text, pytrace=False)


def _given(config: pytest.Config) -> str:
    """Return the options that are not defaults and decide what is run."""
    words = []
    for flag, how in _OPTIONS.items():
        value = config.getoption(flag)
        if value != how["default"] and flag not in ("--parity-require", "--parity-report"):
            words += [f"{flag}={shlex.quote(str(v))}" for v in (value if isinstance(value, list) else [value])]
    return "".join(f" {word}" for word in words)


# --- reporting ---------------------------------------------------------------------------------------------------------


class _Listener:
    """Keeps the book: takes in what tests tell, those of xdist's workers included."""

    def __init__(self, config: pytest.Config) -> None:
        self._config, self._book, self._holds = config, config.stash[_BOOK], False

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
                self._config.stash[_PROBLEMS].append(_unwritten(error))


def _unwritten(error: RecordError) -> str:
    return f"the record was not written: {error}; or pass --parity-report DIR"


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Count what was not judged apart from what was skipped."""
    if report.when == "call" and ("parity_outcome", "not judged") in report.user_properties:
        return "not judged", "n", "NOT JUDGED"
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the record; a run in which nothing was judged is an error."""
    config = session.config
    book, problems = config.stash[_BOOK], config.stash[_PROBLEMS]
    if hasattr(config, "workerinput") or not book.cases:
        return
    if not problems:
        try:
            book.write(complete=exitstatus in (0, 1) and not session.shouldstop and not session.shouldfail)
        except RecordError as error:
            problems.append(_unwritten(error))
    if not book.judged:
        problems.append("no case was judged: this run proves nothing")
    problems += [
        f"{name} is required and no case of it was judged"
        for name in config.getoption("--parity-require") if not book.judged_of(name)
    ]  # fmt: skip
    if problems and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Show the parity summary of the run."""
    book = config.stash[_BOOK]
    if not book.cases:
        return
    writer = terminalreporter._tw
    terminalreporter.section("parity")
    terminalreporter.write_line(render_run(book.record(), width=min(writer.fullwidth, 120), color=writer.hasmarkup))
    if book.path is not None:
        terminalreporter.write_line(f" record     {book.shown_path}")
    for problem in config.stash[_PROBLEMS]:
        terminalreporter.write_line(f" ERROR      {problem}", red=True)

"""The pytest plugin: options, cases, the check, the record. Hooks of a few lines over one engine."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from parity.case import ParityCase, all_cases
from parity.discover import choose, discover
from parity.engine import Engine, Settings
from parity.errors import ParityError, SourceMissing, UsageError
from parity.pair import ModelPair
from parity.report.terminal import render_run
from parity.report.wording import failure_text, not_judged_text
from parity.run import Options
from parity.runs import RunBook

_BOOK = pytest.StashKey[RunBook]()
_ENGINE = pytest.StashKey[Engine]()
_CASES = pytest.StashKey[list[ParityCase]]()
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_SHADOWS = {"float64": torch.float64, "float32": torch.float32}
_FIXTURES = {
    "case": lambda case: True,
    "block_case": lambda case: bool(case.block) and "." not in case.tap,
    "layer_case": lambda case: bool(case.block) and "." in case.tap,
    "outer_case": lambda case: not case.block,
}


class ParityWarning(UserWarning):
    """A difference that is drowned in the reference's own rounding noise."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add every `--parity-*` option."""
    group = parser.getgroup("parity", "numerical parity of ported models")
    group.addoption("--parity-pairs", action="append", default=[], metavar="DIR", help="folders of pair files")
    group.addoption("--parity-pair", action="append", default=[], metavar="NAME", help="only these pairs")
    group.addoption("--parity-require", action="append", default=[], metavar="NAME",
                    help="a skip of this pair is a failure")  # fmt: skip
    group.addoption("--parity-dtype", choices=sorted(_DTYPES), default=None, help="storage dtype (default: the pair's)")
    group.addoption("--parity-size", default=None, metavar="NAME", help="size of the models (default: the pair's first)")
    group.addoption("--parity-device", default="auto", metavar="DEVICE", help="auto, cpu, cuda, cuda:1")
    group.addoption("--parity-seed", type=int, default=0, help="seed of the first draw")
    group.addoption("--parity-draws", type=int, default=None, help="inputs pooled per case (default: the pair's)")
    group.addoption("--parity-twins", type=int, default=3, help="lattice twins a draw (default 3)")
    group.addoption("--parity-shadow-dtype", choices=sorted(_SHADOWS), default="float64", help="dtype of the shadow")
    group.addoption("--parity-report", default="reports", metavar="DIR", help="where the record is written")
    parser.addini("parity_pairs", "folders of pair files", type="paths", default=[])


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers and make the engine."""
    config.addinivalue_line("markers", "parity: a numerical parity check of a model pair")
    config.addinivalue_line("markers", "parity_gpu: needs a GPU")
    config.stash[_BOOK] = RunBook(Path(str(config.rootpath)) / str(config.getoption("--parity-report")))


def _engine(config: pytest.Config) -> Engine:
    if _ENGINE not in config.stash:
        try:
            config.stash[_ENGINE] = Engine(_pairs(config), _settings(config))
        except ParityError as error:
            raise pytest.UsageError(str(error)) from error
    return config.stash[_ENGINE]


def _pairs(config: pytest.Config) -> dict[str, ModelPair]:
    folders = [Path(p) for p in config.getoption("--parity-pairs")] or list(config.getini("parity_pairs"))
    pairs = discover(folders)
    wanted = [*config.getoption("--parity-pair")]
    for name in (*wanted, *config.getoption("--parity-require")):
        choose(pairs, name)
    size = config.getoption("--parity-size")
    sizes = sorted({s for p in pairs.values() for s in p.sizes})
    if size is not None and size not in sizes:
        raise UsageError.unknown("size", size, sizes)
    return {name: pair for name, pair in pairs.items() if not wanted or name in wanted}


def _settings(config: pytest.Config) -> Settings:
    option = config.getoption
    return Settings(
        dtype=_DTYPES.get(option("--parity-dtype")),
        size=option("--parity-size"),
        device=device_named(option("--parity-device")),
        options=Options(
            seed=option("--parity-seed"),
            draws=option("--parity-draws"),
            twins=option("--parity-twins"),
            shadow_dtype=_SHADOWS[option("--parity-shadow-dtype")],
        ),
    )


def device_named(name: str) -> torch.device:
    """Return a device; "auto" is the GPU if there is one.

    Raises:
        UsageError: torch knows no such device, or it is not here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}: {str(error).splitlines()[0]}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {name!r}: torch {torch.__version__} sees no GPU; use --parity-device cpu")
    return device


# --- collection --------------------------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise tests that ask for a case. Builds no model."""
    for name, wanted in _FIXTURES.items():
        if name in metafunc.fixturenames:
            cases = [c for c in _cases(metafunc.config) if wanted(c)]
            metafunc.parametrize(name, [pytest.param(c, id=c.id, marks=pytest.mark.parity) for c in cases])
    if "pair_state" in metafunc.fixturenames:
        firsts = {(c.pair, c.state): c for c in _cases(metafunc.config)}
        params = [pytest.param(c, id=f"{c.pair}-{c.state}", marks=pytest.mark.parity) for c in firsts.values()]
        metafunc.parametrize("pair_state", params)


def _cases(config: pytest.Config) -> list[ParityCase]:
    if _CASES not in config.stash:
        engine = _engine(config)
        if not engine.pairs:
            raise pytest.UsageError("no pair was found: set `parity_pairs` in the pytest configuration to folders of pair files")
        config.stash[_CASES] = all_cases((p, engine.settings.build(p)) for p in engine.pairs.values())
    return config.stash[_CASES]


# --- fixtures ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def parity_engine(request: pytest.FixtureRequest) -> Engine:
    """Return the engine: both models of a pair loaded once a session, each forward computed once."""
    return _engine(request.config)


@pytest.fixture
def parity_check(request: pytest.FixtureRequest, parity_engine: Engine) -> Iterator[Any]:
    """Return the check of one case: looks its verdict up, passes, warns, fails, or says that it was not judged."""
    yield _Check(request, parity_engine, request.config.stash[_BOOK])


class _Check:
    """Turns a verdict into a test's outcome."""

    def __init__(self, request: pytest.FixtureRequest, engine: Engine, book: RunBook) -> None:
        self._request, self._engine, self._book = request, engine, book

    def __call__(self, case: ParityCase) -> None:
        record = self._looked_up(case)
        self._request.node.user_properties.append(("parity_case", json.dumps(record)))
        outcome = record["outcome"]
        if outcome == "failed":
            pytest.fail(failure_text(record, self.rerun()), pytrace=False)
        if outcome == "known":
            pytest.xfail(f"known difference: {record['known']}")
        if outcome == "not judged":
            pytest.skip(not_judged_text(record))
        if outcome == "warned":
            warnings.warn(ParityWarning(failure_text(record, self.rerun())), stacklevel=2)

    def _looked_up(self, case: ParityCase) -> dict[str, Any]:
        try:
            record = self._engine.case_record(case)
            self._book.add_state(self._engine.state_record(case))
        except SourceMissing as error:
            if case.pair in self._request.config.getoption("--parity-require"):
                pytest.fail(f"{case.pair} is required and not here: {error}", pytrace=False)
            pytest.skip(str(error))
        except ParityError as error:
            pytest.fail(f"{case.id}: {error}\n  rerun: {self.rerun()}", pytrace=False)
        self._book.add_case(record)
        return record

    def rerun(self) -> str:
        """Return the command that runs this test alone."""
        return f'pytest "{self._request.node.nodeid}"{_options(self._request.config)}'


@pytest.fixture
def parity_state(parity_engine: Engine, request: pytest.FixtureRequest) -> Any:
    """Return a function from a case to what all cases of its pair and state have in common."""

    def look_up(case: ParityCase) -> dict[str, Any]:
        try:
            return parity_engine.state_record(case)
        except SourceMissing as error:
            if case.pair in request.config.getoption("--parity-require"):
                pytest.fail(f"{case.pair} is required and not here: {error}", pytrace=False)
            pytest.skip(str(error))
        except ParityError as error:
            pytest.fail(str(error), pytrace=False)

    return look_up


def _options(config: pytest.Config) -> str:
    """Return the `--parity-*` options in force that are not defaults."""
    given = [a for a in config.invocation_params.args if str(a).startswith("--parity-") and "require" not in str(a)]
    return "".join(f" {a}" for a in given)


# --- reporting ---------------------------------------------------------------------------------------------------------


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Count what was not judged apart from what was skipped."""
    if report.when == "call" and report.skipped and not hasattr(report, "wasxfail"):
        if any(name == "parity_case" for name, _ in report.user_properties):
            return "not judged", "n", "NOT JUDGED"
    return None


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the record; a run in which nothing was judged is an error."""
    book = session.config.stash[_BOOK]
    if hasattr(session.config, "workerinput"):
        session.config.workeroutput["parity"] = book.as_json()  # type: ignore[attr-defined]
        return
    if not book.cases:
        return
    book.write(complete=session.shouldstop is False and session.shouldfail is False)
    if not book.judged and exitstatus == 0:
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
    if not book.judged:
        terminalreporter.write_line(" ERROR      no case was judged: this run proves nothing")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Merge what a worker found."""
    output = getattr(node, "workeroutput", None) or {}
    if "parity" in output:
        node.config.stash[_BOOK].merge(output["parity"])


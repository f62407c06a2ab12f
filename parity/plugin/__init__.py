"""The pytest plugin: hooks of a few lines over one engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parity.errors import ParityError
from parity.plugin.book import Bookkeeper
from parity.plugin.cases import OURS, cases_of, parametrize
from parity.plugin.check import ParityWarning, parity_check, parity_engine, parity_evidence, parity_state
from parity.plugin.drawn import parity_drawn, parity_sensitivity
from parity.plugin.options import add_options, given

__all__ = [
    "ParityWarning", "parity_check", "parity_drawn", "parity_engine", "parity_evidence", "parity_sensitivity",
    "parity_state",
]  # fmt: skip

_REFUSED = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add every `--parity-*` option."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers and who writes the record: one process, however many run tests."""
    config.addinivalue_line("markers", "parity: a numerical parity check of a model pair")
    config.addinivalue_line("markers", "parity_gpu: needs a GPU")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Bookkeeper(config), "parity-bookkeeper")
    else:  # workers that each use every core wait for each other a hundred times longer than they compute
        torch.set_num_threads(max(1, torch.get_num_threads() // int(config.workerinput["workercount"])))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Check the options before anything is collected; without options pairs are imported when a test asks for them.

    xdist's controller collects nothing, so it checks whenever there are pairs.
    """
    config = session.config
    controls = bool(getattr(config.option, "dist", "no") != "no") and not hasattr(config, "workerinput")
    asked = given(config) or config.getoption("--parity-require") or config.getoption("--parity-drawn")
    if asked or (controls and config.getini("parity_pairs")):
        try:
            cases_of(config)
        except ParityError as error:
            raise pytest.UsageError(f"parity: {error}") from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise tests that ask for a case. Builds no model."""
    if OURS.intersection(metafunc.fixturenames):
        try:
            parametrize(metafunc)
        except ParityError as error:  # raised here it would be fifty lines of traceback, once per test file
            metafunc.config.stash[_REFUSED] = f"parity: {error}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config) -> None:
    """Refuse to run where the pairs are not usable."""
    if _REFUSED in config.stash:
        raise pytest.UsageError(config.stash[_REFUSED])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a pair and LoRA state on one worker; xdist's own `loadgroup` does not group any more (its issue 1386)."""
    if config.getoption("dist") != "load":
        return None
    from parity.plugin.parallel import ByState

    return ByState(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("parity_gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Count what was not judged apart from what was skipped."""
    if report.when == "call" and ("parity_outcome", "not judged") in report.user_properties:
        return "not judged", "n", "NOT JUDGED"
    return None

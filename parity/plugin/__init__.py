"""The pytest plugin: hooks of a few lines over one engine.

Every pytest run of an environment that has this package imports this file, so nothing here imports torch: pairs, engine
and records are imported when a test asks for a case, or an option of this plugin is given.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

from parity.errors import ParityError
from parity.plugin.book import Bookkeeper
from parity.plugin.cases import OURS, cases_of, parametrize
from parity.plugin.check import (
    TOLD,
    ParityWarning,
    parity_check,
    parity_engine,
    parity_evidence,
    parity_state,
    shorten,
)
from parity.plugin.drawn import parity_drawn, parity_sensitivity
from parity.plugin.gate import gate_of
from parity.plugin.options import add_options, given
from parity.plugin.partial import Selection

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
    selection = Selection(config)
    config.pluginmanager.register(selection, "parity-selection")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Bookkeeper(config, selection), "parity-bookkeeper")
        if _distributes(config):
            _let_threads_sleep(config)


def _distributes(config: pytest.Config) -> bool:
    """Say whether this process hands tests to others: it collects nothing itself."""
    return bool(getattr(config.option, "dist", "no") != "no") and not hasattr(config, "workerinput")


def _let_threads_sleep(config: pytest.Config) -> None:
    """Have the threads of workers that share the cores sleep while they wait.

    Every worker computes with as many threads as one process would: with fewer, sums have another order and other low
    bits. By default they spin while they wait for each other, a hundred times longer than they compute.
    """
    if _has_pairs(config) and "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        config.add_cleanup(_forget_wait_policy)


def _forget_wait_policy() -> None:
    os.environ.pop("OMP_WAIT_POLICY", None)


def _has_pairs(config: pytest.Config) -> bool:
    return bool(config.getoption("--parity-pairs") or config.getini("parity_pairs"))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Check the options before anything is collected; without options pairs are imported when a test asks for them.

    xdist's controller collects nothing, so it checks whenever there are pairs.
    """
    config = session.config
    asked = given(config) or config.getoption("--parity-require") or config.getoption("--parity-drawn")
    if asked or config.getoption("--parity-html") or (_distributes(config) and _has_pairs(config)):
        try:
            _check_extra(config)
            cases_of(config)
            gate_of(config)
        except ParityError as error:
            raise pytest.UsageError(f"parity: {error}") from error


def _check_extra(config: pytest.Config) -> None:
    """Check that the HTML report can be written before hours of computing, not behind them."""
    if config.getoption("--parity-html"):
        from parity.report.html import check_extra

        check_extra()


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
    if item.get_closest_marker("parity_gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Word the one line that the summary of failures and JUnit files have for a case."""
    report = yield
    shorten(item, report)
    return report


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Leave of what a test told only what people read: JUnit files hold the properties of the last phase."""
    item.user_properties = [told for told in item.user_properties if told[0] not in TOLD]


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Count what was not judged apart from what was skipped."""
    if report.when == "call" and ("parity_outcome", "not judged") in report.user_properties:
        return "not judged", "n", "NOT JUDGED"
    return None

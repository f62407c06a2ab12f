"""Whether a run leaves cases out: a record of some cases must not pass for one of all."""

from __future__ import annotations

import json
from typing import Any

import pytest

from parity.plugin.cases import case_of


class Selection:
    """Notes whether cases are left out: by `-k`, by the id of a test, by `--lf`. Under xdist workers tell.

    Attributes:
        partial: whether some are.
        left_out: ids of cases that were deselected: a gate does not miss them.
        unlisted: whether others were not even collected, because single tests or files were asked for.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        names, last_failed = [str(argument) for argument in config.args], _only_last_failed(config)
        self.partial = any("::" in name for name in names) or last_failed
        self.left_out: set[str] = set()
        self.unlisted = last_failed or any("::" in name or name.endswith(".py") for name in names)

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        """Take in what was left out; tests that are no cases do not count."""
        self.partial = self.partial or any(item.get_closest_marker("parity") for item in items)
        found = (case_of(self._config, item.nodeid) for item in items)
        self.left_out |= {case.id for case in found if case is not None}

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Tell the controller, from a worker."""
        output: dict[str, Any] | None = getattr(self._config, "workeroutput", None)
        if output is not None:
            output["parity_partial"] = self.partial
            output["parity_left_out"] = json.dumps(sorted(self.left_out))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take in what a worker told."""
        told = getattr(node, "workeroutput", {})
        self.partial = self.partial or bool(told.get("parity_partial"))
        self.left_out |= set(json.loads(told.get("parity_left_out", "[]")))


def _only_last_failed(config: pytest.Config) -> bool:
    """Say whether `--lf` is in force: it leaves out whole files without a word."""
    return bool(config.getoption("lf", False) and config.cache is not None and config.cache.get("cache/lastfailed", {}))

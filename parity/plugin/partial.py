"""Whether a run leaves cases out: a record of some cases must not pass for one of all."""

from __future__ import annotations

from typing import Any

import pytest


class Selection:
    """Notes whether cases are left out: by `-k`, by the id of a test, by `--lf`. Under xdist workers tell.

    Attributes:
        partial: whether some are.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.partial = any("::" in str(argument) for argument in config.args) or _only_last_failed(config)

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        """Take in what was left out; tests that are no cases do not count."""
        self.partial = self.partial or any(item.get_closest_marker("parity") for item in items)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Tell the controller, from a worker."""
        output: dict[str, Any] | None = getattr(self._config, "workeroutput", None)
        if output is not None:
            output["parity_partial"] = self.partial

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take in what a worker told."""
        self.partial = self.partial or bool(getattr(node, "workeroutput", {}).get("parity_partial"))


def _only_last_failed(config: pytest.Config) -> bool:
    """Say whether `--lf` is in force: it leaves out whole files without a word."""
    return bool(config.getoption("lf", False) and config.cache is not None and config.cache.get("cache/lastfailed", {}))

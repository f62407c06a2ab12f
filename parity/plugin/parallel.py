"""pytest-xdist: a pair and LoRA state stay on one worker, so that no forward is computed twice."""

from __future__ import annotations

from typing import Any

from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from parity.plugin.cases import state_of

__all__ = ["ByState", "state_of"]


class ByState(LoadScopeScheduling):  # type: ignore[misc]
    """Hand out whole states; every other test on its own.

    Attributes:
        given_up: tests that were to run on a worker that died, after the one it died in.
    """

    def __init__(self, config: Any, log: Any = None) -> None:
        super().__init__(config, log)
        self.given_up: list[str] = []

    def _split_scope(self, nodeid: str) -> str:
        return state_of(nodeid) or nodeid

    def _reschedule(self, node: Any) -> None:
        """Give a worker more to do, but not one that replaces a dead one and has not collected yet."""
        if node in self.registered_collections:
            super()._reschedule(node)

    def remove_node(self, node: Any) -> str | None:
        """Take a worker out; where it died, give up the state it died in and hand the others to other workers.

        Xdist would hand on the rest of the state, test by test: each worker would load the same models and die of them.
        """
        work: dict[str, dict[str, bool]] = self.assigned_work[node]
        died = next((state for state, tests in work.items() if not all(tests.values())), None)
        if died is None:
            del self.assigned_work[node]
            return None
        crashed, *self.given_up = [test for test, done in work.pop(died).items() if not done]
        del self.assigned_work[node]
        self.workqueue.update({state: tests for state, tests in work.items() if not all(tests.values())})
        for other in self.assigned_work:
            self._reschedule(other)
        return crashed

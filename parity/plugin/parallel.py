"""pytest-xdist: a pair and LoRA state stay on one worker, so that no forward is computed twice."""

from __future__ import annotations

import re
from typing import Any

from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

_STATE = re.compile(r"\[([^-\]]+)-(?:.*-)?(lora_(?:on|off)(?:-[^\]]+)?)\]$")


class ByState(LoadScopeScheduling):  # type: ignore[misc]
    """Hand out whole states; every other test on its own."""

    def __init__(self, config: Any, log: Any = None) -> None:
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return state_of(nodeid) or nodeid


def state_of(nodeid: str) -> str | None:
    """Return pair and state of a test id, None for tests that are no parity cases.

    >>> state_of("tests/suite/test_blocks.py::test_block[my_pair-block07-self_attn-lora_on-image]")
    'my_pair-lora_on-image'
    >>> state_of("tests/unit/test_io.py::test_hash[float32]") is None
    True
    """
    found = _STATE.search(nodeid)
    return f"{found[1]}-{found[2]}" if found else None

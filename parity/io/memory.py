"""How much memory this process held at most."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_resident() -> int:
    """Return the most bytes this process ever held in memory.

    `ru_maxrss` goes on from what the process that started this one held when it did, on Linux also after `exec`; there
    the kernel's own count is read.
    """
    with suppress(OSError, KeyError, ValueError, IndexError):
        lines = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="utf-8").splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

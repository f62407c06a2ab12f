"""Steps of a side in words: the op, its dtype, its line, and what the line says."""

from __future__ import annotations

import linecache
from dataclasses import dataclass

from parity.execution.ops import SourceLine

_CODE, _LINES = 200, 4
"""How much of a line of code, and how many lines, a record keeps."""


@dataclass(frozen=True)
class Step:
    """One op of a side, in words.

    Args:
        name: of the op. dtype: of its output. line: of the side's code. module: path of the module, "" where unknown.
        code: what that line says, "" where it cannot be read.
    """

    name: str
    dtype: str
    line: str
    module: str
    code: str = ""

    def __str__(self) -> str:
        return f"`{self.name}` at {self.line}" + (f" in {self.module}" if self.module else "")


def code_of(*steps: Step | None) -> list[tuple[str, str]]:
    """Return the lines of steps with what they say, each once, the first few."""
    found = {s.line: s.code for s in steps if s is not None and s.code}
    return list(found.items())[:_LINES]


def text_of(source: SourceLine) -> str:
    """Return what a line of code says, "" where it cannot be read."""
    return linecache.getline(source.file, source.line).strip()[:_CODE]

"""`Problem`: something wrong with a LoRA file, with a code a script can ask for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Severity = Literal["warning", "error"]


@dataclass(frozen=True)
class Problem:
    """One finding: `code` for scripts, `message` for people."""

    code: str
    message: str
    severity: Severity = "warning"

    def as_dict(self) -> dict[str, str]:
        """Return the three fields, as `--json` prints them."""
        return asdict(self)


def error(code: str, message: str) -> Problem:
    """Return a problem that makes a command fail."""
    return Problem(code, message, "error")


def warning(code: str, message: str) -> Problem:
    """Return a problem that is only told."""
    return Problem(code, message, "warning")


def failed(problems: Iterable[Problem]) -> bool:
    """Whether one of them is an error."""
    return any(problem.severity == "error" for problem in problems)


def some(names: Sequence[str], most: int = 3) -> str:
    """Name the first few and count the rest.

    >>> some(["a", "b", "c", "d"], 2)
    'a, b and 2 more'
    """
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")

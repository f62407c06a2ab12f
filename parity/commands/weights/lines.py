"""Lines of a command's answer, as wide as the terminal where there is one; a pipe gets whole lines."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Sequence

from parity.weights.names import printable, unnumbered

_NO_TERMINAL = 1 << 16
_LEAST = 40


def in_width(lines: Iterable[str]) -> str:
    """Return lines, each indented further where it is broken; names are left whole."""
    width = max(shutil.get_terminal_size((_NO_TERMINAL, 24)).columns, _LEAST)
    return "\n".join(part for line in lines for part in _broken(printable(line), width))


def _broken(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def listed(what: str, keys: Sequence[str], most: int) -> list[str]:
    """Return how many keys there are and their kinds, those of all blocks together, one a line."""
    kinds: dict[str, list[str]] = {}
    for key in keys:
        kinds.setdefault(unnumbered(key), []).append(key)
    lines = [f"{what}: {len(keys)}"] if keys else []
    for kind, held in list(kinds.items())[:most]:
        lines.append(f"  {kind} (x {len(held)})" if len(held) > 1 else f"  {held[0]}")
    return [*lines, f"  ... {len(kinds) - most} more kinds; --json prints all"] if len(kinds) > most else lines

"""Lines of source text: blanks, comments and calls that fit the width."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence

BLANK = "TODO(pair)"
"""Marks every blank of a pair file."""
WIDTH = 118


def one_line(text: str) -> str:
    """Return a text in one line that may stand in any string."""
    return " ".join(text.replace('"', "'").replace("\\", "/").split())[:300]


def comment(text: str, indent: int, further: str = "  ") -> list[str]:
    """Return a comment, wrapped; further lines are set in."""
    head = " " * indent + "# "
    return textwrap.wrap(
        text, WIDTH, initial_indent=head, subsequent_indent=head + further, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def literal(value: object) -> str:
    """Return the source text of a JSON value."""
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in value.items()) + "}"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def wrapped(head: str, parts: Sequence[str], tail: str, joined: str) -> list[str]:
    """Return a call in one line, or with an argument a line."""
    if len(head + joined + tail) <= WIDTH:
        return [head + joined + tail]
    return [head, *(f"        {part}," for part in parts), f"    {tail}"]

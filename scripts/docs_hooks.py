"""What the documentation site computes when it is built: the reference of the commands, from their own help."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the help of every command where a page asks for it; called by MkDocs for each page."""
    return markdown.replace(MARK, "\n".join(sections())) if MARK in markdown else markdown


def sections() -> Iterator[str]:
    """Give each command's words, what it does, its arguments and options, and its examples."""
    import typer

    app = importlib.import_module("parity.cli").app
    yield from _of(typer.main.get_command(app), ("parity",))


def _of(command: Any, words: tuple[str, ...]) -> Iterator[str]:
    yield f"\n## `{' '.join(words)}`\n"
    yield inspect.cleandoc(command.help or "")
    rows = [row for row in map(_row, command.params) if row]
    if rows:
        yield "\n| | |\n|---|---|"
        yield from rows
    examples = [line.strip() for line in (command.epilog or "").splitlines() if line.strip().startswith("parity ")]
    if examples:
        yield "\n```text"
        yield from examples
        yield "```"
    for name, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from _of(inner, (*words, name))


def _row(parameter: Any) -> str:
    text = getattr(parameter, "help", None)
    if not text or getattr(parameter, "hidden", False):
        return ""
    option = parameter.param_type_name == "option"
    names = parameter.opts if option else [parameter.metavar or str(parameter.name).upper()]
    return f"| {', '.join(f'`{name}`' for name in names)} | {text.replace('|', '&#124;')} |"

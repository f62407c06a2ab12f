"""A tree of a checkpoint's modules, one line a branch, blocks of a stack folded into one."""

from __future__ import annotations

import math
from typing import Any

from parity.weights.names import Shapes, printable, stacks_of, templated

_MOST_LINES = 120


def tree_lines(shapes: Shapes) -> list[str]:
    """Return the tree: module, shape or number of parameters."""
    stacks = stacks_of(shapes)
    counts = {f"{stack.prefix}.*".lstrip("."): stack.count for stack in stacks}
    root: dict[str, Any] = {}
    for key, shape in shapes.items():
        template, _ = templated(key, stacks)
        at = root
        *modules, last = template.split(".")
        for module in modules:
            inner = at.setdefault(module, {})
            at = inner if isinstance(inner, dict) else at.setdefault(f"{module} (module)", {})
        at.setdefault(last, tuple(shape))
    lines = list(_lines(root, "", counts, ""))
    more = [f"... {len(lines) - _MOST_LINES} more lines; --export writes every key"] if len(lines) > _MOST_LINES else []
    return lines[:_MOST_LINES] + more


def _lines(node: dict[str, Any], indent: str, counts: dict[str, int], path: str) -> Any:
    for name, held in node.items():
        here = f"{path}.{name}".lstrip(".")
        if isinstance(held, dict):
            times = f" x {counts[here]}" if here in counts else ""
            yield printable(f"{indent}{name}{times}  {_parameters(held):,}")
            yield from _lines(held, indent + "  ", counts, here)
        else:
            yield printable(f"{indent}{name}  {list(held)}")


def _parameters(node: dict[str, Any]) -> int:
    return sum(_parameters(held) if isinstance(held, dict) else math.prod(held) for held in node.values())

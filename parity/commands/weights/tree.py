"""A tree of a checkpoint's modules, one line a module, blocks of a stack folded into one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from parity.weights.names import Shapes, printable, stacks_of, templated

_MOST_LINES = 120
Node = dict[str, Any]


def tree_lines(shapes: Shapes) -> list[str]:
    """Return the tree: modules with their parameters' shapes; of a stack the first block."""
    stacks = stacks_of(shapes)
    counts = {f"{stack.prefix}.*".lstrip("."): stack.count for stack in stacks}
    root: Node = {}
    for key, shape in shapes.items():
        *modules, last = templated(key, stacks)[0].split(".")
        at = root
        for module in modules:
            held = at.setdefault(module, {})
            at = held if isinstance(held, dict) else at.setdefault(f"{module}.", {})
        at.setdefault(last, tuple(shape))
    lines = [printable(line) for line in _lines(root, "", counts, "")]
    more = [f"... {len(lines) - _MOST_LINES} more lines; --export writes every key"] if len(lines) > _MOST_LINES else []
    return lines[:_MOST_LINES] + more


def _lines(node: Node, indent: str, counts: dict[str, int], path: str) -> Iterator[str]:
    for name, held in node.items():
        name, held = _folded(name, held, f"{path}.{name}".lstrip(".") in counts)
        here = f"{path}.{name}".lstrip(".")
        times = f" x {counts[here]}" if here in counts else ""
        if not isinstance(held, dict):
            yield f"{indent}{name}  {list(held)}"
        elif not any(isinstance(inner, dict) for inner in held.values()):
            yield f"{indent}{name}{times}  " + ", ".join(f"{leaf} {list(shape)}" for leaf, shape in held.items())
        else:
            yield f"{indent}{name}{times}  {_parameters(held):,} parameters"
            yield from _lines(held, indent + "  ", counts, here)


def _folded(name: str, held: Any, stacked: bool) -> tuple[str, Any]:
    """Put a module with one child on one line with it; never a stack, whose count belongs to its own name."""
    while isinstance(held, dict) and len(held) == 1 and not stacked and next(iter(held)) != "*":
        inner, held = next(iter(held.items()))
        name = f"{name}.{inner}"
    return name, held


def _parameters(node: Node) -> int:
    return sum(_parameters(held) if isinstance(held, dict) else math.prod(held) for held in node.values())

"""What a forward returns, and the expression that picks the output from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from parity.scaffold.record import elements

Picked = tuple[str, Callable[[Any], Tensor]]


def output_of(returned: Any) -> Picked | None:
    """Return the expression that picks the output from what a model returned, and it as a function; None: no tensor.

    Shapes: a list of samples [C, F, H, W] becomes [B, C, F, H, W].
    """
    if isinstance(returned, Tensor):
        return "returned", lambda r: r
    if isinstance(returned, list) and all(isinstance(r, Tensor) and r.dim() > 2 for r in returned):
        return "torch.stack(list(returned))", lambda r: torch.stack(list(r))
    path = next((name for name, value in elements(returned) if value.is_floating_point()), None)
    if path is None:
        return None
    steps = path.split(".")
    return "returned" + _text(returned, steps), lambda r: _followed(r, steps)


def _text(held: Any, steps: list[str]) -> str:
    text = ""
    for step in steps:
        text += f"[{step}]" if step.isdigit() else f".{step}" if hasattr(held, step) else f'["{step}"]'
        held = _stepped(held, step)
    return text


def _stepped(held: Any, step: str) -> Any:
    if step.isdigit() and not isinstance(held, Mapping):
        return held[int(step)]
    return held[step] if isinstance(held, Mapping) else getattr(held, step)


def _followed(held: Any, steps: list[str]) -> Tensor:
    for step in steps:
        held = _stepped(held, step)
    found: Tensor = held
    return found

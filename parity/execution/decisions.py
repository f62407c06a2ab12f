"""Decisions made of floats: routing, top-k, argmax, masks. The low side decides; the native replays the reference's.

Two correct implementations may route a token differently because their roundings differ, and everything after that is
different and means nothing. So the native takes the reference's decisions, and the flips are counted apart.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from parity.execution.rules import Rule

Key = tuple[str, str, tuple[int, ...]]
"""Segment, op, shape of the decision."""

_EQUAL_OPS = {"argsort": "sort", "msort": "sort"}
_MOST_ELEMENTS = 1 << 24


@dataclass
class Decisions:
    """Record decisions segment by segment, or replay those of another run.

    Args:
        replayed: the other run; its decisions are taken in order within a segment, per op and shape.

    Attributes:
        made: what this run decided.
        flips: elements decided differently, per segment (counted, then replaced by the replayed ones).
        unmatched: decisions per segment that had no counterpart to replay.
    """

    replayed: Decisions | None = None
    made: dict[Key, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    flips: Counter[str] = field(default_factory=Counter)
    unmatched: Counter[str] = field(default_factory=Counter)
    count: int = 0
    _segment: str = ""
    _taken: Counter[Key] = field(default_factory=Counter)

    def begin_segment(self, name: str) -> None:
        """Start the segment that ends at tap `name`."""
        self._segment = name

    def take(self, rule: Rule, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        """Record an op's decision and return what the forward goes on with."""
        found = _decision(rule, args, out)
        if found is None or found.numel() > _MOST_ELEMENTS:
            return out
        self.count += 1
        key = (self._segment, _EQUAL_OPS.get(rule.short, rule.short), tuple(found.shape))
        if self.replayed is None:
            self.made[key].append(found.clone())
            return out
        number = self._taken[key]
        self._taken[key] += 1
        others = self.replayed.made.get(key, [])
        if number >= len(others):
            self.unmatched[self._segment] += 1
            return out
        return self._replay(rule, args, kwargs, out, found, others[number])

    def _replay(self, rule: Rule, args: Any, kwargs: Any, out: Any, found: Tensor, other: Tensor) -> Any:
        differing = int((found != other.to(found.device)).sum())
        if not differing:
            return out
        self.flips[self._segment] += differing
        if isinstance(out, Tensor):
            return other.to(found.device, copy=True)
        dim = _dim(rule, args, kwargs)
        index = other.to(found.device, copy=True)
        if out[0].dim() == args[0].dim():
            values = args[0].gather(dim, index)
        else:
            values = args[0].gather(dim, index.unsqueeze(dim)).squeeze(dim)
        return torch.utils._pytree.tree_unflatten([values, index], torch.utils._pytree.tree_structure(out))


def _dim(rule: Rule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    position = {"topk": 2, "kthvalue": 2}.get(rule.short, 1)
    given = kwargs.get("dim", args[position] if len(args) > position and not isinstance(args[position], bool) else -1)
    return int(given)


def _decision(rule: Rule, args: tuple[Any, ...], out: Any) -> Tensor | None:
    """Return the indices or mask that floats decided; None where integers did, or nothing was."""
    floats = [a for a in args if isinstance(a, Tensor) and a.is_floating_point()]
    if not floats:
        return None
    found = out[1] if isinstance(out, (tuple, list)) and len(out) == 2 else out
    return found if isinstance(found, Tensor) and not found.is_floating_point() else None

"""Counterfactual changes of one side: parameters seen as others, ops called otherwise; the model is not touched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from parity.execution.ops import OpNumbers, memory_of
from parity.execution.rules import rule_of

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""An op, its arguments and its keyword arguments."""


@dataclass(frozen=True)
class OpChange:
    """Another call in the place of an op's, or another result.

    Args:
        name: of the op as it was traced; where another op has its number, nothing is changed.
        call: from the call to the one that takes its place. result: from the result to another one.
    """

    name: str
    call: Callable[[Call], Call] | None = None
    result: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class Change:
    """One counterfactual.

    Args:
        words: what is done. parameters: for some parameters, what stands for them, in their shape and dtype.
        ops: by op number, what is called instead. found: numbers for the words, found when it runs.
        bug: the kind of bug it undoes, "" where it has no name. roots: tensors that the changed calls bring along.
        finer: of values the changed calls bring along, as they are seen and exact.
    """

    words: str
    parameters: tuple[tuple[Tensor, Tensor], ...] = ()
    ops: Mapping[int, OpChange] = field(default_factory=dict)
    found: list[float] = field(default_factory=list)
    bug: str = ""
    roots: tuple[Tensor, ...] = ()
    finer: Sequence[tuple[Tensor, Tensor]] = ()

    def said(self) -> str:
        """Say what is done, with the numbers that were found while it ran."""
        return self.words.format(*self.found) if self.found else self.words


class ChangedForward(OpNumbers):
    """Run a forward under a change. Entered above a shadow it is the changed model that the shadow sees.

    Args:
        change: what is changed.
    """

    def __init__(self, change: Change) -> None:
        super().__init__()
        self._ops = change.ops
        self._instead = {memory_of(old): (old, new) for old, new in change.parameters}

    def op(self, number: int, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one op, changed or on changed parameters."""
        if self._instead:
            args, kwargs = _pytree.tree_map(self._seen, (args, kwargs))
        change, rule = self._ops.get(number), rule_of(func)
        if change is None or rule.short != change.name:
            return func(*args, **kwargs)
        written = args[0] if 0 in rule.writes and isinstance(args[0], Tensor) else None
        if change.call is not None:
            func, args, kwargs = change.call((func, args, kwargs))
        out = func(*args, **kwargs)
        out = out if change.result is None else change.result(out)
        # What an op in place wrote is read again, not what it returned.
        return out if written is None or out is written else written.copy_(out)

    def _seen(self, held: Any) -> Any:
        """Return what stands for a parameter, or for a view of one."""
        if not isinstance(held, Tensor) or (pair := self._instead.get(memory_of(held))) is None:
            return held
        old, new = pair
        if held.shape == old.shape and held.stride() == old.stride() and held.storage_offset() == old.storage_offset():
            return new
        if held.dtype != new.dtype:
            return held
        offset = held.storage_offset() - old.storage_offset() + new.storage_offset()
        return torch.as_strided(new, held.shape, held.stride(), offset)

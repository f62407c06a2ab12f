"""Several adapters on one model: added, given weights, switched and taken off, the base untouched throughout."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType

from torch import nn

from parity.errors import LoraError, UsageError
from parity.lora.adapter import LoraAdapter, LoraTarget
from parity.lora.apply import applied


class Adapters:
    """Named adapters of a model, any of them active at once with a weight each, applied unmerged.

    Changes add: two active adapters change a weight by the sum of what each does. On leaving the model is as it was.

    Args:
        model: any module with linear layers; quantised ones too.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._known: dict[str, LoraAdapter] = {}
        self._weights: dict[str, float] = {}
        self._stack = ExitStack()

    @property
    def active(self) -> Mapping[str, float]:
        """The active adapters and their weights."""
        return dict(self._weights)

    def add_adapter(self, adapter: LoraAdapter) -> None:
        """Make an adapter known; it is not active yet.

        Raises:
            LoraError: the name is taken, or the adapter does not fit the model.
        """
        if adapter.name in self._known:
            raise LoraError(f"there is an adapter {adapter.name!r} already: delete it first, or give another name")
        self._check(adapter)
        self._known[adapter.name] = adapter

    def set_adapters(self, weights: Mapping[str, float]) -> None:
        """Activate these adapters with these weights and no others; an empty mapping leaves the base alone.

        Raises:
            UsageError: there is no adapter of that name.
            LoraError: one does not fit; the model is then without any.
        """
        for name in weights:
            if name not in self._known:
                raise UsageError.unknown("adapter", name, self._known)
        self._stack.close()
        self._weights = {}
        with ExitStack() as stack:
            for name, weight in weights.items():
                if weight:
                    stack.enter_context(applied(self.model, weighted(self._known[name], weight)))
            self._stack = stack.pop_all()
        self._weights = dict(weights)

    def delete_adapter(self, name: str) -> None:
        """Forget an adapter; the others stay as they are.

        Raises:
            UsageError: there is no adapter of that name.
        """
        if name not in self._known:
            raise UsageError.unknown("adapter", name, self._known)
        if name in self._weights:
            self.set_adapters({other: weight for other, weight in self._weights.items() if other != name})
        del self._known[name]

    def disable_adapters(self) -> None:
        """Leave the base alone; the adapters stay known."""
        self.set_adapters({})

    def _check(self, adapter: LoraAdapter) -> None:
        """Apply it once on top of what is there, and take it off."""
        with applied(self.model, adapter):
            pass

    def __enter__(self) -> Adapters:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.disable_adapters()


def weighted(adapter: LoraAdapter, weight: float) -> LoraAdapter:
    """Return the adapter with every scaling multiplied, and what it adds in full; what replaces a tensor is as it was.

    Raises:
        LoraError: it has magnitudes, which no weight but 1 leaves as they are.
    """
    if weight != 1 and any(target.magnitude is not None for target in adapter.targets.values()):
        raise LoraError(f"adapter {adapter.name!r} has magnitudes (DoRA): it is on or off, with no weight of its own")
    changes = {n: c if c.replaces else replace(c, value=c.value * weight) for n, c in adapter.changes.items()}
    targets = {path: _weighted(target, weight) for path, target in adapter.targets.items()}
    return LoraAdapter(adapter.name, targets, changes)


def _weighted(target: LoraTarget, weight: float) -> LoraTarget:
    bias = None if target.bias is None else target.bias * weight
    return replace(target, scaling=target.scaling * weight, bias=bias)

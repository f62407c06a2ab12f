"""What a model keeps between calls is noticed, and put back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parity.execution.module_state import ModuleState


@dataclass
class Cache:
    """A plain object that holds tensors."""

    keys: list[Tensor] = field(default_factory=list)


class Keeper(nn.Module):
    """Has one of everything that may keep something."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("table", torch.arange(3.0))
        self.calls = 0
        self.kept: dict[Any, Any] = {"inner": {"a": 1}}
        self.seen: list[int] = [1]
        self.cache = Cache()
        self.note = torch.zeros(2)


def names(model: Keeper) -> dict[str, Any]:
    """Everything that may have changed, comparable."""
    assert isinstance(model.table, Tensor)
    return {
        "table": model.table.tolist(), "calls": model.calls, "kept": repr(model.kept), "seen": list(model.seen),
        "cache": len(model.cache.keys), "note": model.note.tolist(), "attributes": sorted(vars(model)),
    }  # fmt: skip


def assign(model: Keeper, name: str, value: Any) -> None:
    setattr(model, name, value)


CHANGES: dict[str, Callable[[Keeper], object]] = {
    "a number": lambda m: assign(m, "calls", 3),
    "a new attribute": lambda m: assign(m, "extra", torch.ones(1)),
    "a new buffer": lambda m: m.register_buffer("more", torch.ones(1)),
    "a buffer in place": lambda m: m.get_buffer("table").add_(1),
    "a buffer replaced": lambda m: assign(m, "table", torch.ones(3)),
    "a tensor in place": lambda m: m.note.fill_(5),
    "a tensor replaced": lambda m: assign(m, "note", torch.ones(2)),
    "a dict": lambda m: m.kept.update(b=torch.ones(1)),
    "a dict in a dict": lambda m: m.kept["inner"].clear(),
    "a list": lambda m: m.seen.append(2),
    "a plain object": lambda m: m.cache.keys.append(torch.ones(1)),
    "an object replaced": lambda m: assign(m, "cache", Cache([torch.ones(1)])),
    "an attribute deleted": lambda m: delattr(m, "calls"),
    "a submodule's attribute": lambda m: m.linear.__dict__.update(extra=1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_change_is_noticed_and_put_back(change: str) -> None:
    model = Keeper()
    before, inner = names(model), sorted(vars(model.linear))
    state = ModuleState(model)
    changed = [state.changed]
    with torch.no_grad():
        CHANGES[change](model)
    changed.append(state.changed)
    state.put_back()
    assert [*changed, state.changed] == [False, True, False]
    assert names(model) == before
    assert sorted(vars(model.linear)) == inner


@pytest.mark.parametrize("change", CHANGES)
def test_context_leaves_everything_as_it_finds_it(change: str) -> None:
    model = Keeper()
    unused, fresh = ModuleState(model), names(model)
    model.seen.append(9)
    found = names(model)
    with unused.restored():
        assert names(model) == fresh
        with torch.no_grad():
            CHANGES[change](model)
    assert names(model) == found


def test_weights_and_hooks_are_left_alone() -> None:
    model = Keeper()
    state = ModuleState(model)
    with torch.no_grad():
        model.linear.weight.fill_(2.0)
    calls: list[int] = []
    model.linear.register_forward_pre_hook(lambda *_: calls.append(1), with_kwargs=True)
    assert not state.changed
    state.put_back()
    model.linear(torch.ones(3))
    assert calls == [1]
    assert float(model.linear.weight[0, 0].detach()) == 2.0


def test_container_of_its_own_kind_is_not_touched() -> None:
    class Frozen(dict[str, int]):
        def update(self, *args: Any, **kwargs: Any) -> None:
            raise TypeError("frozen")

    model = Keeper()
    model.kept = Frozen(a=1)
    state = ModuleState(model)
    model.calls = 7
    state.put_back()
    assert model.calls == 0

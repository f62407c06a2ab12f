"""What a model keeps between calls besides its weights: remembered, and put back.

A cache that the first call fills makes the second another one. To judge an input as a model meets it in a fresh
process, the state is put back first. Weights are left alone; so is what lives outside of modules (globals, closures).
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_STRUCTURE = ("_parameters", "_modules", "_buffers", "training")
_MUTABLE = (dict, list, set, OrderedDict, defaultdict)
"""Containers that are put back: their own types only, as others have their own idea of being changed."""
_DEPTH = 3
"""How deep containers in containers are followed."""


@dataclass
class _Written:
    """A tensor as it was: its values only matter where someone has written since."""

    tensor: Tensor
    values: Tensor
    version: int

    @property
    def changed(self) -> bool:
        return _version(self.tensor) != self.version

    def put_back(self) -> None:
        if self.changed:
            with torch.no_grad():
                self.tensor.copy_(self.values)
            self.version = _version(self.tensor)


class ModuleState:
    """Buffers and plain attributes of all modules of a model, containers and tensors in them included."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._spaces: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._containers: list[tuple[Any, Any]] = []
        self._tensors: dict[int, _Written] = {}
        for module in model.modules():
            for space in (vars(module), module._buffers):
                kept = {name: value for name, value in space.items() if space is module._buffers or _is_state(name)}
                self._spaces.append((space, kept))
                for value in kept.values():
                    self._remember(value, _DEPTH)

    def _remember(self, value: Any, depth: int) -> None:
        if isinstance(value, Tensor):
            if not isinstance(value, nn.Parameter) and id(value) not in self._tensors:
                self._tensors[id(value)] = _Written(value, value.detach().clone(), _version(value))
        elif depth and (inside := _container(value)) is not None:
            if type(inside) in _MUTABLE:
                self._containers.append((inside, inside.copy()))
            for inner in list(inside.values()) if isinstance(inside, dict) else inside:
                self._remember(inner, depth - 1)

    @property
    def changed(self) -> bool:
        """Whether a call has left something behind."""
        spaces = (({k: v for k, v in now.items() if k in kept or _is_state(k)}, kept) for now, kept in self._spaces)
        return (
            any(not _same(now, kept) for now, kept in spaces)
            or any(not _same(now, kept) for now, kept in self._containers)
            or any(written.changed for written in self._tensors.values())
        )

    def put_back(self) -> None:
        """Make everything as it was."""
        for space, kept in self._spaces:
            for name in [n for n in space if n not in kept and _is_state(n)]:
                del space[name]
            space.update(kept)
        for container, kept in self._containers:
            if not _same(container, kept):
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(kept)
        for written in self._tensors.values():
            written.put_back()

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put this state back while the context is open; after it everything is as before."""
        before = ModuleState(self._model)
        self.put_back()
        try:
            yield
        finally:
            before.put_back()


def _container(value: Any) -> Any:
    """Return what holds things: a container, the attributes of a plain object (a cache of its own), else None."""
    if isinstance(value, (dict, list, set, tuple)):
        return value
    plain = not callable(value) and not isinstance(value, (nn.Module, torch.dtype, torch.device))
    return vars(value) if plain and hasattr(value, "__dict__") else None


def _is_state(name: str) -> bool:
    return name not in _STRUCTURE and "_hook" not in name and not name.startswith("_non_persistent")


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _same(now: Any, kept: Any) -> bool:
    """Whether a container holds the very same things."""
    if isinstance(now, dict):
        return now.keys() == kept.keys() and all(now[k] is kept[k] or _equal(now[k], kept[k]) for k in kept)
    if isinstance(now, list):
        return len(now) == len(kept) and all(a is b or _equal(a, b) for a, b in zip(now, kept, strict=True))
    return bool(now == kept)


def _equal(a: Any, b: Any) -> bool:
    return isinstance(a, (int, float, str, bool, complex, bytes)) and type(a) is type(b) and a == b

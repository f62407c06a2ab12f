"""`LoraFile`: what a dialect is shown: keys taken apart, tensors on demand, header, sidecar, the caller's words."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from parity.errors import UsageError
from parity.lora.formats.keys import Key, below
from parity.lora.loaded import LoadedLora
from parity.weights.source import TensorSource

LOW_RANK = ("A", "B", "hada", "lokr", "multiplied")
FULL = ("diff", "diff_b", "diff_m", "set_weight")


@dataclass(frozen=True)
class Given:
    """What the caller says about a file.

    Args:
        r, lora_alpha: used where the file says nothing.
        adapter: which of several adapter names.
        prefix: which of several components; or what else stands before the names of modules.
        modules: the base's module names, to resolve underscores.

    Raises:
        UsageError: alpha is not finite.
    """

    r: int | None = None
    lora_alpha: float | None = None
    adapter: str | None = None
    prefix: str | None = None
    modules: Collection[str] | None = None

    def __post_init__(self) -> None:
        if self.lora_alpha is not None and not math.isfinite(self.lora_alpha):
            raise UsageError(f"--lora-alpha is {self.lora_alpha}, a finite number is needed")


@dataclass(frozen=True, eq=False)
class LoraFile:
    """A LoRA file before its dialect is known."""

    source: TensorSource
    header: Mapping[str, str] = field(default_factory=dict)
    sidecar: Mapping[str, Any] | None = None
    given: Given = field(default_factory=Given)

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        """Every key of the file."""
        return tuple(below(key, self.given.prefix) for key in self.source.keys())  # noqa: SIM118

    @cached_property
    def roles(self) -> frozenset[tuple[str, str]]:
        """The roles met, each with its style."""
        return frozenset((key.role, key.style) for key in self.keys)

    @cached_property
    def checkpoint(self) -> bool:
        """Whether the LoRA lies inside a whole model's checkpoint."""
        return any(key.role == "base_layer" and key.key.endswith(".weight") for key in self.keys)

    @cached_property
    def extracted(self) -> bool:
        """Whether keys or header are those of one project that names alpha and rank after PEFT's attributes."""
        marks = {("A", "bare"), ("B", "bare"), ("alpha", "lora_alpha"), ("rank", "")}
        return bool(marks & self.roles) or self.header.get("format", "").startswith("fastvideo-lora")

    def claimed(self, claims: Callable[[Key], bool]) -> bool:
        """Whether a key that defines a dialect is claimed; beside factors of products plain pairs define none."""
        products = {"hada", "lokr", "multiplied"}
        if any(role in products for role, _ in self.roles):
            return False
        return any(claims(key) for key in self.keys if key.role in LOW_RANK + FULL)

    def tensor(self, key: Key) -> Tensor:
        """Read a tensor; eight-bit floats as float32, which arithmetic needs."""
        value = self.source.get_tensor(key.key)
        return value.float() if value.is_floating_point() and value.element_size() == 1 else value

    def shape(self, key: Key) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return tuple(self.source.info(key.key).shape)


@dataclass(frozen=True)
class Written:
    """A file to be: tensors, header, and what goes into the sidecar."""

    tensors: Mapping[str, Tensor]
    header: Mapping[str, str] = field(default_factory=dict)
    sidecar: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Dialect:
    """One way to write a LoRA down.

    Args:
        name: as `--to` has it.
        keys: the spelling, for the documentation.
        alpha: where alpha is, for the documentation.
        matches: whether a file is written so; for each file exactly one dialect says yes.
        read: from file to normal form.
        write: from normal form to file; None where it is only read.
    """

    name: str
    keys: str
    alpha: str
    matches: Callable[[LoraFile], bool]
    read: Callable[[LoraFile], LoadedLora]
    write: Callable[[LoadedLora], Written] | None = None


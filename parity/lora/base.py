"""`Base`: the model a LoRA is for, known by the shapes of its tensors alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from parity.lora.formats.keys import DOTTED_PREFIXES


@dataclass(frozen=True)
class Base:
    """Shapes of a model's tensors, by keys without the prefix a trainer puts before all of them."""

    shapes: Mapping[str, torch.Size]

    @classmethod
    def from_keys(cls, shapes: Mapping[str, Sequence[int]]) -> Base:
        """Take off a prefix all keys share; of a checkpoint with an averaged copy only the model itself counts."""
        sizes = {key: torch.Size(shape) for key, shape in shapes.items()}
        for prefix in sorted(DOTTED_PREFIXES, key=len, reverse=True):
            own = {key.removeprefix(prefix): size for key, size in sizes.items() if key.startswith(prefix)}
            if own and (len(own) == len(sizes) or prefix == "net."):
                return cls(own)
        return cls(sizes)

    @cached_property
    def modules(self) -> list[str]:
        """Paths of modules with a weight, and of parameters that stand alone."""
        return [key.removesuffix(".weight") for key in self.shapes if not key.endswith(".bias")]

    @property
    def parameters(self) -> int:
        """How many numbers the model has."""
        return sum(size.numel() for size in self.shapes.values())

    def weight(self, module: str) -> tuple[int, int] | None:
        """Return (O, I) of a module's weight, or of the parameter of that name; None where there is none."""
        size = self.shapes.get(f"{module}.weight", self.shapes.get(module))
        return None if size is None else (size[0] if len(size) else 1, math.prod(size[1:]))

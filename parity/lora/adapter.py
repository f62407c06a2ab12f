"""`LoraAdapter`: a LoRA in one normal form.

Letters in shapes: R rank, I inputs and O outputs of the layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from parity.errors import LoraError


@dataclass(frozen=True, eq=False)
class LoraTarget:
    """What an adapter does to one layer: W gains `scaling * B @ A`.

    Args:
        A: [R, I], PEFT's `lora_A`.
        B: [O, R], PEFT's `lora_B`.
        scaling: the factor on B @ A, alpha already divided by the rank.
        scaling_from: where it came from (tensor, header, sidecar, argument, assumed, or in words).
        magnitude: lengths of the changed weight's rows ([O] or [O, 1]) or columns ([1, I]); None: W is only added to.
        bias: [O], what the layer's bias gains, the scaling in it; None: nothing.
        embedding: the layer is a table of O rows; PEFT keeps its factors apart from those of linear layers.

    Raises:
        LoraError: shapes do not fit, the rank is zero, or a value is not finite.
    """

    A: Tensor
    B: Tensor
    scaling: float
    scaling_from: str
    magnitude: Tensor | None = None
    bias: Tensor | None = None
    embedding: bool = False

    def __post_init__(self) -> None:
        shapes = f"A {tuple(self.A.shape)}, B {tuple(self.B.shape)}"
        if self.A.ndim != 2 or self.B.ndim != 2:
            raise LoraError(f"a LoRA target needs A [R, in] and B [out, R], got {shapes}")
        if self.A.shape[0] != self.B.shape[1]:
            hint = "; they are exchanged" if self.A.shape[1] == self.B.shape[0] else ""
            raise LoraError(f"the ranks of A [R, in] and B [out, R] differ: {shapes}{hint}")
        if 0 in (*self.A.shape, *self.B.shape):
            raise LoraError(f"an empty LoRA target: {shapes}")
        if self.bias is not None and self.bias.numel() != self.B.shape[0]:
            raise LoraError(f"the bias has {self.bias.numel()} entries, B {self.B.shape[0]} outputs")
        if not math.isfinite(self.scaling):
            raise LoraError(f"scaling is {self.scaling} (from {self.scaling_from}), it must be finite")
        for name, value in self.tensors().items():
            if not value.is_floating_point():
                raise LoraError(f"{name} holds {value.dtype}, a float dtype is needed")
            if not value.is_meta and not bool(torch.isfinite(_readable(value)).all()):
                raise LoraError(f"{name} {tuple(value.shape)} holds NaN or inf")

    def tensors(self) -> dict[str, Tensor]:
        """Return A, B and, where there are any, magnitudes and bias, by name."""
        held = {"A": self.A, "B": self.B, "magnitude": self.magnitude, "bias": self.bias}
        return {name: value for name, value in held.items() if value is not None}

    @property
    def rank(self) -> int:
        """R, the rows of A."""
        return self.A.shape[0]

    def delta(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return `scaling * B @ A`, the change of the weight.

        Shapes: [O, I].
        """
        return (self.B.to(dtype) @ self.A.to(dtype)) * self.scaling


@dataclass(frozen=True, eq=False)
class FullChange:
    """What an adapter does to one tensor in full.

    Args:
        value: what is added to the tensor, in its shape; or what it becomes.
        replaces: whether the tensor becomes `value`, whatever weight the adapter has.

    Raises:
        LoraError: it holds no floats, or NaN or inf.
    """

    value: Tensor
    replaces: bool = False

    def __post_init__(self) -> None:
        if not self.value.is_floating_point():
            raise LoraError(f"a change in full holds {self.value.dtype}, a float dtype is needed")
        if not self.value.is_meta and not bool(torch.isfinite(_readable(self.value)).all()):
            raise LoraError(f"a change in full {tuple(self.value.shape)} holds NaN or inf")

    def added_to(self, old: Tensor) -> Tensor:
        """Return what a tensor gains, in float64."""
        value = self.value.to(old.device).double()
        return value - old.detach().double() if self.replaces else value


@dataclass(frozen=True, eq=False)
class LoraAdapter:
    """A named LoRA.

    Args:
        name: the adapter's.
        targets: what is low-rank, by dotted module path.
        changes: what is changed in full, by the name of the tensor (`blocks.0.norm.weight`, `blocks.0.modulation`).

    Raises:
        LoraError: it has neither.
    """

    name: str
    targets: Mapping[str, LoraTarget]
    changes: Mapping[str, FullChange] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.targets and not self.changes:
            raise LoraError(f"adapter {self.name!r} has no targets: it would change nothing")


def _readable(value: Tensor) -> Tensor:
    return value.float() if value.element_size() == 1 else value

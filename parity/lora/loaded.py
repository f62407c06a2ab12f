"""`LoadedLora`: what a LoRA file says, in one form for all dialects, tensors read only when asked for.

Letters in shapes: R rank, I inputs and O outputs of the layer (a convolution's kernel counted to I).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from parity.errors import LoraFileError
from parity.lora.adapter import FullChange, LoraAdapter, LoraTarget
from parity.lora.problems import Problem

KeyState = Literal["used", "unsupported", "unexpected"]
"""What became of a key of the file; unsupported: known, but not taken over."""
Read = Callable[[], Tensor]


class Factors(NamedTuple):
    """A [R, I] and B [O, R]; the change is `scaling * B @ A`."""

    A: Tensor
    B: Tensor


@dataclass(frozen=True, eq=False)
class Target:
    """What a file does to one module.

    Args:
        module: dotted path; as the file has it where its underscores were not resolved.
        shape: (O, I) of the weight's change.
        r, lora_alpha: as declared in the file, for each of the `parts` where a fused layer has several.
        scaling: the factor on B @ A, alpha already divided.
        scaling_from: tensor, header, sidecar, argument or assumed.
        factors: reads A and B; None where the file only holds full changes.
        extras: reads what is not low-rank: `diff` (added to the weight), `diff_b` (to the bias), `diff_m` (to the
            parameter of that name), `set_weight`, `set_bias` (replace them), `magnitude` (of a weight-decomposed LoRA).
        kernel: of a convolution.
        dtype: in which A is stored.
        parameters: numbers in the file.
        rank: rows of A; for a plain pair `r` times `parts`.
        embedding: the layer is a table of O rows.
    """

    module: str
    shape: tuple[int, int]
    r: int | None = None
    lora_alpha: float | None = None
    scaling: float = 1.0
    scaling_from: str = "assumed"
    factors: Callable[[], Factors] | None = None
    extras: Mapping[str, Read] = field(default_factory=dict)
    kernel: tuple[int, ...] = ()
    parts: int = 1
    dtype: torch.dtype = torch.float32
    parameters: int = 0
    rank: int = 0
    embedding: bool = False

    def target(self) -> LoraTarget:
        """Return A, B and scaling in the form that is applied and mapped.

        Raises:
            LoraError: the file has no A and B for this module, or values that are not finite.
        """
        if self.factors is None:
            text = f"{self.module!r} is changed in full by {', '.join(self.extras)}, it has no A and B"
            raise LoraFileError("full_change", text)
        A, B = self.factors()
        magnitude = self.extras["magnitude"]() if "magnitude" in self.extras else None
        bias = self.extras["diff_b"]().flatten() if "diff_b" in self.extras else None
        return LoraTarget(A, B, self.scaling, self.scaling_from, magnitude, bias, self.embedding)

    def changes(self) -> dict[str, FullChange]:
        """Return what is changed in full, by the names of tensors; a bias beside A and B is the low-rank target's.

        Raises:
            LoraError: values that are not finite.
        """
        added = {"diff": f"{self.module}.weight", "diff_m": self.module, "diff_b": f"{self.module}.bias"}
        placed = {"set_weight": f"{self.module}.weight", "set_bias": f"{self.module}.bias"}
        out = {name: FullChange(self.extras[role](), True) for role, name in placed.items() if role in self.extras}
        for role, name in added.items():
            if role in self.extras and not (role == "diff_b" and self.factors is not None):
                value = self.extras[role]()
                out[name] = replace(out[name], value=out[name].value + value) if name in out else FullChange(value)
        return out


@dataclass(frozen=True, eq=False)
class LoadedLora:
    """A LoRA file, read.

    Args:
        format: name of the dialect.
        prefix: what stands before the module names.
        targets: by module.
        keys: what became of every key of the file.
        problems: what is wrong with it.
        underscored: module names still have underscores for dots, for want of the base's module list.
    """

    format: str
    prefix: str
    targets: Mapping[str, Target]
    keys: Mapping[str, KeyState]
    problems: tuple[Problem, ...] = ()
    underscored: bool = False

    def keys_that_are(self, state: KeyState) -> list[str]:
        """Return the keys in one of the three states."""
        return [key for key, found in self.keys.items() if found == state]

    def adapter(self, name: str = "default") -> LoraAdapter:
        """Return it as it is applied to a model.

        Raises:
            LoraError: it has no targets.
        """
        low = {module: target.target() for module, target in self.targets.items() if target.factors is not None}
        return LoraAdapter(name, low, {n: c for target in self.targets.values() for n, c in target.changes().items()})

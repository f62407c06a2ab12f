"""What a loaded LoRA really does to each layer, against what its file says.

A layer is asked with a few drawn inputs, without the LoRA and with it; the difference of the two answers is what the
LoRA does there, however it was loaded: beside the weight, merged into it, by a wrapper of another library.
Letters in shapes: N rows of inputs, R rank, I inputs and O outputs of the layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from parity.lora.adapter import LoraAdapter, LoraTarget


@dataclass(frozen=True)
class ModuleEffect:
    """What a LoRA does to one layer.

    Args:
        ratio: the share of what the file says that is there (its projection): 1 as it should, 0 none of it.
        cosine: of what is there and what the file says; nan where there is nothing.
        rel_l2: their relative distance.
        kept: the share that the stored weight holds once merged; 1 where nothing is merged.
    """

    ratio: float
    cosine: float
    rel_l2: float
    kept: float = 1.0


@dataclass(frozen=True)
class Answers:
    """What layers answered to drawn inputs: their exact values, without the LoRA and with it.

    Args:
        inputs: by width I. Shapes: [N, I].
        off, on: by layer. Shapes: [N, O].
        kept: by layer, the share of the change in its stored weight where it was merged.
        unit: of the dtype A and B are stored in on this side.
        wanted: what the change should be where the weight decides that too (magnitudes), or it is in full. [N, O].
        doubts: by layer with magnitudes, what usual mistakes would make of it, by their words. Shapes: [N, O].
        directions: by layer with magnitudes of outputs, W x and (W + scaling B A) x. Shapes: [N, O].
    """

    inputs: Mapping[int, Tensor]
    off: Mapping[str, Tensor]
    on: Mapping[str, Tensor]
    kept: Mapping[str, float] = field(default_factory=dict)
    unit: float = 2.0**-23
    wanted: Mapping[str, Tensor] = field(default_factory=dict)
    doubts: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    directions: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def tolerance(self) -> float:
        """How far a change may be from the file's: A and B were rounded to the side's dtype."""
        return max(8 * self.unit, 1e-5)

    def tolerance_at(self, path: str) -> float:
        """Return it for a layer; a magnitude's rounding is one of the whole output, not of the change."""
        if path not in self.doubts:
            return self.tolerance
        size = float(self.wanted[path].norm())
        return self.tolerance + (self.unit * float(self.off[path].norm()) / size if size else 0.0)

    def change(self, path: str) -> Tensor | None:
        """Return what the LoRA does at a layer; None where it was not asked."""
        if path not in self.off or path not in self.on or self.off[path].shape != self.on[path].shape:
            return None
        return self.on[path] - self.off[path]

    def changed(self, path: str) -> bool:
        """Whether the LoRA does anything at a layer."""
        change = self.change(path)
        return change is not None and bool(change.any())


def expected(target: LoraTarget, x: Tensor) -> Tensor:
    """Return what a target adds to a layer's output. Shapes: x [N, I] to [N, O]."""
    A, B = target.A.to(x), target.B.to(x)
    change = (x @ A.t()) @ B.t() * target.scaling
    return change if target.bias is None else change + target.bias.to(x)


def effects(adapter: LoraAdapter, answers: Answers) -> dict[str, ModuleEffect]:
    """Return what the LoRA does to each target, and to each tensor it changes in full, that was asked."""
    out = {}
    for path, wanted in wanted_changes(adapter, answers):
        change = answers.change(path)
        if change is not None and change.shape == wanted.shape:
            out[path] = effect_of(change, wanted, answers.kept.get(path, 1.0))
    return out


def wanted_changes(adapter: LoraAdapter, answers: Answers) -> Iterator[tuple[str, Tensor]]:
    """Yield what should be changed, with by how much, as far as that is known. Shapes: [N, O]."""
    yield from answers.wanted.items()
    for path, target in adapter.targets.items():
        x = answers.inputs.get(target.A.shape[1])
        if path not in answers.wanted and target.magnitude is None and not target.embedding and x is not None:
            yield path, expected(target, x)


def effect_of(found: Tensor, wanted: Tensor, kept: float = 1.0) -> ModuleEffect:
    """Compare what a LoRA does with what it should do. Shapes: both [N, O]."""
    size, other, inner = float(wanted.norm()), float(found.norm()), float((found * wanted).sum())
    if not size:
        return ModuleEffect(1.0 if not other else math.inf, 1.0 if not other else 0.0, 0.0 if not other else math.inf)
    cosine = inner / (size * other) if other else math.nan
    return ModuleEffect(inner / size**2, cosine, float((found - wanted).norm()) / size, kept)


def probes(widths: Iterable[int], rows: int, dtype: torch.dtype, device: torch.device) -> dict[int, Tensor]:
    """Draw inputs for layers of these widths. Shapes: [N, I]."""
    generator = torch.Generator().manual_seed(0x10A)
    return {
        width: torch.randn(rows, width, generator=generator).to(device, dtype) for width in sorted(set(widths))
    }

"""Adapters of other ranks and another alpha on the layers of a given one.

Letters in shapes: R rank, I inputs and O outputs of the layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from parity.lora.adapter import LoraAdapter, LoraTarget


def varied(adapter: LoraAdapter, ranks: Sequence[int], alpha: float, seed: int) -> LoraAdapter:
    """Return random factors of mixed ranks on the same layers, each change as large as the adapter's own there.

    Args:
        adapter: says which layers, and how much each is changed.
        ranks: taken one after the other, in the order of the targets.
        alpha: `lora_alpha` of every target: `scaling` is alpha over its rank.
        seed: of the factors.
    """
    generator = torch.Generator().manual_seed(seed)
    targets = {}
    for number, (path, target) in enumerate(adapter.targets.items()):
        targets[path] = _target(target, ranks[number % len(ranks)], alpha, generator)
    return LoraAdapter(f"{adapter.name}_varied", targets)


def _target(like: LoraTarget, rank: int, alpha: float, generator: torch.Generator) -> LoraTarget:
    """Draw A [R, I] and B [O, R]."""
    A = torch.randn(rank, like.A.shape[1], generator=generator)
    B = torch.randn(like.B.shape[0], rank, generator=generator)
    share = _size(like) / _size(LoraTarget(A, B, alpha / rank, "")) if alpha else 1.0
    root = math.sqrt(share)
    scaling, origin = alpha / rank, f"alpha {alpha:g} / rank {rank}"
    return LoraTarget((A * root).to(like.A), (B * root).to(like.B), scaling, origin, embedding=like.embedding)


def _size(target: LoraTarget) -> float:
    """Return |scaling B A| from the R x R products."""
    A, B = target.A.double(), target.B.double()
    return abs(target.scaling) * math.sqrt(max(0.0, float(((B.t() @ B) * (A @ A.t()).t()).sum())))

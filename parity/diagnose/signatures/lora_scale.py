"""A LoRA is scaled otherwise: alpha ignored, alpha over r for alpha over its root, applied twice."""

from __future__ import annotations

from dataclasses import replace

from parity.diagnose.plants import AdapterPlant
from parity.diagnose.signature import repaired, signature
from parity.lora.adapter import LoraAdapter

detect = repaired("lora_scale")


def edit(adapter: LoraAdapter, within: list[str]) -> LoraAdapter:
    """Forget alpha over r."""
    changed = {n: replace(adapter.targets[n], scaling=1.0, scaling_from="forgotten") for n in within}
    return replace(adapter, targets={**adapter.targets, **changed})


SIGNATURE = signature("lora_scale", "lora", 6, detect, AdapterPlant(edit))

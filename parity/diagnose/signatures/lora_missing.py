"""A LoRA is not applied to a layer that it is for: a name that no longer matches, a filter that leaves it out."""

from __future__ import annotations

from dataclasses import replace

from parity.diagnose.plants import AdapterPlant
from parity.diagnose.signature import repaired, signature
from parity.lora.adapter import LoraAdapter

detect = repaired("lora_missing")


def edit(adapter: LoraAdapter, within: list[str]) -> LoraAdapter:
    """Leave the first layer out."""
    return replace(adapter, targets={n: t for n, t in adapter.targets.items() if n != within[0]} or adapter.targets)


SIGNATURE = signature("lora_missing", "lora", 6, detect, AdapterPlant(edit))

"""LoRA: one normal form for adapters, applied, taken off and mapped."""

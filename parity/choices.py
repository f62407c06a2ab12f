"""What can be asked for by name: storage dtype, size, device, LoRA states. A wrong name gets the nearest right one."""

from __future__ import annotations

import torch

from parity.errors import UsageError
from parity.pair import ModelPair

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
LORA = {"both": (False, True), "off": (False,), "on": (True,)}


def dtype_named(name: str | None) -> torch.dtype | None:
    """Return a storage dtype; None stays None, the pair's own.

    Raises:
        UsageError: there is no such dtype.
    """
    if name is not None and name not in DTYPES:
        raise UsageError.unknown("dtype", name, DTYPES)
    return None if name is None else DTYPES[name]


def size_named(pair: ModelPair, name: str | None) -> str | None:
    """Return a size of a pair; None stays None, the pair's first.

    Raises:
        UsageError: the pair has no such size.
    """
    if name is not None and name not in pair.sizes:
        raise UsageError.unknown(f"size of {pair.name}", name, pair.sizes)
    return name


def lora_states(pair: ModelPair, name: str) -> tuple[bool, ...]:
    """Return the LoRA states to run; a pair without LoRA has one.

    Raises:
        UsageError: there is no such choice, or the pair has no LoRA and only that was asked for.
    """
    if name not in LORA:
        raise UsageError.unknown("choice for --lora", name, LORA)
    states = LORA[name] if pair.lora is not None else tuple(on for on in LORA[name] if not on)
    if not states:
        text = f"the pair {pair.name!r} has no LoRA"
        raise UsageError(f"{text}\ngive it one with `lora=` in its pair file, or run with --lora off")
    return states


def device_named(name: str) -> torch.device:
    """Return a device; "auto" is the GPU if there is one.

    Raises:
        UsageError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError.unknown("device", name, ("auto", "cpu", "cuda")) from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError.unknown("device", name, ("auto", "cpu", "cuda"))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        seen = f"torch {torch.__version__} sees {torch.cuda.device_count()} GPUs"
        raise UsageError(f"there is no device {name!r}: {seen}\nrun on the CPU, or see `parity doctor`")
    return device

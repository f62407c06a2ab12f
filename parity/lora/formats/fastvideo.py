"""FastVideo: `<module>.lora_A` without `.weight`, `.lora_alpha` and `.lora_rank` as tensors, or a header of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from parity.lora.formats.file import FULL, Dialect, LoraFile, Written
from parity.lora.formats.keys import UNDERSCORED_PREFIXES
from parity.lora.formats.pairs import pair_of
from parity.lora.formats.reading import Reading
from parity.lora.formats.summary import Habits
from parity.lora.formats.writing import check_dotted, folded, pairs_in
from parity.lora.loaded import LoadedLora

_SECOND = "fastvideo-lora-v2"


def matches(file: LoraFile) -> bool:
    """Whether alpha, rank or the factors are spelled as its layers' attributes, or the header says so."""
    return file.extracted and not file.checkpoint and file.claimed(lambda key: _plain(key.prefix, key.style, key.role))


def _plain(prefix: str, style: str, role: str) -> bool:
    return prefix not in UNDERSCORED_PREFIXES and (style in ("bare", "weight") or role in FULL)


def read(file: LoraFile) -> LoadedLora:
    """Read it; in the second form of the header B @ A is the change itself."""
    habits = Habits(zero_is_rank=True, scaled=file.header.get("format") != _SECOND)
    return Reading(file, DIALECT.name, habits).result(pair_of)


def write(lora: LoadedLora) -> Written:
    """Write it with alpha = r, the scaling in B: its loader makes alpha a whole number, or drops it."""
    check_dotted(lora, "FastVideo")
    tensors: dict[str, Tensor] = {}
    for target in pairs_in(lora, "FastVideo"):
        A, B, alpha = folded(target, exactly=False)
        tensors[f"{target.module}.lora_A"], tensors[f"{target.module}.lora_B"] = A, B
        tensors[f"{target.module}.lora_alpha"] = torch.tensor(alpha)
    return Written(tensors, {"format": "pt"})


DIALECT = Dialect(
    "fastvideo", "<module>.lora_A, .lora_B", ".lora_alpha tensor, made a whole number, alpha / r", matches, read, write,
)  # fmt: skip

"""Make the table of merging in docs/lora.md: how much of a LoRA's change a weight holds once it is merged.

python scripts/lora_merging.py
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from parity.lora.adapter import LoraAdapter, LoraTarget
from parity.lora.apply import KEPT_LIMIT, merged

PAGE = Path(__file__).resolve().parent.parent / "docs" / "lora.md"
BEGIN, END = "<!-- merging: begin -->", "<!-- merging: end -->"
SIZES = (1e-1, 1e-2, 1e-3, 1e-4)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def kept(dtype: torch.dtype, size: float, width: int = 1024, rank: int = 32) -> float:
    """Return the share of a change kept, the change being `size` times the weight in norm."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(width, width, generator=generator) / width**0.5
    A, B = torch.randn(rank, width, generator=generator), torch.randn(width, rank, generator=generator)
    layer = nn.Linear(width, width, bias=False).requires_grad_(False)
    layer.weight.copy_(weight)
    adapter = LoraAdapter("drawn", {"0": LoraTarget(A, B, size * float(weight.norm() / (B @ A).norm()), "argument")})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that much is swallowed is what is measured
        with merged(nn.Sequential(layer).to(dtype), adapter) as report:
            return report.modules["0"].kept


def table(width: int = 1024) -> str:
    """Return the table in Markdown; what triggers the warning is bold."""
    head = "| change / weight | " + " | ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES) + " |"
    lines = [head, "|---" * (len(DTYPES) + 1) + "|"]
    for size in SIZES:
        found = [kept(dtype, size, width) for dtype in DTYPES]
        cells = [f"{100 * share:.0f} %" if share >= KEPT_LIMIT else f"**{100 * share:.0f} %**" for share in found]
        lines.append(f"| {size:.0e} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Put the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()

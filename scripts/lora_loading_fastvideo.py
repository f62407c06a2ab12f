"""Make the table of docs/findings/lora_fastvideo.md: what FastVideo makes of every spelling, before any forward.

python scripts/lora_loading_fastvideo.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fixtures.lora_spellings import SPELLINGS
from fixtures.loras import Spelled, save
from fixtures.pairs.longcat_fastvideo import PAIR
from fixtures.third_party.fastvideo_lora import FLOAT32, drawn, loaded_report, lora_loader
from scripts.lora_loading import BEGIN, END, in_words

PAGE = Path(__file__).resolve().parent.parent / "docs" / "findings" / "lora_fastvideo.md"
Spell = Callable[[Mapping[str, tuple[Tensor, Tensor]]], Spelled]


def main() -> None:
    """Put the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def table() -> str:
    """Return the table in Markdown, one line for each spelling."""
    lines = ["| spelling | what the layers hold |", "|---|---|"]
    for spelling, (dialect, spell) in SPELLINGS.items():
        if spelling != "peft_patterns":  # its pattern names one layer of another model
            lines.append(f"| `{dialect}`: {spelling} | {outcome(spell)} |")
    return "\n".join(lines)


def outcome(spell: Spell) -> str:
    """Load a spelling by FastVideo's own names as its users do, and say in a few words what the layers hold."""
    with tempfile.TemporaryDirectory() as folder:
        path = save(spell(pairs()), Path(folder))
        try:
            return in_words(loaded_report(lora_loader(file=path)))
        except Exception as error:  # whatever a loader raises
            return f"refused: {type(error.__cause__ or error).__name__}"


def pairs() -> dict[str, tuple[Tensor, Tensor]]:
    """Return A and B of every file, by FastVideo's names."""
    return {path: (one.A, one.B) for path, one in drawn(PAIR.native.build(FLOAT32)).targets.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

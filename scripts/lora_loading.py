"""Make the table of docs/findings/lora_loading.md: what diffusers makes of every spelling, before any forward.

python scripts/lora_loading.py
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor

from fixtures.lora_loading import MODELS, drawn, loaded_report, loader, official
from fixtures.lora_spellings import SPELLINGS
from fixtures.loras import Spelled, save
from parity.lora.adapter import LoraAdapter
from parity.lora_audit import SideReport

PAGE = Path(__file__).resolve().parent.parent / "docs" / "findings" / "lora_loading.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
RIGHT = "right"
Pairs = dict[str, tuple[Tensor, Tensor]]


def main() -> None:
    """Put the table into the page."""
    warnings.simplefilter("ignore")
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def table() -> str:
    """Return the table in Markdown: for either model with the original's names of modules, and with diffusers'."""
    columns = [(name, ours) for name in MODELS for ours in (False, True)]
    head = " | ".join(f"{name}, {'diffusers' if ours else 'original'} names" for name, ours in columns)
    lines = [f"| spelling | {head} |", "|---" * (len(columns) + 1) + "|"]
    for spelling, (dialect, _) in SPELLINGS.items():
        if spelling == "peft_patterns":
            continue  # its pattern names one layer of another model
        cells = [outcome(name, spelling, ours) for name, ours in columns]
        lines.append(f"| `{dialect}`: {spelling} | {' | '.join(cells)} |")
    return "\n".join(lines)


def outcome(name: str, spelling: str, ours: bool) -> str:
    """Load one spelling into one model, and say in a few words what its layers hold."""
    adapter = drawn(MODELS[name][0](), name)
    return of_file(name, adapter, SPELLINGS[spelling][1](pairs_of(name, adapter, ours)))


def pairs_of(name: str, adapter: LoraAdapter, ours: bool) -> Pairs:
    """Return A and B by the names of the file."""
    return {path if ours else official(name, path): (t.A, t.B) for path, t in adapter.targets.items()}


def of_file(name: str, adapter: LoraAdapter, spelled: Spelled) -> str:
    """Load a file as its users do, and say in a few words what the layers hold."""
    with tempfile.TemporaryDirectory() as folder:
        path = save(spelled, Path(folder))
        try:
            report = loaded_report(name, adapter, loader(name, file=path))
        except Exception as error:  # whatever a loader raises
            cause = error.__cause__ or error
            return f"refused: {type(cause).__name__}"
    return in_words(report)


def in_words(report: SideReport) -> str:
    """Say in a few words what was found."""
    if report.missing:
        return f"**does not run: {report.missing[:60]}**"
    if not report.found:
        return RIGHT
    words = {"not_applied": "nothing", "transposed": "transposed", "wrong_module": "wrong module"}
    found = [words.get(one.code) or one.message.split(":")[0].split(", not to")[0] for one in report.found]
    return f"**{'; '.join(dict.fromkeys(found))}**"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

"""The table of dialects in the documentation is what the script makes, and every code of a problem is explained."""

from __future__ import annotations

import re
from pathlib import Path

from scripts import lora_merging
from scripts.lora_table import BEGIN, END, PAGE, table

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_of_dialects_is_the_scripts() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == table()


def test_the_table_of_merging_is_near_the_scripts() -> None:
    """A narrower layer gives the same shares to a few percent; what is bold is the same."""
    there = PAGE.read_text(encoding="utf-8").partition(lora_merging.BEGIN)[2].partition(lora_merging.END)[0]
    cells = [re.findall(r"(\*\*)?(\d+) %", text) for text in (there, lora_merging.table(width=256))]
    assert len(cells[0]) == 12
    for (bold, share), (again, other) in zip(*cells, strict=True):
        assert (bold, abs(int(share) - int(other)) < 8) == (again, True)


def test_every_code_of_a_problem_is_in_the_documentation() -> None:
    written = re.compile(r'(?:error|warning|LoraFileError)\(\s*"([a-z_]+)"')
    files = [*(ROOT / "parity/lora").rglob("*.py"), *(ROOT / "parity/io").glob("*.py")]
    codes = {code for file in files for code in written.findall(file.read_text(encoding="utf-8"))}
    listed = set(re.findall(r"`([a-z_]+)`", PAGE.read_text(encoding="utf-8")))
    assert len(codes) > 30
    assert codes <= listed

"""Make the table of dialects in docs/lora.md: every spelling is written, read and compared, then the table is put in.

python scripts/lora_table.py
"""

from __future__ import annotations

from pathlib import Path

from fixtures.lora_spellings import SPELLINGS
from fixtures.loras import BASE, drawn_deltas, drawn_pairs
from parity.lora.delta import deltas_of
from parity.lora.formats import Given, LoraFile, dialects, read_lora
from parity.weights.source import StateDictSource

PAGE = Path(__file__).resolve().parent.parent / "docs" / "lora.md"
BEGIN, END = "<!-- dialects: begin -->", "<!-- dialects: end -->"
LIMIT = 1e-6


def distance(name: str) -> float:
    """Return the largest relative distance of a spelling's changes from those all spellings hold."""
    spelled = SPELLINGS[name][1](drawn_pairs())
    given = Given(lora_alpha=spelled.lora_alpha, modules=list(BASE))
    lora = read_lora(LoraFile(StateDictSource(dict(spelled.tensors)), spelled.header, spelled.sidecar, given))
    wanted = drawn_deltas()
    found = {module: deltas_of(target)[module].dense() for module, target in lora.targets.items()}
    return max(float((found[module] - delta).norm() / delta.norm()) for module, delta in wanted.items())


def table() -> str:
    """Return the table in Markdown."""
    lines = ["| dialect | keys | alpha | written | spellings read alike |", "|---|---|---|---|---|"]
    for name, dialect in dialects().items():
        spellings = [spelling for spelling, (claimed, _) in SPELLINGS.items() if claimed == name]
        alike = sum(distance(spelling) < LIMIT for spelling in spellings)
        count = f"{alike} of {len(spellings)}" if spellings else "by its own names"
        keys = f"`{dialect.keys.replace('|', chr(92) + '|')}`"
        lines.append(f"| `{name}` | {keys} | {dialect.alpha} | {'yes' if dialect.write else 'no'} | {count} |")
    return "\n".join(lines)


def main() -> None:
    """Put the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Write docs/exposing_inputs.md: for each of 124 bugs of real ports, whether drawn inputs expose it.

The facts are in docs/exposing_inputs.json, one line a bug; the plants are those of fixtures/plants_drawn.py.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fixtures.plants_drawn import EXPOSED

DOCS = Path(__file__).resolve().parents[1] / "docs"
COVERED = {
    "drawn": "drawn",
    "part": "in part",
    "any": "any input shows it",
    "sensitivity": "sensitivity of each input",
    "lora": "the LoRA states",
    "weights": "weights and key map",
    "benign": "must not alarm: benign plants",
    "engine": "the runner itself",
    "no": "not drawn",
}
"""How a bug is covered, in the order of the summary."""
BECAUSE = {
    "distributed": "one process is judged; ranks are not",
    "vae": "codecs are not judged, latents are",
    "sampler": "the loop around the model is not judged",
    "encoder": "text and image encoders are not judged, their outputs are inputs",
    "quantised": "no bundled pair is quantised",
    "configuration": "the configuration is the pair's, not an input",
    "types": "what type an input has is the pair's adapter",
    "files": "it lies in a file that is read, not in an input",
    "several": "one model and one adapter at a time",
    "cycles": "it takes many cycles of merging, not an input",
    "pipeline": "what prepares an input is not judged",
    "hardware": "it takes another machine",
}
HEAD = """# Which inputs expose which bug

The bugs below are 124 that real ports of video models had, with the ids this project gives them. An input exposes a bug
if both sides can differ on it. The table says for each whether such an input is drawn (by which dimension of
`parity.space.Drawn`, see [inputs.md](inputs.md)), what else shows it, or why nothing here does. *Planted* names the
plant of `fixtures/plants_drawn.py` that is invisible on the default inputs and found on drawn ones.

`python scripts/exposing_inputs.py` writes this page from `docs/exposing_inputs.json`.
"""


def entries() -> list[dict[str, Any]]:
    """Return the bugs."""
    found: list[dict[str, Any]] = json.loads((DOCS / "exposing_inputs.json").read_text(encoding="utf-8"))
    return found


def page(found: Iterable[Mapping[str, Any]]) -> str:
    """Return the whole page."""
    listed = list(found)
    counts = Counter(e["covered_by"] for e in listed)
    summary = "\n".join(f"| {words} | {counts[how]} |" for how, words in COVERED.items())
    planted = {bug: name for name, plant in reversed(EXPOSED.items()) for bug in plant.like}
    rows = "\n".join(_row(e, planted.get(e["id"], "")) for e in listed)
    return (
        f"{HEAD}\n| covered by | bugs |\n|---|---|\n{summary}\n\n"
        f"| id | bug | exposed by | covered by | planted |\n|---|---|---|---|---|\n{rows}\n"
    )


def _row(entry: Mapping[str, Any], plant: str) -> str:
    how = COVERED[entry["covered_by"]]
    if "dimensions" in entry:
        how += ": " + ", ".join(f"`{name}`" for name in entry["dimensions"])
    if "because" in entry:
        how += f": {BECAUSE[entry['because']]}"
    if "note" in entry:
        how += f"; {entry['note']}"
    shown = f"`{plant}`" if plant else ""
    return f"| {entry['id']} | {entry['bug']} | {entry['needs']} | {how} | {shown} |"


if __name__ == "__main__":
    (DOCS / "exposing_inputs.md").write_text(page(entries()), encoding="utf-8")

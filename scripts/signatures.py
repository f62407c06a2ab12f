"""Write docs/signatures.md: for each of 124 bugs of real ports its signatures, or why none can see it here.

The facts are in docs/signatures.json, one line a bug; what the bugs are, in docs/exposing_inputs.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from parity.diagnose.signature import discovered
from scripts.exposing_inputs import BECAUSE as NOT_DRAWN
from scripts.exposing_inputs import DOCS
from scripts.exposing_inputs import entries as bugs

BECAUSE = {
    **NOT_DRAWN,
    "benign": "no bug: it must not alarm, and the benign plants hold it to that",
    "engine": "a bug of a test; the runner makes it an error or impossible",
    "shapes": "another shape is an error while weights are loaded, before anything is judged",
}
"""Why a bug has no signature."""
HEAD = """# Which signature names which bug

A signature recognises a known porting bug by its evidence and plants it (`parity/diagnose/signatures/`, one file each;
[diagnosis.md](diagnosis.md) says how). The first table is the registry, the second the 124 bugs of
[exposing_inputs.md](exposing_inputs.md): the signatures that name each, or why it is out of reach here.

`python scripts/signatures.py` writes this page from `docs/signatures.json` and the registry.
"""


def entries() -> list[dict[str, Any]]:
    """Return the bugs with their signatures."""
    found: list[dict[str, Any]] = json.loads((DOCS / "signatures.json").read_text(encoding="utf-8"))
    return found


def page(found: Iterable[Mapping[str, Any]]) -> str:
    """Return the whole page."""
    listed = list(found)
    of: dict[str, list[str]] = {}
    for entry in listed:
        for name in entry.get("signatures", ()):
            of.setdefault(name, []).append(entry["id"])
    return (
        f"{HEAD}\n{_summary(listed)}\n\n| signature | category | is | bugs |\n|---|---|---|---|\n{_registry(of)}\n\n"
        f"| id | bug | signature, or why none |\n|---|---|---|\n{_table(listed)}\n"
    )


def _summary(listed: list[Mapping[str, Any]]) -> str:
    named = sum("signatures" in entry for entry in listed)
    return f"{len(discovered())} signatures; {named} of {len(listed)} bugs have one or more."


def _registry(of: Mapping[str, list[str]]) -> str:
    ordered = sorted(discovered().items(), key=lambda item: (item[1].category, item[0]))
    return "\n".join(f"| `{n}` | {s.category} | {_first(n)} | {', '.join(of.get(n, []))} |" for n, s in ordered)


def _first(name: str) -> str:
    module = __import__(f"parity.diagnose.signatures.{name}", fromlist=["SIGNATURE"])
    return " ".join(str(module.__doc__).strip().splitlines()[0].split()).rstrip(".")


def _table(listed: Iterable[Mapping[str, Any]]) -> str:
    what = {bug["id"]: bug["bug"] for bug in bugs()}
    return "\n".join(f"| {entry['id']} | {what[entry['id']]} | {_how(entry)} |" for entry in listed)


def _how(entry: Mapping[str, Any]) -> str:
    how = ", ".join(f"`{name}`" for name in entry.get("signatures", ())) or f"none: {BECAUSE[entry['because']]}"
    return f"{how}; {entry['note']}" if "note" in entry else how


if __name__ == "__main__":
    (DOCS / "signatures.md").write_text(page(entries()), encoding="utf-8")

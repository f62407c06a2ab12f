"""The table of bugs and their signatures is whole, true to the registry, and as the script writes it."""

from __future__ import annotations

import re

import pytest

from parity.diagnose.signature import CATEGORIES, discovered
from scripts.exposing_inputs import DOCS
from scripts.exposing_inputs import entries as bugs
from scripts.signatures import BECAUSE, entries, page

ENTRIES = entries()
REACHED = ("precision", "rope", "norm", "attention", "activation", "modulation", "weights", "lora", "timestep", "text",
           "layout", "quant")  # fmt: skip


def test_every_bug_is_there_once() -> None:
    assert [e["id"] for e in ENTRIES] == [bug["id"] for bug in bugs()]


@pytest.mark.parametrize("entry", ENTRIES, ids=[e["id"] for e in ENTRIES])
def test_entry_has_signatures_or_a_reason(entry: dict[str, object]) -> None:
    assert ("because" in entry) != ("signatures" in entry)
    assert entry.get("because", "vae") in BECAUSE
    named = entry.get("signatures", ["sign"])
    assert isinstance(named, list)
    assert named
    assert set(named) <= set(discovered())


def test_every_category_that_a_pair_can_show_has_signatures() -> None:
    categories = {s.category for _, s in discovered().items()}
    assert categories <= set(CATEGORIES)
    assert set(REACHED) <= categories
    assert len(discovered()) >= 45


def test_page_is_what_the_script_writes() -> None:
    assert (DOCS / "signatures.md").read_text(encoding="utf-8") == page(ENTRIES)
    assert len(re.findall(r"^\| [A-Z]\d\d \|", page(ENTRIES), re.MULTILINE)) == 124

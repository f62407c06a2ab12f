"""The table of exposing inputs is whole, true to the code, and as the script writes it."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from fixtures.plants import PLANTS
from fixtures.plants_drawn import EXPOSED
from parity.space import Drawn
from scripts.exposing_inputs import BECAUSE, COVERED, DOCS, entries, page

ENTRIES = entries()
IDS = [entry["id"] for entry in ENTRIES]
NAMED = re.compile(r"`(\w+)` (?:and its kin )?in fixtures/plants")


def test_every_bug_is_there_once() -> None:
    assert len(IDS) == 124
    assert len(set(IDS)) == 124


@pytest.mark.parametrize("entry", ENTRIES, ids=IDS)
def test_entry_says_how_it_is_covered_or_why_not(entry: dict[str, object]) -> None:
    how = entry["covered_by"]
    assert how in COVERED
    assert ("dimensions" in entry) == (how in ("drawn", "part"))
    assert ("because" in entry) == (how == "no")
    assert how != "part" or entry.get("note"), "say which part is not drawn"
    assert entry.get("because", "vae") in BECAUSE


def test_dimensions_are_those_of_a_drawn_input() -> None:
    named = {name for entry in ENTRIES for name in entry.get("dimensions", ())}
    assert named <= {field.name for field in fields(Drawn)}


def test_plants_that_are_named_exist() -> None:
    assert {name for entry in ENTRIES for name in NAMED.findall(entry.get("note", ""))} <= PLANTS.keys()
    assert {bug for plant in EXPOSED.values() for bug in plant.like} <= set(IDS)


def test_page_is_what_the_script_writes() -> None:
    assert (DOCS / "exposing_inputs.md").read_text(encoding="utf-8") == page(ENTRIES)


def test_page_has_a_row_for_every_bug() -> None:
    rows = re.findall(r"^\| ([A-Z]\d\d) \|", page(ENTRIES), re.MULTILINE)
    assert rows == IDS

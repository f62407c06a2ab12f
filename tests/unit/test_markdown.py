"""A run as Markdown: failures first, one row a component, below 1 MiB, nothing in it but text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown import Markdown  # type: ignore[import-untyped]

from parity.io.records import read_record
from parity.report.gate import gate_lines
from parity.report.markdown import escaped, render_markdown
from parity.report.terminal import render_run

SAMPLE = Path(__file__).resolve().parents[2] / "reports" / "sample" / "parity.json"
HOSTILE = (
    "<script>alert(1)</script> | `x` **b** [l](javascript:x) ![i](http://x/y) https://x.y @all \033[31m\n# h\n::error::"
)
GATE = {
    "baseline": "b.json", "device": "cpu x86_64", "passed": False, "states": [],
    "findings": [
        {"kind": "gone", "id": "a-b", "text": "a known difference is gone", "fails": False},
        {"kind": "new", "id": HOSTILE, "text": HOSTILE, "fails": True},
    ],
}  # fmt: skip


class Tags(HTMLParser):
    """The elements and links of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)


def record(failed: int = 2) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(read_record(SAMPLE)))
    for case in found["cases"][-failed:] if failed else []:
        case.update(outcome="failed", verdict="different, felt", logic=True, likely=[HOSTILE], logic_error=0.5)
    found["gate"] = GATE
    return found


def test_failures_come_first_and_a_component_has_one_row() -> None:
    found = record(0)
    for case in found["cases"]:
        if case["tap"] == "block0.ffn":
            case.update(outcome="failed", verdict="different, felt", logic=True, likely=["w1 and w3 change roles"])
    lines = render_markdown(found).splitlines()
    rows = [line for line in lines if line.startswith("| failed") or line.startswith("| passed")]
    assert rows[0].startswith("| failed | longcat | block&#42;.ffn | 2 of 2 | lora_off, lora_on |")
    assert "w1 and w3 change roles" in rows[0]
    assert len(rows) == len({c["tap"] for c in found["cases"]})
    assert lines[0].startswith("## ❌ Parity failed: ")


def test_what_a_model_or_file_says_is_text() -> None:
    found = record(6)
    found["pairs"][0]["device"] = found["environment"]["gpu"] = HOSTILE
    found["cases"][0]["tap"] = HOSTILE
    text = render_markdown(found)
    html = Markdown(extensions=["tables", "md_in_html"]).convert(text)
    blocks = {"h2", "p", "details", "summary", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}
    assert Tags(html).tags <= blocks | {"strong", "br"}
    assert "\033" not in text
    assert "https://" not in text
    assert "\n::error::" not in text
    assert {row.count(" | ") for row in text.splitlines() if row.startswith("| failed")} == {9}


@pytest.mark.parametrize("most", [5_000, 1_000_000])
def test_it_never_grows_beyond_its_limit(most: int) -> None:
    found = record(0)
    case = {**found["cases"][0], "outcome": "failed", "likely": ["é" * 5000]}
    found["cases"] = [{**case, "id": f"p-t{n}", "tap": f"t{n}"} for n in range(5000)]
    text = render_markdown(found, most)
    assert len(text.encode()) <= most
    assert re.search(r"[0-9]+ more lines did not fit", text)


def test_escaped_leaves_words_readable() -> None:
    assert escaped("rounding_excess: 1.5 (limit 1.2)") == "rounding_excess: 1.5 (limit 1.2)"
    assert escaped("_x_ a:b") == "&#95;x&#95; a&#58;b"


@pytest.mark.parametrize("width", [60, 80])
def test_the_gate_keeps_the_width_of_the_terminal(width: int) -> None:
    found = record()
    for state in found["pairs"]:
        state["known_expired"] = ["x" * 30 + " y" * 80]
    long = {"kind": "gone", "id": "p-t", "text": "word " * 60, "fails": False}
    found["gate"] = {**GATE, "findings": [*GATE["findings"][:1], long]}  # type: ignore[index]
    assert max(map(len, render_run(found, width=width).splitlines())) <= width
    assert gate_lines({"findings": GATE["findings"]}, width)[0].startswith("FAIL  new difference: 1")

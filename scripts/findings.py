"""Write what a record found into the pair's page: one line per kind of tap that differs, with the evidence.

Run `python scripts/findings.py docs/findings/records/wan.bfloat16.json`.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from parity.io.records import read_record

BEGIN, END = "<!-- {name}: begin -->", "<!-- {name}: end -->"


def main(paths: list[str]) -> None:
    """Update the page of each record given."""
    for path in map(Path, paths):
        record = read_record(path)
        pair = str(record["pairs"][0]["pair"])
        page = path.parent.parent / f"{pair}.md"
        begin, end = (mark.format(name=path.stem) for mark in (BEGIN, END))
        before, _, rest = page.read_text().partition(begin)
        _, _, after = rest.partition(end)
        lines = "\n".join(summary(record))
        page.write_text(f"{before}{begin}\n{lines}\n{end}{after}")
        print(f"{page.name}: {path.stem}")


def summary(record: dict[str, Any]) -> list[str]:
    """Return the run in lines of Markdown."""
    lines = []
    for state in record["pairs"]:
        cases = [c for c in record["cases"] if (c["pair"], c["state"]) == (state["pair"], state["state"])]
        lines += [*_head(state, cases), *_table(cases), ""]
    return lines


def _head(state: dict[str, Any], cases: list[dict[str, Any]]) -> list[str]:
    sides = [f"{side}: {_source(state[side])}" for side in ("reference", "native")]
    worst = max((c["logic_error"] for c in cases if c["logic_error"] is not None and not c["logic"]), default=0.0)
    exact = sum(c["verdict"] == "bit-exact" for c in cases)
    same = sum(c["verdict"].startswith("same") for c in cases)
    open_ = sum(c["verdict"] == "not judged" for c in cases)
    observer = "yes" if not state["observer_effect"] else f"no, first {state['observer_effect'][0]}"
    what = f"{state['dtype']}, size {state['size']}, {state['tokens']:,} tokens, seed {state['seed']}"
    trust = f"untrusted rows: {state['untrusted_rows']} of {state['rows']}"
    counts = f"{exact} are bit-exact, {same} the same function as precise, {open_} not judged"
    return [
        f"**{state['state']}**, {what}; {'; '.join(sides)}. Low values bit-equal with and without shadow: {observer}; "
        f"{trust}. Of {len(cases)} taps {counts}; largest logic_error among all that agree {worst:.0e}.",
        "",
    ]


def _source(side: dict[str, Any]) -> str:
    source = side["source"]
    where = source.get("commit") and f"commit {source['commit'][:12]}"
    return f"{side['name']} ({where or source.get('version') or source.get('module')})"


def _table(cases: list[dict[str, Any]]) -> list[str]:
    kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for case in cases:
        if case["logic"] or case["precision"] != "as precise":
            kinds["".join(ch for ch in case["tap"] if not ch.isdigit())].append(case)
    if not kinds:
        return ["No tap differs."]
    head = "| tap | reference, native | logic_error | rounding_excess | impact | verdict |"
    lines = [head, "|---|---|---|---|---|---|"]
    for kind, found in kinds.items():
        top = max(found, key=lambda c: c["impact"] or 0.0)
        excess = top["rounding_excess"].get("identity", {}).get("ratio")
        impact = "-" if top["impact"] is None else f"{top['impact']:.2g}"
        lines.append(
            f"| {kind} ({len(found)}) | {top['reference_dtype']}, {top['native_dtype']} | {top['logic_error']:.0e} "
            f"| {excess:.3g}, {top['precision']} | {impact} | {top['verdict']} |"
        )
    return lines


if __name__ == "__main__":
    main(sys.argv[1:])

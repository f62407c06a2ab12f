"""A run as Markdown, for GITHUB_STEP_SUMMARY and Buildkite annotations: failures first, one row a component."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from parity.report.gate import grouped
from parity.report.terminal import stages_text
from parity.report.wording import failure_text

MOST_BYTES = 1_000_000
"""Below the 1 MiB that both services cut off at."""
_RANK = ("failed", "error", "warned", "known", "not judged", "skipped", "passed")
_COLUMNS = (
    "outcome", "pair", "component", "cases", "states", "logic_error", "rounding_excess", "impact", "finding", "first",
)  # fmt: skip
_LONGEST = 300
"""Characters of one text in a cell."""
_DETAILED = 20
"""Failing cases whose words are shown in full."""
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,;=/+-()%'\"?")
_CODES = {"&#95;": "_", "&#58;": ":"}
_HARMLESS = re.compile(r"(?<=[a-z0-9])&#95;(?=[a-z0-9])|&#58;(?= |[0-9]|$)")
"""An underscore inside a word and a colon behind one: left as they are, for those who read the source."""
_BLOCK = re.compile(r"(?<=block)\d+")


def render_markdown(record: Mapping[str, Any], most: int = MOST_BYTES) -> str:
    """Render a run's record in at most `most` bytes; what does not fit is counted, and is in the record."""
    kept: list[str] = []
    room = most - 200
    left_out = 0
    for line in _lines(record):
        size = len(line.encode()) + 1
        if size > room:
            left_out += 1
            continue
        room -= size
        kept.append(line)
    if left_out:
        kept += ["", f"{left_out} more lines did not fit; they are in the record."]
    return "\n".join(kept) + "\n"


def escaped(text: object, longest: int = _LONGEST) -> str:
    """Return text of a model or a file that is text in Markdown and HTML, whatever it holds.

    >>> escaped("<b>|`x`")
    '&#60;b&#62;&#124;&#96;x&#96;'
    """
    words = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    words = words if len(words) <= longest else words[: longest - 4] + " ..."
    return _HARMLESS.sub(lambda found: _CODES[found[0]], "".join(c if c in _PLAIN else f"&#{ord(c)};" for c in words))


def _lines(record: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {_headline(record)}"
    yield ""
    yield from _gate(record.get("gate"))
    rows = sorted(_components(record["cases"]), key=lambda row: (_RANK.index(row[0]), row[1]))
    worth = [row for row in rows if row[0] != "passed"]
    yield from _table(worth)
    yield from _details(record["cases"])
    yield from _states(record)
    if len(worth) < len(rows):
        yield "<details><summary>Components that pass</summary>\n"
        yield from _table([row for row in rows if row[0] == "passed"])
        yield "</details>\n"
    yield _environment(record)


def _headline(record: Mapping[str, Any]) -> str:
    outcomes = record["summary"]["outcomes"]
    gate = record.get("gate")
    bad = outcomes["failed"] + outcomes["error"]
    failed = bad or (gate is not None and not gate["passed"])
    nothing = not any(outcomes[name] for name in ("failed", "warned", "known", "passed"))
    word = "Parity: nothing was judged" if nothing else "Parity failed" if failed else "Parity"
    counts = ", ".join(f"{n} {name}" for name in _RANK if (n := outcomes.get(name, 0)))
    marks = [text for text, on in (("cut short", not record["complete"]), ("a selection", record["selected"])) if on]
    of_what = f" ({', '.join(marks)})" if marks else ""
    return f"{'❌' if failed or nothing else '✅'} {word}: {counts or 'no case'}{of_what}"


def _gate(gate: Mapping[str, Any] | None) -> Iterator[str]:
    """Say what the gate found, failures first, one row a kind."""
    if gate is None:
        return
    word = "passed" if gate["passed"] else "failed"
    yield f"**Gate {word}** against {escaped(gate['baseline'])}, {escaped(gate['device'])}"
    yield ""
    if not gate["findings"]:
        return
    yield "| gate | finding | cases | first |"
    yield "|---|---|---|---|"
    for (told, kind, text), ids in grouped(gate["findings"]).items():
        yield f"| {'note' if told else '❌'} {escaped(kind)} | {escaped(text)} | {len(ids)} | {escaped(ids[0])} |"
    yield ""


Row = tuple[str, str, str]
"""Outcome, what rows are ordered by, and the row."""


def _components(cases: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """Give a row for each pair and component: its worst outcome, its worst numbers, its states."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for case in cases:
        groups.setdefault((str(case["pair"]), _BLOCK.sub("*", str(case["tap"]))), []).append(case)
    for (pair, component), found in groups.items():
        outcome = min((str(c["outcome"]) for c in found), key=lambda o: _RANK.index(o) if o in _RANK else 0)
        mine = [c for c in found if c["outcome"] == outcome]
        first = mine[0]
        states = ", ".join(dict.fromkeys(str(c["state"]) for c in mine))
        cells = [
            escaped(outcome), escaped(pair), escaped(component), f"{len(mine)} of {len(found)}", escaped(states),
            _worst(c["logic_error"] for c in mine), _worst(_excess(c) for c in mine), _worst(c["impact"] for c in mine),
            escaped("; ".join(map(str, first["likely"] or first["reasons"]))), escaped(first["id"]),
        ]  # fmt: skip
        yield outcome, f"{first.get('order', 0):06d} {pair} {component}", f"| {' | '.join(cells)} |"


def _excess(case: Mapping[str, Any]) -> float | None:
    found = case["rounding_excess"].get(case["shown_by"]) or case["rounding_excess"].get("identity")
    return None if found is None else float(found["ratio"])


def _worst(values: Iterable[float | None]) -> str:
    held = [float(v) for v in values if v is not None]
    if not held:
        return ""
    return escaped("nan" if any(math.isnan(v) for v in held) else f"{max(held):.2g}")


def _table(rows: Sequence[Row]) -> Iterator[str]:
    if rows:
        yield f"| {' | '.join(_COLUMNS)} |"
        yield f"|{'---|' * len(_COLUMNS)}"
        yield from (row for _, _, row in rows)
        yield ""


def _details(cases: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Give the words of failing cases, each on lines of its own."""
    failing = [c for c in cases if c["outcome"] == "failed" and c["metrics"]]
    if not failing:
        return
    yield "<details open><summary>What fails</summary>\n"
    for case in failing[:_DETAILED]:
        words = failure_text(case, "").splitlines()[:-1]
        yield "<br>".join(["- " + escaped(words[0]), *(escaped(line, 2 * _LONGEST) for line in words[1:])])
    if len(failing) > _DETAILED:
        yield f"- and {len(failing) - _DETAILED} more, in the record"
    yield "</details>\n"


def _states(record: Mapping[str, Any]) -> Iterator[str]:
    if not record["pairs"]:
        return
    yield "| pair | state | dtype, size, device | tokens | bit-exact | stages |"
    yield "|---|---|---|---|---|---|"
    for state in record["pairs"]:
        cases = [c for c in record["cases"] if (c["pair"], c["state"]) == (state["pair"], state["state"])]
        exact = sum(c["verdict"] == "bit-exact" for c in cases)
        where = f"{state['dtype']} {state['size']} {state['device']}"
        cells = [state["pair"], state["state"], where, state["tokens"], f"{exact} of {len(cases)}", stages_text(state)]
        yield f"| {' | '.join(escaped(cell) for cell in cells)} |"
    yield ""


def _environment(record: Mapping[str, Any]) -> str:
    around = record["environment"]
    names = ("parity", "torch", "python", "gpu", "platform")
    held = ", ".join(f"{name} {around[name]}" for name in names if around.get(name))
    return f"{escaped(held)}; {escaped(record['created'])}"

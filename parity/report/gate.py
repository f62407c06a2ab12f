"""Words for the gate: what is accepted, and what a run has against it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from parity.gate.baseline import Baseline

_WORDS = {
    "new": "new difference", "worse": "worse", "not judged": "not judged any more", "missing": "missing case",
    "unmatched": "matches nothing", "expired": "expired", "lost exact": "bit-exact lost", "gone": "mended",
    "absent": "another pair", "amber": "amber", "unlisted": "no baseline yet",
}  # fmt: skip
_SHOWN = 5
"""Ids named of each kind; the record has all."""


def printable(text: object) -> str:
    """Return text of a file as a terminal can take it: control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def gate_lines(gate: Mapping[str, Any], width: int = 80) -> list[str]:
    """Word what the gate says, failures first, each thing once with the first of its cases."""
    lines: list[str] = []
    for (told, kind, text), ids in grouped(gate["findings"]).items():
        head = f"{'note' if told else 'FAIL'}  {_WORDS.get(kind, kind)}: {len(ids)}, {text}"
        lines += textwrap.wrap(printable(head), width, subsequent_indent="      ", break_on_hyphens=False)
        lines += [f"      {printable(id)}" for id in ids[:_SHOWN]]
        if len(ids) > _SHOWN:
            lines.append(f"      and {len(ids) - _SHOWN} more, in the record")
    return lines


def grouped(findings: Sequence[Mapping[str, Any]]) -> dict[tuple[bool, str, str], list[str]]:
    """Return the ids of findings by whether they are only told, kind and text; failures first."""
    groups: dict[tuple[bool, str, str], list[str]] = {}
    for found in sorted(findings, key=lambda f: not f["fails"]):
        groups.setdefault((not found["fails"], str(found["kind"]), str(found["text"])), []).append(str(found["id"]))
    return groups


def render_gate(gate: Mapping[str, Any], width: int = 80) -> str:
    """Render the gate's result: counts against the baseline, then what it found."""
    head = f"gate {'passed' if gate['passed'] else 'FAILED'}: {gate['baseline']}, {gate['device']}"
    return "\n".join([printable(head), *(counted(s) for s in gate["states"]), *gate_lines(gate, width)])


def counted(state: Mapping[str, Any]) -> str:
    """Word the counts of one pair and state against its baseline."""
    words = f"  {state['pair']} {state['state']}: {state['judged']} judged{_of(state['baseline_judged'])}"
    return printable(f"{words}, {state['bit_exact']} bit-exact{_of(state['baseline_bit_exact'])}")


def _of(count: int | None) -> str:
    return "" if count is None else f" (baseline {count})"


def render_baseline(baseline: Baseline, today: str) -> str:
    """Render what is accepted."""
    lines: list[str] = []
    for kind, device in sorted(baseline.devices.items()):
        lines.append(kind)
        for state in (device.states[key] for key in sorted(device.states)):
            lines.append(
                f"  {state.pair} {state.state}, {' '.join(state.scope[:2])}, seed {state.inputs[0]}: "
                f"{state.count('judged')} judged, {state.count('exact')} bit-exact ({state.origin.get('created', '')})"
            )
        for one in device.known:
            mark = "EXPIRED " if one.known.expired(today) else ""
            what = "logic" if one.logic else "precision"
            lines.append(f"  {mark}known, {what}, {len(one.cases)} cases: {one.known.worded()}")
            lines += [f"    {id}" for id in one.cases[:_SHOWN]]
            lines += [f"    and {len(one.cases) - _SHOWN} more"] * (len(one.cases) > _SHOWN)
    return "\n".join(map(printable, lines)) or "nothing is accepted yet"

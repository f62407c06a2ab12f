"""A run in the terminal: what was compared, under which contracts, what came out."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from parity.report.gate import gate_lines
from parity.report.lora import lora_rows, lora_table

_RED, _GREEN, _YELLOW, _BOLD, _PLAIN = "\033[31m", "\033[32m", "\033[33m", "\033[1m", "\033[0m"

_SHOWN = 3
"""Substitutes that are named; the record has all."""


def render_run(record: Mapping[str, Any], width: int = 80, color: bool = False) -> str:
    """Render a run record as text of at most `width` columns."""
    lines: list[str] = []
    for state in record["pairs"]:
        cases = [c for c in record["cases"] if c["pair"] == state["pair"] and c["state"] == state["state"]]
        lines += _state(state, cases, _counted(record, state), width, color)
        if state.get("lora_comparison"):
            lines += [*_lora(state, cases, record["cases"], width, color), ""]
    ends = (_inputs, _not_run, _gate)
    return "\n".join([*lines, *(line for end in ends for line in end(record, width, color))])


def _inputs(record: Mapping[str, Any], width: int, color: bool) -> list[str]:
    """Say what came of drawn inputs and of changed ones; what was not judged, once per pair and reason."""
    lines: list[str] = []
    held = record.get("inputs", [])
    for pair in dict.fromkeys(str(case["pair"]) for case in held):
        cases = [case for case in held if case["pair"] == pair]
        mark = (_RED if any(c["outcome"] in ("failed", "error") for c in cases) else _GREEN) if color else ""
        lines += _wrapped(f"{pair} inputs", f"{_verdicts(cases)} (drawn, and changed one by one)", width, mark)
        unjudged: dict[str, int] = {}
        for case in cases:
            if case["outcome"] == "not judged":
                unjudged["; ".join(case["reasons"])] = unjudged.get("; ".join(case["reasons"]), 0) + 1
        for reason, count in unjudged.items():
            lines += _wrapped("not judged", f"{count}: {reason}", width, _YELLOW if color else "")
    return [*lines, ""] if lines else []


def _lora(
    state: Mapping[str, Any], cases: list[Mapping[str, Any]], every: list[Mapping[str, Any]], width: int, color: bool
) -> list[str]:
    """Render the four comparisons, and what is wrong with how a side applies the LoRA."""
    without = str(state["state"]).replace("lora_on", "lora_off", 1)
    off = {c["tap"]: c for c in every if (c["pair"], c["state"]) == (state["pair"], without)}
    rows = lora_rows(state["lora_comparison"], off, {c["tap"]: c for c in cases})
    lines = [f" {line}"[:width] for line in lora_table(rows)]
    for name, mark in (("lora_findings", _RED), ("lora_warnings", _YELLOW)):
        for words in state[name]:
            lines += _wrapped("lora", words, width, mark if color else "")
    return lines
def _counted(record: Mapping[str, Any], state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the gate counted for a state; nothing where there was no gate."""
    gate = record.get("gate") or {"states": ()}
    mine = (s for s in gate["states"] if (s["pair"], s["state"]) == (state["pair"], state["state"]))
    return next(mine, {})


def _gate(record: Mapping[str, Any], width: int, color: bool) -> list[str]:
    """Say what the gate found, where there was one."""
    gate = record.get("gate")
    if gate is None:
        return []
    text = f"{'passed' if gate['passed'] else 'FAILED'}, {gate['baseline']}, {gate['device']}"
    mark = (_GREEN if gate["passed"] else _RED) if color else ""
    return [*_wrapped("gate", text, width, mark), *(f" {line}" for line in gate_lines(gate, width - 1)), ""]


def _not_run(record: Mapping[str, Any], width: int, color: bool) -> list[str]:
    """Say of which pairs nothing ran, and why: once per pair and reason."""
    ran = {(s["pair"], s["state"]) for s in record["pairs"]}
    reasons: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for case in record["cases"]:
        if (case["pair"], case["state"]) not in ran:
            reasons.setdefault((case["pair"], case["outcome"], "; ".join(case["reasons"])), []).append(case)
    lines = []
    for (pair, outcome, reason), cases in reasons.items():
        states = ", ".join(dict.fromkeys(str(c["state"]) for c in cases))
        word = "skipped" if outcome == "skipped" else "could not be run"
        mark = (_YELLOW if outcome == "skipped" else _RED) if color else ""
        lines += [*_wrapped(pair, f"{len(cases)} cases {word} ({states}): {reason}", width, mark), ""]
    return lines


def render_case(case: Mapping[str, Any], width: int = 80) -> str:
    """Render one case in one line: verdict and the numbers."""
    excess = case["rounding_excess"].get("identity", {}).get("ratio")
    parts = [f"logic {_number(case['logic_error'])}", f"rounding {_number(excess)}"]
    if case["impact"] is not None:
        parts.append(f"impact {_number(case['impact'])}")
    return f"{case['tap']:<24}{case['verdict']:<28}{'  '.join(parts)}"[:width]


def _substitutes(state: Mapping[str, Any]) -> str:
    found = [" ".join(str(one).split()) for one in state["substitutes"]]
    more = f"; and {len(found) - _SHOWN} more, in the record" if len(found) > _SHOWN else ""
    return f"{len(found)}: {'; '.join(found[:_SHOWN])}{more}"


def _state(
    state: Mapping[str, Any], cases: list[Mapping[str, Any]], counted: Mapping[str, Any], width: int, color: bool
) -> list[str]:
    rows = [
        (f"{state['pair']} {state['state']}", _what(state)),
        ("observer", _observer(state)),
        ("attention", _attention(state)),
        *([("substitutes", _substitutes(state))] if state["substitutes"] else []),
        *_extras(state),
        ("bit-exact", _count(cases, "bit-exact") + _against(counted, "bit_exact")),
        ("verdicts", _verdicts(cases) + _against(counted, "judged")),
        ("stages", stages_text(state)),
        ("chance", f"of one amber tap in this run by luck: {state['false_alarm_rate']:.1%} ({state['tests']} tests)"),
    ]
    if state["first_different"]:
        rows.append(("starts at", state["first_different"]))
    if unjudged := [c for c in cases if c["outcome"] == "not judged"]:
        rows.append(("not judged", f"{len(unjudged)}, first {unjudged[0]['tap']}: {'; '.join(unjudged[0]['reasons'])}"))
    lines = []
    for label, text in rows:
        mark = _colored(label, text, cases) if color else ""
        lines += _wrapped(label, text, width, mark)
    return [*lines, ""]


def _wrapped(label: str, text: str, width: int, mark: str) -> list[str]:
    indent = " " * 12
    head = f" {label:<11}" if len(label) < 11 else f" {label}  "
    lines = textwrap.wrap(head + text, width, subsequent_indent=indent, break_on_hyphens=False, drop_whitespace=True)
    lines = [" " + lines[0].lstrip(), *lines[1:]] if lines else []
    return [f"{mark}{line}{_PLAIN}" if mark else line for line in lines]


def _colored(label: str, text: str, cases: list[Mapping[str, Any]]) -> str:
    if label == "verdicts":
        return _RED if any(c["outcome"] == "failed" for c in cases) else _GREEN
    if label in ("starts at", "untrusted", "weights", "blind", "shared"):
        return _YELLOW
    return _BOLD if " " in label else ""


def _what(state: Mapping[str, Any]) -> str:
    return (
        f"{state['shadow_dtype']} shadow, {state['dtype']} {state['size']} on {state['device']}, "
        f"{state['tokens']:,} tokens, seed {state['seed']}, {state['draws']} draw{'s' * (state['draws'] > 1)}, "
        f"{state['twins']} twins, {sum(state['seconds'].values()):.1f} s{_reference_from(state)}"
    )


def _reference_from(state: Mapping[str, Any]) -> str:
    """Say where the reference's passes are from, where its model did not run beside the native's."""
    found = state.get("reference_from", {})
    if found.get("kept", "memory") == "memory":
        return ""
    return f", reference trace from {found['kept']} ({_size(found['bytes'])}, torch {found['torch']})"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _observer(state: Mapping[str, Any]) -> str:
    broken = state["observer_effect"]
    same = "no: " + broken[0] if broken else "yes"
    rows = max(1, state["rows"])
    trusted = f"untrusted {state['untrusted_rows']:,} of {rows:,} rows"
    none = "" if state["substitutes"] else "; substitutes: none"
    return f"plain and shadowed forward bit-identical on both sides: {same}; {trusted}{none}"


def _attention(state: Mapping[str, Any]) -> str:
    sides = []
    for side in ("reference", "native"):
        names = [n.split("::")[-1].removeprefix("_scaled_dot_product_") for n in state["attention"].get(side, {})]
        sides.append(f"{side} {', '.join(sorted(names)) or 'no fused kernel'}")
    return ", ".join(sides)


def _extras(state: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if state["events"]:
        first = max(state["events"].items(), key=lambda e: e[1])
        rows.append(("untrusted", f"{len(state['events'])} causes, most often ({first[1]}x) {first[0]}"))
    if state["weight_differences"]:
        found = state["weight_differences"]
        rows.append(("weights", f"{len(found)} differ: {'; '.join(found[:2])}"))
    if state["blind_spots"]:
        rows.append(("blind", "; ".join(state["blind_spots"])))
    if shared := state.get("shared_code"):
        rows.append(("shared", f"the port runs {len(shared)} of the original's own classes: {'; '.join(shared[:2])}"))
    if state["decisions"]:
        flips = sum(state["flips"].values())
        unmatched = sum(state["unmatched_decisions"].values())
        rows.append(("decisions", f"{state['decisions']} replayed, {flips} flipped, {unmatched} without counterpart"))
    if state.get("known_unused"):
        rows.append(("known", f"no longer different, to be dropped from the pair: {', '.join(state['known_unused'])}"))
    if state.get("known_expired"):
        rows.append(("expired", f"known differences, no longer accepted: {'; '.join(state['known_expired'])}"))
    if state.get("explained_missing"):
        rows.append(("explained", state["explained_missing"]))
    if state["absent_taps"]:
        rows.append(("absent", "; ".join(f"{k} ({v})" for k, v in state["absent_taps"].items())))
    return rows


def _count(cases: list[Mapping[str, Any]], verdict: str) -> str:
    return f"{sum(c['verdict'] == verdict for c in cases)} of {len(cases)} taps"


def _against(counted: Mapping[str, Any], what: str) -> str:
    """Say how many there were when the baseline was accepted, and that fewer are a regression."""
    now, before = counted.get(what), counted.get(f"baseline_{what}")
    if now is None or before is None:
        return ""
    fewer = f"   <-- regression, {before - now}" if now < before and counted["same_inputs"] else ""
    return f" (baseline {before}{' judged' if what == 'judged' else ''}){fewer}"


def stages_text(state: Mapping[str, Any]) -> str:
    """Say how long each stage of a state took, and the most memory there was."""
    parts = [f"{name} {seconds:.1f} s" for name, seconds in state["seconds"].items()]
    return ", ".join([*parts, f"peak {_size(int(state['peak_memory_bytes']))}"])


def _verdicts(cases: list[Mapping[str, Any]]) -> str:
    names = ("failed", "error", "warned", "known", "not judged", "skipped", "passed")
    counts = [(name, sum(c["outcome"] == name for c in cases)) for name in names]
    return ", ".join(f"{n} {name}" for name, n in counts if n)


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2g}" if isinstance(value, (int, float)) else str(value)

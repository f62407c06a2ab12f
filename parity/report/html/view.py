"""From a record to what the template shows: words and rows, nothing of which is markup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from parity.report.changes import KINDS, changes, incomparable
from parity.report.html.packed import states_of
from parity.report.shape import OUTCOMES
from parity.report.wording import headline, numbers, start

_SHOWN = 40
"""Cases that differ and are written out; the heat map has all."""
_NAMED = 6
"""Taps that fail besides the first and are named at the top."""
_DIFFERENT = ("failed", "error", "warned", "known")
_BROKEN = ("failed", "error")
SYMBOLS = {
    "failed": "✕", "error": "!", "warned": "▽", "known": "◆", "passed": "✓", "not judged": "?",
    "skipped": "\N{EN DASH}",
}  # fmt: skip
Record = Mapping[str, Any]


def view(record: Record, earlier: Record | None) -> dict[str, Any]:
    """Return what the template is given."""
    cases = [{**c, "at": n} for n, c in enumerate(record["cases"])]
    states = [_state(record, s, cases) for s in states_of(record)]
    different = [c for c in cases if c["outcome"] in _DIFFERENT]
    different.sort(key=lambda c: _DIFFERENT.index(c["outcome"]))
    return {
        "record": record,
        "verdict": _verdict(cases, record),
        "counts": [(o, SYMBOLS[o], sum(c["outcome"] == o for c in cases)) for o in OUTCOMES],
        "states": states,
        "first": _first(states, cases),
        "different": [_worded(c) for c in different[:_SHOWN]],
        "not_shown": max(0, len(different) - _SHOWN),
        "unjudged": _unjudged(cases),
        "spoilt": [row for s in states for row in _spoilt(s)],
        "lora": _lora(states, cases),
        "drifts": any(c["drift"] for c in cases),
        "changed": None if earlier is None else _changed(earlier, record, cases),
        "environment": _rows(record["environment"]),
        "bit_exact": sum(c["verdict"] == "bit-exact" for c in cases),
    }


def _verdict(cases: Sequence[Record], record: Record) -> dict[str, str]:
    count = Counter(c["outcome"] for c in cases)
    judged = sum(count[o] for o in ("failed", "warned", "known", "passed"))
    broken = count["failed"] + count["error"]
    if broken:
        words = f"{broken} of {len(cases)} case{'s' * (len(cases) != 1)} {'fail' if broken != 1 else 'fails'}"
        return {"level": "failed", "symbol": "✕", "title": "Not at parity", "words": words}
    if not judged:
        return {"level": "none", "symbol": "?", "title": "Nothing was judged", "words": "this run proves nothing"}
    open_ = [f"{count[o]} {o}" for o in ("warned", "known", "not judged", "skipped") if count[o]]
    level = "warned" if count["warned"] or count["not judged"] or not record["complete"] else "passed"
    words = f"{count['passed']} of {len(cases)} cases pass" + (f"; {', '.join(open_)}" if open_ else "")
    return {"level": level, "symbol": SYMBOLS[level], "title": "At parity", "words": words}


def _state(record: Record, named: Record, cases: Sequence[Record]) -> dict[str, Any]:
    """Return a pair and state with the counts of its cases and where it first differs."""
    key = (named["pair"], named["state"])
    mine = [c for c in cases if (c["pair"], c["state"]) == key]
    held = next((s for s in record["pairs"] if (s["pair"], s["state"]) == key), None)
    count = Counter(c["outcome"] for c in mine)
    first = next((c for c in mine if held and c["tap"] == held["first_different"]), None)
    return {
        **named, "held": held, "cases": len(mine), "first": first, "mine": mine,
        "counts": [(o, SYMBOLS[o], count[o]) for o in OUTCOMES if count[o]],
        "bit_exact": sum(c["verdict"] == "bit-exact" for c in mine),
        "broken": sum(count[o] for o in _BROKEN),
        "error": next((c["reasons"] for c in mine if held is None and c["reasons"]), []),
    }  # fmt: skip


def _first(states: Sequence[Record], cases: Sequence[Record]) -> dict[str, Any] | None:
    """Return the first divergence of the first state that fails, else of the first that differs."""
    starts = [s for s in states if s["first"] is not None]
    chosen = next((s for s in starts if s["broken"]), starts[0] if starts else None)
    if chosen is not None:
        mine = [c for c in chosen["mine"] if c["outcome"] in _BROKEN]
        told = next((c for c in [chosen["first"], *mine] if c["likely"]), chosen["first"])
        others = [c for c in mine if c is not chosen["first"]]
        return {
            "case": _worded(chosen["first"]), "told": _worded(told), "others": others[:_NAMED],
            "others_count": len(others),
        }  # fmt: skip
    broken = next((c for c in cases if c["outcome"] in _BROKEN), None)
    return None if broken is None else {"case": _worded(broken), "told": _worded(broken), "others": []}


def _worded(case: Record) -> dict[str, Any]:
    """Return a case with its lines in words."""
    ran = case["outcome"] not in ("error", "skipped")
    return {
        **case,
        "symbol": SYMBOLS[case["outcome"]],
        "headline": headline(case) if ran and case["precision"] else (case["reasons"] or ["no verdict"])[0],
        "numbers": numbers({**case, "metrics": _worst(case["metrics"])}) if ran else "",
        "start": start(case).partition("        ")[0] if ran else "",
        "code": case["place"]["code"] if case["place"] else {"native": [], "reference": []},
    }


def _worst(metrics: Record | None) -> dict[str, Any]:
    """Return the largest difference and its index, where both are what they should be."""
    held = metrics or {}
    whole = isinstance(held.get("max_abs"), int | float) and isinstance(held.get("max_abs_index"), list)
    return {k: held.get(k) for k in ("max_abs", "max_abs_index", "bit_equal")} if whole else {}


def _unjudged(cases: Sequence[Record]) -> list[dict[str, Any]]:
    """Group what was not judged, or not run, by its reason."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for case in cases:
        if case["outcome"] in ("not judged", "skipped", "error"):
            groups.setdefault((case["outcome"], "; ".join(case["reasons"]) or "no reason given"), []).append(case)
    return [{"outcome": o, "symbol": SYMBOLS[o], "reason": r, "cases": c} for (o, r), c in groups.items()]


def _spoilt(state: Record) -> list[tuple[str, str, str]]:
    """List what limits the evidence of a state: its name, what it is, in words."""
    held = state["held"]
    if held is None:
        return []
    rows = [
        ("observer effect", held["observer_effect"]), ("blind spots", held["blind_spots"]),
        ("substitutes", held["substitutes"]), ("shared code", held["shared_code"]),
        ("taps one side lacks", [f"{k}: {v}" for k, v in held["absent_taps"].items()]),
        ("declared approximations", [f"{k}: {v}" for k, v in held["declared"].items()]),
        ("rows without a trusted shadow", [f"{k} ({v}x)" for k, v in held["events"].items()]),
        ("decisions without counterpart", [f"{k} ({v}x)" for k, v in held["unmatched_decisions"].items()]),
        ("compiled apart", held["compiled_apart"]), ("known differences that are gone", held["known_unused"]),
        ("not explained in full", [held["explained_missing"]] if held["explained_missing"] else []),
    ]  # fmt: skip
    return [(f"{state['pair']} {state['state']}", name, "; ".join(map(str, found))) for name, found in rows if found]


def _lora(states: Sequence[Record], cases: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the four comparisons of each state with the LoRA on, a row a tap."""
    found = []
    for state in states:
        rows = [c for c in state["mine"] if c["lora_effect"]]
        if rows:
            found.append({"pair": state["pair"], "state": state["state"], "rows": rows, "output": rows[-1]})
    return found


def _changed(earlier: Record, record: Record, cases: Sequence[Record]) -> dict[str, Any]:
    found, at = changes(earlier, record), {c["id"]: c["at"] for c in cases}
    return {
        "created": earlier["created"],
        "apart": incomparable(earlier, record),
        "counts": [(kind, sum(c.kind == kind for c in found)) for kind in KINDS],
        "rows": [(c, at.get(c.case)) for c in found],
        "moved": any(c.words for c in found),
        "same": len(cases) - sum(c.kind != "gone" for c in found),
    }


def _rows(tree: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Flatten the environment: `switches.tf32_matmul`, and its value as text."""
    rows: list[tuple[str, str]] = []
    for name, value in tree.items():
        rows += _rows(value, f"{above}{name}.") if isinstance(value, Mapping) else [(f"{above}{name}", str(value))]
    return rows

"""What changed between two runs, case by case: new, gone, worse, better."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from parity.numerics.verdict import VerdictClass

_RANK = {c.value: n for n, c in enumerate((
    VerdictClass.BIT_EXACT, VerdictClass.SAME, VerdictClass.NOT_JUDGED, VerdictClass.DROWNED, VerdictClass.FELT,
))}  # fmt: skip
_UNRUN = {"error": 5, "skipped": 2}
_FAILED = _RANK[VerdictClass.FELT.value]
_BEYOND = {"logic_error": 2.0, "impact": 3.0}
"""How many times larger or smaller a number of a case that differs must be to count: one bug moves less from one input
to the next."""
KINDS = ("worse", "new", "gone", "better")
_SETTINGS = ("size", "dtype", "device", "seed", "draws", "twins", "shadow_dtype", "weights_seed")


@dataclass(frozen=True)
class Change:
    """One case that is not what it was.

    Args:
        case: its id. kind: worse, new, gone, better.
        was, now: verdicts in words, "" where it is not in that run.
        words: which number moved, "" where the verdict says it.
    """

    case: str
    kind: str
    was: str
    now: str
    words: str = ""


def changes(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """List what changed since an earlier run, worst first.

    Args:
        earlier: its record, as `well_formed` returns it.
        now: the later one's.
    """
    before, after = ({str(c["id"]): c for c in record["cases"]} for record in (earlier, now))
    found = [c for id, case in after.items() if (c := _change(before.get(id), case)) is not None]
    found += [Change(id, "gone", _said(case), "") for id, case in before.items() if id not in after]
    return sorted(found, key=lambda c: KINDS.index(c.kind))


def incomparable(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say in what the two runs themselves differ: numbers of other inputs are not each other's."""
    before = {(s["pair"], s["state"]): s for s in earlier["pairs"]}
    return list(dict.fromkeys(_apart(before, now["pairs"], earlier, now)))


def _apart(
    before: Mapping[tuple[str, str], Any], states: list[Any], earlier: Mapping[str, Any], now: Mapping[str, Any]
) -> Iterator[str]:
    if earlier["limits_version"] != now["limits_version"]:
        yield f"limits are of version {now['limits_version']}, they were of {earlier['limits_version']}"
    for state in states:
        old = before.get((state["pair"], state["state"]))
        for name in _SETTINGS:
            if old is not None and old[name] != state[name]:
                yield f"{state['pair']}: {name} is {state[name]}, it was {old[name]}"
    for record, which in ((earlier, "earlier"), (now, "later")):
        if not record["complete"] or record["selected"]:
            yield f"the {which} run {'was cut short' if not record['complete'] else 'left cases out'}"
    if earlier["environment"].get("torch") != now["environment"].get("torch"):
        yield f"torch is {now['environment'].get('torch')}, it was {earlier['environment'].get('torch')}"


def _change(was: Mapping[str, Any] | None, case: Mapping[str, Any]) -> Change | None:
    if was is None:
        return Change(case["id"], "new", "", _said(case))
    step = _rank(case) - _rank(was)
    if step:
        return Change(case["id"], "worse" if step > 0 else "better", _said(was), _said(case))
    moved = _moved(was, case) if _rank(case) >= _RANK[VerdictClass.DROWNED.value] else None
    return None if moved is None else Change(case["id"], moved[0], _said(was), _said(case), moved[1])


def _moved(was: Mapping[str, Any], case: Mapping[str, Any]) -> tuple[str, str] | None:
    """Say which number of a case that differs, then and now, is another one beyond noise."""
    for name, factor in _BEYOND.items():
        old, new = was[name], case[name]
        if not all(isinstance(v, int | float) and math.isfinite(v) and v > 0 for v in (old, new)):
            continue
        if not 1 / factor <= new / old <= factor:
            return ("worse" if new > old else "better"), f"{name} {new:.2g}, it was {old:.2g}"
    return None


def _rank(case: Mapping[str, Any]) -> int:
    """Rank a case, 0 the best: another function fails even where it is drowned."""
    return _FAILED if case["outcome"] == "failed" else _UNRUN.get(case["outcome"], _RANK[case["verdict"]])


def _said(case: Mapping[str, Any]) -> str:
    return str(case["outcome"]) if case["outcome"] in _UNRUN else f"{case['outcome']}: {case['verdict']}"

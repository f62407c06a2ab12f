"""Run records: what JSON holds. `docs/record.md` describes the schema."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from parity.numerics.evidence import Evidence
from parity.numerics.limits import VERSION as LIMITS_VERSION
from parity.numerics.limits import Limits
from parity.numerics.rounding import Excess
from parity.numerics.verdict import Judged, VerdictClass

SCHEMA = "parity-record/1"
_OUTCOMES = ("failed", "error", "warned", "known", "passed", "not judged", "skipped")


def outcome_of(judged: Judged, known: str | None = None) -> str:
    """Return what a verdict does to a run: `failed`, `warned`, `passed`, `known` or `not judged`."""
    if judged.different and known is not None and not judged.logic:
        return "known"
    if judged.fails:
        return "failed"
    if judged.cls is VerdictClass.NOT_JUDGED:
        return "not judged"
    return "warned" if judged.cls is VerdictClass.DROWNED else "passed"


def case_record(
    *, case_id: str, pair: str, state: str, judged: Judged, draws: Sequence[Evidence], limits: Limits,
    paths: tuple[str, str], drift: float, first: str | None, likely: Sequence[str], known: str | None = None,
    order: int = 0, nearest: Mapping[str, Any] | None = None,
    place: Mapping[str, Any] | None = None, repair: Mapping[str, Any] | None = None,
    signatures: Sequence[tuple[str, str]] = (), residual: Mapping[str, Any] | None = None,
    dtypes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return the record of one case; numbers are the worst over draws."""
    return {
        "id": case_id,
        "pair": pair,
        "state": state,
        "tap": judged.name,
        "reference_path": paths[0],
        "native_path": paths[1],
        "verdict": judged.cls.value,
        "outcome": outcome_of(judged, known),
        "known": known,
        "known_from": None if known is None else "pair",
        "order": order,
        "logic": judged.logic,
        "precision": {1: "less precise", -1: "more precise", 0: "as precise"}[judged.direction],
        "amber": judged.amber,
        "reasons": list(judged.reasons),
        "likely": list(likely),
        "nearest": None if nearest is None else dict(nearest),
        "place": None if place is None else dict(place),
        "repair": None if repair is None else dict(repair),
        "signatures": [list(s) for s in signatures],
        "first_different": first,
        "logic_limit": limits.logic_error,
        "shown_by": judged.projection,
        "impact": judged.impact,
        "impact_limit": limits.felt,
        "drift": drift,
        **_measured(draws),
        "residual": None if residual is None else dict(residual),
        "dtypes": None if dtypes is None else dict(dtypes),
        "rerun": "",
    }


def _measured(draws: Sequence[Evidence]) -> dict[str, Any]:
    """Return what was measured at a tap, of the worst draw where it is one number; None where none was judged."""
    worst = max(draws, key=lambda e: (_nan_last(e.logic_error), _nan_last(e.metrics.rel_l2))) if draws else None
    return {
        "logic_error": worst.logic_error if worst else None,
        "logic_error_of_constants": worst.stored_constants if worst else None,
        "rounding_excess": _excesses(draws),
        "reference_dtype": worst.reference_dtype if worst else None,
        "native_dtype": worst.native_dtype if worst else None,
        "excess_after_rounding_both": worst.rounded if worst else None,
        "rows": [e.rows for e in draws],
        "excluded_rows": [e.excluded for e in draws],
        "coherence": max((e.coherence for e in draws), default=None),
        "reference_noise": worst.noise if worst else None,
        "metrics": worst.metrics.as_dict() if worst else None,
    }


def unjudged_record(
    *, case_id: str, pair: str, state: str, tap: str, outcome: str, text: str, order: int = 0
) -> dict[str, Any]:  # fmt: skip
    """Return the record of a case without a verdict: its pair or state raised (`error`), or is not here (`skipped`)."""
    return {
        **_BLANK,
        "id": case_id,
        "pair": pair,
        "state": state,
        "tap": tap,
        "outcome": outcome,
        "order": order,
        "reasons": text.splitlines(),
    }


_BLANK: dict[str, Any] = {
    "id": "", "pair": "", "state": "", "tap": "", "reference_path": None, "native_path": None,
    "verdict": VerdictClass.NOT_JUDGED.value, "outcome": "error", "known": None, "known_from": None, "order": 0,
    "logic": False, "precision": None, "amber": False, "reasons": [], "likely": [], "nearest": None, "place": None,
    "repair": None, "signatures": [], "first_different": None, "logic_error": None,
    "logic_limit": None, "logic_error_of_constants": None, "rounding_excess": {}, "shown_by": "", "impact": None,
    "impact_limit": None, "drift": None, "reference_dtype": None, "native_dtype": None,
    "excess_after_rounding_both": None, "rows": [], "excluded_rows": [], "coherence": None, "reference_noise": None,
    "metrics": None, "residual": None, "dtypes": None, "rerun": "",
}  # fmt: skip


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _excesses(draws: Sequence[Evidence]) -> dict[str, dict[str, float]]:
    found: dict[str, list[Excess]] = {}
    for draw in draws:
        for name, excess in draw.excesses.items():
            found.setdefault(name, []).append(excess)
    return {
        name: {
            "ratio": sum(x.ratio for x in xs) / len(xs),
            "se": (sum(x.se**2 for x in xs) ** 0.5) / len(xs),
            "freedom": sum(x.freedom for x in xs) / len(xs),
        }
        for name, xs in found.items()
    }


def run_record(
    environment: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]], cases: Sequence[Mapping[str, Any]],
    created: str, complete: bool = True, selected: bool = False, inputs: Sequence[Mapping[str, Any]] = (),
    gate: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return a whole record, its order independent of what ran first.

    Args:
        environment: what verdicts depend on besides the models.
        pairs: one entry per pair and state, what its cases have in common.
        cases: one entry per case.
        created: when, in UTC.
        complete: False where the run was cut short.
        selected: cases were left out because others were asked for.
        inputs: one entry per case of drawn inputs, and of an input's change.
        gate: what the gate says of the run; None where no baseline was named.
    """
    return {
        "schema": SCHEMA,
        "created": created,
        "complete": complete,
        "selected": selected,
        "environment": dict(environment),
        "limits_version": LIMITS_VERSION,
        "pairs": sorted((dict(p) for p in pairs), key=lambda p: (str(p["pair"]), str(p["state"]))),
        "cases": [dict(c) for c in sorted(cases, key=_place)],
        "inputs": [dict(c) for c in sorted(inputs, key=_place)],
        "summary": summary_of(cases),
        "gate": None if gate is None else dict(gate),
    }


def _place(case: Mapping[str, Any]) -> tuple[str, str, int, str]:
    return str(case["pair"]), str(case["state"]), int(case.get("order", 0)), str(case["id"])


VOLATILE: Mapping[str, frozenset[str]] = {
    "record": frozenset({"created"}),
    "pairs": frozenset({"seconds", "peak_memory_bytes"}),
}
"""Fields that differ between two runs of the same thing: times and memory, of the record and of its `pairs`."""


def comparable(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without what differs between two runs of the same thing, however many processes ran them.

    >>> comparable({"created": "today", "pairs": [{"pair": "p", "seconds": {"plain": 1.0}}], "cases": []})
    {'pairs': [{'pair': 'p'}], 'cases': []}
    """
    pairs = [{k: v for k, v in state.items() if k not in VOLATILE["pairs"]} for state in record["pairs"]]
    return {k: pairs if k == "pairs" else v for k, v in record.items() if k not in VOLATILE["record"]}


def summary_of(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Count outcomes and verdict classes."""
    outcomes = Counter(str(c["outcome"]) for c in cases)
    return {
        "cases": len(cases),
        "outcomes": {name: outcomes.get(name, 0) for name in _OUTCOMES},
        "verdicts": dict(sorted(Counter(str(c["verdict"]) for c in cases).items())),
    }


def limits_record(limits: Limits) -> dict[str, Any]:
    """Return the limits in force."""
    return asdict(limits)


def false_alarm_rate(limits: Limits, tests: int) -> float:
    """State the probability that a run of this many single tests turns one tap amber by chance."""
    return 1.0 - (1.0 - limits.false_alarm_per_test) ** tests

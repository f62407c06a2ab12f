"""What a run has that its baseline did not: case by case, and over the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from parity.gate.baseline import (
    AcceptedCase,
    DeviceBaseline,
    Scope,
    Suppression,
    inputs_of,
    is_judged,
)
from parity.gate.noise import drifted, worse

ACCEPT = "parity baseline accept"


@dataclass(frozen=True)
class GateFinding:
    """One thing the gate says. `kind` names it for scripts; `fails` says whether the gate fails for it."""

    kind: str
    id: str
    text: str
    fails: bool


@dataclass(frozen=True)
class Terms:
    """What a gate is asked for: this day, and whether a lost bit-exact tap fails."""

    today: str
    require_exact: bool = False


@dataclass
class Gated:
    """A run held against its baseline.

    Args:
        findings: everything that is to be said, failures first.
        cases: the cases' records, those whose outcome the baseline changes in new copies.
        states: per pair and state, how many cases are judged and bit-exact, now and as accepted.
    """

    findings: list[GateFinding] = field(default_factory=list)
    cases: list[dict[str, Any]] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self, baseline: str, device: str) -> dict[str, Any]:
        """Return what a run's record keeps."""
        ordered = sorted(self.findings, key=lambda f: not f.fails)
        return {
            "baseline": baseline, "device": device, "passed": not any(f.fails for f in ordered),
            "findings": [asdict(f) for f in ordered], "states": self.states,
        }  # fmt: skip


def judge_case(
    case: Mapping[str, Any], state: Mapping[str, Any] | None, device: DeviceBaseline, terms: Terms, scope: Scope
) -> tuple[dict[str, Any], list[GateFinding]]:
    """Hold one case against the baseline; return its record as the gate sees it, and what there is to say.

    Args:
        case: its record.
        state: the record of its pair and state; None where it could not be run.
        device: the accepted state on this kind of device.
        terms: what is asked for.
        scope: storage dtype, size and shadow dtype of the run.
    """
    accepted = device.states.get((case["pair"], case["state"], scope))
    then = None if accepted is None else accepted.cases.get(case["id"])
    same = accepted is not None and state is not None and inputs_of(state) == accepted.inputs
    suppression = device.suppression(case["id"], scope)
    if not is_judged(case) or state is None:
        return _judged(case, _of_unjudged(case, then, same, state))
    if str(case["verdict"]).startswith("different"):
        return _of_different(case, then, suppression, same, state["limits"], terms)
    found = _of_equal(case, then, suppression, same, terms)
    return _judged(case, found)


def _judged(case: Mapping[str, Any], found: list[GateFinding]) -> tuple[dict[str, Any], list[GateFinding]]:
    failing = [f.text for f in found if f.fails]
    record = dict(case)
    if failing and record["outcome"] != "error":
        record["outcome"], record["known"] = "failed", None
    return record, found


def _of_unjudged(
    case: Mapping[str, Any], then: AcceptedCase | None, same: bool, state: Mapping[str, Any] | None
) -> list[GateFinding]:
    if then is None or not then.judged:
        return []
    why = str(case["reasons"][0]) if case["reasons"] else "no evidence"
    if case["amber"] and state is not None:  # one projection at one tap alone: by chance, unless it moved
        moved = drifted(case, then, same, state["limits"])
        if not moved:
            text = "amber: by chance, as far as one run can tell; judged in the baseline"
            return [GateFinding("amber", case["id"], text, False)]
        return [GateFinding("worse", case["id"], f"worse than accepted: {moved}", True)]
    return [GateFinding("not judged", case["id"], f"judged in the baseline, {case['outcome']} now: {why}", True)]


def _of_different(
    case: Mapping[str, Any], then: AcceptedCase | None, suppression: Suppression | None, same: bool,
    limits: Mapping[str, Any], terms: Terms,
) -> tuple[dict[str, Any], list[GateFinding]]:  # fmt: skip
    by_pair = case["outcome"] == "known" and case.get("known_from") != "baseline"
    if suppression is None and not by_pair:
        return _judged(case, [GateFinding("new", case["id"], "new: the baseline does not know this difference", True)])
    if suppression is not None and not by_pair:
        if suppression.known.expired(terms.today):
            text = f"the known difference expired: {suppression.known.worded()}"
            return _judged(case, [GateFinding("expired", case["id"], text, True)])
        if case["logic"] and not suppression.logic:
            text = "another function now; only a loss of precision was accepted"
            return _judged(case, [GateFinding("worse", case["id"], text, True)])
    grown = _grown(case, then, same, limits)
    if grown:
        return _judged(case, [GateFinding("worse", case["id"], f"worse than accepted: {grown}", True)])
    if by_pair or suppression is None:
        return dict(case), []
    return {**case, "outcome": "known", "known": suppression.known.worded(), "known_from": "baseline"}, []


def _grown(case: Mapping[str, Any], then: AcceptedCase | None, same: bool, limits: Mapping[str, Any]) -> str:
    if then is None or not then.different:
        return ""
    if then.precision != case["precision"] and not case["logic"]:
        return f"{case['precision']} than the reference now, {then.precision} when it was accepted"
    return worse(case, then, same, limits)


def _of_equal(
    case: Mapping[str, Any], then: AcceptedCase | None, suppression: Suppression | None, same: bool, terms: Terms
) -> list[GateFinding]:
    found = []
    if suppression is not None:
        text = f"a known difference is gone: {suppression.known.worded()}; keep it gone with: {ACCEPT}"
        found.append(GateFinding("gone", case["id"], text, False))
    if then is not None and then.exact and case["verdict"] != "bit-exact" and same:
        text = "no longer bit-exact, as it was when it was accepted"
        found.append(GateFinding("lost exact", case["id"], text, terms.require_exact))
    return found

"""What a run has that its baseline did not: case by case, and over the run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from parity.gate.baseline import (
    AcceptedCase,
    AcceptedState,
    DeviceBaseline,
    Scope,
    Suppression,
    inputs_of,
    is_judged,
    scope_of,
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


def judge_run(
    record: Mapping[str, Any], device: DeviceBaseline, terms: Terms, scopes: Mapping[str, Scope],
    existing: Collection[str] | None = None, left_out: Collection[str] = (), others: bool | None = False,
) -> Gated:  # fmt: skip
    """Hold a whole run against its baseline.

    Args:
        record: the run's record.
        device: the accepted state on this kind of device.
        terms: what is asked for.
        scopes: of each pair that was asked for, what it was run as.
        existing: ids of every case these pairs have now; None where it is not known.
        left_out: cases that exist and were not asked for.
        others: pairs of the baseline that are not among these: True where every pair was asked for, so that they are
            gone, which fails; False where that is not known, so that it is told; None where they were not asked for.
    """
    states = {(s["pair"], s["state"]): s for s in record["pairs"]}
    gated = Gated()
    for case in record["cases"]:
        state = states.get((case["pair"], case["state"]))
        judged, found = judge_case(case, state, device, terms, scopes[case["pair"]])
        gated.cases.append(judged)
        gated.findings += found
    gated.findings += _missing(record, device, scopes, existing, left_out)
    gated.findings += [] if others is None else _absent(device, scopes, others)
    gated.findings += _idle(record, device, scopes, existing)
    gated.findings += _of_pairs(states.values())
    gated.findings += _unlisted(record, device, scopes)
    gated.states = [_counted(key, record, device, scopes) for key in states]
    return gated


def _missing(
    record: Mapping[str, Any], device: DeviceBaseline, scopes: Mapping[str, Scope], existing: Collection[str] | None,
    left_out: Collection[str],
) -> list[GateFinding]:  # fmt: skip
    """Find cases that were judged when the baseline was accepted and are not in this run."""
    seen, found = {case["id"] for case in record["cases"]}, []
    lenient = existing is None and bool(record.get("selected"))
    for state in _accepted(device, scopes):
        for id, case in state.cases.items():
            if not case.judged or id in seen:
                continue
            exists = existing is None or id in existing
            if exists and (lenient or id in left_out):
                continue
            text = "judged in the baseline, not run" if exists else "judged in the baseline, there is no such case now"
            found.append(GateFinding("missing", id, text, True))
    return found


def _absent(device: DeviceBaseline, scopes: Mapping[str, Scope], fails: bool) -> list[GateFinding]:
    """Find accepted states of pairs that are nowhere."""
    text = "judged in the baseline, there is no such pair now" if fails else "in the baseline, not in this record"
    states = (state for state in device.states.values() if state.pair not in scopes and state.count("judged"))
    ids = dict.fromkeys(f"{state.pair}-{state.state}" for state in states)
    return [GateFinding("missing" if fails else "absent", id, text, fails) for id in ids]


def _accepted(device: DeviceBaseline, scopes: Mapping[str, Scope]) -> Iterable[AcceptedState]:
    return (state for pair, scope in scopes.items() for state in device.in_scope(pair, scope))


def _idle(
    record: Mapping[str, Any], device: DeviceBaseline, scopes: Mapping[str, Scope], existing: Collection[str] | None
) -> list[GateFinding]:
    """Find known differences at cases that are nowhere: they would hide nothing, or what is added later."""
    ids = {case["id"] for case in record["cases"]} | set(existing or ())
    mine = {id: s.key for s in _accepted(device, scopes) for id in s.cases}
    found = []
    for suppression in device.known:
        for id in suppression.cases:
            here = any(id.startswith(f"{pair}-") and scope == suppression.scope for pair, scope in scopes.items())
            gone = id not in ids if existing is not None else id not in mine and id not in ids
            if here and gone:
                text = f"a known difference matches no case: {suppression.known.worded()}; drop it with: {ACCEPT}"
                found.append(GateFinding("unmatched", id, text, True))
    return found


def _of_pairs(states: Iterable[Mapping[str, Any]]) -> list[GateFinding]:
    """Say which differences that pairs themselves accept are gone or expired."""
    found = []
    for state in states:
        where = f"{state['pair']}-{state['state']}"
        for name in state.get("known_unused", ()):
            text = f"a known difference is gone, to be dropped from the pair's `known`: {name}"
            found.append(GateFinding("gone", where, text, False))
        for words in state.get("known_expired", ()):
            found.append(GateFinding("expired", where, f"the pair's known difference expired: {words}", True))
    return found


def _unlisted(record: Mapping[str, Any], device: DeviceBaseline, scopes: Mapping[str, Scope]) -> list[GateFinding]:
    """Say which states have no baseline yet: their differences are new, their cases are not counted."""
    found = []
    for state in record["pairs"]:
        if (state["pair"], state["state"], scopes[state["pair"]]) not in device.states:
            text = f"not in the baseline yet; add it with: {ACCEPT}"
            found.append(GateFinding("unlisted", f"{state['pair']}-{state['state']}", text, False))
    return found


def _counted(
    key: tuple[str, str], record: Mapping[str, Any], device: DeviceBaseline, scopes: Mapping[str, Scope]
) -> dict[str, Any]:
    cases = [c for c in record["cases"] if (c["pair"], c["state"]) == key]
    state = device.states.get((*key, scopes[key[0]]))
    inputs = next(inputs_of(s) for s in record["pairs"] if (s["pair"], s["state"]) == key)
    return {
        "pair": key[0], "state": key[1], "judged": sum(is_judged(c) for c in cases),
        "bit_exact": sum(c["verdict"] == "bit-exact" for c in cases),
        "baseline_judged": None if state is None else state.count("judged"),
        "baseline_bit_exact": None if state is None else state.count("exact"),
        "same_inputs": state is not None and state.inputs == inputs,
    }  # fmt: skip


def scopes_of(record: Mapping[str, Any], device: DeviceBaseline) -> dict[str, Scope]:
    """Return what each pair of a record was run as; one of which nothing ran takes a scope it was accepted in."""
    found = {str(s["pair"]): scope_of(s) for s in record["pairs"]}
    others: Sequence[Scope] = list(dict.fromkeys(found.values()))
    for pair in dict.fromkeys(str(c["pair"]) for c in record["cases"]):
        known = device.scopes(pair)
        found.setdefault(pair, known[0] if known else others[0] if others else ("", "", ""))
    return found

"""A whole run against its baseline: every case, and what is not there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from parity.gate.baseline import AcceptedState, DeviceBaseline, Scope, inputs_of, is_judged, scope_of
from parity.gate.findings import ACCEPT, Gated, GateFinding, Terms, judge_case


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

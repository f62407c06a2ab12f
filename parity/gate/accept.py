"""From a run's record to a new accepted state: what may be accepted, what it needs, and what changes by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from parity.errors import UsageError
from parity.gate.baseline import (
    AcceptedState,
    Baseline,
    DeviceBaseline,
    Scope,
    Suppression,
    accepted_state,
    device_kind,
    is_judged,
    scope_of,
)
from parity.known import Known


@dataclass(frozen=True)
class Acceptance:
    """What is said for differences that are not known yet; None: nothing, so there must be none."""

    known: Known | None = None
    logic: bool = False


@dataclass
class Accepted:
    """A new accepted state, the kind of device it is of, and what is new in it, in words."""

    baseline: Baseline
    device: str
    lines: list[str] = field(default_factory=list)


def device_of(record: Mapping[str, Any]) -> str:
    """Return the kind of device a record was made on.

    Raises:
        UsageError: nothing ran, or on several kinds.
    """
    kinds = sorted({device_kind(str(s["device"]), record["environment"]) for s in record["pairs"]})
    if len(kinds) != 1:
        raise UsageError(f"the record is of {' and '.join(kinds) or 'no state that ran'}; one kind of device is needed")
    return kinds[0]


def accept(baseline: Baseline, record: Mapping[str, Any], asked: Acceptance, today: str) -> Accepted:
    """Take a run over as the accepted state of its kind of device; what it has no state of stays.

    Raises:
        UsageError: the run was cut short, has an error, or differs where nobody said why.
    """
    _check_whole(record)
    kind = device_of(record)
    before = baseline.devices.get(kind, DeviceBaseline())
    known, lines = list(before.known), []
    states = dict(before.states)
    for state in record["pairs"]:
        cases = [c for c in record["cases"] if (c["pair"], c["state"]) == (state["pair"], state["state"])]
        new = accepted_state(state, cases, record)
        old = before.states.get(new.key)
        states[new.key] = merged = _merged(old, new, bool(record["selected"]))
        known, told = _settled(known, merged, {c["id"]: c for c in cases}, asked, today)
        lines += [_worded(merged, old), *told]
    devices = {**baseline.devices, kind: DeviceBaseline(states, known)}
    return Accepted(Baseline(devices), kind, lines)


def _check_whole(record: Mapping[str, Any]) -> None:
    cases = record["cases"]
    if not record["complete"]:
        raise UsageError("the run was cut short: it cannot be accepted\nrun it to its end, then accept its record")
    if not any(is_judged(case) for case in cases):
        raise UsageError("no case of the run was judged: there is nothing to accept")
    broken = [case for case in cases if case["outcome"] == "error"]
    if broken:
        why = str((broken[0]["reasons"] or ["no reason"])[0])
        what = f"{len(broken)} cases could not be run, first {broken[0]['id']}"
        raise UsageError(f"{what}: {why}\nmend them, then accept")


def _merged(old: AcceptedState | None, new: AcceptedState, selected: bool) -> AcceptedState:
    """A run of some cases adds to what is accepted of the others, where both had the same inputs."""
    if old is None or not selected:
        return new
    if old.inputs != new.inputs:
        raise UsageError(
            f"a selection of {new.pair} {new.state} on other inputs (seed, draws, tokens {new.inputs}) than accepted "
            f"({old.inputs})\nrun all of its cases, then accept"
        )
    return replace(new, cases={**old.cases, **new.cases})


def _settled(
    known: Sequence[Suppression], state: AcceptedState, cases: Mapping[str, Mapping[str, Any]], asked: Acceptance,
    today: str,
) -> tuple[list[Suppression], list[str]]:  # fmt: skip
    """Drop what is known and gone, keep what is known and there, add what is new with the reason given.

    Raises:
        UsageError: something differs and no reason was given, or it is of logic and that was not said.
    """
    differing = [id for id, case in state.cases.items() if case.different]
    kept, covered = [], set()
    for one in known:
        mine = [id for id in one.cases if one.scope == state.scope and _is_of(id, state)]
        still = [id for id in mine if id in differing and not one.known.expired(today) and _covers(one, state, id)]
        covered |= set(still)
        left = tuple(id for id in one.cases if id not in mine or id in still)
        kept += [replace(one, cases=left)] if left else []
    by_pair = {id for id, c in cases.items() if c["outcome"] == "known" and c.get("known_from") != "baseline"}
    new = [id for id in differing if id not in covered and id not in by_pair]
    if new:
        kept += _added(new, state, asked, state.scope)
    dropped = sum(len(one.cases) for one in known) - sum(len(one.cases) for one in kept) + len(new)
    told = [f"  {len(new)} known differences added: {asked.known.worded()}"] if new and asked.known else []
    return kept, [*told, *([f"  {dropped} known differences dropped: gone, expired or replaced"] * bool(dropped))]


def _is_of(id: str, state: AcceptedState) -> bool:
    return id.startswith(f"{state.pair}-") and id.endswith(f"-{state.state}")


def _covers(one: Suppression, state: AcceptedState, id: str) -> bool:
    return one.logic or not state.cases[id].logic


def _added(new: Sequence[str], state: AcceptedState, asked: Acceptance, scope: Scope) -> list[Suppression]:
    shown = ", ".join(new[:3]) + (f" and {len(new) - 3} more" if len(new) > 3 else "")
    if asked.known is None:
        raise UsageError(
            f"{len(new)} cases differ and nothing says why that is accepted: {shown}\n"
            "mend them, or pass --reason, --owner and --expires"
        )
    logic = [id for id in new if state.cases[id].logic]
    if logic and not asked.logic:
        raise UsageError(
            f"{len(logic)} cases are another function, not only less precise: first {logic[0]}\n"
            "mend them, or say that they are accepted until they are: --logic"
        )
    plain = tuple(id for id in new if id not in logic)
    parts = [(plain, False), (tuple(logic), True)]
    return [Suppression(asked.known, scope, ids, of_logic) for ids, of_logic in parts if ids]


def _worded(state: AcceptedState, old: AcceptedState | None) -> str:
    text = (
        f"{state.pair} {state.state}, {' '.join(state.scope[:2])}: {state.count('judged')} cases judged, "
        f"{state.count('exact')} bit-exact"
    )
    if old is None:
        return f"{text} (new)"
    less = [f"{old.count(what)} {word}" for what, word in (("judged", "judged"), ("exact", "bit-exact"))
            if state.count(what) < old.count(what)]  # fmt: skip
    return f"{text} (fewer than before: {', '.join(less)})" if less else text


__all__ = ["Acceptance", "Accepted", "accept", "device_of", "scope_of"]

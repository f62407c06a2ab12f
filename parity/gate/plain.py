"""Accepted states as JSON holds them, in an order and a form that reviews can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from parity.gate.baseline import AcceptedCase, AcceptedState, Baseline, DeviceBaseline, Scope, Suppression
from parity.known import Known


def to_plain(baseline: Baseline) -> dict[str, Any]:
    """Return a baseline as JSON holds it, in an order that does not depend on what was accepted first."""
    return {"devices": {kind: _plain_device(found) for kind, found in sorted(baseline.devices.items())}}


def _plain_device(device: DeviceBaseline) -> dict[str, Any]:
    return {
        "states": [_plain_state(device.states[key]) for key in sorted(device.states)],
        "known": [
            {**asdict(s.known), "scope": list(s.scope), "logic": s.logic, "cases": sorted(s.cases)}
            for s in sorted(device.known, key=lambda s: (s.scope, sorted(s.cases)))
        ],
    }


def _plain_state(state: AcceptedState) -> dict[str, Any]:
    return {
        "pair": state.pair, "state": state.state, "scope": list(state.scope), "inputs": list(state.inputs),
        "origin": dict(state.origin), "cases": {id: _plain_case(case) for id, case in state.cases.items()},
    }  # fmt: skip


def _plain_case(case: AcceptedCase) -> dict[str, Any]:
    """Leave out what is not known, and numbers of bit-exact cases: a baseline is read in reviews."""
    held = {k: v for k, v in asdict(case).items() if v not in (None, False) or k == "judged"}
    excess = {name: f"{ratio:.4g} +- {se:.4g}" for name, (ratio, se) in case.excess.items()}
    return {**{k: v for k, v in held.items() if k != "excess"}, **({"excess": excess} if excess else {})}


def from_plain(plain: Mapping[str, Any]) -> Baseline:
    """Return the baseline that JSON holds.

    Raises:
        KeyError, TypeError, ValueError: it holds something else; see `as_written`.
        UsageError: a day or a reason is not usable.
    """
    return Baseline({_text(kind): _device(found) for kind, found in plain["devices"].items()})


def _device(plain: Mapping[str, Any]) -> DeviceBaseline:
    states = [_state(s) for s in plain["states"]]
    known = [
        Suppression(
            Known(_text(s["reason"]), _text(s["owner"]), _text(s["expires"])), _scope(s["scope"]),
            tuple(_text(id) for id in s["cases"]), _flag(s["logic"]),
        )
        for s in plain["known"]
    ]  # fmt: skip
    return DeviceBaseline({s.key: s for s in states}, known)


def _state(plain: Mapping[str, Any]) -> AcceptedState:
    seed, draws, tokens = (int(n) for n in plain["inputs"])
    return AcceptedState(
        _text(plain["pair"]), _text(plain["state"]), _scope(plain["scope"]), (seed, draws, tokens),
        {_text(k): _text(v) for k, v in plain["origin"].items()},
        {_text(id): _case(case) for id, case in plain["cases"].items()},
    )  # fmt: skip


def _case(plain: Mapping[str, Any]) -> AcceptedCase:
    precision = plain.get("precision")
    return AcceptedCase(
        tap=_text(plain["tap"]), verdict=_text(plain["verdict"]), judged=_flag(plain["judged"]),
        logic=_flag(plain.get("logic", False)), precision=None if precision is None else _text(precision),
        logic_error=_number(plain.get("logic_error")), impact=_number(plain.get("impact")),
        excess={_text(name): _excess(words) for name, words in plain.get("excess", {}).items()},
    )  # fmt: skip


def _excess(words: str) -> tuple[float, float]:
    ratio, se = _text(words).split(" +- ")
    return float(ratio), float(se)


def _scope(given: Sequence[Any]) -> Scope:
    dtype, size, shadow = (_text(part) for part in given)
    return dtype, size, shadow


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} where text is needed")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{type(value).__name__} where true or false is needed")
    return value


def _number(value: Any) -> float | None:
    return None if value is None else float(value)

"""Whether a difference grew by more than noise: the standard errors and limits verdicts are made with, no others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from parity.gate.baseline import AcceptedCase

_ONE_NUMBER = math.sqrt(1 / 2)
"""Standard error of the log of one component's root mean square: a structured difference is one number per draw."""


def worse(case: Mapping[str, Any], then: AcceptedCase, same_inputs: bool, limits: Mapping[str, Any]) -> str:
    """Say in which number a difference that was accepted is worse beyond noise, "" where in none.

    A number is worse where its log grew by more than the margin verdicts have, plus `z` standard errors of both
    measurements. On the same inputs these are the recorded ones. On other inputs a structured difference is as large as
    those inputs make it, so the standard error is that of one component.

    Args:
        case: the case's record.
        then: what was accepted.
        same_inputs: seed, draws and tokens are the same.
        limits: those in force, as the state's record holds them.
    """
    if case["logic"] and not then.logic:
        return "another function now; only a loss of precision was accepted"
    if case["logic"]:
        return _of_logic(case, then, same_inputs, limits)
    return _of_precision(case, then, same_inputs, limits)


def _of_logic(case: Mapping[str, Any], then: AcceptedCase, same_inputs: bool, limits: Mapping[str, Any]) -> str:
    """A float64 result has no rounding noise; what remains is the margin."""
    now, before = case["logic_error"], then.logic_error
    if now is None or before is None:
        return ""
    se = 0.0 if same_inputs else _ONE_NUMBER
    return f"logic_error {now:.2g} (accepted {before:.2g})" if _grew(now, before, se, se, limits) else ""


def _of_precision(case: Mapping[str, Any], then: AcceptedCase, same_inputs: bool, limits: Mapping[str, Any]) -> str:
    found: list[tuple[float, str]] = []
    for name, (before, se_then) in then.excess.items():
        now = case["rounding_excess"].get(name)
        if now is None:
            continue
        errors = (_at_least(now["se"], same_inputs), _at_least(se_then, same_inputs))
        if _grew(_apart(now["ratio"]), _apart(before), *errors, limits):
            words = f"rounding_excess {now['ratio']:.3g} ({name}, accepted {before:.3g} +- {before * se_then:.2g})"
            found.append((_apart(now["ratio"]) / _apart(before), words))
    if found:
        return max(found)[1]
    return _of_impact(case, then, same_inputs, limits)


def _of_impact(case: Mapping[str, Any], then: AcceptedCase, same_inputs: bool, limits: Mapping[str, Any]) -> str:
    now, before = case["impact"], then.impact
    if now is None or before is None or not now >= float(limits["felt"]):
        return ""
    shown = case["rounding_excess"].get(case["shown_by"], {}).get("se", 0.0)
    se_then = then.excess.get(case["shown_by"], (1.0, 0.0))[1]
    errors = (_at_least(shown, same_inputs), _at_least(se_then, same_inputs))
    return f"impact {now:.2g} (accepted {before:.2g})" if _grew(now, before, *errors, limits) else ""


def drifted(case: Mapping[str, Any], then: AcceptedCase, same_inputs: bool, limits: Mapping[str, Any]) -> str:
    """Say whether the projection that made a tap amber moved since it was accepted by more than noise, "" where not."""
    now = case["rounding_excess"].get(case["shown_by"])
    before, se_then = then.excess.get(case["shown_by"], (1.0, 0.0))
    if now is None:
        return ""
    errors = (_at_least(now["se"], same_inputs), _at_least(se_then, same_inputs))
    if not _grew(_apart(now["ratio"]), _apart(before), *errors, limits):
        return ""
    return f"rounding_excess {now['ratio']:.3g} ({case['shown_by']}, was {before:.3g})"


def _grew(now: float, before: float, se: float, se_then: float, limits: Mapping[str, Any]) -> bool:
    if not math.isfinite(now):
        return math.isfinite(before)
    if not math.isfinite(before) or now <= 0:
        return False
    growth = math.log(now / before) if before > 0 else math.inf
    return growth - math.log1p(float(limits["margin"])) > float(limits["z"]) * math.hypot(se, se_then)


def _apart(ratio: float) -> float:
    """Return how far a ratio is from 1, either way, as a factor of at least 1."""
    if not math.isfinite(ratio):
        return math.inf
    return max(ratio, 1 / ratio) if ratio > 0 else math.inf


def _at_least(se: float, same_inputs: bool) -> float:
    return se if same_inputs else max(se, _ONE_NUMBER)

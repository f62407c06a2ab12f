"""Words for one case: five lines at most, that a person can act on."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

_MORE = 3
"""Lines of an error besides its first, and besides how to rerun: five in all."""


def failure_text(case: Mapping[str, Any], rerun: str) -> str:
    """Word a failed or warned case: what differs, the numbers with their limits, where it starts, why, how to rerun."""
    lines = [f"{case['id']}: {headline(case)}", f"  {numbers(case)}", f"  {start(case)}"]
    if case["likely"]:
        lines.append(f"  likely: {_once(case['likely'])}")
    lines.append(f"  rerun: {rerun}")
    return "\n".join(lines)


def fitted(text: str, width: int) -> str:
    """Return words of a case in lines of at most `width` columns; how to rerun is left whole, to be copied."""
    lines: list[str] = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        if line.lstrip().startswith("rerun:"):
            lines.append(line)
        else:
            bound = _TOGETHER.sub(lambda found: found[0].replace(" ", _BOUND), line)
            lines += textwrap.wrap(bound, max(width, 40), subsequent_indent=indent, break_on_hyphens=False)
    return "\n".join(lines).replace(_BOUND, " ")


_BOUND = "\N{NO-BREAK SPACE}"
_TOGETHER = re.compile(r"\(?limit [\d.e+-]+|\[\d+(?:, \d+)*\]")
"""A limit and its number, an index: unreadable in two lines."""


def gated_text(case: Mapping[str, Any], said: str, rerun: str) -> str:
    """Word a case that fails for what the gate says of it: that, the numbers, where it is, why, how to rerun."""
    different = str(case["verdict"]).startswith("different")
    lines = [f"{case['id']}: {headline(case)}; {said}" if different else f"{case['id']}: {said}"]
    if case["metrics"]:
        lines += [f"  {numbers(case)}", f"  {start(case)}"]
    if case["likely"]:
        lines.append(f"  likely: {_once(case['likely'])}")
    return "\n".join([*lines, f"  rerun: {rerun}"])


def _once(reasons: Sequence[str]) -> str:
    """Join reasons; one that an earlier one has in it, an edit and what it proves, is not said again."""
    return "; ".join(r for n, r in enumerate(reasons) if not any(r in earlier for earlier in reasons[:n]))


def properties_of(case: Mapping[str, Any], said: str = "") -> list[tuple[str, str]]:
    """Return what a test report keeps of a case: verdict, the three numbers, the finding."""
    excess = case["rounding_excess"].get(case["shown_by"]) or case["rounding_excess"].get("identity") or {}
    held = {
        "verdict": case["verdict"], "logic_error": case["logic_error"], "rounding_excess": excess.get("ratio"),
        "rounding_excess_se": excess.get("se"), "impact": case["impact"], "drift": case["drift"],
        "native_path": case["native_path"], "known": case["known"], "gate": said or None,
        "finding": "; ".join(case["likely"] or case["reasons"]) or None,
    }  # fmt: skip
    return [(f"parity_{name}", _shown(value)) for name, value in held.items() if value is not None]


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def error_text(case: Mapping[str, Any], rerun: str) -> str:
    """Word a case whose pair or state could not be run: what was raised, and how to rerun."""
    first, *more = case["reasons"] or ["no reason was given"]
    shown = more if len(more) <= _MORE else [*more[: _MORE - 1], f"... ({len(more) - _MORE + 1} more lines)"]
    return "\n".join([f"{case['id']}: {first}", *(f"  {line.strip()}" for line in shown), f"  rerun: {rerun}"])


_SPOILT = {
    "observer_effect": (
        "low values differ with and without shadow, first",
        "a forward is not deterministic, or an op reads what the shadow changed; nothing else here is certain",
    ),
    "weight_differences": (
        "weights of the native are not what the key map makes of the reference's:",
        "mend how the native loads them; every tap behind them differs for this reason alone",
    ),
    "blind_spots": (
        "these weights cannot show every bug:",
        "draw gains other than 1, biases other than 0, float32 values that bfloat16 cannot hold",
    ),
    "unmatched_decisions": (
        "the native decides on floats where the reference decides nothing to replay:",
        "a routing, top-k or mask of the native's own; give the segment a tap on both sides of it",
    ),
    "lora_findings": (
        "a side does not apply the LoRA as its file says:",
        "mend how that side loads it; `parity lora inspect` and `diff` say what the file holds",
    ),
    "compiled_apart": (
        "compiled is not what eager is:",
        "a fused kernel in lower precision, or a graph that is wrong; run `compile` with a plainer backend to tell",
    ),
}


def evidence_text(state: Mapping[str, Any], field: str, rerun: str) -> str:
    """Word what spoils the evidence of a state: which field of its record is not empty, and what to do."""
    what, advice = _SPOILT[field]
    found = [f"{k} ({n}x)" for k, n in state[field].items()] if isinstance(state[field], Mapping) else state[field]
    more = f"; and {len(found) - 2} more" if len(found) > 2 else ""
    return (
        f"{state['pair']}-{state['state']}: {what}\n  {'; '.join(found[:2])}{more}\n"
        f"  likely: {advice}\n  rerun: {rerun}"
    )


def headline(case: Mapping[str, Any]) -> str:
    """Say what kind of difference it is and whether it is felt."""
    felt = str(case["verdict"]).split(", ")[-1]
    if case["logic"]:
        return f"different function, {felt}"
    if case["precision"] != "as precise":
        return f"native {case['precision']} than the reference, {felt}"
    return str(case["verdict"])


def numbers(case: Mapping[str, Any]) -> str:
    """Give the numbers with their limits and the worst index."""
    metrics = case["metrics"] or {}
    parts = []
    if case["logic_error"] is not None:
        parts.append(f"logic_error {case['logic_error']:.1e} (limit {case['logic_limit']:.0e})")
    rounding = next((r for r in case["reasons"] if r.startswith("rounding_excess")), None)
    if rounding is not None:
        parts.append(rounding.split(": the native")[0])
    elif "identity" in case["rounding_excess"]:
        parts.append(f"rounding_excess {case['rounding_excess']['identity']['ratio']:.3g}")
    if case["impact"] is not None:
        parts.append(f"impact {case['impact']:.2g} (limit {case['impact_limit']:.2f})")
    if metrics.get("max_abs_index") is not None and not metrics.get("bit_equal"):
        parts.append(f"worst {metrics['max_abs']:.2g} at {list(metrics['max_abs_index'])}")
    broken = [r for r in case["reasons"] if "NaN" in r or r.startswith("never reached")]
    return ", ".join(broken + parts)


def start(case: Mapping[str, Any]) -> str:
    """Say where the difference starts and where the native computes it."""
    first = case["first_different"]
    if first is None or first == case["tap"]:
        where = "starts here: no earlier tap differs"
    else:
        where = f"first difference of this run: {first} (lockstep: this tap differs on its own)"
    return f"{where}        native: {case['native_path']}"


def not_judged_text(case: Mapping[str, Any]) -> str:
    """Word why a case has no verdict."""
    return f"not judged: {case['reasons'][0] if case['reasons'] else 'no evidence'}"

"""Drawn inputs and sensitivity: what a record holds of them; words of five lines at most, the last to run it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def drawn_text(case_id: str, drawn: str, wrong: str, place: str, counts: tuple[int, int], rerun: str) -> str:
    """Word a drawn input that fails: what is wrong, on which input, where, how to rerun it alone.

    Args:
        case_id: of the test.
        drawn: the input, in the line that makes it again.
        wrong: what is wrong.
        place: where the native computes it, "" where it has no place.
        counts: inputs that fail, and inputs that were run.
        rerun: the command.
    """
    failing, run = counts
    lines = [
        f"{case_id}: {wrong}",
        f"  on {drawn}",
        f"  the smallest of {failing} that fail, {run} run" if run > 1 else "  on this input alone",
    ]
    if place:
        lines[2] += f"        native: {place}"
    return "\n".join([*lines, f"  rerun: {rerun}"])


def imprecise_text(case_id: str, tap: str, reasons: Sequence[str], place: str, inputs: int, rerun: str) -> str:
    """Word precision that is lost over all inputs together."""
    return "\n".join(
        [
            f"{case_id}: {reasons[0].split(': ')[-1]}, over {inputs} drawn inputs together",
            f"  {tap}: {'; '.join(r.split(': the native')[0] for r in reasons)}",
            f"  no single input shows it; a run on all of them does        native: {place}",
            f"  rerun: {rerun}",
        ]
    )


def sensitivity_text(
    case_id: str, name: str, wrong: str, change: str, sides: tuple[float, float], rerun: str
) -> str:
    """Word an input that the two sides do not respond to alike."""
    reference, native = sides
    return "\n".join(
        [
            f"{case_id}: {wrong}: input {name!r}, {change}",
            f"  the reference's output changes by {reference:.2g} (relative), the native's by {native:.2g}",
            "  likely: it is not passed on, or a constant stands in its place; the pair's `ignored` accepts it",
            f"  rerun: {rerun}",
        ]
    )


def input_record(
    *, case_id: str, pair: str, state: str, name: str, outcome: str, reasons: Sequence[str],
    found: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return the record of a case of drawn inputs, or of one input's change.

    Args:
        case_id: of the case.
        pair: its pair.
        state: its LoRA state.
        name: of the input that is changed; "" where inputs are drawn.
        outcome: failed, error, warned, known, passed, not judged, skipped.
        reasons: why, in words.
        found: of drawn inputs how many were `run` and `judged`, and the line of the smallest that `failing`; of a
            change the `responses` of both sides.
    """
    blank: dict[str, Any] = {"run": 0, "judged": 0, "failing": None, "responses": []}
    return {
        "id": case_id, "pair": pair, "state": state, "kind": "sensitivity" if name else "drawn", "input": name,
        "outcome": outcome, "reasons": list(reasons), **blank, **(found or {}),
    }  # fmt: skip

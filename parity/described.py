"""What all cases of a pair and state have in common, as a record keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from parity.case import ParityCase
from parity.compared import ComparedSession
from parity.io.memory import peak_resident
from parity.numerics.verdict import Judged, VerdictClass
from parity.report.record import false_alarm_rate, limits_record
from parity.run import Options, StateResult
from parity.session import PairSession

_SIDES = ("reference", "native")


def described(
    case: ParityCase, session: PairSession | ComparedSession, found: StateResult, options: Options,
    about: Mapping[str, Any], unused: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """Return the record of a pair and state.

    Args:
        case: any of its cases.
        session: both sides.
        found: what was found.
        options: how it was run.
        about: what all states of the pair share.
        unused: accepted differences that are none.
    """
    tests = sum(j.tests for j in found.judged.values())
    return {
        "pair": case.pair,
        "state": case.state,
        "lora": case.lora,
        "variant": case.variant,
        **about,
        "reference_from": {"kept": "memory"} if session.recorded is None else session.recorded.came_from,
        "lora_targets": len(session.adapter.targets) if case.lora and session.adapter is not None else 0,
        **_lora_record(found, session),
        "tokens": found.tokens,
        "draws": len(found.draws),
        "seed": options.seed,
        "twins": options.twins,
        "shadow_dtype": str(options.shadow_dtype).removeprefix("torch."),
        "observer_effect": found.observer,
        "untrusted_rows": sum(e.excluded for d in found.draws for e in d.values()),
        "rows": sum(e.rows + e.excluded for d in found.draws for e in d.values()),
        "events": dict(found.events),
        "attention": {side: dict(k) for side, k in found.kernels.items()},
        "decisions": found.decisions,
        "flips": dict(found.flips),
        "unmatched_decisions": dict(found.unmatched),
        "first_different": found.first_different,
        "limits": limits_record(found.limits),
        "tests": tests,
        "false_alarm_rate": false_alarm_rate(found.limits, tests),
        "known_unused": list(unused),
        "compiled": {side: {**c.metrics.as_dict(), "excess": c.excess} for side, c in found.compiled.items()},
        "compiled_apart": compiled_apart(found),
        "finer_weights": found.stored,
        "explained_missing": found.explained.missing,
        "peak_memory_bytes": _peak_memory(),
        "seconds": found.seconds,
    }


def _peak_memory() -> int:
    """Return the most bytes that were held so far: of the GPU's allocator, of this process elsewhere."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_resident()


def _lora_record(found: StateResult, session: PairSession | ComparedSession) -> dict[str, Any]:
    """Return what is kept of the LoRA: the four comparisons by tap, and what each side makes of its file."""
    sides = session.lora_found() if found.lora else {}
    told = [(f"{side}: {one['message']}", one["severity"]) for side in sides for one in sides[side]["findings"]]
    return {
        "lora_comparison": [row.as_dict() for row in found.four.rows] if found.four else [],
        "lora_modules": {side: held["modules"] for side, held in sides.items()},
        "lora_findings": [words for words, severity in told if severity == "error"],
        "lora_warnings": [
            *(words for words, severity in told if severity != "error"),
            *(f"{side}: not looked at, {held['missing']}" for side, held in sides.items() if held["missing"]),
        ],
    }  # fmt: skip


def ops_by_dtype(found: StateResult, judged: Judged) -> dict[str, dict[str, int]] | None:
    """Return how often each side ran which op in which dtype before a tap that is not bit-exact."""
    if judged.name not in found.dtypes or judged.cls is VerdictClass.BIT_EXACT:
        return None
    return {side: dict(sorted(ops.items())) for side, ops in zip(_SIDES, found.dtypes[judged.name], strict=True)}


def compiled_apart(found: StateResult) -> list[str]:
    """Say where a compiled side rounds much more than the same side run eagerly, or does something else."""
    limit = found.limits.strong
    return [
        f"the compiled {side} is {c.excess:.3g}x as far from float64 as eager is (limit {limit:.3g})"
        for side, c in found.compiled.items()
        if not c.excess <= limit
    ]

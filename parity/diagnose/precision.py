"""Precision differences explained by the nearest reference variant, and found by it where statistics have no power."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from parity.diagnose.forwards import Forwards
from parity.diagnose.nearest import EXPLAINED, Nearest, Target, nearest_variants
from parity.draws import Draw, aligned, dtypes_of
from parity.execution.passes import FromReference, mask_of
from parity.execution.storage import bits
from parity.execution.tap import Tap
from parity.numerics.evidence import Evidence
from parity.numerics.limits import Limits
from parity.numerics.verdict import Judged, VerdictClass

if TYPE_CHECKING:
    from parity.live import LiveReference


@dataclass
class Explained:
    """What was found of precision differences.

    Args:
        nearest: by tap. missing: why it could not be searched, "" where it was.
    """

    nearest: dict[str, Nearest] = field(default_factory=dict)
    missing: str = ""


def explain_precision(draw: Draw, judged: Mapping[str, Judged], limits: Limits) -> Explained:
    """Search the nearest reference variant of every tap that rounds otherwise, and let it decide what was undecided.

    Args:
        draw: the draw to search in.
        judged: the verdicts so far, before impacts; those the search decides are changed.
        limits: in force.
    """
    taps = [t for t in draw.session.taps if t.name in judged and _open(judged[t.name], draw.evidence[t.name], limits)]
    if not taps:
        return Explained()
    targets = [_target(draw, tap) for tap in taps]
    low = low_dtype(draw)

    def search(reference: LiveReference) -> dict[str, Nearest]:
        restart = FromReference(dtypes_of(draw.free_native), draw.inputs)
        names = [t.name for t in targets]
        return nearest_variants(Forwards(reference.runner(), draw.inputs, draw.reference, restart, names), targets, low)

    found = draw.session.reference_stage.at_work(draw.of, search)
    if found is None:
        return Explained(missing="the reference is a recording here: its nearest variant was not to be had")
    for name, nearest in found.items():
        _decide(judged[name], nearest)
    return Explained(found)


def _open(judged: Judged, evidence: Evidence, limits: Limits) -> bool:
    """Say whether a tap's roundings are to be explained: it differs, or nothing shows that it does not."""
    if judged.logic or evidence.bit_exact or not evidence.logic_error <= limits.logic_error:
        return False
    if judged.direction or judged.amber or any(r.startswith("no power") for r in judged.reasons):
        return True
    whole = evidence.excesses.get("identity")
    return judged.cls is VerdictClass.SAME and whole is not None and whole.departure > limits.margin


def _target(draw: Draw, tap: Tap) -> Target:
    r = draw.reference.values[tap.name].low
    valid = None if tap.valid is None else mask_of(tap, draw.inputs, r)
    wide = any(key.endswith("float64") for key in draw.native.segment_before(tap.name))
    native = aligned(tap, draw.native.values[tap.name].low, r.shape)
    return Target(tap.name, native, valid, tap.has_attention, wide)


def low_dtype(draw: Draw) -> torch.dtype:
    """Return the 16-bit dtype the two sides compute in; bfloat16 where neither does."""
    dtypes = [v.dtype for trace in (draw.reference, draw.native) for v in trace.values.values()]
    low = [d for d in dtypes if d.is_floating_point and bits(d) <= bits(torch.float16)]
    return max(set(low), key=low.count) if low else torch.bfloat16


def _decide(judged: Judged, nearest: Nearest) -> None:
    """Take a variant near enough for what it is: the native has these roundings and not the reference's."""
    if judged.different or not nearest.proves:
        return
    word = "less" if nearest.direction > 0 else "more"
    judged.cls, judged.direction, judged.amber, judged.projection = (
        VerdictClass.DROWNED,
        nearest.direction,
        False,
        "nearest",
    )
    judged.reasons = [
        f"nearest variant at {nearest.ratio:.2g} of the distance (limit {EXPLAINED}): "
        f"the native is {word} precise than the reference"
    ]  # fmt: skip


def nearest_words(nearest: Mapping[str, Nearest], name: str) -> Sequence[str]:
    """Return what is likely at a tap by its nearest variant: nothing where none is near."""
    found = nearest.get(name)
    return [found.words()] if found is not None and found.explains else []

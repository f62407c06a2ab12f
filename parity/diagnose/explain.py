"""Differences explained: by the nearest reference variant, which also decides what was undecided, and by lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from parity.diagnose.forwards import Forwards
from parity.diagnose.held import HeldWeights
from parity.diagnose.nearest import EXPLAINED, Nearest, Target, nearest_variants
from parity.diagnose.places import Place, SideOps, place_of_difference, side_ops
from parity.diagnose.repair import Repair, RepairShop
from parity.diagnose.signature import Found, Seen, recognised
from parity.draws import Draw, aligned, dtypes_of, restart_of
from parity.execution.passes import FromReference, Restart, mask_of
from parity.execution.storage import bits
from parity.execution.tap import Tap
from parity.live import LiveNative, LiveReference
from parity.numerics.evidence import Evidence
from parity.numerics.limits import Limits
from parity.numerics.verdict import Judged, VerdictClass
from parity.weights.load import WeightComparison

_REPAIRED = 3
"""Taps that are repaired, the first faulty ones, each of another kind: what is behind them is mostly the same bug."""


@dataclass
class Explained:
    """What was found of differences, by tap.

    Args:
        nearest: the nearest variant of the reference.
        places: where in the code the two sides part.
        wrong: weights its segment reads that are not the reference's.
        repairs: the change of the native that restores the reference's function.
        signatures: what shape the difference has, names and words, what says most first.
        missing: why neither could be had, "" where both could.
    """

    nearest: dict[str, Nearest] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    wrong: dict[str, list[WeightComparison]] = field(default_factory=dict)
    repairs: dict[str, Repair] = field(default_factory=dict)
    signatures: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    missing: str = ""


def explain(draw: Draw, judged: Mapping[str, Judged], limits: Limits, native: SideOps | None = None) -> Explained:
    """Explain every tap that differs; the nearest reference variant decides what was undecided.

    Args:
        draw: the draw to search in.
        judged: the verdicts so far, before impacts; those the search decides are changed.
        limits: in force.
        native: the native's ops where its model may have to make room for the reference's; None: traced when needed.
    """
    taps = [t for t in draw.session.taps if t.name in judged and _open(judged[t.name], draw.evidence[t.name], limits)]
    if not taps and not any(j.different for j in judged.values()):
        return Explained()

    def work(reference: LiveReference) -> tuple[dict[str, Nearest], SideOps | None]:
        found = _search(draw, reference, taps)
        for name, nearest in found.items():
            _decide(judged[name], nearest)
        ops = None
        if any(j.different for j in judged.values()):
            ops = side_ops(reference, draw.of, FromReference(dtypes_of(draw.free_native), draw.inputs))
        return found, ops

    done = draw.session.reference_stage.at_work(draw.of, work)
    if done is None:
        missing = "the reference is a recording here: nearest variants and lines were not to be had"
        return _named(Explained(missing=missing), draw, judged)
    explained = Explained(done[0])
    native = native_ops(draw, judged) if native is None else native
    if native is not None and done[1] is not None:
        _place(explained, draw, judged, native, done[1])
        _repair(explained, draw, judged, limits, native, done[1])
    return _named(explained, draw, judged)


def _named(explained: Explained, draw: Draw, judged: Mapping[str, Judged]) -> Explained:
    """Name the bugs that differences are, by their values and by what was found of them."""
    taps = {t.name: t for t in draw.session.taps if t.name in judged}
    held = HeldWeights(draw)
    for name, verdict in judged.items():
        if verdict.different:
            found = _found(explained, taps[name], draw, verdict, held)
            if names := recognised(_seen(draw, taps[name], list(taps.values()), found)):
                explained.signatures[name] = names
    return explained


def _found(explained: Explained, tap: Tap, draw: Draw, verdict: Judged, held: HeldWeights) -> Found:
    return Found(
        attention=tap.has_attention,
        lora=draw.of.lora,
        heads=tap.heads,
        logic=verdict.logic,
        repair=explained.repairs.get(tap.name),
        nearest=explained.nearest.get(tap.name),
        place=explained.places.get(tap.name),
        weights=tuple(held.of(w) for w in explained.wrong.get(tap.name, ())),
    )


def _seen(draw: Draw, tap: Tap, taps: Sequence[Tap], found: Found) -> Seen:
    """Return the values of a tap and of the earlier taps that have its shape, and what was found there."""
    r, n = draw.reference.values[tap.name], draw.native.values[tap.name]
    assert r.high is not None
    assert n.high is not None
    valid = None if tap.valid is None else mask_of(tap, draw.inputs, r.low).expand(r.low.shape)
    native = _channels_last(aligned(tap, n.high, r.low.shape), tap, valid)
    reference = _channels_last(r.high, tap, valid)
    earlier = taps[: [t.name for t in taps].index(tap.name)]
    # Both sides go on from the values as computed, so these are exact behind a tap.
    values = ((t.name, draw.reference.values[t.name].low) for t in earlier if valid is None)
    upstream = {k: _channels_last(v, tap, None) for k, v in values if v.shape == r.low.shape}
    computed = _channels_last(aligned(tap, n.low, r.low.shape), tap, valid), _channels_last(r.low, tap, valid)
    return Seen(native, reference, upstream, computed, found)


def _channels_last(value: Tensor, tap: Tap, valid: Tensor | None) -> Tensor:
    real = torch.view_as_real(value).flatten(-2) if value.is_complex() else value
    moved = real.double().movedim(tap.channel_dim, -1) if real.dim() else real.double().reshape(1)
    if valid is None:
        return moved
    kept: Tensor = moved[valid.movedim(tap.channel_dim, -1)[..., 0]]
    return kept


def _repair(
    explained: Explained, draw: Draw, judged: Mapping[str, Judged], limits: Limits, native: SideOps, reference: SideOps
) -> None:
    """Try to repair the first faulty tap of each kind, as long as there is time."""
    stage, faulty = draw.session.native_stage, [n for n, j in judged.items() if j.logic]
    if not faulty or not isinstance(stage, LiveNative):
        return
    if draw.session.recorded is not None:
        explained.missing = "repairs need both models resident: they were not tried"
        return
    weights: Mapping[str, WeightComparison] = getattr(draw.session, "weights", {})
    wrong = frozenset(name for name, w in weights.items() if w.differs)

    def restart() -> Restart:
        return restart_of(draw.session.taps, draw.reference, draw.free_native, draw.inputs)

    shop = RepairShop(draw, stage, native, reference, restart, limits.logic_error, wrong)
    kinds = {t.kind: t for t in reversed(draw.session.taps) if t.name in faulty}
    first = sorted(kinds.values(), key=lambda t: faulty.index(t.name))[:_REPAIRED]
    for tap in first:
        if math.isfinite(draw.evidence[tap.name].logic_error) and (found := shop.repair(tap)) is not None:
            explained.repairs[tap.name] = found


def native_ops(draw: Draw, judged: Mapping[str, Judged]) -> SideOps | None:
    """Trace the native's ops where something differs; None where nothing does, or its model is not here."""
    stage = draw.session.native_stage
    if not isinstance(stage, LiveNative) or not any(j.different for j in judged.values()):
        return None
    restart = restart_of(draw.session.taps, draw.reference, draw.free_native, draw.inputs)
    return side_ops(stage, draw.of, restart, draw.reference.decisions)


def _place(explained: Explained, draw: Draw, judged: Mapping[str, Judged], native: SideOps, reference: SideOps) -> None:
    weights: Mapping[str, WeightComparison] = getattr(draw.session, "weights", {})
    for name, verdict in judged.items():
        if verdict.different:
            place = place_of_difference(name, native, reference, verdict.logic)
            explained.places[name] = place
            explained.wrong[name] = [w for k in place.weights if (w := weights.get(k)) is not None and w.differs]


def _search(draw: Draw, reference: LiveReference, taps: Sequence[Tap]) -> dict[str, Nearest]:
    if not taps:
        return {}
    restart = FromReference(dtypes_of(draw.free_native), draw.inputs)
    forwards = Forwards(reference.runner(), draw.inputs, draw.reference, restart, [t.name for t in taps])
    return nearest_variants(forwards, [_target(draw, tap) for tap in taps], low_dtype(draw))


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
    return Target(tap.name, native, valid, tap.has_attention, wide, tap.kind)


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

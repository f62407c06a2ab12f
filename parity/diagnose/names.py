"""Differences named: signatures recognised at the taps of one draw, by their values and by what was found of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from parity.diagnose.explained import Explained
from parity.diagnose.faulty import Faulty
from parity.diagnose.held import HeldWeights
from parity.diagnose.signature import SIGNATURES, Found, Seen, recognised
from parity.draws import Draw, aligned
from parity.execution.passes import mask_of
from parity.execution.tap import Inputs, Tap
from parity.execution.trace import Trace
from parity.numerics.verdict import Judged
from parity.weights.load import WeightComparison

_OF_WEIGHTS = ("weights", "quant")


def name_bugs(
    draw: Draw, judged: Mapping[str, Judged], explained: Explained, held: HeldWeights | None
) -> dict[str, list[tuple[str, str]]]:
    """Name the bugs that differences are.

    Args:
        draw: the draw.
        judged: its verdicts.
        explained: what was found of them.
        held: the native's weights; None where its model is not here.
    """
    taps = {t.name: t for t in draw.session.taps if t.name in judged}
    named = {}
    for name, verdict in judged.items():
        if verdict.different:
            found = _found(explained, taps[name], draw, verdict, held)
            seen = _seen(draw.reference, draw.native, draw.inputs, taps[name], list(taps.values()), found)
            if names := recognised(seen):
                named[name] = names
    return named


def name_wrong_weights(
    job: Faulty, taps: Sequence[Tap], read: Mapping[str, Sequence[str]], compared: Mapping[str, WeightComparison],
    held: HeldWeights,
) -> dict[str, list[tuple[str, str]]]:  # fmt: skip
    """Name what is wrong with weights, where the native's model is and the rest of what was found is not.

    Args:
        job: the draw.
        taps: the pair's.
        read: by tap, the wrong native parameters its segment reads.
        compared: all weights, as they compare.
        held: the native's.
    """
    named = {}
    for tap in taps:
        wrong = tuple(held.of(compared[name]) for name in read.get(tap.name, ()))
        if wrong:
            found = Found(tap.has_attention, job.of.lora, tap.heads, weights=wrong)
            names = recognised(_seen(job.reference, job.native, job.of.inputs, tap, taps, found))
            named[tap.name] = [(name, words) for name, words in names if SIGNATURES[name].category in _OF_WEIGHTS]
    return named


def merged(names: Sequence[tuple[str, str]], others: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return names from two places, each once in the words of the second, what says most first."""
    both, order = {**dict(names), **dict(others)}, list(SIGNATURES.names())
    return sorted(both.items(), key=lambda one: (SIGNATURES[one[0]].freedom, order.index(one[0])))


def _found(explained: Explained, tap: Tap, draw: Draw, verdict: Judged, held: HeldWeights | None) -> Found:
    return Found(
        attention=tap.has_attention,
        lora=draw.of.lora,
        heads=tap.heads,
        logic=verdict.logic,
        repair=explained.repairs.get(tap.name),
        nearest=explained.nearest.get(tap.name),
        place=explained.places.get(tap.name),
        weights=() if held is None else tuple(held.of(w) for w in explained.wrong.get(tap.name, ())),
    )


def _seen(ours: Trace, theirs: Trace, inputs: Inputs, tap: Tap, taps: Sequence[Tap], found: Found) -> Seen:
    """Return the values of a tap and of the earlier taps that have its shape, and what was found there.

    `ours` is the reference's lockstep pass, `theirs` the native's.
    """
    r, n = ours.values[tap.name], theirs.values[tap.name]
    assert r.high is not None
    assert n.high is not None
    valid = None if tap.valid is None else mask_of(tap, inputs, r.low).expand(r.low.shape)
    native = _channels_last(aligned(tap, n.high, r.low.shape), tap, valid)
    reference = _channels_last(r.high, tap, valid)
    earlier = taps[: [t.name for t in taps].index(tap.name)]
    # Both sides go on from the values as computed, so these are exact behind a tap.
    values = ((t.name, ours.values[t.name].low) for t in earlier if valid is None)
    upstream = {k: _channels_last(v, tap, None) for k, v in values if v.shape == r.low.shape}
    computed = _channels_last(aligned(tap, n.low, r.low.shape), tap, valid), _channels_last(r.low, tap, valid)
    return Seen(native, reference, upstream, computed, found)


def _channels_last(value: Tensor, tap: Tap, valid: Tensor | None) -> Tensor:
    real = torch.view_as_real(value.resolve_conj()).flatten(-2) if value.is_complex() else value
    moved = real.double().movedim(tap.channel_dim, -1) if real.dim() else real.double().reshape(1)
    if valid is None:
        return moved
    kept: Tensor = moved[valid.movedim(tap.channel_dim, -1)[..., 0]]
    return kept



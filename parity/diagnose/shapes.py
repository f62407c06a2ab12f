"""What shape the differences of logic have: signatures recognised at the taps of one draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from parity.diagnose.signature import Seen, recognised
from parity.draws import Draw, aligned
from parity.execution.passes import mask_of
from parity.execution.tap import Tap
from parity.numerics.verdict import Judged


def signatures_of(draw: Draw, judged: Mapping[str, Judged]) -> dict[str, list[tuple[str, str]]]:
    """Recognise what shape the differences of logic have."""
    taps = {t.name: t for t in draw.session.taps if t.name in judged}
    found = {}
    for name, verdict in judged.items():
        if verdict.logic and (names := recognised(_seen(draw, taps[name], list(taps.values())))):
            found[name] = names
    return found


def _seen(draw: Draw, tap: Tap, taps: Sequence[Tap]) -> Seen:
    """Return the exact values of a tap and of the earlier taps that have its shape."""
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
    return Seen(native, reference, upstream)


def _channels_last(value: Tensor, tap: Tap, valid: Tensor | None) -> Tensor:
    real = torch.view_as_real(value).flatten(-2) if value.is_complex() else value
    moved = real.double().movedim(tap.channel_dim, -1) if real.dim() else real.double().reshape(1)
    if valid is None:
        return moved
    kept: Tensor = moved[valid.movedim(tap.channel_dim, -1)[..., 0]]
    return kept

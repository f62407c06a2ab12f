"""Queries and keys are turned by the angles of other positions: a table that is moved, ends early or starts anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from parity.diagnose.matching import stretch
from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant
from parity.diagnose.signature import Seen, signature

_SAME, _MOST = 1e-6, 4096


def detect(seen: Seen) -> str | None:
    """Find by which token's angles each token is turned, from a value before the rotation."""
    for before in seen.upstream.values():
        for planes in _pairings(before):
            tables = [_table(planes(side), planes(before)) for side in (seen.native, seen.reference)]
            ours, theirs = tables
            if ours is not None and theirs is not None and ours.shape == theirs.shape:
                return _said(ours, theirs)
    return None


def _pairings(value: Tensor) -> Iterator[Any]:
    """Yield the ways in which channels are planes: complex values [..., D / 2]."""
    if value.dim() > 2 and value.shape[-1] == 2:
        yield lambda v: torch.view_as_complex(v.contiguous())
    elif value.dim() > 1 and value.shape[-1] % 2 == 0:
        yield lambda v: torch.complex(v[..., 0::2], v[..., 1::2])
        yield lambda v: torch.complex(*v.chunk(2, -1))


def _table(turned: Tensor, before: Tensor) -> Tensor | None:
    """Return by what each token's planes were turned [S, D / 2], None where that is no rotation of each token alike."""
    size = before.abs()
    if turned.shape != before.shape or not bool((turned.abs() - size).abs().max() <= _SAME * size.max()):
        return None
    unit = turned / before.where(size > 0, torch.ones_like(before))
    for axis in range(unit.dim() - 1):
        rows = unit.movedim(axis, 0).reshape(unit.shape[axis], -1, unit.shape[-1])
        if 1 < len(rows) <= _MOST and bool((rows - rows[:, :1]).abs().max() <= _SAME):
            return rows[:, 0]
    return None


def _said(ours: Tensor, theirs: Tensor) -> str | None:
    apart = ((ours - theirs).abs().amax(1) > _SAME).nonzero().flatten().tolist()
    if not apart:
        return None
    if bool(((ours - 1).abs() <= _SAME).all()):
        return "not turned at all: RoPE is missing"
    if bool(((ours - theirs.conj()).abs() <= _SAME).all()):
        return "turned the other way: RoPE with the other sign"
    count, near = len(ours), torch.cdist(torch.view_as_real(ours).flatten(1), torch.view_as_real(theirs).flatten(1))
    distances, places = near.min(1)
    if bool((distances <= 10 * _SAME).all()):
        return f"turned by the angles of other positions: {_positions(places.tolist(), count)}"
    planes = ((ours - theirs).abs().amax(0) > _SAME).nonzero().flatten().tolist()
    return (
        f"turned by other angles (RoPE), at {len(apart)} of {count} tokens ({stretch(apart)}) "
        f"and in {len(planes)} of {ours.shape[1]} planes ({stretch(planes)})"
    )


def _positions(places: list[int], count: int) -> str:
    """Say which position each token has."""
    step = places[0] and count - places[0]
    if all(p == (t - step) % count for t, p in enumerate(places)):
        moved = step if step <= count // 2 else step - count
        return f"the table is rolled by {moved}, token {max(1, moved + 1)} is turned as {places[max(1, moved + 1)]} is"
    last = max(places)
    if all(p == min(t, last) for t, p in enumerate(places)):
        return f"they end at {last}, all later ones of {count} tokens are turned as that is"
    if all(p == t % (last + 1) for t, p in enumerate(places)):
        return f"they start anew every {last + 1} of {count} tokens"
    if places == list(range(count))[::-1]:
        return "they run backwards"
    other = [t for t, p in enumerate(places) if p != t]
    few = ", ".join(f"{t} as {places[t]}" for t in other[:3])
    return f"{len(other)} of {count} tokens are turned as others are ({few})"


def wrong(call: OpCall) -> Any:
    """Give every token the angles of the one before it."""
    if call.name not in ("cos", "sin"):
        return UNTOUCHED
    table = call.run()
    axis = max(range(table.dim() - 1), key=lambda d: int(table.shape[d]), default=0)
    return table.roll(1, axis) if table.dim() > 1 else UNTOUCHED


SIGNATURE = signature("rope_positions", "rope", 2, detect, OpPlant(wrong))

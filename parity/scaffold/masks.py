"""Where only valid tokens agree: the input that says which they are.

Letters in shapes: B batch, S tokens, C channels.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from parity.scaffold.layouts import AGREES, distance
from parity.scaffold.record import Seen
from parity.scaffold.taps import Spec
from parity.scaffold.trial import Trial


def masked(spec: Spec, trial: Trial) -> Spec:
    """Return the tap with the mask of its valid tokens, where its values agree under one of the inputs alone."""
    if spec.by_value or spec.stack is not None:
        return spec
    there, here = _value(spec, trial, 0), _value(spec, trial, 1)
    if there is None or here is None:
        return spec
    try:
        laid = spec.layout.forward(here, there.shape)
    except RuntimeError:
        return spec
    for name, given in trial.inputs.items():
        for dim in (None, 1):
            if isinstance(given, Tensor) and _decides(valid_mask(given, dim, there), laid, there):
                return replace(spec, valid=(name, dim), by_value=True)
    return spec


def valid_mask(given: Tensor, dim: int | None, like: Tensor) -> Tensor | None:
    """Return an input as a mask of a value's tokens, None where it is none. Shapes: [B, S] for like [B, S, C]."""
    if given.is_floating_point() or not bool(((given == 0) | (given == 1)).all()) or not bool((given == 0).any()):
        return None
    mask = given.bool() if dim is None else given.bool().unsqueeze(dim)
    if mask.dim() != like.dim() - 1:
        return None
    try:
        return mask.expand(like.shape[:-1])
    except RuntimeError:
        return None


def _decides(mask: Tensor | None, actual: Tensor, expected: Tensor) -> bool:
    return mask is not None and bool(mask.any()) and distance(actual[mask], expected[mask]) < AGREES


def _value(spec: Spec, trial: Trial, side: int) -> Tensor | None:
    seen = trial.reference_seen() if side == 0 else trial.native_seen()
    point = spec.reference if side == 0 else spec.native
    found: Seen | None = next((s for s in seen.points if s.point == point), None)
    return None if found is None else found.value



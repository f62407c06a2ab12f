"""Changes that are in both files, but under another module's name: exchanged layers, misnamed ones."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

from parity.lora.compare import RTOL, Comparison
from parity.lora.delta import Delta, apart, deltas_of
from parity.lora.loaded import LoadedLora, Target

_MOST = 512


def moved(first: LoadedLora, second: LoadedLora, found: Comparison) -> dict[str, str]:
    """Return which differing target of the first file is which of the second; the changes are the same up to `RTOL`."""
    wrong = set(found.apart)
    ours = _candidates(first.targets, wrong | set(found.missing_keys))
    theirs = _candidates(second.targets, wrong | set(found.unexpected_keys))
    out: dict[str, str] = {}
    for name, (target, norm) in ours.items():
        same = (other for other in theirs if other != name and _same_size(theirs[other], target, norm))
        match = next((other for other in same if _equal(target, theirs[other][0])), None)
        if match is not None:
            out[name] = match
    return out


def _candidates(targets: Mapping[str, Target], names: Collection[str]) -> dict[str, tuple[Target, float]]:
    held = [(name, targets[name]) for name in targets if name in names and targets[name].factors is not None]
    return {name: (target, norm) for name, target in held[:_MOST] if (norm := _weight(target).norm()) > 0}


def _weight(target: Target) -> Delta:
    return deltas_of(target)[target.module]


def _same_size(other: tuple[Target, float], target: Target, norm: float) -> bool:
    return other[0].shape == target.shape and math.isclose(other[1], norm, rel_tol=RTOL)


def _equal(one: Target, other: Target) -> bool:
    return apart(_weight(one), _weight(other)).rel_l2 <= RTOL


def worded(found: Mapping[str, str], names: tuple[str, str]) -> Iterable[str]:
    """Return a line for each of the first few."""
    pairs = list(found.items())
    lines = [f"moved: {one} of {names[0]} is {other} of {names[1]}" for one, other in pairs[:6]]
    return [*lines, f"and {len(pairs) - 6} more"] if len(pairs) > 6 else lines

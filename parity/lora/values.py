"""What the values of a LoRA file say: sizes of the changes, and what is broken or does nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from parity.lora.delta import Delta, deltas_of
from parity.lora.loaded import Factors, LoadedLora, Target
from parity.lora.problems import Problem, error, some, warning


@dataclass(frozen=True)
class Measured:
    """What was found in one target's values: the norm of the weight's change, and flaws."""

    norm: float
    changes: bool
    flaws: tuple[str, ...] = ()


def measured(target: Target) -> Measured:
    """Read a target and measure it."""
    held: list[tuple[str, Tensor]] = [(role, read()) for role, read in target.extras.items()]
    factors = target.factors() if target.factors is not None else None
    held += list(zip("AB", factors, strict=True)) if factors is not None else []
    if any(not bool(torch.isfinite(value).all()) for _, value in held):
        return Measured(math.nan, True, ("not_finite",))
    flaws = tuple(f"zero_{name.lower()}" for name, value in held if name in "AB" and not bool(value.any()))
    deltas = deltas_of(_kept(target, factors))
    changed = any(delta.norm() > 0 for delta in deltas.values()) or any("set_" in role for role, _ in held)
    return Measured(deltas.get(target.module, Delta(full=torch.zeros(1, 1))).norm(), changed, flaws)


def _kept(target: Target, factors: Factors | None) -> Target:
    """Return the target with its factors at hand, so that they are not read twice."""
    if factors is None:
        return target
    return Target(
        target.module, target.shape, scaling=target.scaling, factors=lambda: factors, extras=target.extras
    )


def value_problems(lora: LoadedLora, found: dict[str, Measured]) -> Iterator[Problem]:
    """Say what is wrong with the values."""
    broken = [module for module, one in found.items() if "not_finite" in one.flaws]
    if broken:
        yield error("not_finite", f"{len(broken)} of {len(found)} targets hold NaN or inf: {some(broken)}")
    for name in ("a", "b"):
        zero = [module for module, one in found.items() if f"zero_{name}" in one.flaws]
        if zero:
            text = f"{name.upper()} is zero in {len(zero)} of {len(found)} targets, which are not changed: {some(zero)}"
            yield warning(f"zero_{name}", text)
    if found and not any(one.changes for one in found.values()):
        yield error("changes_nothing", "the file changes nothing: every change in it is zero")
    yield from rank_problems(lora.targets.values())


def rank_problems(targets: Iterable[Target]) -> Iterator[Problem]:
    """Say where a rank is above what the layer can use."""
    above = [t for t in targets if t.factors is not None and (t.r or 0) > min(t.shape)]
    if above:
        first = above[0]
        text = f"r is above the dimensions of {len(above)} layers: r {first.r} for {first.module} {list(first.shape)}"
        yield warning("rank_above_dimensions", text)

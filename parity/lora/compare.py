"""Two LoRA files compared by what they do to each weight, whatever dialects they are in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch

from parity.lora.delta import Apart, apart, changed_names, deltas_of
from parity.lora.factors import near, worded_factor
from parity.lora.formats.names import flattened
from parity.lora.loaded import LoadedLora, Target
from parity.lora.problems import Problem, error, some

RTOL = 1e-6
"""Two files are the same below this: what one rounding of alpha or of float32 factors leaves."""


@dataclass(frozen=True)
class Comparison:
    """What two files do to each weight.

    Args:
        rows: by target, how far apart.
        missing_keys: targets only the first has; `unexpected_keys`: only the second.
        shapes: targets whose changes have different shapes, with both.
        rtol: below which relative distance two changes are the same.
        dtypes: what the factors of both files are stored in.
    """

    rows: Mapping[str, Apart]
    missing_keys: tuple[str, ...]
    unexpected_keys: tuple[str, ...]
    shapes: Mapping[str, tuple[tuple[int, int], tuple[int, int]]]
    rtol: float = RTOL
    dtypes: tuple[torch.dtype, ...] = ()

    @property
    def rounding(self) -> torch.dtype | None:
        """The coarser of two dtypes the files are stored in, where its rounding alone explains what differs."""
        if len(self.dtypes) < 2 or self.verdict == "same" or self.missing_keys or self.unexpected_keys or self.shapes:
            return None
        coarse = max(self.dtypes, key=lambda dtype: torch.finfo(dtype).eps)
        largest = max(self.rows[name].rel_l2 for name in self.apart)
        return coarse if largest < torch.finfo(coarse).eps else None

    @property
    def apart(self) -> list[str]:
        """Targets whose changes differ."""
        return [name for name, row in self.rows.items() if not row.rel_l2 <= self.rtol]

    @property
    def factor(self) -> float | None:
        """The one factor between the files, where every target differs by it and by nothing else."""
        if not self.apart or self.missing_keys or self.unexpected_keys or self.shapes:
            return None
        middle = median(row.ratio for row in self.rows.values())
        sign = math.copysign(1.0, median(row.cosine for row in self.rows.values()))
        limit = max(self.rtol, 1e-6)
        same = all(near(row.ratio, middle, limit) and abs(row.cosine - sign) < limit for row in self.rows.values())
        return sign * middle if same else None

    @property
    def verdict(self) -> str:
        """One of same, scaled, different, or nothing compared."""
        if not (self.rows or self.missing_keys or self.unexpected_keys or self.shapes):
            return "nothing compared"
        if not (self.apart or self.missing_keys or self.unexpected_keys or self.shapes):
            return "same"
        return "different" if self.factor is None else "scaled"

    def as_dict(self) -> dict[str, Any]:
        """Return it as `--json` prints it."""
        return {
            "target_modules": {name: asdict(row) for name, row in self.rows.items()},
            "missing_keys": list(self.missing_keys), "unexpected_keys": list(self.unexpected_keys),
            "shape_mismatches": {name: [list(a), list(b)] for name, (a, b) in self.shapes.items()},
            "verdict": self.verdict, "factor": self.factor, "rtol": self.rtol,
        }  # fmt: skip


def compared(first: LoadedLora, second: LoadedLora, rtol: float = RTOL) -> Comparison:
    """Compare target by target; names with underscores on one side are compared without dots on both."""
    ours, theirs = dict(first.targets), dict(second.targets)
    if first.underscored or second.underscored:
        dotted = {flattened(module): module for lora in (first, second) for module in lora.targets if "." in module}
        ours, theirs = _renamed(first, dotted), _renamed(second, dotted)
    rows: dict[str, Apart] = {}
    missing, shapes = [], {}
    for name, target in ours.items():
        other = theirs.get(name)
        if other is None:
            missing += list(_changing(target))
        elif target.shape != other.shape:
            shapes[name] = (target.shape, other.shape)
        else:
            left, right = deltas_of(target), deltas_of(other)
            missing += [key for key in left if key not in right and left[key].norm() > 0]
            rows |= {key: apart(left[key], right[key]) for key in left if key in right}
    unexpected = [key for name, target in theirs.items() for key in _left_over(target, ours.get(name))]
    dtypes = tuple({target.dtype for target in (*ours.values(), *theirs.values())})
    return Comparison(rows, tuple(missing), tuple(unexpected), shapes, rtol, dtypes)


def _renamed(lora: LoadedLora, dotted: Mapping[str, str]) -> dict[str, Target]:
    """Name targets as the side does that knows their dots; else without any."""
    names = {module: dotted.get(flattened(module), flattened(module)) for module in lora.targets}
    return {name: replace(lora.targets[module], module=name) for module, name in names.items()}


def _changing(target: Target) -> Iterator[str]:
    """Yield the names a target changes, without those it leaves as they are."""
    yield from (name for name, delta in deltas_of(target).items() if delta.norm() > 0)


def _left_over(target: Target, other: Target | None) -> Iterator[str]:
    if other is None:
        yield from _changing(target)
    elif target.shape == other.shape and (names := set(changed_names(target)) - set(changed_names(other))):
        yield from (name for name in _changing(target) if name in names)


def unreal(found: Comparison) -> list[Problem]:
    """Say where a change is no number, which differs from everything."""
    broken = [name for name, row in found.rows.items() if math.isnan(row.rel_l2)]
    return [error("not_finite", f"{len(broken)} targets hold NaN or inf: {some(broken)}")] if broken else []


def rendered(found: Comparison, names: tuple[str, str]) -> str:
    """Return the comparison in words: the verdict, then what differs."""
    lines = [_verdict(found, names)]
    if (coarse := found.rounding) is not None:
        name, eps = str(coarse).removeprefix("torch."), torch.finfo(coarse).eps
        lines.append(f"storing in {name} alone explains it: --rtol {eps:.1g} allows for that")
    if not found.rows and found.missing_keys and found.unexpected_keys:
        lines.append("no target in common: where the names are of two implementations, give a key map with --map")
    if found.missing_keys:
        lines.append(f"only in {names[0]}: {some(found.missing_keys, 6)}")
    if found.unexpected_keys:
        lines.append(f"only in {names[1]}: {some(found.unexpected_keys, 6)}")
    lines += [f"{name}: {list(a)} against {list(b)} [out, in]" for name, (a, b) in list(found.shapes.items())[:6]]
    worst = sorted(found.apart, key=lambda name: -found.rows[name].rel_l2)
    if worst:
        width = max(len(name) for name in worst[:12])
        lines += ["", f"{'module':<{width}}  {'rel_l2':>9}  {'cosine':>9}  {'ratio':>9}"]
        for name in worst[:12]:
            row = found.rows[name]
            lines.append(f"{name:<{width}}  {row.rel_l2:9.2e}  {row.cosine:9.6f}  {row.ratio:9.6g}")
        lines += [f"and {len(worst) - 12} more"] if len(worst) > 12 else []
    return "\n".join(lines)


def _verdict(found: Comparison, names: tuple[str, str]) -> str:
    count = len(found.rows)
    largest = max((row.rel_l2 for row in found.rows.values()), default=0.0)
    if found.verdict == "same":
        return f"same: {count} targets, largest relative distance {largest:.1e}"
    if found.verdict == "nothing compared":
        return "nothing compared: no target could be read on either side"
    if found.factor is not None:
        return f"scaled: {names[1]} is {worded_factor(found.factor)} {names[0]} in all {count} targets"
    wrong = len(found.apart)
    return f"different: {wrong} of {count} common targets differ, largest relative distance {largest:.2e}"


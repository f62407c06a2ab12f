"""The four comparisons that isolate a LoRA problem: both sides without it, both with it, and what it does to each.

A base that differs is a conversion problem; a base that agrees and a LoRA state that differs is a LoRA problem; a LoRA
that moves one side and not the other was not applied. Values are those of free-running passes, as a pipeline has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parity.draws import aligned
from parity.execution.passes import OUTPUT, mask_of
from parity.execution.tap import Inputs, Tap
from parity.execution.trace import Trace
from parity.numerics.metrics import classic_metrics


@dataclass(frozen=True)
class Apart:
    """How far two passes are apart at one tap, padding included."""

    tap: str
    mse: float
    rel_l2: float
    cosine: float


@dataclass(frozen=True)
class FourComparisons:
    """Passes compared tap by tap, the output last.

    Attributes:
        base: reference against native, without LoRA. lora: with it.
        on_reference, on_native: what the LoRA does to each side.
        ratio: size of the LoRA's effect on the native's output over that on the reference's; nan where that has none.
        alignment: cosine of the two effects on the output.
    """

    base: list[Apart]
    lora: list[Apart]
    on_reference: list[Apart]
    on_native: list[Apart]
    ratio: float
    alignment: float

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON holds it."""
        rows = {name: [vars(a) for a in getattr(self, name)] for name in ("base", "lora", "on_reference", "on_native")}
        return {**rows, "ratio": self.ratio, "alignment": self.alignment}


def four_comparisons(
    taps: Sequence[Tap], reference: tuple[Trace, Trace], native: tuple[Trace, Trace]
) -> FourComparisons:
    """Compare passes without and with the LoRA.

    Args:
        taps: the pair's taps.
        reference: its free-running passes without and with the LoRA.
        native: its own.

    Raises:
        TapError: a layout does not fit.
    """
    shared = [t for t in taps if t.reference and t.native]

    def value(trace: Trace, side: str, tap: Tap) -> Tensor:
        low = trace.values[tap.name].low
        return low if side == "reference" else aligned(tap, low, reference[0].values[tap.name].low.shape)

    def apart(one: tuple[Trace, str], other: tuple[Trace, str]) -> list[Apart]:
        return [_apart(t.name, value(*one, t), value(*other, t)) for t in shared]

    r = [(trace, "reference") for trace in reference]
    n = [(trace, "native") for trace in native]
    output = next(t for t in shared if t.name == OUTPUT)
    effects = [(value(*s[1], output).double() - value(*s[0], output).double()).flatten() for s in (r, n)]
    sizes = [float(e.norm()) for e in effects]
    ratio = sizes[1] / sizes[0] if sizes[0] else float("nan")
    alignment = float(effects[0] @ effects[1]) / (sizes[0] * sizes[1]) if all(sizes) else float("nan")
    return FourComparisons(apart(r[0], n[0]), apart(r[1], n[1]), apart(r[0], r[1]), apart(n[0], n[1]), ratio, alignment)


def lora_effects(
    taps: Sequence[Tap], without: tuple[Trace, Trace], with_lora: tuple[Trace, Trace], inputs: Inputs
) -> dict[str, dict[str, float]]:
    """Say at every tap how far the sides are apart without and with the LoRA, and how far it moves each of them.

    Args:
        taps: the pair's taps.
        without: the free-running passes of reference and native without the LoRA.
        with_lora: theirs with it.
        inputs: of all four; they say what is padding.

    Raises:
        TapError: a layout does not fit.
    """
    found = {}
    for tap in taps:
        if all(tap.name in trace.values for trace in (*without, *with_lora)):
            values = [trace.values[tap.name].low for trace in (*without, *with_lora)]
            shape = values[0].shape
            lined_up = [aligned(tap, v, shape) if n % 2 else v for n, v in enumerate(values)]
            found[tap.name] = _effects(tap, lined_up, inputs)
    return found


def _effects(tap: Tap, values: Sequence[Tensor], inputs: Inputs) -> dict[str, float]:
    keep = None if tap.valid is None else mask_of(tap, inputs, values[0])
    masked = values if keep is None else [torch.where(keep, v, 0) for v in values]
    wide = torch.complex128 if masked[0].is_complex() else torch.float64
    reference, native, reference_on, native_on = (v.to(wide).flatten() for v in masked)
    moved, moved_native = reference_on - reference, native_on - native
    size, size_native = float(moved.norm()), float(moved_native.norm())
    together = abs(complex(torch.vdot(moved, moved_native))) if moved.is_complex() else float(moved @ moved_native)
    return {
        "base": _over(float((native - reference).norm()), float(reference.norm())),
        "lora": _over(float((native_on - reference_on).norm()), float(reference_on.norm())),
        "on_reference": _over(size, float(reference.norm())),
        "on_native": _over(size_native, float(native.norm())),
        "ratio": _over(size_native, size),
        "alignment": _over(together, size * size_native),
    }


def _over(top: float, base: float) -> float:
    """Divide; nan where both are zero: there is nothing to compare."""
    return top / base if base else (float("nan") if top == 0 else float("inf"))


def _apart(name: str, expected: Tensor, actual: Tensor) -> Apart:
    found = classic_metrics(expected, actual)
    return Apart(name, found.mse, found.rel_l2, found.cosine)

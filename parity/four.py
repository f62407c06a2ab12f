"""The four comparisons that isolate a LoRA problem: both sides without it, both with it, and what it does to each.

A base that differs is a conversion problem; a base that agrees and a LoRA state that differs is a LoRA problem; a LoRA
that moves one side and not the other was not applied. Values are those of free-running passes, as a pipeline has them.
What is relative to an output hides a small LoRA altogether; so the two effects are compared with each other, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from parity.draws import aligned
from parity.execution.passes import OUTPUT, mask_of
from parity.execution.tap import Inputs, Tap
from parity.execution.trace import Trace
from parity.numerics.metrics import classic_metrics

COMPARISONS = ("base", "lora", "on_reference", "on_native")


@dataclass(frozen=True)
class Apart:
    """How far two passes are apart at one tap, padding left out."""

    tap: str
    mse: float
    rel_l2: float
    cosine: float


@dataclass(frozen=True)
class FourApart:
    """The four comparisons at one tap.

    Args:
        tap: its name.
        base, lora: reference against native, without the LoRA and with it.
        on_reference, on_native: what the LoRA does to each side.
        ratio: size of the effect on the native over that on the reference; nan where that has none.
        alignment: cosine of the two effects.
        of_effect: distance of the two effects over the size of the reference's: 1 where the native has none.
    """

    tap: str
    base: Apart
    lora: Apart
    on_reference: Apart
    on_native: Apart
    ratio: float
    alignment: float
    of_effect: float

    def as_dict(self) -> dict[str, Any]:
        """Return it as a record holds it: relative distances, and the two effects against each other."""
        found = {name: getattr(self, name).rel_l2 for name in COMPARISONS}
        return {"tap": self.tap, **found, "ratio": self.ratio, "alignment": self.alignment, "of_effect": self.of_effect}


@dataclass(frozen=True)
class FourComparisons:
    """Passes compared tap by tap, the output last."""

    rows: tuple[FourApart, ...]

    @property
    def output(self) -> FourApart:
        """The comparisons of the final output."""
        return self.rows[-1]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON holds it."""
        rows = {name: [vars(getattr(row, name)) for row in self.rows] for name in COMPARISONS}
        effects = [{k: v for k, v in row.as_dict().items() if k not in COMPARISONS} for row in self.rows]
        return {**rows, "effects": effects, "ratio": self.output.ratio, "alignment": self.output.alignment}


def four_comparisons(
    taps: Sequence[Tap], reference: tuple[Trace, Trace], native: tuple[Trace, Trace], inputs: Inputs | None = None
) -> FourComparisons:
    """Compare passes without and with the LoRA.

    Args:
        taps: the pair's taps; those a pass lacks are left out.
        reference: its free-running passes without and with the LoRA.
        native: its own.
        inputs: of all passes, for masks of what is valid; None: padding counts as well.

    Raises:
        TapError: a layout does not fit.
    """
    passes = (*reference, *native)
    shared = [t for t in taps if t.reference and t.native and all(t.name in p.values for p in passes)]
    return FourComparisons(tuple(_at(tap, reference, native, inputs) for tap in sorted(shared, key=_last)))


def _last(tap: Tap) -> bool:
    return tap.name == OUTPUT


def _at(tap: Tap, reference: tuple[Trace, Trace], native: tuple[Trace, Trace], inputs: Inputs | None) -> FourApart:
    low = [trace.values[tap.name].low for trace in reference]
    off, on = low
    theirs = [aligned(tap, trace.values[tap.name].low, off.shape) for trace in native]
    keep = _kept(tap, inputs, off)
    mine, other = (keep(one.double() - zero.double()) for zero, one in (low, theirs))
    size, second = float(mine.norm()), float(other.norm())

    def apart(expected: Tensor, actual: Tensor) -> Apart:
        return _apart(tap, keep(expected), keep(actual))

    return FourApart(
        tap.name, apart(off, theirs[0]), apart(on, theirs[1]), apart(off, on), apart(theirs[0], theirs[1]),
        second / size if size else float("nan"),
        float((mine * other).sum()) / (size * second) if size and second else float("nan"),
        float((other - mine).norm()) / size if size else float("nan"),
    )  # fmt: skip


def _kept(tap: Tap, inputs: Inputs | None, like: Tensor) -> Callable[[Tensor], Tensor]:
    if inputs is None or tap.valid is None:
        return lambda value: value
    mask = mask_of(tap, inputs, like).expand(like.shape)
    return (lambda value: value[mask]) if bool(mask.any()) else (lambda value: value.new_zeros(1))


def _apart(tap: Tap, expected: Tensor, actual: Tensor) -> Apart:
    found = classic_metrics(expected, actual)
    return Apart(tap.name, found.mse, found.rel_l2, found.cosine)

"""What the other interpreter is asked about a reference that was recorded: nearest variants, and values of ops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from parity.diagnose.candidates import Target
from parity.diagnose.nearest import Nearest
from parity.stage import DrawOf, Question, ReferenceStage


def nearest_asked(
    stage: ReferenceStage, draw: DrawOf, targets: Sequence[Target], low: torch.dtype
) -> dict[str, Nearest] | None:
    """Ask for the nearest variants of the reference; None where it cannot be loaded anywhere.

    Raises:
        ParityError: the interpreter is not usable, or the reference is no longer the one recorded.
    """
    note = {"low": str(low).removeprefix("torch."), "wide": [t.name for t in targets if t.wide]}
    answer = stage.asked(Question("nearest", draw, note, {t.name: t.native for t in targets}))
    return None if answer is None else {str(name): Nearest.from_data(n) for name, n in answer["nearest"].items()}


def values_asked(stage: ReferenceStage, draw: DrawOf, taps: Sequence[str]) -> Mapping[str, Tensor]:
    """Ask for the values of the ops that taps are made of; none where the reference cannot be loaded anywhere.

    Raises:
        ParityError: the interpreter is not usable, or the reference is no longer the one recorded.
    """
    answer = stage.asked(Question("values", draw, {"taps": list(taps)})) if taps else None
    held: Mapping[str, Tensor] = {} if answer is None else answer.get("tensors", {})
    return held

"""Impact: what the native's error at a tap does to the output, against the reference's own rounding error there."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from parity.execution.passes import OUTPUT, ExactAt
from parity.execution.shadow import Shadow
from parity.execution.tap import Inputs, Tap
from parity.loaded import LoadedSide
from parity.numerics.evidence import rows_of
from parity.stage import Nudge


class _Nudged:
    """A restart that adds errors to the reference's own values."""

    def __init__(self, nudges: Sequence[Nudge]) -> None:
        self._left = {n.tap.name: n.delta for n in nudges}
        self._at: dict[str, int] = {}

    def __call__(self, tap: Tap, value: Tensor, number: int) -> Tensor | None:
        delta = self._left.get(tap.name)
        if delta is None:
            return None
        start = self._at.get(tap.name, 0)
        rows = value.shape[0] if value.dim() else 1
        self._at[tap.name] = start + rows
        part = delta if delta.shape == value.shape else delta[start : start + rows]
        wide = torch.promote_types(value.dtype, torch.float32)
        return (value.to(wide) + part.to(value.device, wide)).to(value.dtype)


class Impact:
    """Propagates errors through the reference, all other values its own.

    The noise is that of one free-running shadow pass, given what the embeddings handed to the blocks: a timestep that
    the reference rounds on purpose is part of its function, and would drown everything else as noise.
    Besides the whole output its mean per channel counts: a coherent error (a shift of every token) is seen in a video
    long before its norm rises above incoherent noise.
    """

    def __init__(self, reference: LoadedSide, taps: tuple[Tap, ...], inputs: Inputs) -> None:
        self._runner = reference.runner(taps)
        self._inputs = inputs
        shadow = reference.shadow(Shadow, inputs)
        value = self._runner.run(inputs, ExactAt(_embeddings(taps)), shadow).values[OUTPUT]
        assert value.high is not None
        self._channel = next((t.channel_dim for t in taps if t.name == OUTPUT), 1)
        self._low = value.low
        noise = self._rows(value.low) - self._rows(value.high)
        self._total = float(noise.square().mean().sqrt())
        # A few channels give a lucky mean: never take less than incoherent noise of this size would have.
        self._mean = max(float(noise.mean(0).square().mean().sqrt()), self._total / math.sqrt(len(noise)))

    def _rows(self, value: Tensor) -> Tensor:
        return rows_of(value, self._channel)

    def of(self, nudges: Sequence[Nudge]) -> float:
        """Return the larger of the two ratios: whole output, and mean per channel."""
        inner = [n for n in nudges if n.tap.name != OUTPUT]
        change = self._rows(torch.zeros_like(self._low))
        if inner:
            nudged = self._runner.run(self._inputs, _Nudged(inner)).values[OUTPUT].low
            change = self._rows(nudged) - self._rows(self._low)
        for n in nudges:
            if n.tap.name == OUTPUT:
                change = change + self._rows(n.delta)
        if not bool(change.isfinite().all()):
            return math.inf
        total, mean = change.square().mean().sqrt(), change.mean(0).square().mean().sqrt()
        return max(_over(total, self._total), _over(mean, self._mean))


def _embeddings(taps: Sequence[Tap]) -> frozenset[str]:
    """Return the taps before the first block."""
    first = next((i for i, t in enumerate(taps) if t.block), 0)
    return frozenset(t.name for t in taps[:first])


def _over(value: Tensor, noise: float) -> float:
    size = float(value)
    return size / noise if noise else (0.0 if size == 0.0 else math.inf)
